//! What the fuzz targets do with their bytes: cut them into arguments of a codec, and check what the codec promises; read
//! them as a pickle.
//!
//! This is not in the targets so that tests can run the kept corpus without libFuzzer.

#[path = "pickle.rs"]
mod pickle;

use std::iter;
use std::ops::Range;

use actstore::codec::{self, Codec, Coded, Encoding, Kernel, Model, Rows, decode_with};
use actstore::tensor::Dtype;

pub use self::pickle::pickle_decode;

/// A target by its name; it says whether anything was decoded.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// Every target.
pub const TARGETS: [Target; 5] = [
    ("planes_decode", planes_decode),
    ("archive_decode", archive_decode),
    ("planes_round_trip", planes_round_trip),
    ("archive_round_trip", archive_round_trip),
    ("pickle_decode", pickle_decode),
];

/// Most bytes of a frame, decoded.
const MOST_BYTES: u64 = 64 << 10;

/// A frame of `planes`: an error or bytes, the same with every kernel.
pub fn planes_decode(data: &[u8]) -> bool {
    decode(Encoding::Planes, Input(data))
}

/// A frame of `archive`: an error or bytes, the same with every kernel.
pub fn archive_decode(data: &[u8]) -> bool {
    decode(Encoding::Archive, Input(data))
}

/// Rows that `planes` encodes: the same bytes with every kernel, no more than before, from which the rows come back.
pub fn planes_round_trip(data: &[u8]) -> bool {
    round_trip(Codec::Planes, Input(data))
}

/// Rows that `archive` encodes: the same bytes with every kernel, no more than before, from which the rows come back.
pub fn archive_round_trip(data: &[u8]) -> bool {
    round_trip(Codec::Archive, Input(data))
}

/// Bytes that are taken from the front; zeros where there are no more.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Bytes after their length.
    fn part(&mut self) -> &'a [u8] {
        let length = usize::from(self.short()).min(self.0.len());
        self.0.split_off(..length).unwrap_or_default()
    }

    fn dtype(&mut self) -> Dtype {
        Dtype::from_code(self.byte() % 12).unwrap_or(Dtype::BFloat16)
    }

    /// Mostly small.
    fn number(&mut self) -> u64 {
        let number = u64::from(self.short());
        let shift = self.byte();
        if shift < 0xC0 { number } else { number << (shift & 63) }
    }

    fn cuts(&mut self) -> [u64; 4] {
        std::array::from_fn(|_| u64::from(self.short()))
    }
}

fn kernels() -> [Kernel; 2] {
    [Kernel::PORTABLE, Kernel::detect()]
}

fn whole(rows: u64) -> Vec<Range<u64>> {
    iter::once(0..rows).collect()
}

/// Two ranges of the rows of a frame that it can be decoded by.
fn ranges_of(frame: &Coded<'_>, cuts: [u64; 4]) -> Vec<Range<u64>> {
    let step = frame.step().unwrap_or(1).max(1);
    let [a, b, c, d] = cuts.map(|cut| {
        let cut = cut % (frame.rows + 1);
        if cut == frame.rows { cut } else { cut - cut % step }
    });
    vec![a.min(b)..a.max(b), c.min(d)..c.max(d)]
}

/// Bytes of so many values, a pattern again and again; bits that a mask has, of the highest byte or of the others, are
/// changed by noise, so that a few bytes make frames which do not just repeat themselves.
fn fill(pattern: &[u8], width: usize, bytes: usize, [low, high]: [u8; 2]) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let pattern = if pattern.is_empty() { &[0] } else { pattern };
    let mut filled = pattern.repeat(bytes.div_ceil(pattern.len()));
    filled.truncate(bytes);
    if low | high == 0 {
        return filled;
    }
    for value in filled.chunks_mut(width) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [noise_high, noise @ ..] = (state ^ state >> 32).to_be_bytes();
        let Some((last, others)) = value.split_last_mut() else { continue };
        *last ^= noise_high & high;
        others.iter_mut().zip(noise).for_each(|(byte, noise)| *byte ^= noise & low);
    }
    filled
}

