//! What `planes` learns of a hook point: a bias for each channel, or one for all, and a code of 16 classes.

use std::sync::OnceLock;

use super::super::classes::{self, CLASSES, Code, Lengths, Table};
use super::super::float::Float;
use super::super::kernel::Kernel;
use super::super::model::SAMPLE_SHARE;
use super::super::prefix::{pack_lengths, unpack_lengths};
use super::super::segments::{SEGMENT, Segments};
use super::super::words::{Apart, Parts, ZERO, classify, split};
use super::super::{Encoding, Fitted, Model, Rows, malformed};
use crate::error::Result;

/// Fewest rows that a bias for each channel is learned from: below them a channel's mean follows its few values.
const MIN_SAMPLE_ROWS: usize = 32;
/// How far a bias is moved at once from where it is, and how often, to where its channel costs least.
const NEARBY: u8 = 3;
const MOVES: usize = 3;
/// Bits of a symbol that stands elsewhere, beside its code.
const ESCAPE_BITS: u64 = 8;
/// Codes that lose more than this part of all bits to an ideal one are not used.
const WORTH: f64 = 64.0;
/// Bytes of the code's lengths.
const LENGTH_BYTES: usize = CLASSES / 2;
/// Bytes of a coder with one bias.
pub(super) const OWN_BYTES: usize = LENGTH_BYTES + 1;

/// How often each symbol occurs, or each residual.
type Histogram = [u64; 256];

/// Biases and code, as encoding and decoding use them.
#[derive(Clone)]
pub(in super::super) struct Coder {
    /// Of the channels of a period of segments; or all the same, for any segment.
    biases: Vec<u8>,
    /// Whether there is one bias for all channels.
    is_uniform: bool,
    row_values: usize,
    pub(super) code: Code,
    table: OnceLock<Table>,
}

impl Coder {
    /// Reads lengths and one bias, or as many as a row has values.
    pub(in super::super) fn read(bytes: &[u8]) -> Result<Self> {
        let (lengths, biases) = bytes.split_at_checked(LENGTH_BYTES).ok_or_else(|| malformed("a code is cut short"))?;
        let lengths = unpack_lengths(lengths).try_into().unwrap_or([0; CLASSES]);
        let code = Code::new(lengths).ok_or_else(|| malformed("the lengths of a code do not make one"))?;
        if biases.is_empty() {
            return Err(malformed("a code without biases"));
        }
        let is_uniform = biases.len() == 1;
        let row_values = biases.len();
        let biases = if is_uniform { biases.repeat(SEGMENT) } else { Segments::tile(row_values, biases) };
        Ok(Self { biases, is_uniform, row_values, code, table: OnceLock::new() })
    }

    /// The coder that is best for these symbols among those with one bias, and its bytes; `None` where so few classes are
    /// too few.
    pub(super) fn own(parts: Parts, symbols: &[u8], mids: &[u8]) -> Option<(Self, Vec<u8>)> {
        let learned = Learned::uniform(&histogram(symbols.iter().copied()))?;
        if learned.loses(parts, symbols, mids) {
            return None;
        }
        let bytes = learned.bytes();
        Some((Self::read(&bytes).ok()?, bytes))
    }

    /// Whether it is for rows of so many values.
    pub(super) fn fits(&self, row_values: usize) -> bool {
        self.is_uniform || self.row_values == row_values
    }

    /// Channels that have a bias of their own.
    pub(super) fn channels(&self) -> usize {
        self.row_values
    }

    /// The biases of a segment whose channels begin with this one of a period.
    pub(super) fn biases(&self, channel: usize) -> &[u8] {
        let first = if self.is_uniform { 0 } else { channel };
        self.biases.get(first..).unwrap_or_default()
    }

    /// The biases of the channels of a row; or all the same, for some values.
    fn biases_of_row(&self) -> &[u8] {
        if self.is_uniform { &self.biases } else { self.biases.get(..self.row_values).unwrap_or_default() }
    }

    pub(in super::super) fn table(&self) -> &Table {
        self.table.get_or_init(|| Table::new(&self.code))
    }
}

/// Biases, of the channels or one for all, the code for them, and what a sample costs with both.
struct Learned {
    biases: Vec<u8>,
    lengths: Lengths,
    bits: u64,
}

