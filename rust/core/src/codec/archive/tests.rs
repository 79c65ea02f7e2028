//! Frames as their callers see them, and by the text.

#![allow(clippy::cast_possible_truncation, reason = "test data")]
#![allow(clippy::single_range_in_vec_init, reason = "ranges of rows, of which there is one")]
#![allow(clippy::type_complexity, reason = "the parts of a frame")]

use std::ops::Range;

use half::{bf16, f16};

use super::super::tests::{Noise, index_by_the_book};
use super::super::zstd::Scratch;
use super::super::{Codec, Coded, Encoding, Kernel, Model, Rows, decode_with};
use super::*;
use crate::tensor::Dtype;

const WIDTHS: [usize; 6] = [1, 3, 31, 384, 513, 4096];
const DTYPES: [Dtype; 2] = [Dtype::BFloat16, Dtype::Float16];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Correlated,
    Gauss,
    Random,
    Zeros,
    Special,
}
const KINDS: [Kind; 5] = [Kind::Correlated, Kind::Gauss, Kind::Random, Kind::Zeros, Kind::Special];

fn half(dtype: Dtype, value: f64) -> [u8; 2] {
    if dtype == Dtype::BFloat16 { bf16::from_f64(value).to_le_bytes() } else { f16::from_f64(value).to_le_bytes() }
}

/// Rows, and those below.
fn data(kind: Kind, dtype: Dtype, rows: usize, width: usize) -> (Vec<u8>, Vec<u8>) {
    let mut noise = Noise(0x9E37_79B9);
    let special = [f64::NAN, f64::INFINITY, -f64::INFINITY, 5e-324, 1e-40, -1e-7, -0.0, 0.0, 1.0, -65504.0, 3e38];
    let (mut values, mut below) = (Vec::new(), Vec::new());
    for at in 0..rows * width {
        let (scale, first) = (f64::from(1 + (at % width % 7) as u32), noise.gauss());
        let pair = match kind {
            Kind::Correlated => [scale * (0.9 * first + 0.1 * noise.gauss() + 0.3), scale * first],
            Kind::Gauss => [noise.gauss(), first],
            Kind::Zeros => [0.0, first],
            Kind::Special => [0, 1].map(|_| special[noise.bits() as usize % special.len()]),
            Kind::Random => [0.0; 2],
        };
        let [value, other] = match kind {
            Kind::Random => [(); 2].map(|()| (noise.bits() as u16).to_le_bytes()),
            _ => pair.map(|value| half(dtype, value)),
        };
        values.extend(value);
        below.extend(other);
    }
    (values, below)
}

fn of<'a>(dtype: Dtype, width: usize, (bytes, below): &'a (Vec<u8>, Vec<u8>)) -> Rows<'a> {
    Rows { dtype, row_values: width as u64, bytes, below: Some(below) }
}

fn model(dtype: Dtype, width: usize) -> Model {
    fit(of(dtype, width, &data(Kind::Correlated, dtype, 64, width))).unwrap().model
}

fn stored(kernel: Kernel, rows: Rows<'_>, model: &Model) -> Vec<u8> {
    let mut out = b"before".to_vec();
    Scratch::with(|scratch| encode(kernel, rows, model, scratch, &mut out)).unwrap();
    out.split_off(6)
}

fn frame<'a>(rows: Rows<'a>, stored: &'a [u8], model: &'a Model) -> Coded<'a> {
    let Rows { dtype, row_values, bytes, below } = rows;
    let rows = bytes.len() as u64 / (2 * row_values);
    Coded { encoding: Encoding::Archive, stored, dtype, row_values, rows, model: Some(model), below }
}

fn check_decoded(kernel: Kernel, whole: &Coded<'_>, rows: Rows<'_>) {
    let mut out = vec![0xA5; rows.bytes.len()];
    decode_with(kernel, whole, &[0..whole.rows], &mut out).unwrap();
    assert!(out == rows.bytes);
    let (step, row_bytes) = (whole.step().unwrap(), 2 * rows.row_values as usize);
    for first in (0..whole.rows).step_by(step as usize) {
        let range = first..(first + step).min(whole.rows);
        let bytes = range.start as usize * row_bytes..range.end as usize * row_bytes;
        let frame = Coded { below: rows.below.map(|below| &below[bytes.clone()]), ..*whole };
        let mut out = vec![0xA5; bytes.len()];
        decode_with(kernel, &frame, &[range], &mut out).unwrap();
        assert!(out == rows.bytes[bytes]);
    }
}

