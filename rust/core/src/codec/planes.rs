//! The `planes` encoding: exponents entropy-coded, sign and mantissa as they are. Layout: FORMAT.md, section 7.

use ::zstd::zstd_safe::{CCtx, DCtx};

use super::float::Float;
use super::zstd::{self, Scratch};
use super::{Model, Rows};
use crate::error::{Error, Kind, Result};
use crate::tensor::{Dtype, Layout};

/// Fewest rows from which a model is learned: below them a channel's mean follows its few values.
const MIN_SAMPLE_ROWS: usize = 32;
/// How many times the sample a hook point is taken to hold, when what a model saves is held against its size.
const SAMPLE_SHARE: f64 = 16.0;
/// Fewest values worth a plane of their own.
const MIN_VALUES: usize = 16;
/// Values rotated at a time: they stay in the first-level cache while their bytes go to the planes.
const BLOCK: usize = 256;
/// Bytes of a plane's length.
const LENGTH_BYTES: usize = 4;
/// What a zero exponent byte becomes under every bias, so that sparse channels share one symbol.
const ZERO: u8 = 0x80;
/// Shortest run of biases subtracted at a time.
const TILE: usize = 64;

impl Float {
    /// The exponent of a value, if it is finite and not zero.
    fn exponent(self, value: u64) -> Option<u64> {
        let magnitude = value & (self.sign() - 1);
        (magnitude != 0 && magnitude < self.nonfinite()).then_some(magnitude >> self.mantissa_bits)
    }

    /// An exponent where the top byte has it.
    fn top(self, exponent: u64) -> u8 {
        let byte = (exponent << 8) >> self.exponent_bits;
        u8::try_from(byte).unwrap_or(u8::MAX)
    }
}

/// Appends the `planes` form of `rows`; `false` and nothing appended where it has none.
pub(super) fn encode(rows: Rows<'_>, model: Option<&Model>, scratch: &mut Scratch, out: &mut Vec<u8>) -> bool {
    let width = rows.dtype.size();
    let values = rows.bytes.len() / width;
    if Float::of(rows.dtype).is_none() || values < MIN_VALUES || geometry(rows, model).is_err() {
        return false;
    }
    let Scratch { huffman, plane, rest, .. } = scratch;
    plane.resize(values, 0);
    rest.resize(values * (width - 1), 0);
    split(rows.dtype, rows.bytes, plane, rest);
    if let Some(model) = model {
        by_rows(model.bytes(), plane, subtract);
    }
    let start = out.len();
    let mut whole = put(huffman, plane, true, width == 1, out);
    for (index, low) in rest.chunks_exact(values).enumerate() {
        whole = whole && put(huffman, low, skewed(low), index + 2 == width, out);
    }
    if !whole {
        out.truncate(start);
    }
    whole
}

/// Appends a plane: its length, unless it is the last, then a zstd frame where `code` asks for one and it is smaller,
/// or the bytes themselves. `false` where the length is beyond its field.
fn put(huffman: &mut CCtx<'_>, plane: &[u8], code: bool, last: bool, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    if !last {
        out.extend_from_slice(&[0; LENGTH_BYTES]);
    }
    let body = out.len();
    if !code || !zstd::compress(huffman, plane, out) || out.len() - body >= plane.len() {
        out.truncate(body);
        out.extend_from_slice(plane);
    }
    if last {
        return true;
    }
    let (Ok(len), Some(field)) = (u32::try_from(out.len() - body), out.get_mut(start..body)) else { return false };
    field.copy_from_slice(&len.to_le_bytes());
    true
}

