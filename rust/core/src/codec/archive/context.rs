//! Where a value is expected, given the one below it: FORMAT.md, section 7.4.
//!
//! Each loop has numbers of one size, so that it fills vectors of any kind: predictions are cut to their upper 16 bits, of
//! which alone a place is made. Conditions are masks, which all vectors have.

/// Contexts, each with a code of its own.
pub(super) const CONTEXTS: usize = 16;
/// Symbols that stand for a place near where the value is expected; the next one is the escape.
pub(super) const ESCAPE: usize = ESCAPE_SYMBOL as usize;
/// [`ESCAPE`], as symbols are.
pub(super) const ESCAPE_SYMBOL: u16 = 2 << (OCTAVES + SUB_BITS);
/// What a row's step adds to a channel's half octaves, so that none is so small that processors which treat the smallest
/// numbers as zero would come to another answer.
const HALF_OCTAVES: i16 = 66;
/// Half octaves of a spread of 1.
pub(super) const OF_ONE: u8 = 180;
/// Exponents below which the sign of a prediction is not used, for the same reason.
const SMALLEST_SIGNED: i16 = 32;
/// Symbols reach over two to the power of so many octaves.
const OCTAVES: u32 = 4;
/// Mantissa bits of a symbol.
const SUB_BITS: u32 = 2;
/// Octaves above its spread where the symbols of a value end that is not known to be larger.
const ABOVE: i16 = 5;

/// A dtype of two bytes.
pub(super) trait Half {
    /// Bits of a mantissa.
    const MANTISSA: u32;
    /// What its exponents are smaller by than those of float32.
    const BIAS: i16;
    /// Bits that no symbol has.
    const RAW: u32 = Self::MANTISSA - SUB_BITS;
    /// The value, or 0 for one that is not normal.
    fn widen(bits: u16) -> f32;
}

/// [`crate::tensor::Dtype::BFloat16`].
pub(super) struct BFloat16;

impl Half for BFloat16 {
    const MANTISSA: u32 = 7;
    const BIAS: i16 = 0;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits & is_normal::<Self>(bits)) << 16)
    }
}

/// [`crate::tensor::Dtype::Float16`].
pub(super) struct Float16;

impl Half for Float16 {
    const MANTISSA: u32 = 10;
    const BIAS: i16 = 112;

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        let is_normal = i32::from(is_normal::<Self>(bits).cast_signed()).cast_unsigned();
        let magnitude = (u32::from(bits & 0x7FFF) << 13).wrapping_add(112 << 23);
        f32::from_bits((u32::from(bits & 0x8000) << 16 | magnitude) & is_normal)
    }
}

/// All ones where neither all nor none of the bits of an exponent are, in one comparison: signed, as all vectors have it.
#[inline(always)]
fn is_normal<H: Half>(bits: u16) -> u16 {
    let least = 2 << H::MANTISSA;
    let above = (bits << 1).wrapping_sub(least).wrapping_add(0x8000).cast_signed();
    u16::from(above < (0x8000_u16.wrapping_sub(2 * least)).cast_signed()).wrapping_neg()
}

/// What a model knows of each channel: its value is about `slopes` times the one below plus `offsets`, and differs from
/// that by about `half_octaves`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Channels {
    pub(super) slopes: Vec<f32>,
    pub(super) offsets: Vec<f32>,
    /// Below 256.
    pub(super) half_octaves: Vec<u16>,
}

impl Channels {
    /// One over what the values differ by. Only an encoder uses it.
    pub(super) fn scales(&self) -> Vec<f32> {
        self.half_octaves.iter().map(|&spread| (0.5 * (f32::from(OF_ONE) - f32::from(spread))).exp2()).collect()
    }
}

/// The expected value, given the one below: two steps, each rounded to float32.
#[inline(always)]
pub(super) fn expect<H: Half>(slope: f32, offset: f32, below: [u8; 2]) -> f32 {
    let product = slope * H::widen(u16::from_le_bytes(below));
    product + offset
}

