//! From a sample of a hook point and of the layer below to a model. Free to change: any model decodes exactly.

#![allow(clippy::cast_possible_truncation, reason = "rounded to what a model can store, and clamped")]

use half::bf16;

use super::super::{Encoding, Fitted, Model, Rows, prefix};
use super::coder::{Coder, LONGEST, Lengths, SYMBOLS, bytes_of};
use super::context::{BFloat16, CONTEXTS, Channels, ESCAPE, Float16, Half, OF_ONE, symbolise};
use super::write::measure;
use crate::tensor::Dtype;

/// Fewest rows that channels are learned from.
const MIN_SAMPLE_ROWS: usize = 32;
/// Rounds of least squares, each weighted by what the one before left of a row.
const ROUNDS: usize = 3;
/// Of the square of what is left of a row, in terms of what is usual: below this, less makes no difference.
const FLOOR: f64 = 0.09;
/// Bits of a value that stands elsewhere.
const ELSEWHERE_BITS: u64 = 16;
/// Bits of a row beside those of its values: its step, and about its part of an index.
const ROW_BITS: u64 = 4 + 12;

/// The best coder for a sample of whole rows and those below.
pub(in super::super) fn fit(sample: Rows<'_>) -> Option<Fitted> {
    match sample.dtype {
        Dtype::BFloat16 => fit_half::<BFloat16>(sample),
        Dtype::Float16 => fit_half::<Float16>(sample),
        _ => None,
    }
}

/// Bits of a sample with a coder that was fitted to another.
pub(in super::super) fn bits(sample: Rows<'_>, coder: &Coder) -> Option<u64> {
    let rows = Halves::of(sample)?;
    let counts = match sample.dtype {
        Dtype::BFloat16 => count::<BFloat16>(&rows, &coder.channels, &coder.scales),
        Dtype::Float16 => count::<Float16>(&rows, &coder.channels, &coder.scales),
        _ => return None,
    };
    Some(cost(&counts, coder.lengths(), rows.raw_bits(sample.dtype)))
}

/// How often each symbol occurs in each context.
type Counts = [[u64; SYMBOLS]; CONTEXTS];

/// The values of a sample and those below.
struct Halves<'a> {
    values: &'a [[u8; 2]],
    below: &'a [[u8; 2]],
    row_values: usize,
}

impl<'a> Halves<'a> {
    fn of(sample: Rows<'a>) -> Option<Self> {
        let row_values = usize::try_from(sample.row_values).ok().filter(|&values| values > 0)?;
        let (values, below) = (sample.bytes.as_chunks().0, sample.below?.as_chunks().0);
        (values.len() == below.len()).then_some(Self { values, below, row_values })
    }

    /// Bits beside those of symbols.
    fn raw_bits(&self, dtype: Dtype) -> u64 {
        let raw = if dtype == Dtype::Float16 { Float16::RAW } else { BFloat16::RAW };
        self.values.len() as u64 * u64::from(raw) + (self.values.len() / self.row_values) as u64 * ROW_BITS
    }
}

fn fit_half<H: Half>(sample: Rows<'_>) -> Option<Fitted> {
    let rows = Halves::of(sample)?;
    if rows.values.len() / rows.row_values < MIN_SAMPLE_ROWS {
        return None;
    }
    let channels = channels::<H>(&rows);
    let counts = count::<H>(&rows, &channels, &channels.scales());
    let lengths = std::array::from_fn(|context| counts.get(context).map_or([0; SYMBOLS], lengths_for));
    let bytes = bytes_of(&channels, &lengths);
    let bits = cost(&counts, lengths.as_flattened(), rows.raw_bits(sample.dtype));
    Some(Fitted { model: Model::of(Encoding::Archive, &bytes), bits })
}

/// Least squares of each channel on the one below, weighted so that rows which differ much from what is expected count
/// less.
fn channels<H: Half>(rows: &Halves<'_>) -> Channels {
    let mut weights = vec![1.0; rows.values.len() / rows.row_values];
    let mut lines = Vec::new();
    let mut spreads = Vec::new();
    for _ in 0..ROUNDS {
        lines = fit_lines::<H>(rows, &weights);
        let mut left = vec![0.0; rows.row_values];
        each_row::<H>(rows, |_, values, below| {
            for ((left, line), (value, below)) in left.iter_mut().zip(&lines).zip(values.zip(below)) {
                *left += distance(*line, value, below);
            }
        });
        let smallest = f64::from(f32::MIN_POSITIVE);
        spreads = left.iter().map(|left| (left / weights.len() as f64).max(smallest)).collect::<Vec<f64>>();
        let mut next = vec![0.0; weights.len()];
        each_row::<H>(rows, |row, values, below| {
            let parameters = lines.iter().zip(&spreads);
            let left = parameters
                .zip(values.zip(below))
                .map(|((line, spread), (value, below))| distance(*line, value, below) / spread);
            let usual = left.sum::<f64>() / rows.row_values as f64;
            if let Some(weight) = next.get_mut(row) {
                *weight = 1.0 / (usual * usual + FLOOR);
            }
        });
        weights = next;
    }
    let half_octaves =
        |spread: &f64| ((2.0 * spread.log2() + 0.5).floor() + f64::from(OF_ONE)).clamp(0.0, 255.0) as u16;
    Channels {
        slopes: lines.iter().map(|line| line.0 as f32).collect(),
        offsets: lines.iter().map(|line| line.1 as f32).collect(),
        half_octaves: spreads.iter().map(half_octaves).collect(),
    }
}