/// Decodes `stored` into `rows`, which fills `out`.
pub(super) fn decode(
    stored: &[u8],
    (dtype, row_values): (Dtype, u64),
    model: Option<&Model>,
    scratch: &mut Scratch,
    out: &mut [u8],
) -> Result<()> {
    let values = out.len() / dtype.size();
    if Float::of(dtype).is_none() || values == 0 {
        return Err(malformed(format!("a frame of planes of `{values}` values of {}", dtype.name())));
    }
    geometry(Rows { dtype, row_values, bytes: out }, model)?;
    let Scratch { decoder, plane: top, rest, .. } = scratch;
    top.resize(values, 0);
    rest.resize(out.len() - values, 0);
    let (first, mut stored) = take(stored, dtype.size() == 1)?;
    if first.len() == values {
        top.copy_from_slice(first);
    } else {
        expand(decoder, first, top)?;
    }
    let mut lows: [&[u8]; 7] = [&[]; 7];
    for (index, (low, room)) in lows.iter_mut().zip(rest.chunks_exact_mut(values)).enumerate() {
        (*low, stored) = take(stored, index + 2 == dtype.size())?;
        if low.len() != values {
            expand(decoder, low, room)?;
            *low = room;
        }
    }
    if let Some(model) = model {
        by_rows(model.bytes(), top, add);
    }
    merge(dtype, top, &lows, out);
    Ok(())
}

/// The next plane and what follows it.
fn take(stored: &[u8], last: bool) -> Result<(&[u8], &[u8])> {
    if last {
        return Ok((stored, &[]));
    }
    let plane = stored.split_first_chunk::<LENGTH_BYTES>().and_then(|(len, rest)| {
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        rest.split_at_checked(len)
    });
    plane.ok_or_else(|| malformed("a plane is cut short"))
}

fn expand(decoder: &mut DCtx<'_>, frame: &[u8], plane: &mut [u8]) -> Result<()> {
    zstd::check(frame, plane.len())?;
    zstd::decompress(decoder, frame, plane)
}

/// Checks that the bytes are whole rows and the model has a bias for each channel.
fn geometry(rows: Rows<'_>, model: Option<&Model>) -> Result<()> {
    let len = rows.bytes.len() as u64;
    let row = rows.row_values.checked_mul(rows.dtype.size() as u64);
    if len != 0 && !row.is_some_and(|row| row != 0 && len.is_multiple_of(row)) {
        return Err(malformed(format!("a frame of `{len}` bytes is not whole rows of `{}` values", rows.row_values)));
    }
    match model {
        Some(model) if model.bytes().len() as u64 != rows.row_values => {
            let (biases, values) = (model.bytes().len(), rows.row_values);
            Err(malformed(format!("a model of `{biases}` channels for rows of `{values}` values")))
        }
        _ => Ok(()),
    }
}

fn malformed(message: impl Into<String>) -> Error {
    Error::new(Kind::Malformed, message)
}

/// An unsigned integer as wide as a value.
trait Word: Copy {
    const ZERO: Self;
    const BYTES: usize;
    fn read(raw: &[u8]) -> Self;
    fn write(self, raw: &mut [u8]);
    fn rotated(self) -> Self;
    fn restored(self) -> Self;
    fn byte(self, index: usize) -> u8;
    fn with_byte(self, index: usize, byte: u8) -> Self;
}

macro_rules! words {
    ($($word:ident)*) => {$(
        impl Word for $word {
            const ZERO: Self = 0;
            const BYTES: usize = size_of::<$word>();
            #[inline(always)]
            fn read(raw: &[u8]) -> Self {
                raw.try_into().map_or(0, $word::from_le_bytes)
            }
            #[inline(always)]
            fn write(self, raw: &mut [u8]) {
                raw.copy_from_slice(&self.to_le_bytes());
            }
            #[inline(always)]
            fn rotated(self) -> Self {
                self.rotate_left(1)
            }
            #[inline(always)]
            fn restored(self) -> Self {
                self.rotate_right(1)
            }
            #[inline(always)]
            fn byte(self, index: usize) -> u8 {
                ((self >> (8 * index)) & 0xFF) as u8
            }
            #[inline(always)]
            fn with_byte(self, index: usize, byte: u8) -> Self {
                self | $word::from(byte) << (8 * index)
            }
        }
    )*};
}
words!(u8 u16 u32 u64);

fn split(dtype: Dtype, bytes: &[u8], plane: &mut [u8], rest: &mut [u8]) {
    match dtype.size() {
        1 => split_words::<u8>(bytes, plane, rest),
        2 => split_words::<u16>(bytes, plane, rest),
        4 => split_words::<u32>(bytes, plane, rest),
        _ => split_words::<u64>(bytes, plane, rest),
    }
}

