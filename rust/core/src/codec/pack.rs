//! Packing: the values of an activation to the dtype it is stored as.
//!
//! Values are rounded to the nearest, ties to even, straight from the source: `float64` is not rounded twice. Infinities,
//! the sign of zero and subnormals are kept. A NaN becomes a quiet NaN of the same sign, and of its payload only upper bits
//! are kept. A tensor that is not converted keeps every bit.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::find;
use crate::error::{Error, Kind, Result};
use crate::tensor::{Dtype, Tensor};

/// Values converted at a time.
const BLOCK: usize = 256;
/// Values counted at a time: so few that no sum of theirs exceeds a byte.
const COUNTED: usize = 128;
const SIGN: u16 = 0x8000;

/// What happens to finite values that would round to infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The activation is refused.
    Error,
    /// They become the largest finite value of their sign, and are counted.
    Saturate,
    /// The activation keeps its dtype.
    Keep,
}

impl Overflow {
    /// Every policy.
    pub const ALL: &[Overflow] = &[Overflow::Error, Overflow::Saturate, Overflow::Keep];

    /// The name in options and manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Overflow::Error => "error",
            Overflow::Saturate => "saturate",
            Overflow::Keep => "keep",
        }
    }

    /// The policy called `name`.
    pub fn parse(name: &str) -> Result<Self> {
        find(Self::ALL, "overflow policy", name, |policy| policy.name())
    }
}

/// What activations are packed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pack {
    /// `float16` or `bfloat16`; `None` keeps every dtype.
    pub dtype: Option<Dtype>,
    /// What happens to values beyond its range.
    pub overflow: Overflow,
}

/// What packing met in one activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackCounts {
    /// NaN and infinities. They are stored as what they are.
    pub nonfinite: u64,
    /// Finite values that became the largest finite one.
    pub saturated: u64,
}

impl Pack {
    /// Checks that `dtype` is one that activations are packed to.
    pub fn new(dtype: Option<Dtype>, overflow: Overflow) -> Result<Self> {
        match dtype {
            None | Some(Dtype::Float16 | Dtype::BFloat16) => Ok(Self { dtype, overflow }),
            Some(other) => {
                let message = format!("cannot pack to `{}`: one of float16, bfloat16", other.name());
                Err(Error::new(Kind::InvalidOption, message))
            }
        }
    }

    /// Whether activations of `dtype` may come out as another dtype.
    pub fn converts(&self, dtype: Dtype) -> bool {
        self.dtype.is_some_and(|wanted| wanted != dtype) && Source::of(dtype).is_some()
    }

    /// Converts float16, bfloat16, float32 and float64 to the dtype asked for; a tensor of any other dtype, or of that
    /// one, comes back as it is. Non-finite values are counted either way.
    pub fn apply(&self, tensor: Tensor) -> Result<(Tensor, PackCounts)> {
        let dtype = tensor.layout().dtype();
        let nonfinite = count_nonfinite(dtype, tensor.bytes());
        let kept = PackCounts { nonfinite, saturated: 0 };
        let wanted = self.dtype.filter(|&wanted| wanted != dtype).and_then(Target::of);
        let Some((target, source)) = wanted.zip(Source::of(dtype)) else { return Ok((tensor, kept)) };
        let (packed, saturated) = convert(source, target, tensor.bytes());
        match self.overflow {
            Overflow::Error if saturated > 0 => Err(overflow(saturated, &largest(source, tensor.bytes()), target)),
            Overflow::Keep if saturated > 0 => Ok((tensor, kept)),
            _ => {
                let layout = tensor.layout().with_dtype(target.dtype())?;
                Ok((Tensor::new(layout, packed)?, PackCounts { nonfinite, saturated }))
            }
        }
    }
}