/// Lengths of a complete code of some symbols, the last one among them: one leaf after the other is split in two.
fn lengths(symbols: usize, longest: u8, choices: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut leaves = vec![(0, 1), (symbols - 1, 1)];
    for (symbol, choice) in (1..symbols - 1).zip(choices.chain(iter::repeat(0))) {
        // Codes of many symbols need not have all of them.
        if symbols > 16 && choice >= 0xF0 {
            continue;
        }
        let first = usize::from(choice) % leaves.len();
        let (before, after) = leaves.split_at_mut(first);
        let Some(leaf) = after.iter_mut().chain(before).find(|leaf| leaf.1 < longest) else { break };
        leaf.1 += 1;
        let length = leaf.1;
        leaves.push((symbol, length));
    }
    let mut lengths = vec![0; symbols];
    for (symbol, length) in leaves {
        if let Some(place) = lengths.get_mut(symbol) {
            *place = length;
        }
    }
    lengths
}

fn pack(lengths: &[u8]) -> impl Iterator<Item = u8> {
    lengths.chunks(2).map(|pair| pair.iter().rev().fold(0, |byte, length| byte << 4 | length))
}

/// The model of `planes` of a complete code and any biases, one or as many as there are channels.
fn planes_model(from: &[u8], channels: usize) -> Model {
    let (choices, biases) = from.split_at_checked(16).unwrap_or((from, &[]));
    let mut bytes = vec![Encoding::Planes.code()];
    bytes.extend(pack(&lengths(16, 7, choices.iter().copied())));
    bytes.extend(fill(biases, 1, channels, [0; 2]));
    Model::new(bytes)
}