fn merge(dtype: Dtype, top: &[u8], lows: &[&[u8]], bytes: &mut [u8]) {
    match dtype.size() {
        1 => merge_words::<u8>(top, lows, bytes),
        2 => merge_words::<u16>(top, lows, bytes),
        4 => merge_words::<u32>(top, lows, bytes),
        _ => merge_words::<u64>(top, lows, bytes),
    }
}

/// Rotates every value; its top byte goes to `plane`, byte k of the others to the k-th plane of `rest`.
fn split_words<W: Word>(bytes: &[u8], plane: &mut [u8], rest: &mut [u8]) {
    let values = plane.len().max(1);
    let mut words = [W::ZERO; BLOCK];
    for (block, (raw, top)) in bytes.chunks(BLOCK * W::BYTES).zip(plane.chunks_mut(BLOCK)).enumerate() {
        for (word, raw) in words.iter_mut().zip(raw.chunks_exact(W::BYTES)) {
            *word = W::read(raw).rotated();
        }
        for (byte, word) in top.iter_mut().zip(&words) {
            *byte = word.byte(W::BYTES - 1);
        }
        for (index, low) in rest.chunks_exact_mut(values).enumerate() {
            for (byte, word) in low.get_mut(block * BLOCK..).unwrap_or_default().iter_mut().zip(&words) {
                *byte = word.byte(index);
            }
        }
    }
}

/// Undoes [`split_words`]; the planes of `lows` are as long as `top`.
fn merge_words<W: Word>(top: &[u8], lows: &[&[u8]], bytes: &mut [u8]) {
    for (block, (raw, top)) in bytes.chunks_mut(BLOCK * W::BYTES).zip(top.chunks(BLOCK)).enumerate() {
        let mut words = [W::ZERO; BLOCK];
        for (word, &byte) in words.iter_mut().zip(top) {
            *word = word.with_byte(W::BYTES - 1, byte);
        }
        for (index, low) in lows.iter().take(W::BYTES - 1).enumerate() {
            for (word, &byte) in words.iter_mut().zip(low.get(block * BLOCK..).unwrap_or_default()) {
                *word = word.with_byte(index, byte);
            }
        }
        for (raw, word) in raw.chunks_exact_mut(W::BYTES).zip(&words) {
            word.restored().write(raw);
        }
    }
}

/// Applies `change` to each byte of `plane` with its channel's bias.
#[inline(always)]
fn by_rows(biases: &[u8], plane: &mut [u8], change: impl Fn(u8, u8) -> u8) {
    // Short rows are taken several at a time, or the loop over a row would cost more than its bytes.
    let mut tile = [0; TILE];
    let mut biases = biases;
    if !biases.is_empty() && biases.len() < TILE {
        let whole = TILE - TILE % biases.len();
        for (to, from) in tile.iter_mut().zip(biases.iter().cycle()) {
            *to = *from;
        }
        biases = tile.get(..whole).unwrap_or(biases);
    }
    for row in plane.chunks_mut(biases.len().max(1)) {
        for (byte, &bias) in row.iter_mut().zip(biases) {
            *byte = change(*byte, bias);
        }
    }
}

/// The residual of a top byte: the difference, with 0's and [`ZERO`] exchanged.
#[inline(always)]
fn subtract(byte: u8, bias: u8) -> u8 {
    let (difference, of_zero) = (byte.wrapping_sub(bias), 0_u8.wrapping_sub(bias));
    let exchanged = if difference == ZERO { of_zero } else { difference };
    if byte == 0 { ZERO } else { exchanged }
}

/// Undoes [`subtract`].
#[inline(always)]
fn add(residual: u8, bias: u8) -> u8 {
    let of_zero = 0_u8.wrapping_sub(bias);
    let exchanged = if residual == of_zero { ZERO } else { residual };
    if residual == ZERO { 0 } else { exchanged.wrapping_add(bias) }
}