fn overflow(values: u64, largest: &str, target: Target) -> Error {
    let (name, limit) = (target.dtype().name(), target.limit());
    let message = format!(
        "`{values}` finite values are beyond {name}: the largest magnitude is `{largest}`, the limit {limit}; \
         overflow `saturate` clamps them, `keep` keeps the dtype of the activation"
    );
    Error::new(Kind::Float16Overflow, message)
}

/// The values of `bytes` rounded to `target`, and how many finite ones it had to clamp.
fn convert(source: Source, target: Target, bytes: &[u8]) -> (Vec<u8>, u64) {
    let mut packed = vec![0; bytes.len() / source.size() * 2];
    let mut clamped = 0;
    let (mut wide, mut narrow) = ([0.0; BLOCK], [0; BLOCK]);
    for (raw, out) in bytes.chunks(BLOCK * source.size()).zip(packed.chunks_mut(BLOCK * 2)) {
        source.widen(raw, &mut wide);
        target.round(&wide, &mut narrow);
        let mut count = 0_u32;
        for ((out, &bits), value) in out.chunks_exact_mut(2).zip(&narrow).zip(&wide) {
            let beyond = bits & !SIGN == target.infinity() && value.is_finite();
            count += u32::from(beyond);
            // The largest finite value is the one before infinity.
            out.copy_from_slice(&(bits - u16::from(beyond)).to_le_bytes());
        }
        clamped += u64::from(count);
    }
    (packed, clamped)
}

/// The largest finite magnitude, for people.
fn largest(source: Source, bytes: &[u8]) -> String {
    if let Source::Float64 = source {
        let finite = bytes.chunks_exact(8).map(|raw| double(raw).abs()).filter(|value| value.is_finite());
        return format!("{:e}", finite.fold(0.0, f64::max));
    }
    let mut wide = [0.0; BLOCK];
    let mut largest = 0.0;
    for raw in bytes.chunks(BLOCK * source.size()) {
        source.widen(raw, &mut wide);
        let finite = wide.iter().map(|value| value.abs()).filter(|value| value.is_finite());
        largest = finite.fold(largest, f32::max);
    }
    format!("{largest:e}")
}

/// A dtype that is packed to.
#[derive(Clone, Copy)]
enum Target {
    Float16,
    BFloat16,
}

impl Target {
    fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::Float16 => Some(Target::Float16),
            Dtype::BFloat16 => Some(Target::BFloat16),
            _ => None,
        }
    }

    const fn dtype(self) -> Dtype {
        match self {
            Target::Float16 => Dtype::Float16,
            Target::BFloat16 => Dtype::BFloat16,
        }
    }

    const fn infinity(self) -> u16 {
        match self {
            Target::Float16 => 0x7C00,
            Target::BFloat16 => 0x7F80,
        }
    }

    const fn limit(self) -> &'static str {
        match self {
            Target::Float16 => "65504",
            Target::BFloat16 => "3.3895314e38",
        }
    }

    fn round(self, wide: &[f32; BLOCK], narrow: &mut [u16; BLOCK]) {
        match self {
            Target::Float16 => narrow.reinterpret_cast_mut::<f16>().convert_from_f32_slice(wide),
            Target::BFloat16 => narrow.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(wide),
        }
    }
}

/// A dtype that is packed from.
#[derive(Clone, Copy)]
enum Source {
    Float16,
    BFloat16,
    Float32,
    Float64,
}