/// The bits of an expected value that its place is made of.
#[inline(always)]
pub(super) fn upper(expected: f32) -> u16 {
    // Signed, since vectors of any kind can narrow numbers that do not change by it.
    ((expected.to_bits().cast_signed() >> 16) as i16).cast_unsigned()
}

/// The upper bits of the expected values, given those below.
#[inline(always)]
pub(super) fn predict<H: Half>(channels: &Channels, below: &[[u8; 2]], uppers: &mut [u16]) {
    let parameters = channels.slopes.iter().zip(&channels.offsets);
    for ((to, (&slope, &offset)), &below) in uppers.iter_mut().zip(parameters).zip(below) {
        *to = upper(expect::<H>(slope, offset, below));
    }
}

/// The context of each value, times `2^SHIFT`, and the bits that the first of its symbols stands for. `step` is the row's:
/// how many half octaves more than usual it differs, plus 8.
#[inline(always)]
pub(super) fn locate<H: Half, const SHIFT: usize>(
    half_octaves: &[u16],
    step: u8,
    uppers: &[u16],
    contexts: &mut [u16],
    origins: &mut [u16],
) {
    let places = contexts.iter_mut().zip(origins);
    for (((context, origin), &half_octaves), &upper) in places.zip(half_octaves).zip(uppers) {
        let place = place::<H>(upper, half_octaves + u16::from(step));
        (*context, *origin) = (place.0 << SHIFT, place.1);
    }
}

/// [`locate`], and in place of origins the symbols that the values have there, beside contexts times 256, and the bits
/// that they do not say.
#[inline(always)]
pub(super) fn symbolise<H: Half>(
    half_octaves: &[u16],
    step: u8,
    uppers: &[u16],
    values: &[[u8; 2]],
    indices: &mut [u16],
    raws: &mut [u8],
) {
    let places = half_octaves.iter().zip(uppers);
    for (((index, raw), value), (&half_octaves, &upper)) in indices.iter_mut().zip(raws).zip(values).zip(places) {
        let (context, origin) = place::<H>(upper, half_octaves + u16::from(step));
        let (symbol, rest) = symbol::<H>(u16::from_le_bytes(*value), origin);
        (*index, *raw) = (context << 8 | symbol, rest);
    }
}

/// A context and an origin, of the upper bits of an expected value and the half octaves that it may be off by.
#[inline(always)]
fn place<H: Half>(upper: u16, half_octaves: u16) -> (u16, u16) {
    let spread = half_octaves.cast_signed() + HALF_OCTAVES;
    let (octaves, odd) = (spread >> 1, spread & 1);
    let magnitude = (upper & 0x7FFF).cast_signed();
    let exponent = magnitude >> 7;
    // Of a value that is much larger than what it differs by, the exponent is known, and somewhat of the mantissa.
    let is_far = i16::from(exponent >= octaves + 2).wrapping_neg();
    let near = ((magnitude >> 6) - 2 * octaves + 2).clamp(0, 5) + (6 & odd.wrapping_neg());
    let far = (2 * exponent - spread - 3).clamp(0, 3) + 12;
    let context = near & !is_far | far & is_far;
    let from_spread = (octaves + ABOVE - (1 << OCTAVES)) << SUB_BITS;
    let from_value = (magnitude >> (7 - SUB_BITS)) - (1 << (OCTAVES + SUB_BITS - 1));
    let base = (from_spread & !is_far | from_value & is_far) - (H::BIAS << SUB_BITS);
    let is_signed = u16::from(exponent >= SMALLEST_SIGNED).wrapping_neg();
    let origin = (base << H::RAW).cast_unsigned().wrapping_add(upper & is_signed & 0x8000);
    (context.cast_unsigned(), origin)
}

/// The symbol of a value and the bits that it does not say.
#[inline(always)]
fn symbol<H: Half>(value: u16, origin: u16) -> (u16, u8) {
    let from_origin = value.wrapping_sub(origin);
    let (place, sign) = ((from_origin & 0x7FFF) >> H::RAW, from_origin >> 15);
    let is_near = u16::from(place < 1 << (OCTAVES + SUB_BITS)).wrapping_neg();
    let symbol = (place << 1 | sign) & is_near | ESCAPE_SYMBOL & !is_near;
    (symbol, (from_origin & ((1 << H::RAW) - 1) & 0xFF) as u8)
}