/// The rounded mean exponent of every channel, where the sample is large enough and shows that it saves something.
pub(super) fn fit(layout: &Layout, sample: &[u8]) -> Option<Model> {
    let float = Float::of(layout.dtype())?;
    let width = layout.dtype().size();
    let channels = usize::try_from(layout.row_values()).ok()?;
    let row_bytes = channels.checked_mul(width).filter(|&bytes| bytes > 0)?;
    let rows = sample.len() / row_bytes;
    if rows < MIN_SAMPLE_ROWS {
        return None;
    }
    let sample = sample.get(..rows * row_bytes)?;
    let biases = biases(float, channels, width, sample);
    let mut plane = vec![0; rows * channels];
    split(layout.dtype(), sample, &mut plane, &mut vec![0; sample.len() - rows * channels]);
    let before = order0_bits(&plane);
    by_rows(&biases, &mut plane, subtract);
    let saved_bytes = (before - order0_bits(&plane)) / 8.0;
    (saved_bytes * SAMPLE_SHARE > channels as f64).then(|| Model::new(biases))
}

fn biases(float: Float, channels: usize, width: usize, sample: &[u8]) -> Vec<u8> {
    let mut sums = vec![(0_u64, 0_u64); channels];
    for row in sample.chunks_exact(channels * width) {
        for (raw, (sum, count)) in row.chunks_exact(width).zip(&mut sums) {
            let value = raw.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            if let Some(exponent) = float.exponent(value) {
                *sum += exponent;
                *count += 1;
            }
        }
    }
    sums.into_iter().map(|(sum, count)| float.top((2 * sum + count) / (2 * count).max(1))).collect()
}

/// Bits of `bytes` for an ideal coder that knows how often each byte occurs.
fn order0_bits(bytes: &[u8]) -> f64 {
    let mut counts = [0_u64; 256];
    for &byte in bytes {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let total = bytes.len() as f64;
    counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 * (total / count as f64).log2()).sum()
}