impl Source {
    fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::Float16 => Some(Source::Float16),
            Dtype::BFloat16 => Some(Source::BFloat16),
            Dtype::Float32 => Some(Source::Float32),
            Dtype::Float64 => Some(Source::Float64),
            _ => None,
        }
    }

    const fn size(self) -> usize {
        match self {
            Source::Float16 | Source::BFloat16 => 2,
            Source::Float32 => 4,
            Source::Float64 => 8,
        }
    }

    /// Fills the first values of `wide` from `raw`. A `float64` is narrowed in a way that rounding it to 16 bits
    /// afterwards rounds it once.
    fn widen(self, raw: &[u8], wide: &mut [f32; BLOCK]) {
        let values = raw.chunks_exact(self.size());
        match self {
            Source::Float16 => {
                let mut halves = [f16::ZERO; BLOCK];
                halves.iter_mut().zip(values).for_each(|(half, raw)| *half = f16::from_bits(short(raw)));
                halves.convert_to_f32_slice(wide);
            }
            Source::BFloat16 => {
                wide.iter_mut().zip(values).for_each(|(wide, raw)| *wide = f32::from_bits(u32::from(short(raw)) << 16));
            }
            Source::Float32 => wide.iter_mut().zip(values).for_each(|(wide, raw)| *wide = single(raw)),
            Source::Float64 => wide.iter_mut().zip(values).for_each(|(wide, raw)| *wide = to_odd(double(raw))),
        }
    }
}

/// Rounds to `f32` so that a second rounding, to fewer bits, sees on which side of a tie the value was: where it is not
/// exact, the last bit of the smaller neighbour is set.
fn to_odd(value: f64) -> f32 {
    #[allow(clippy::cast_possible_truncation, reason = "what the cast loses is put back below")]
    let nearest = value as f32;
    let back = f64::from(nearest);
    let inexact = u32::from(back != value);
    let smaller = nearest.to_bits() - u32::from(back.abs() > value.abs());
    f32::from_bits(smaller | inexact)
}

/// How many values are NaN or infinite.
pub(crate) fn count_nonfinite(dtype: Dtype, bytes: &[u8]) -> u64 {
    match dtype {
        Dtype::Float16 => count(bytes, |raw| short(raw) & 0x7C00 == 0x7C00, 2),
        Dtype::BFloat16 => count(bytes, |raw| short(raw) & 0x7F80 == 0x7F80, 2),
        Dtype::Float32 => count(bytes, |raw| single(raw).to_bits() & 0x7F80_0000 == 0x7F80_0000, 4),
        Dtype::Float64 => count(bytes, |raw| double(raw).to_bits() >> 52 & 0x7FF == 0x7FF, 8),
        // Without infinities: all ones is NaN, the other values of the largest exponent are finite.
        Dtype::Float8E4M3 => count(bytes, |raw| byte(raw) & 0x7F == 0x7F, 1),
        Dtype::Float8E5M2 => count(bytes, |raw| byte(raw) & 0x7C == 0x7C, 1),
        _ => 0,
    }
}

#[inline(always)]
fn count(bytes: &[u8], nonfinite: impl Fn(&[u8]) -> bool, size: usize) -> u64 {
    let blocks = bytes.chunks(COUNTED * size);
    blocks.map(|block| u64::from(block.chunks_exact(size).map(|raw| u8::from(nonfinite(raw))).sum::<u8>())).sum()
}

fn byte(raw: &[u8]) -> u8 {
    raw.first().copied().unwrap_or(0)
}

fn short(raw: &[u8]) -> u16 {
    raw.try_into().map_or(0, u16::from_le_bytes)
}

fn single(raw: &[u8]) -> f32 {
    raw.try_into().map_or(0.0, f32::from_le_bytes)
}