fn distance((slope, offset): (f64, f64), value: f64, below: f64) -> f64 {
    (value - (slope * below + offset)).abs()
}

/// Slope and offset of each channel, as they can be stored.
fn fit_lines<H: Half>(rows: &Halves<'_>, weights: &[f64]) -> Vec<(f64, f64)> {
    #[derive(Clone, Copy, Default)]
    struct Sums {
        weight: f64,
        x: f64,
        y: f64,
        xx: f64,
        xy: f64,
    }
    let mut sums = vec![Sums::default(); rows.row_values];
    each_row::<H>(rows, |row, values, below| {
        let weight = weights.get(row).copied().unwrap_or(0.0);
        for (sums, (y, x)) in sums.iter_mut().zip(values.zip(below)) {
            sums.weight += weight;
            sums.x += weight * x;
            sums.y += weight * y;
            sums.xx += weight * x * x;
            sums.xy += weight * x * y;
        }
    });
    let line = |sums: Sums| {
        let (x, y) = (sums.x / sums.weight, sums.y / sums.weight);
        let (variance, covariance) = (sums.xx / sums.weight - x * x, sums.xy / sums.weight - x * y);
        let slope = if variance > 0.0 { storable(covariance / variance) } else { 0.0 };
        (slope, storable(y - slope * x))
    };
    sums.into_iter().map(line).collect()
}

/// The nearest normal bfloat16, or 0.
fn storable(value: f64) -> f64 {
    let rounded = bf16::from_f64(value);
    if rounded.is_normal() { rounded.to_f64() } else { 0.0 }
}

/// Calls `f` with the number of each row, its values and those below, what is not finite being 0.
fn each_row<H: Half>(
    rows: &Halves<'_>,
    mut f: impl FnMut(usize, &mut dyn Iterator<Item = f64>, &mut dyn Iterator<Item = f64>),
) {
    let both = rows.values.chunks_exact(rows.row_values).zip(rows.below.chunks_exact(rows.row_values));
    for (row, (values, below)) in both.enumerate() {
        let wide = |value: &[u8; 2]| f64::from(H::widen(u16::from_le_bytes(*value)));
        f(row, &mut values.iter().map(wide), &mut below.iter().map(wide));
    }
}

fn count<H: Half>(rows: &Halves<'_>, channels: &Channels, scales: &[f32]) -> Counts {
    let mut counts = [[0; SYMBOLS]; CONTEXTS];
    let width = rows.row_values;
    let (mut uppers, mut indices, mut raws) = (vec![0; width], vec![0; width], vec![0; width]);
    for (values, below) in rows.values.chunks_exact(width).zip(rows.below.chunks_exact(width)) {
        let step = measure::<H>(channels, scales, (values, below), &mut uppers);
        symbolise::<H>(&channels.half_octaves, step, &uppers, values, &mut indices, &mut raws);
        for &index in &indices {
            let counts = counts.get_mut(usize::from(index >> 8));
            if let Some(count) = counts.and_then(|counts| counts.get_mut(usize::from(index & 0xFF))) {
                *count += 1;
            }
        }
    }
    counts
}

/// The code of a context in which symbols occur so often; rare ones stand elsewhere.
fn lengths_for(counts: &[u64; SYMBOLS]) -> Lengths {
    let all = counts.iter().sum::<u64>();
    // A symbol as rare as this costs more as a code of its own, by what it takes from the others.
    let rare = all >> (LONGEST + 4);
    let mut kept = *counts;
    kept.iter_mut().filter(|count| **count <= rare).for_each(|count| *count = 0);
    let [symbols @ .., escapes] = &mut kept;
    let known = symbols.iter().sum::<u64>();
    *escapes = (all - known).max(1);
    if known == 0 {
        let [first, ..] = &mut kept;
        *first = 1;
    }
    prefix::lengths(&kept, LONGEST).try_into().unwrap_or([0; SYMBOLS])
}

/// Bits of symbols that occur so often, and of all else.
fn cost(counts: &Counts, lengths: &[u8], raw_bits: u64) -> u64 {
    let contexts = counts.iter().zip(lengths.chunks(SYMBOLS));
    let bits = contexts.map(|(counts, lengths)| {
        let escape = lengths.last().copied().map_or(0, u64::from) + ELSEWHERE_BITS;
        let each = counts.iter().zip(lengths).enumerate().map(|(symbol, (&count, &length))| {
            count * if length == 0 || symbol == ESCAPE { escape } else { u64::from(length) }
        });
        each.sum::<u64>()
    });
    bits.sum::<u64>() + raw_bits
}