impl Learned {
    /// The best window of classes for residuals from `means` that occur so often, and for so many zeros.
    fn of(means: &[u8], residuals: &Histogram, zeros: u64) -> Option<Self> {
        let at = |index: usize| residuals.get(index % residuals.len()).copied().unwrap_or(0);
        let within = |start: usize| (0..usize::from(ZERO)).map(|class| at(start + class)).sum::<u64>();
        let all = residuals.iter().sum::<u64>();
        let fullest = (0..residuals.len()).rev().max_by_key(|&start| within(start))?;
        // Others near it may have a cheaper code: lengths are whole bits, and fit one better than another.
        let costs = (0..=2 * NEARBY).filter_map(|by| {
            let start = (fullest + residuals.len() + usize::from(by) - usize::from(NEARBY)) % residuals.len();
            let mut counts = [0; CLASSES];
            let [classes @ .., zero, escape] = &mut counts;
            classes.iter_mut().enumerate().for_each(|(class, count)| *count = at(start + class));
            (*zero, *escape) = (zeros, all - within(start));
            let lengths = classes::fit(&counts)?;
            Some((start, lengths, cost(&lengths, &counts)))
        });
        let (start, lengths, bits) = costs.min_by_key(|&(_, _, bits)| bits)?;
        let start = u8::try_from(start).unwrap_or(0);
        Some(Self { biases: means.iter().map(|mean| mean.wrapping_add(start)).collect(), lengths, bits })
    }

    /// With one bias.
    fn uniform(symbols: &Histogram) -> Option<Self> {
        let mut symbols = *symbols;
        let [zeros, ..] = &mut symbols;
        let zeros = std::mem::take(zeros);
        Self::of(&[0], &symbols, zeros)
    }

    /// With a bias for each channel of a sample: at first its mean, then moved to where the code makes it cost less.
    fn each(means: &[u8], symbols: &[u8]) -> Option<Self> {
        let (mut residuals, mut zeros) = ([0; 256], 0);
        for row in symbols.chunks_exact(means.len()) {
            for (&symbol, &mean) in row.iter().zip(means) {
                match residuals.get_mut(usize::from(symbol.wrapping_sub(mean))) {
                    Some(count) if symbol != 0 => *count += 1,
                    _ => zeros += 1,
                }
            }
        }
        let mut best = Self::of(means, &residuals, zeros)?;
        for _ in 0..MOVES {
            let biases = best.moved(symbols);
            let counts = count(&biases, symbols)?;
            let lengths = classes::fit(&counts)?;
            let bits = cost(&lengths, &counts);
            if bits >= best.bits {
                break;
            }
            best = Self { biases, lengths, bits };
        }
        Some(best)
    }

    /// Of each channel the nearby bias with which its values cost least.
    fn moved(&self, symbols: &[u8]) -> Vec<u8> {
        let [.., escape] = self.lengths;
        let mut prices = [u64::from(escape) + ESCAPE_BITS; 256];
        for (price, &length) in prices.iter_mut().zip(&self.lengths).take(usize::from(ZERO)) {
            *price = u64::from(length);
        }
        let price = |residual: u8| prices.get(usize::from(residual)).copied().unwrap_or(0);
        let mut costs = vec![[0_u64; 2 * NEARBY as usize + 1]; self.biases.len()];
        for row in symbols.chunks_exact(self.biases.len()) {
            for ((&symbol, &bias), costs) in row.iter().zip(&self.biases).zip(&mut costs) {
                if symbol != 0 {
                    let lowest = symbol.wrapping_sub(bias).wrapping_add(NEARBY);
                    (0..).zip(costs).for_each(|(by, cost)| *cost += price(lowest.wrapping_sub(by)));
                }
            }
        }
        // Of equal ones, the nearest.
        let order = |by: u8, cost: u64| (cost, by.abs_diff(NEARBY));
        let best =
            |costs: &[u64]| (0..).zip(costs).min_by_key(|&(by, &cost)| order(by, cost)).map_or(NEARBY, |(by, _)| by);
        let moved = self.biases.iter().zip(&costs);
        moved.map(|(bias, costs)| bias.wrapping_add(best(costs)).wrapping_sub(NEARBY)).collect()
    }

    /// As it is stored.
    fn bytes(&self) -> Vec<u8> {
        [&pack_lengths(&self.lengths)[..], &self.biases].concat()
    }

    /// Whether the highest bytes of values would be much smaller with an ideal code of them all.
    fn loses(&self, parts: Parts, symbols: &[u8], mids: &[u8]) -> bool {
        let ideal = if parts.mid == 0 {
            entropy_bits(&histogram(symbols.iter().copied()))
        } else {
            let tops = symbols.iter().zip(mids).map(|(symbol, mid)| symbol << parts.mid | mid);
            entropy_bits(&histogram(tops))
        };
        let values = symbols.len() as u64;
        let lost = (self.bits + u64::from(parts.mid) * values) as f64 - ideal;
        lost * WORTH > (self.bits + parts.kept_bits() * values) as f64
    }
}

