//! Values to a frame.

#![allow(clippy::indexing_slicing, reason = "a table as large as its indices")]

use super::super::bits::{BitWriter, WORD};
use super::super::index::Counts;
use super::super::kernel::Kernel;
use super::super::zstd::{Scratch, room};
use super::super::{Model, Rows, mids};
use super::coder::{CODE_SHIFT, Coder, Codes, LONGEST, STANDS_ELSEWHERE, TOGETHER};
use super::context::{BFloat16, Channels, Float16, Half, expect, symbolise, upper};
use super::{Places, Shape};
use crate::tensor::Dtype;

/// Of entries of codes in sum: some of the values stand elsewhere.
const ELSEWHERE: u32 = (1 << CODE_SHIFT) - STANDS_ELSEWHERE;
/// The least means of steps from 1 on: two to the power of -3.75, -3.25 and so on, rounded up.
const STEPS: [f32; 15] = [
    0.07432545, 0.10511205, 0.1486509, 0.2102241, 0.2973018, 0.4204482, 0.5946036, 0.8408964, 1.1892072, 1.6817929,
    2.3784144, 3.3635857, 4.756829, 6.7271714, 9.513658,
];
/// Lanes of a sum, so that it is the same whatever vectors there are.
const LANES: usize = 16;

/// Appends the `archive` form of `rows`; nothing, or part of it, where they have none.
pub(in super::super) fn encode(
    kernel: Kernel,
    rows: Rows<'_>,
    model: &Model,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Option<()> {
    let shape = Shape::of(rows.row_values, rows.bytes.len()).ok()?;
    let coder = shape.coder(model).ok()?;
    let (values, []) = rows.bytes.as_chunks::<2>() else { return None };
    let (below, []) = rows.below.filter(|below| below.len() == rows.bytes.len())?.as_chunks::<2>() else { return None };
    kernel.run(
        #[inline(always)]
        || match rows.dtype {
            Dtype::BFloat16 => put::<BFloat16>(shape, coder, (values, below), scratch, out),
            Dtype::Float16 => put::<Float16>(shape, coder, (values, below), scratch, out),
            _ => None,
        },
    )
}

#[inline(always)]
fn put<H: Half>(
    shape: Shape,
    coder: &Coder,
    (values, below): (&[[u8; 2]], &[[u8; 2]]),
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Option<()> {
    let Scratch { mids, bits, places, .. } = scratch;
    let raws = room(mids, shape.values);
    let bits = room(bits, shape.segments.count() * (shape.segments.longest() * LONGEST).div_ceil(8) + WORD);
    let mut writer = BitWriter::new(bits);
    let mut counts = Counts::default();
    let Places { uppers, contexts, steps, escapes, .. } = places;
    let (period, uppers) = (shape.segments.period(), room(uppers, shape.row_values));
    let indices = room(contexts, period);
    steps.clear();
    escapes.clear();
    let periods = values.chunks(period).zip(below.chunks(period)).zip(raws.chunks_mut(period));
    for ((values, below), raws) in periods {
        let indices = indices.get_mut(..values.len())?;
        find_symbols::<H>(coder, (values, below), (&mut *uppers, &mut *indices, raws), steps);
        let longest = shape.segments.longest();
        for (values, indices) in values.chunks(longest).zip(indices.chunks(longest)) {
            let before = (writer.bits() / 8, escapes.len());
            put_codes(&coder.codes, indices, values, &mut writer, escapes);
            writer.align();
            counts.push(writer.bits() / 8 - before.0, escapes.len() - before.1)?;
        }
    }
    let length = writer.finish();
    let start = out.len();
    out.push(0);
    mids::pack(steps, 4, out);
    mids::pack(raws, H::RAW, out);
    let flags = counts.put(out);
    *out.get_mut(start)? = flags;
    out.extend_from_slice(bits.get(..length)?);
    out.extend_from_slice(escapes.as_flattened());
    Some(())
}

/// Finds the step of each row of whole rows, and contexts and symbols of their values.
#[inline(always)]
fn find_symbols<H: Half>(
    coder: &Coder,
    (values, below): (&[[u8; 2]], &[[u8; 2]]),
    (uppers, indices, raws): (&mut [u16], &mut [u16], &mut [u8]),
    steps: &mut Vec<u8>,
) {
    let row_values = coder.channels();
    let rows = values.chunks(row_values).zip(below.chunks(row_values));
    let places = indices.chunks_mut(row_values).zip(raws.chunks_mut(row_values));
    for ((values, below), (indices, raws)) in rows.zip(places) {
        let step = measure::<H>(&coder.channels, &coder.scales, (values, below), uppers);
        symbolise::<H>(&coder.channels.half_octaves, step, uppers, values, indices, raws);
        steps.push(step);
    }
}

/// The upper bits of the expected values of a row, and its step: by how many half octaves more than usual the values
/// differ from them, plus 8.
#[inline(always)]
pub(super) fn measure<H: Half>(
    channels: &Channels,
    scales: &[f32],
    (values, below): (&[[u8; 2]], &[[u8; 2]]),
    uppers: &mut [u16],
) -> u8 {
    let mut sums = [0_f32; LANES];
    let ((slopes, slopes_rest), (offsets, offsets_rest)) =
        (channels.slopes.as_chunks::<LANES>(), channels.offsets.as_chunks::<LANES>());
    let ((scales, scales_rest), (to, to_rest)) = (scales.as_chunks::<LANES>(), uppers.as_chunks_mut::<LANES>());
    let (whole, rest) = values.as_chunks::<LANES>();
    let (below, below_rest) = below.as_chunks::<LANES>();
    for ((values, to), ((below, scales), (slopes, offsets))) in
        whole.iter().zip(to).zip(below.iter().zip(scales).zip(slopes.iter().zip(offsets)))
    {
        add::<H>(&mut sums, (slopes, offsets, scales), (values, below), to);
    }
    add::<H>(&mut sums, (slopes_rest, offsets_rest, scales_rest), (rest, below_rest), to_rest);
    step_of(sums.iter().sum::<f32>() / values.len() as f32)
}

/// How many half octaves a mean is, plus 8.
#[inline(always)]
fn step_of(mean: f32) -> u8 {
    STEPS.iter().map(|&least| u8::from(mean >= least)).sum()
}

/// Adds by how much some values differ from what is expected, each in its lane.
#[inline(always)]
fn add<H: Half>(
    sums: &mut [f32; LANES],
    (slopes, offsets, scales): (&[f32], &[f32], &[f32]),
    (values, below): (&[[u8; 2]], &[[u8; 2]]),
    uppers: &mut [u16],
) {
    let parameters = slopes.iter().zip(offsets).zip(scales);
    let rows = values.iter().zip(below).zip(uppers);
    for ((sum, ((value, below), to)), ((&slope, &offset), &scale)) in sums.iter_mut().zip(rows).zip(parameters) {
        let expected = expect::<H>(slope, offset, *below);
        *to = upper(expected);
        let distance = (H::widen(u16::from_le_bytes(*value)) - expected).abs() * scale;
        *sum += if distance < f32::MAX { distance } else { 0.0 };
    }
}

/// Appends the codes of symbols, and the values that stand elsewhere.
#[inline(always)]
fn put_codes(
    codes: &Codes,
    indices: &[u16],
    values: &[[u8; 2]],
    writer: &mut BitWriter<'_>,
    escapes: &mut Vec<[u8; 2]>,
) {
    let code = |index: u16| codes[usize::from(index)];
    let mut put = |indices: &[u16], values: &[[u8; 2]]| {
        let (mut word, mut count) = (0, 0);
        for &index in indices {
            let code = code(index);
            word |= u64::from(code >> CODE_SHIFT) << (count & 63);
            count += code;
        }
        writer.put(word, count & 63);
        if count & ELSEWHERE != 0 {
            let elsewhere = |index: u16| code(index) & STANDS_ELSEWHERE != 0;
            escapes.extend(indices.iter().zip(values).filter(|(index, _)| elsewhere(**index)).map(|(_, value)| *value));
        }
    };
    let ((words, rest), (values, values_rest)) = (indices.as_chunks::<TOGETHER>(), values.as_chunks::<TOGETHER>());
    words.iter().zip(values).for_each(|(indices, values)| put(indices, values));
    put(rest, values_rest);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data")]

    use super::*;

    /// What [`STEPS`] are.
    fn by_logarithm(mean: f32) -> u8 {
        let steps = if mean > 0.0 { (2.0 * f64::from(mean).log2()).round().clamp(-8.0, 7.0) } else { -8.0 };
        (steps + 8.0) as u8
    }

    #[test]
    fn steps_are_half_octaves_of_the_mean() {
        let near = |least: f32| (-2000..2000).map(move |by| f32::from_bits(least.to_bits().wrapping_add_signed(by)));
        let all = STEPS.into_iter().flat_map(near);
        let others = [0.0, f32::MIN_POSITIVE, 1e-40, 1.0, 3.0, f32::MAX, f32::INFINITY, f32::NAN, -0.0];
        for mean in all.chain(others).chain((0..60_000).map(|bits| f32::from_bits(bits << 15))) {
            assert_eq!(step_of(mean), by_logarithm(mean), "{mean:e}");
        }
    }
}