/// So many bits from a bit on.
fn bits(bytes: &[u8], at: usize, count: usize) -> usize {
    (0..count).map(|bit| usize::from(bytes[(at + bit) / 8] >> ((at + bit) % 8) & 1) << bit).sum()
}

/// The symbol of a canonical code that some bits begin with, and its length.
fn symbol_by_the_book(lengths: &[u8], bytes: &[u8], at: usize) -> (usize, usize) {
    let (mut code, mut first) = (0, 0);
    for length in 1..=9 {
        code = code << 1 | bits(bytes, at + length - 1, 1);
        first <<= 1;
        let own: Vec<_> = (0..lengths.len()).filter(|&symbol| usize::from(lengths[symbol]) == length).collect();
        if code < first + own.len() {
            return (own[code - first], length);
        }
        first += own.len();
    }
    panic!("no code");
}

/// A context and where its symbols begin, in units of `2^raw`, and whether they begin at negative values.
fn place_by_the_book(expected: f32, spread: i64, bias: i64) -> (usize, i64, bool) {
    let magnitude = i64::from(expected.to_bits() & 0x7FFF_FFFF);
    let (exponent, octaves) = (magnitude >> 23, spread / 2);
    let (context, base) = if exponent >= octaves + 2 {
        (12 + (2 * exponent - spread - 3).clamp(0, 3), (magnitude >> 21) - 32)
    } else {
        (6 * (spread % 2) + ((magnitude >> 22) - 2 * octaves + 2).clamp(0, 5), 4 * (octaves - 11))
    };
    (context as usize, base - 4 * bias, exponent >= 32 && expected.is_sign_negative())
}

/// Where each segment begins: rows, cut or put together.
fn segments_by_the_book(values: usize, width: usize) -> Vec<Range<usize>> {
    let (mut segments, mut at) = (Vec::new(), 0);
    while at < values {
        let length = match width {
            0..512 => 512 / width * width,
            _ => (width.div_ceil(width.div_ceil(512)).div_ceil(8) * 8).min(width - at % width),
        };
        segments.push(at..(at + length).min(values));
        at += length;
    }
    segments
}

/// The fields of a frame by the text: steps, raw bits, the bytes of each segment, codes and escapes.
fn fields_by_the_book(stored: &[u8], [values, width, raw]: [usize; 3]) -> (&[u8], &[u8], Vec<usize>, &[u8], &[u8]) {
    let (flags, mut rest) = (stored[0], &stored[1..]);
    let steps = rest.split_off(..(values / width).div_ceil(2)).unwrap();
    let raws = rest.split_off(..(values * raw).div_ceil(8)).unwrap();
    let index = index_by_the_book(&mut rest, flags, segments_by_the_book(values, width).len());
    let lengths: Vec<_> = index.iter().map(|segment| segment.0).collect();
    let codes = rest.split_off(..lengths.iter().sum::<usize>()).unwrap();
    (steps, raws, lengths, codes, rest)
}