/// Bits of classes that occur so often, escapes included.
fn cost(lengths: &Lengths, counts: &[u64; CLASSES]) -> u64 {
    let [.., escapes] = counts;
    let codes = counts.iter().zip(lengths).map(|(&count, &length)| count * u64::from(length)).sum::<u64>();
    codes + ESCAPE_BITS * escapes
}

/// How often each class occurs in rows of channels with these biases.
fn count(biases: &[u8], symbols: &[u8]) -> Option<[u64; CLASSES]> {
    let mut counts = [0; CLASSES];
    let mut classes = vec![0; biases.len()];
    let kernel = Kernel::detect();
    for row in symbols.chunks(biases.len()) {
        let classes = classes.get_mut(..row.len())?;
        classify(kernel, row, biases, classes);
        for &class in &*classes {
            *counts.get_mut(usize::from(class))? += 1;
        }
    }
    Some(counts)
}

fn histogram(bytes: impl Iterator<Item = u8>) -> Histogram {
    let mut counts = [0; 256];
    for byte in bytes {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    counts
}

/// Bits of an ideal code for symbols that occur so often.
fn entropy_bits(histogram: &Histogram) -> f64 {
    let total = histogram.iter().sum::<u64>() as f64;
    let occurring = histogram.iter().filter(|&&count| count > 0).map(|&count| count as f64);
    occurring.map(|count| count * (total / count).log2()).sum()
}

/// The best coder for a sample of whole rows: with a bias for each channel where that pays. `None` where 16 classes are
/// too few.
pub(in super::super) fn fit(sample: Rows<'_>) -> Option<Fitted> {
    let parts = Parts::of(sample.dtype)?;
    let channels = usize::try_from(sample.row_values).ok().filter(|&channels| channels > 0)?;
    let (symbols, mids) = parts_of(parts, sample.bytes);
    let uniform = Learned::uniform(&histogram(symbols.iter().copied()))?;
    let enough = channels > 1 && symbols.len() / channels >= MIN_SAMPLE_ROWS;
    let float = Float::of(sample.dtype).filter(|_| enough);
    let means = float.map(|float| means(float, parts, channels, &symbols));
    let each = means.and_then(|means| Learned::each(&means, &symbols)).filter(|each| {
        let saved_bytes = (uniform.bits as f64 - each.bits as f64) / 8.0;
        saved_bytes * SAMPLE_SHARE > channels as f64
    });
    let best = each.unwrap_or(uniform);
    let bits = best.bits + parts.kept_bits() * symbols.len() as u64;
    let model = Model::of(Encoding::Planes, &best.bytes());
    (!best.loses(parts, &symbols, &mids)).then_some(Fitted { model, bits })
}

/// Bits of a sample's symbols with a coder that was fitted to another.
pub(in super::super) fn bits(sample: Rows<'_>, coder: &Coder) -> Option<u64> {
    let parts = Parts::of(sample.dtype)?;
    usize::try_from(sample.row_values).ok().filter(|&channels| coder.fits(channels))?;
    let (symbols, _) = parts_of(parts, sample.bytes);
    let counts = count(coder.biases_of_row(), &symbols)?;
    Some(cost(&coder.code.lengths, &counts) + parts.kept_bits() * symbols.len() as u64)
}

/// Symbols and mid bits.
fn parts_of(parts: Parts, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let values = bytes.len() / parts.width;
    let (mut symbols, mut mids, mut lows) = (vec![0; values], vec![0; values], vec![0; values * parts.lows()]);
    let mut apart = Apart { symbols: &mut symbols, mids: &mut mids, lows: &mut lows, stride: values };
    split(Kernel::detect(), parts, bytes, &mut apart);
    (symbols, mids)
}

/// The rounded mean symbol of each channel, of what is finite and not zero.
fn means(float: Float, parts: Parts, channels: usize, symbols: &[u8]) -> Vec<u8> {
    let nonfinite = u8::MAX >> parts.mid;
    let mut sums = vec![(0_u64, 0_u64); channels];
    for row in symbols.chunks_exact(channels) {
        for (&symbol, (sum, count)) in row.iter().zip(&mut sums) {
            if symbol != 0 && !(float.has_infinity && symbol == nonfinite) {
                *sum += u64::from(symbol);
                *count += 1;
            }
        }
    }
    let mean = |(sum, count): (u64, u64)| u8::try_from((2 * sum + count) / (2 * count).max(1)).unwrap_or(u8::MAX);
    sums.into_iter().map(mean).collect()
}