fn double(raw: &[u8]) -> f64 {
    raw.try_into().map_or(0.0, f64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data")]

    use proptest::prelude::*;

    use super::*;
    use crate::tensor::Layout;

    const TARGETS: [Dtype; 2] = [Dtype::Float16, Dtype::BFloat16];
    const FLOATS: [Dtype; 4] = [Dtype::Float16, Dtype::BFloat16, Dtype::Float32, Dtype::Float64];

    fn tensor(dtype: Dtype, bytes: Vec<u8>) -> Tensor {
        Tensor::new(Layout::new(dtype, vec![(bytes.len() / dtype.size()) as u64]).unwrap(), bytes).unwrap()
    }

    fn singles(values: &[f32]) -> Tensor {
        tensor(Dtype::Float32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn doubles(values: &[f64]) -> Tensor {
        tensor(Dtype::Float64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn packed(tensor: &Tensor, dtype: Dtype, overflow: Overflow) -> (Tensor, PackCounts) {
        Pack::new(Some(dtype), overflow).unwrap().apply(tensor.clone()).unwrap()
    }

    fn words(tensor: &Tensor) -> Vec<u16> {
        tensor.bytes().chunks_exact(2).map(short).collect()
    }

    /// The magnitude of a 16-bit pattern without sign; infinity is taken for the next power of two.
    fn magnitude(dtype: Dtype, bits: u16) -> f64 {
        match dtype {
            Dtype::Float16 if bits == 0x7C00 => 65_536.0,
            Dtype::Float16 => f16::from_bits(bits).to_f64_const(),
            _ if bits == 0x7F80 => 2_f64.powi(128),
            _ => f64::from(f32::from_bits(u32::from(bits) << 16)),
        }
    }

    /// Round to nearest, ties to even, by search. Every midpoint is exact in `f64`.
    fn nearest(dtype: Dtype, value: f64) -> u16 {
        let infinity = if dtype == Dtype::Float16 { 0x7C00 } else { 0x7F80 };
        let sign = if value.is_sign_negative() { SIGN } else { 0 };
        let (mut low, mut high) = (0, infinity);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if magnitude(dtype, middle) <= value.abs() { low = middle } else { high = middle }
        }
        let tie = f64::midpoint(magnitude(dtype, low), magnitude(dtype, high));
        let up = value.abs() > tie || (value.abs() == tie && low & 1 == 1);
        sign | if up { high } else { low }
    }

    fn expect_nearest(dtype: Dtype, values: &[f64], tensor: &Tensor) {
        let infinity = if dtype == Dtype::Float16 { 0x7C00 } else { 0x7F80 };
        let (result, counts) = packed(tensor, dtype, Overflow::Saturate);
        assert_eq!(result.layout().dtype(), dtype);
        let (mut saturated, mut nonfinite) = (0, 0);
        for (&value, bits) in values.iter().zip(words(&result)) {
            let quiet = if dtype == Dtype::Float16 { 0x200 } else { 0x40 };
            let expected = match nearest(dtype, value) {
                _ if value.is_nan() => {
                    nonfinite += 1;
                    assert!(bits & !SIGN > infinity && bits & quiet != 0, "{value} became {bits:#x}");
                    assert_eq!(bits & SIGN != 0, value.is_sign_negative());
                    continue;
                }
                bits if value.is_infinite() => {
                    nonfinite += 1;
                    bits & SIGN | infinity
                }
                bits if bits & !SIGN == infinity => {
                    saturated += 1;
                    bits - 1
                }
                bits => bits,
            };
            assert_eq!(bits, expected, "{value:e} in {}", dtype.name());
        }
        assert_eq!(counts, PackCounts { nonfinite, saturated });
    }

    #[test]
    fn every_16_bit_value_is_rounded_to_the_other_dtype() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let halves: Vec<f64> = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f64_const()).collect();
        expect_nearest(Dtype::BFloat16, &halves, &tensor(Dtype::Float16, all.clone()));
        let brains: Vec<f64> = (0..=u16::MAX).map(|bits| f64::from(f32::from_bits(u32::from(bits) << 16))).collect();
        expect_nearest(Dtype::Float16, &brains, &tensor(Dtype::BFloat16, all));
    }

    #[test]
    fn ties_and_their_neighbours_are_rounded_once() {
        for dtype in TARGETS {
            let last = if dtype == Dtype::Float16 { 0x7BFF } else { 0x7F7F };
            let ties = (0..=last).map(|bits| f64::midpoint(magnitude(dtype, bits), magnitude(dtype, bits + 1)));
            // Next to the tie in `f64`, and between it and its neighbours in `f32`, nearer to those.
            let around = |tie: f64| {
                let (double, single) = (tie.to_bits(), (tie as f32).to_bits());
                let beside = |next: u32| tie * 0.25 + f64::from(f32::from_bits(next)) * 0.75;
                let next =
                    [f64::from_bits(double + 1), f64::from_bits(double - 1), beside(single + 1), beside(single - 1)];
                [tie].into_iter().chain(next).flat_map(|value| [value, -value])
            };
            let values: Vec<f64> = ties.flat_map(around).collect();
            expect_nearest(dtype, &values, &doubles(&values));
            let narrow: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            let exact: Vec<f64> = narrow.iter().map(|&value| f64::from(value)).collect();
            expect_nearest(dtype, &exact, &singles(&narrow));
        }
        let edges =
            [f64::MAX, f64::MIN_POSITIVE, 5e-324, -5e-324, 0.0, -0.0, 1e-46, f64::INFINITY, -f64::NAN, f64::NAN];
        TARGETS.iter().for_each(|&dtype| expect_nearest(dtype, &edges, &doubles(&edges)));
    }

    #[test]
    fn the_policies_of_overflow() {
        let source = singles(&[1.0, 65_519.0, -65_520.0, 7e4, f32::INFINITY, f32::NAN]);
        let kept = PackCounts { nonfinite: 2, saturated: 0 };
        assert_eq!(packed(&source, Dtype::Float16, Overflow::Keep), (source.clone(), kept));
        let (saturated, counts) = packed(&source, Dtype::Float16, Overflow::Saturate);
        assert_eq!(words(&saturated), [0x3C00, 0x7BFF, 0xFBFF, 0x7BFF, 0x7C00, 0x7E00]);
        assert_eq!(counts, PackCounts { nonfinite: 2, saturated: 2 });
        let refuse = |tensor, dtype| Pack::new(Some(dtype), Overflow::Error).unwrap().apply(tensor).unwrap_err();
        let error = refuse(source, Dtype::Float16);
        assert_eq!(error.kind(), Kind::Float16Overflow);
        assert_eq!(
            error.to_string(),
            "`2` finite values are beyond float16: the largest magnitude is `7e4`, the limit 65504; \
             overflow `saturate` clamps them, `keep` keeps the dtype of the activation"
        );
        let message = refuse(doubles(&[-1e300, 3.39e38]), Dtype::BFloat16).to_string();
        assert!(
            message
                .starts_with("`1` finite values are beyond bfloat16: the largest magnitude is `1e300`, the limit 3.3")
        );
        // Nothing beyond the range: the policy does not matter.
        let fine = singles(&[1.0, f32::INFINITY]);
        for &policy in Overflow::ALL {
            let (result, counts) = packed(&fine, Dtype::Float16, policy);
            assert_eq!((words(&result), counts), (vec![0x3C00, 0x7C00], PackCounts { nonfinite: 1, saturated: 0 }));
        }
    }

    #[test]
    fn a_short_last_block_is_counted_once() {
        let mut values = vec![1e5; BLOCK];
        values.push(1.0);
        // What the first block left behind is in no value of the second.
        let (result, counts) = packed(&singles(&values), Dtype::Float16, Overflow::Saturate);
        assert_eq!((counts.saturated, words(&result)[BLOCK]), (BLOCK as u64, 0x3C00));
        values[0] = 3e5;
        let error = Pack::new(Some(Dtype::Float16), Overflow::Error).unwrap().apply(singles(&values)).unwrap_err();
        assert!(error.to_string().contains("`256` finite") && error.to_string().contains("`3e5`"), "{error}");
    }

    #[test]
    fn what_is_not_converted_keeps_every_bit() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for &dtype in Dtype::ALL {
            let source = tensor(dtype, bytes.clone());
            for target in [None, Some(Dtype::Float16), Some(Dtype::BFloat16)] {
                let (result, _) = Pack::new(target, Overflow::Saturate).unwrap().apply(source.clone()).unwrap();
                let converts = FLOATS.contains(&dtype) && target.is_some_and(|target| target != dtype);
                assert_eq!(result == source, !converts, "{} to {target:?}", dtype.name());
            }
        }
    }

    #[test]
    fn the_shape_is_kept() {
        for shape in [vec![], vec![0, 5], vec![2, 3, 4]] {
            let layout = Layout::new(Dtype::Float32, shape.clone()).unwrap();
            let bytes = vec![0; layout.bytes() as usize];
            let (result, _) = packed(&Tensor::new(layout, bytes).unwrap(), Dtype::BFloat16, Overflow::Error);
            assert_eq!(result.layout(), &Layout::new(Dtype::BFloat16, shape).unwrap());
        }
    }

    #[test]
    fn every_value_that_is_not_finite_is_counted() {
        let count = |dtype, bytes: Vec<u8>| {
            let keep = Pack { dtype: None, overflow: Overflow::Error };
            keep.apply(tensor(dtype, bytes)).unwrap().1
        };
        let nonfinite = |nonfinite| PackCounts { nonfinite, saturated: 0 };
        let pairs: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        assert_eq!(count(Dtype::Float16, pairs.clone()), nonfinite(2 * 1024));
        assert_eq!(count(Dtype::BFloat16, pairs), nonfinite(2 * 128));
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(count(Dtype::Float8E4M3, bytes.clone()), nonfinite(2));
        assert_eq!(count(Dtype::Float8E5M2, bytes), nonfinite(2 * 4));
        for dtype in Dtype::ALL.iter().filter(|dtype| dtype.size() > 1 || FLOATS.contains(dtype)) {
            let floats = FLOATS.contains(dtype);
            assert_eq!(count(*dtype, vec![0xFF; 1600]), nonfinite(if floats { 1600 / dtype.size() as u64 } else { 0 }));
        }
        for integers in [Dtype::Int8, Dtype::UInt8, Dtype::Bool] {
            assert_eq!(count(integers, vec![0xFF; 16]), PackCounts::default());
        }
    }

    #[test]
    fn options_are_checked() {
        for &policy in Overflow::ALL {
            assert_eq!(Overflow::parse(policy.name()).unwrap(), policy);
        }
        let error = Overflow::parse("clip").unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidOption);
        assert_eq!(error.to_string(), "unknown overflow policy `clip`: one of error, saturate, keep");
        for &dtype in Dtype::ALL {
            assert_eq!(Pack::new(Some(dtype), Overflow::Keep).is_ok(), TARGETS.contains(&dtype));
        }
        let error = Pack::new(Some(Dtype::Int8), Overflow::Keep).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidOption);
        assert_eq!(error.to_string(), "cannot pack to `int8`: one of float16, bfloat16");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn any_single_is_rounded_to_the_nearest(bits in prop::collection::vec(any::<u32>(), 0..600)) {
            let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
            let exact: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
            let source = singles(&values);
            TARGETS.iter().for_each(|&dtype| expect_nearest(dtype, &exact, &source));
            let software: Vec<u16> = values.iter().map(|&value| f16::from_f32_const(value).to_bits()).collect();
            let pack = Pack::new(Some(Dtype::Float16), Overflow::Keep).unwrap();
            let (result, counts) = pack.apply(source).unwrap();
            prop_assert_eq!(counts.nonfinite, values.iter().filter(|value| !value.is_finite()).count() as u64);
            if result.layout().dtype() == Dtype::Float16 {
                prop_assert_eq!(words(&result), software);
            }
        }

        #[test]
        fn any_double_is_rounded_to_the_nearest(
            values in prop::collection::vec(prop_oneof![any::<f64>(), -1e5..1e5, -1e-6..1e-6, -1e-39..1e-39], 0..300),
        ) {
            let source = doubles(&values);
            TARGETS.iter().for_each(|&dtype| expect_nearest(dtype, &values, &source));
        }
    }
}