/// Undoes [`symbolise`], of symbols in the upper bytes; an escape comes out as something else.
#[inline(always)]
pub(super) fn restore<H: Half>(symbols: &[u16], raws: &[u8], origins: &[u16], values: &mut [[u8; 2]]) {
    for (((value, &origin), &symbol), &raw) in values.iter_mut().zip(origins).zip(symbols).zip(raws) {
        let from_origin = (symbol & 1 << 8) << 7 | symbol >> 9 << H::RAW | u16::from(raw);
        *value = origin.wrapping_add(from_origin).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data")]

    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    fn symbols_come_back<H: Half>(origin: u16) {
        let mut near = 0;
        for value in 0..=u16::MAX {
            let (symbol, raw) = symbol::<H>(value, origin);
            assert!(usize::from(symbol) <= ESCAPE && u32::from(raw) < 1 << H::RAW);
            let mut back = [[0; 2]];
            restore::<H>(&[symbol << 8], &[raw], &[origin], &mut back);
            let is_near = usize::from(symbol) != ESCAPE;
            assert!(!is_near || u16::from_le_bytes(back[0]) == value, "{value:04x} from {origin:04x}");
            near += u32::from(is_near);
        }
        assert_eq!(near, (ESCAPE as u32) << H::RAW);
    }

    /// Zero, or a normal number, often one of the smallest or largest.
    fn parameter() -> impl Strategy<Value = f32> {
        let exponent = prop_oneof![1_u16..=254, 1_u16..=70, 120_u16..=135, 245_u16..=254];
        let normal = (exponent, 0_u16..128, 0_u16..2)
            .prop_map(|(exponent, mantissa, sign)| bf16::from_bits(sign << 15 | exponent << 7 | mantissa).to_f32());
        prop_oneof![9 => normal, 1 => Just(0.0)]
    }

    fn flushed(value: f32) -> f32 {
        if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
    }

    fn flushing_changes_no_place<H: Half>(slope: f32, offset: f32, below: u16, half_octaves: u16) {
        let x = H::widen(below);
        assert!(!x.is_subnormal());
        let flushing = flushed(flushed(slope * x) + offset);
        let exact = expect::<H>(slope, offset, below.to_le_bytes());
        for step in 0..16 {
            let place = |expected| place::<H>(upper(expected), half_octaves + step);
            assert_eq!(place(exact), place(flushing), "{slope:e} * {x:e} + {offset:e}, {half_octaves}");
            assert!(usize::from(place(exact).0) < CONTEXTS);
        }
    }

    #[test]
    fn only_normal_numbers_are_widened() {
        for bits in 0..=u16::MAX {
            let (bfloat, float) = (bf16::from_bits(bits), half::f16::from_bits(bits));
            let bfloat = if bfloat.is_normal() { bfloat.to_f32() } else { 0.0 };
            let float = if float.is_normal() { float.to_f32() } else { 0.0 };
            assert_eq!((BFloat16::widen(bits), Float16::widen(bits)), (bfloat, float));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_value_comes_back_from_any_origin(origin in any::<u16>()) {
            symbols_come_back::<BFloat16>(origin);
            symbols_come_back::<Float16>(origin);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn processors_that_treat_the_smallest_numbers_as_zero_find_the_same_places(
            slope in parameter(), offset in parameter(), below in parameter(), other in any::<u16>(), spread in 0_u16..256,
        ) {
            let below = bf16::from_f32(below).to_bits();
            flushing_changes_no_place::<BFloat16>(slope, offset, below, spread);
            flushing_changes_no_place::<BFloat16>(slope, offset, other, spread);
            flushing_changes_no_place::<Float16>(slope, offset, other, spread);
            // An offset that a product may cancel.
            let cancels = bf16::from_f32(-slope * BFloat16::widen(below));
            if cancels.is_normal() {
                flushing_changes_no_place::<BFloat16>(slope, cancels.to_f32(), below, spread);
            }
        }
    }
}