/// Whether Huffman coding would shrink `bytes`, by a look at some of them: whether two of those are the same byte half
/// again as often as two random ones.
fn skewed(bytes: &[u8]) -> bool {
    const SAMPLE: usize = 1024;
    let mut counts = [0_u64; 256];
    let mut total = 0;
    for &byte in bytes.iter().step_by((bytes.len() / SAMPLE).max(1)) {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
            total += 1;
        }
    }
    let pairs = counts.iter().map(|count| count * count).sum::<u64>() - total;
    2 * 256 * pairs > 3 * total * total
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data")]

    use proptest::prelude::*;

    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn bf16(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
        values.into_iter().flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect()
    }

    #[test]
    fn residuals_come_back_and_zero_is_one_symbol() {
        for bias in 0..=255 {
            assert_eq!(subtract(0, bias), ZERO);
            let mut seen = [false; 256];
            for byte in 0..=255 {
                let residual = subtract(byte, bias);
                seen[usize::from(residual)] = true;
                assert_eq!(add(residual, bias), byte);
                let exchanged = byte == 0 || residual == 0_u8.wrapping_sub(bias);
                assert!(exchanged || residual == byte.wrapping_sub(bias));
            }
            assert_eq!(seen, [true; 256]);
        }
    }

    #[test]
    fn each_value_meets_the_bias_of_its_channel() {
        for channels in 1..150 {
            let biases = noise(channels);
            let mut plane = noise(channels * 5);
            let expected: Vec<u8> = plane.iter().enumerate().map(|(i, byte)| byte ^ biases[i % channels]).collect();
            by_rows(&biases, &mut plane, |byte, bias| byte ^ bias);
            assert_eq!(plane, expected);
        }
    }

    #[test]
    fn exponents_are_the_mean_of_what_is_finite_and_not_zero() {
        let float = |dtype| Float::of(dtype).unwrap();
        let tops = |dtype: Dtype, channels, bytes: &[u8]| biases(float(dtype), channels, dtype.size(), bytes);
        // 1.0 and 4.0 have the exponents 127 and 129; a quarter has 125.
        let rows = [1.0, 0.25, f32::NAN, 0.0, 4.0, 0.0, f32::INFINITY, -0.0, -2.0, 0.25, 0.25, 0.0];
        assert_eq!(tops(Dtype::BFloat16, 4, &bf16(rows)), [128, 125, 125, 0]);
        assert_eq!(tops(Dtype::BFloat16, 1, &bf16([1.0, 2.0])), [128], "half is rounded up");
        let one = |dtype, bytes: &[u8]| tops(dtype, 1, bytes)[0];
        assert_eq!(one(Dtype::Float16, &half::f16::from_f32(-1.5).to_le_bytes()), 15 << 3);
        assert_eq!(one(Dtype::Float32, &1.5_f32.to_le_bytes()), 127);
        assert_eq!(one(Dtype::Float64, &1.5_f64.to_le_bytes()), (1023 >> 3) as u8);
        assert_eq!(one(Dtype::Float8E4M3, &[0x38]), 7 << 4);
        assert_eq!(one(Dtype::Float8E5M2, &[0xBC]), 15 << 3);
        assert_eq!(one(Dtype::Float8E4M3, &[0x7E]), 15 << 4, "448 is finite");
        assert_eq!(one(Dtype::Float8E4M3, &[0xFF]), 0);
        assert_eq!(one(Dtype::Float8E5M2, &[0x7C]), 0);
        assert_eq!(one(Dtype::Float32, &f32::from_bits(1).to_le_bytes()), 0, "a subnormal");
    }

    #[test]
    fn the_top_byte_of_a_model_is_that_of_the_plane() {
        for (dtype, raw) in [
            (Dtype::Float16, half::f16::from_f32(1.0).to_le_bytes().to_vec()),
            (Dtype::BFloat16, bf16([1.0])),
            (Dtype::Float32, 1_f32.to_le_bytes().to_vec()),
            (Dtype::Float8E4M3, vec![0x38]),
            (Dtype::Float8E5M2, vec![0x3C]),
        ] {
            let (mut plane, mut rest) = ([0], vec![0; dtype.size() - 1]);
            split(dtype, &raw, &mut plane, &mut rest);
            assert_eq!(biases(Float::of(dtype).unwrap(), 1, dtype.size(), &raw), plane, "{}", dtype.name());
        }
    }

    #[test]
    fn a_model_is_learned_where_it_pays() {
        let layout = Layout::new(Dtype::BFloat16, vec![1000, 4]).unwrap();
        let sample = |rows: i32| bf16((0..rows * 4).map(|i| (1.0 + (i % 7) as f32 / 7.0) * 128_f32.powi(i % 4)));
        let model = fit(&layout, &sample(32)).unwrap();
        assert_eq!(model.bytes(), [127, 134, 141, 148]);
        assert_eq!(fit(&layout, &sample(32)), Some(model.clone()));
        assert_eq!(fit(&layout, &[sample(32), vec![0; 7]].concat()), Some(model), "part of a row");
        assert_eq!(fit(&layout, &sample(31)), None);
        assert_eq!(fit(&layout, &bf16((0..4000).map(|i| 1.0 + (i % 7) as f32))), None, "channels alike");
        assert_eq!(fit(&layout, &bf16(vec![0.0; 400])), None);
        assert_eq!(fit(&layout, &[]), None);
        let no_values = Layout::new(Dtype::BFloat16, vec![1000, 0]).unwrap();
        assert_eq!(fit(&no_values, &[]), None);
        let integers = Layout::new(Dtype::Int16, vec![1000, 4]).unwrap();
        assert_eq!(fit(&integers, &sample(32)), None);
    }

    #[test]
    fn planes_with_frequent_bytes_are_skewed() {
        let random = noise(1 << 16);
        let sparse: Vec<u8> = random.iter().map(|byte| if *byte < 90 { 0 } else { *byte }).collect();
        assert!(!skewed(&random) && skewed(&sparse) && !skewed(&[]) && !skewed(&[1]));
    }

    proptest! {
        #[test]
        fn values_come_back_from_their_planes(code in 0_u8..12, values in 0_usize..700, seed in any::<[u8; 32]>()) {
            let dtype = Dtype::from_code(code).unwrap();
            let len = values * dtype.size();
            let bytes: Vec<u8> = noise(len).iter().zip(seed.iter().cycle()).map(|(a, b)| a ^ b).collect();
            let (mut plane, mut rest) = (vec![0; values], vec![0; len - values]);
            split(dtype, &bytes, &mut plane, &mut rest);
            let lows: Vec<&[u8]> = rest.chunks_exact(values.max(1)).collect();
            let mut back = vec![0xA5; len];
            merge(dtype, &plane, &lows, &mut back);
            prop_assert_eq!(back, bytes);
        }
    }
}