/// A decoder written from the text, a value at a time.
fn by_the_book(stored: &[u8], rows: Rows<'_>, model: &Model) -> Vec<u8> {
    let (width, values) = (rows.row_values as usize, rows.bytes.len() / 2);
    let (raw, bias) = if rows.dtype == Dtype::BFloat16 { (5, 0) } else { (8, 112) };
    let (parameters, lengths) = model.bytes()[1..].split_at(5 * width);
    let lengths: Vec<u8> = lengths.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
    let number = |at: usize| bf16::from_le_bytes([parameters[2 * at], parameters[2 * at + 1]]).to_f32();
    let below = |at: usize| {
        let bytes = [rows.below.unwrap()[2 * at], rows.below.unwrap()[2 * at + 1]];
        let (bfloat, float) = (bf16::from_le_bytes(bytes), f16::from_le_bytes(bytes));
        match rows.dtype {
            Dtype::BFloat16 if bfloat.is_normal() => bfloat.to_f32(),
            Dtype::Float16 if float.is_normal() => float.to_f32(),
            _ => 0.0,
        }
    };
    let (steps, raws, sizes, codes, escapes) = fields_by_the_book(stored, [values, width, raw]);
    let (mut start, mut escapes) = (0, escapes.chunks(2));
    let mut out = Vec::new();
    for (segment, size) in segments_by_the_book(values, width).into_iter().zip(sizes) {
        let mut at = 8 * start;
        for value in segment {
            let channel = value % width;
            let product = number(channel) * below(value);
            let spread = usize::from(parameters[4 * width + channel]) + bits(steps, value / width * 4, 4) + 66;
            let (context, base, negative) = place_by_the_book(product + number(width + channel), spread as i64, bias);
            let (symbol, length) = symbol_by_the_book(&lengths[129 * context..][..129], codes, at);
            at += length;
            if symbol == 128 {
                out.extend(escapes.next().unwrap());
                continue;
            }
            let rest = bits(raws, value * raw, raw) as i64;
            let from_base = ((base + symbol as i64 / 2) << raw) + rest;
            let signs = (i64::from(negative) + symbol as i64 % 2) << 15;
            out.extend(((from_base + signs) as u16).to_le_bytes());
        }
        start += size;
        assert!(at <= 8 * start && 8 * start < at + 8);
    }
    assert!(escapes.next().is_none() && start == codes.len());
    out
}

#[test]
fn frames_come_back_whole_and_in_steps_and_by_the_text() {
    for (dtype, width) in DTYPES.into_iter().flat_map(|dtype| WIDTHS.map(|width| (dtype, width))) {
        let model = model(dtype, width);
        for kind in KINDS {
            for count in [1, 2, 5, if width < 100 { 2000 / width } else { 13 }] {
                let data = data(kind, dtype, count, width);
                let rows = of(dtype, width, &data);
                let [portable, detected] =
                    [Kernel::PORTABLE, Kernel::detect()].map(|kernel| stored(kernel, rows, &model));
                assert!(portable == detected, "kernels write different bytes");
                for kernel in [Kernel::PORTABLE, Kernel::detect()] {
                    check_decoded(kernel, &frame(rows, &portable, &model), rows);
                }
                assert!(by_the_book(&portable, rows, &model) == rows.bytes, "{kind:?} {} {width}", dtype.name());
            }
        }
    }
}

#[test]
fn the_codec_takes_it_where_the_layer_below_helps() {
    for dtype in DTYPES {
        let sample = data(Kind::Correlated, dtype, 200, 384);
        let model = Codec::Archive.fit(of(dtype, 384, &sample)).unwrap().model;
        let data = data(Kind::Correlated, dtype, 40, 384);
        for kernel in [Kernel::PORTABLE, Kernel::detect()] {
            let mut out = Vec::new();
            let encoding = Codec::Archive.encode_with(kernel, of(dtype, 384, &data), Some(&model), &mut out);
            assert_eq!(encoding, Encoding::Archive);
            check_decoded(kernel, &frame(of(dtype, 384, &data), &out, &model), of(dtype, 384, &data));
        }
    }
}

#[test]
fn damaged_frames_are_refused_or_decode_to_something() {
    let (dtype, width) = (Dtype::BFloat16, 31);
    let (model, data) = (model(dtype, width), data(Kind::Special, dtype, 40, width));
    let rows = of(dtype, width, &data);
    let whole = stored(Kernel::detect(), rows, &model);
    let mut out = vec![0; rows.bytes.len()];
    for length in 0..whole.len() {
        assert!(decode_with(Kernel::detect(), &frame(rows, &whole[..length], &model), &[0..40], &mut out).is_err());
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        let results = [Kernel::PORTABLE, Kernel::detect()].map(|kernel| {
            let result = decode_with(kernel, &frame(rows, &damaged, &model), &[0..40], &mut out);
            result.map(|()| out.clone()).map_err(|error| error.to_string())
        });
        assert!(results[0] == results[1]);
    }
    // Not where a step begins or ends.
    let below = rows.below.map(|below| &below[..62]);
    let frame = Coded { below, ..frame(rows, &whole, &model) };
    assert!(decode_with(Kernel::detect(), &frame, &[0..1], &mut [0; 62]).is_err());
    assert!(decode_with(Kernel::detect(), &frame, &[1..2], &mut [0; 62]).is_err());
}