/// The model of `archive` of complete codes and any channels.
fn archive_model(from: &[u8], channels: usize) -> Model {
    let (choices, parameters) = from.split_at_checked(128).unwrap_or((from, &[]));
    let mut bytes = vec![Encoding::Archive.code()];
    for number in fill(parameters, 2, 4 * channels, [0; 2]).as_chunks::<2>().0 {
        let number = u16::from_le_bytes(*number);
        // Zero and normal numbers are those that a model has.
        let number = if matches!(number >> 7 & 0xFF, 0 | 0xFF) { 0 } else { number };
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(parameters.iter().rev().copied().chain(iter::repeat(128)).take(channels));
    for context in 0..8 {
        // Fields of two contexts make whole bytes.
        let both = [2 * context, 2 * context + 1].map(|context| {
            let choices = choices.iter().copied().cycle().skip(context * 5).take(choices.len());
            lengths(129, 9, choices)
        });
        bytes.extend(pack(&both.concat()));
    }
    Model::new(bytes)
}

/// None, a model of any bytes, or one that can be read.
fn model_of(kind: u8, part: &[u8], row_values: u64) -> Option<Model> {
    let channels = usize::try_from(row_values.min(MOST_BYTES)).unwrap_or(0);
    match kind % 5 {
        0 => None,
        1 => Some(Model::new(part.to_vec())),
        2 => Some(planes_model(part, 1)),
        3 => Some(planes_model(part, channels)),
        _ => Some(archive_model(part, channels)),
    }
}

fn decode(encoding: Encoding, mut input: Input<'_>) -> bool {
    let (how, dtype) = (input.byte(), input.dtype());
    let (row_values, rows, cuts) = (input.number(), input.number(), input.cuts());
    let model = model_of(input.byte(), input.part(), row_values);
    let (below, stored) = (input.part(), input.0);
    let row_bytes = row_values.saturating_mul(dtype.size() as u64);
    // A frame may take the memory of its rows. No number says how many bytes the largest ones have: they are refused.
    if row_bytes.checked_mul(rows).is_some_and(|bytes| row_bytes < u64::MAX && bytes > MOST_BYTES) {
        return false;
    }
    let frame = Coded { encoding, stored, dtype, row_values, rows, model: model.as_ref(), below: None };
    let [a, b, c, d] = cuts;
    let ranges = match how & 3 {
        0 => whole(rows),
        1 => vec![a..b, c..d],
        _ => ranges_of(&frame, cuts),
    };
    let due = ranges.iter().map(|range| range.end.saturating_sub(range.start).saturating_mul(row_bytes));
    let due = due.fold(u64::from(how & 4 != 0), u64::saturating_add).min(4 * MOST_BYTES);
    let due = usize::try_from(due).unwrap_or(0);
    let below = fill(below, 1, if how & 8 == 0 { due } else { due / 2 }, [0; 2]);
    let frame = Coded { below: (how & 16 == 0).then_some(&*below), ..frame };
    let results = [(Kernel::PORTABLE, 0xA5), (Kernel::detect(), 0x5A)].map(|(kernel, before)| {
        let mut out = vec![before; due];
        decode_with(kernel, &frame, &ranges, &mut out).map(|()| out)
    });
    match results {
        [Ok(portable), Ok(detected)] => {
            assert!(portable == detected, "kernels decode differently");
            true
        }
        [Err(portable), Err(detected)] => {
            assert_eq!(portable.to_string(), detected.to_string());
            false
        }
        [portable, detected] => {
            assert_eq!(portable.is_ok(), detected.is_ok(), "only one kernel decodes");
            false
        }
    }
}

fn round_trip(codec: Codec, mut input: Input<'_>) -> bool {
    let (how, dtype) = (input.byte(), input.dtype());
    let row_values = u64::from(input.short());
    let width = dtype.size();
    let row_bytes = row_values * width as u64;
    let rows = u64::from(input.short());
    // Small frames are sooner done; only long ones are decoded in several groups of segments.
    let most = if rows < 0x8000 { MOST_BYTES / 8 } else { MOST_BYTES };
    let rows = rows.min(most / row_bytes.max(1));
    let (cuts, noise) = (input.cuts(), [input.byte(), input.byte()]);
    let (kind, part, below) = (input.byte(), input.part(), input.part());
    let len = usize::try_from(rows * row_bytes).unwrap_or(0);
    let below = fill(below, width, len, [0xFF, how >> 4]);
    let mut bytes = fill(input.0, width, len, noise);
    if how & 1 != 0 {
        // Layers are much like those below.
        bytes.iter_mut().zip(&below).for_each(|(byte, below)| *byte ^= below);
    }
    if how & 2 != 0 {
        bytes.pop();
    }
    // Of rows of one byte whole rows are left.
    let rows = bytes.len() as u64 / row_bytes.max(1);
    let below = below.get(..if how & 4 == 0 { bytes.len() } else { len / 2 }).filter(|_| how & 8 == 0);
    let all = Rows { dtype, row_values, bytes: &bytes, below };
    let is_whole = row_bytes > 0 && bytes.len() as u64 == rows * row_bytes;
    let is_given = below.is_some_and(|below| below.len() == bytes.len());
    let model = if kind >= 0x80 && is_whole {
        fitted(codec, if is_given { all } else { Rows { below: None, ..all } }, rows * u64::from(kind & 0x7F) / 0x7F)
    } else {
        model_of(kind, part, row_values)
    };
    let model = model.as_ref();
    let [portable, detected] = kernels().map(|kernel| {
        let mut out = b"before".to_vec();
        let encoding = codec.encode_with(kernel, all, model, &mut out);
        assert!(out.starts_with(b"before"));
        (encoding, out.split_off(6))
    });
    assert!(portable == detected, "kernels encode differently");
    let (encoding, stored) = portable;
    assert!(stored.len() <= bytes.len(), "{} bytes grew to {}", bytes.len(), stored.len());
    assert!(encoding != Encoding::Archive || is_given);
    if !is_whole {
        assert!(matches!(encoding, Encoding::Stored | Encoding::Zstd));
        return false;
    }
    let frame = Coded { encoding, stored: &stored, dtype, row_values, rows, model, below };
    for ranges in [whole(rows), ranges_of(&frame, cuts)] {
        let expected = rows_of(&bytes, row_bytes, &ranges);
        let below = below.map(|below| rows_of(below, row_bytes, &ranges));
        let frame = Coded { below: below.as_deref(), ..frame };
        for kernel in kernels() {
            let mut out = vec![0xA5; expected.len()];
            let decoded = decode_with(kernel, &frame, &ranges, &mut out);
            assert!(decoded.is_ok(), "{encoding:?}: {decoded:?}");
            assert!(out == expected, "{encoding:?}: other rows come back");
        }
    }
    matches!(encoding, Encoding::Planes | Encoding::Archive)
}

/// A model of the first rows, which costs them what it says.
fn fitted(codec: Codec, all: Rows<'_>, rows: u64) -> Option<Model> {
    let bytes = usize::try_from(rows * all.row_values).unwrap_or(0) * all.dtype.size();
    let below = all.below.and_then(|below| below.get(..bytes));
    let sample = Rows { bytes: all.bytes.get(..bytes)?, below, ..all };
    let fitted = codec.fit(sample)?;
    assert_eq!(codec::bits(sample, &fitted.model), Some(fitted.bits));
    Some(fitted.model)
}

fn rows_of(bytes: &[u8], row_bytes: u64, ranges: &[Range<u64>]) -> Vec<u8> {
    let at = |row: u64| usize::try_from(row * row_bytes).unwrap_or(usize::MAX);
    ranges.iter().filter_map(|range| bytes.get(at(range.start)..at(range.end))).collect::<Vec<_>>().concat()
}
