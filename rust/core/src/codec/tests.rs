//! The codecs as their callers see them.

#![allow(clippy::cast_possible_truncation, reason = "test data")]
#![allow(clippy::single_range_in_vec_init, reason = "ranges of rows, of which there is one")]

use proptest::prelude::*;

use super::*;

/// Deterministic bits (xorshift).
pub(in crate::codec) struct Noise(pub(in crate::codec) u64);

impl Noise {
    pub(in crate::codec) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(in crate::codec) fn gauss(&mut self) -> f64 {
        (0..12).map(|_| (self.bits() >> 11) as f64 / (1_u64 << 53) as f64).sum::<f64>() - 6.0
    }
}

#[derive(Clone, Copy, Debug)]
enum Kindness {
    Random,
    Zeros,
    Ones,
    Special,
    HalfZeros,
    Ramp,
    Gauss,
    SameRows,
    FewRows,
    ZeroRuns,
}
use Kindness::*;
const KINDS: [Kindness; 10] = [Random, Zeros, Ones, Special, HalfZeros, Ramp, Gauss, SameRows, FewRows, ZeroRuns];

fn bytes_of(dtype: Dtype, value: f64) -> Vec<u8> {
    match dtype {
        Dtype::Float16 => half::f16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::BFloat16 => half::bf16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::Float32 => (value as f32).to_le_bytes().to_vec(),
        Dtype::Float64 => value.to_le_bytes().to_vec(),
        // The upper half of a float16 is an e5m2, and as good as any e4m3.
        Dtype::Float8E4M3 | Dtype::Float8E5M2 => half::f16::from_f64(value).to_le_bytes()[1..].to_vec(),
        _ => ((value * 100.0) as i64).to_le_bytes()[..dtype.size()].to_vec(),
    }
}

fn data(kind: Kindness, dtype: Dtype, rows: usize, width: usize) -> Vec<u8> {
    let mut noise = Noise(0x9E37_79B9);
    let scales: Vec<f64> = (0..width).map(|_| noise.gauss().exp()).collect();
    let special = [f64::NAN, f64::INFINITY, -f64::INFINITY, 5e-324, 1e-40, 1e-7, -0.0, 0.0, 1.0];
    let first: Vec<u8> = (0..width).flat_map(|_| bytes_of(dtype, noise.gauss())).collect();
    let mut bytes: Vec<u8> = Vec::new();
    for row in 0..rows {
        if let SameRows = kind {
            bytes.extend_from_slice(&first);
            continue;
        }
        if matches!(kind, FewRows) && row >= 8 {
            let earlier = noise.bits() as usize % row * first.len();
            bytes.extend_from_within(earlier..earlier + first.len());
            continue;
        }
        for (channel, scale) in scales.iter().enumerate() {
            let value = match kind {
                Special => special[noise.bits() as usize % special.len()],
                HalfZeros if noise.bits() & 1 == 0 => 0.0,
                ZeroRuns if channel * 2 > width => 0.0,
                Ramp => (row * width + channel) as f64,
                Zeros => 0.0,
                _ => noise.gauss() * scale,
            };
            match kind {
                Random => bytes.extend_from_slice(&noise.bits().to_le_bytes()[..dtype.size()]),
                Ones => bytes.extend(std::iter::repeat_n(0xFF, dtype.size())),
                _ => bytes.extend(bytes_of(dtype, value)),
            }
        }
    }
    bytes
}

fn fitted(codec: Codec, kind: Kindness, dtype: Dtype, width: usize) -> Option<Model> {
    codec.fit(rows(dtype, width, &data(kind, dtype, 64, width))).map(|fitted| fitted.model)
}

fn rows(dtype: Dtype, width: usize, bytes: &[u8]) -> Rows<'_> {
    Rows { dtype, row_values: width as u64, bytes, below: None }
}

fn coded<'a>(encoding: Encoding, stored: &'a [u8], rows: Rows<'a>, model: Option<&'a Model>) -> Coded<'a> {
    let row_bytes = rows.row_values.saturating_mul(rows.dtype.size() as u64).max(1);
    let Rows { dtype, row_values, bytes, below } = rows;
    Coded { encoding, stored, dtype, row_values, rows: bytes.len() as u64 / row_bytes, model, below }
}

fn kernels() -> [Kernel; 2] {
    [Kernel::PORTABLE, Kernel::detect()]
}

/// A model with these biases, whatever they are.
fn odd_model(biases: Vec<u8>) -> Model {
    let lengths = [7, 7, 6, 5, 3, 3, 3, 2, 3, 4, 4, 6, 7, 7, 6, 6];
    assert!(prefix::is_complete(&lengths, 7));
    Model::new([&[2], &prefix::pack_lengths(&lengths)[..], &biases].concat())
}

/// A model of `planes` for so many channels.
fn any_model(channels: u64) -> Model {
    odd_model(vec![100; channels as usize])
}

/// Encodes and decodes, whole and row by row, with every kernel; the frame is the same.
fn round_trip(codec: Codec, rows: Rows<'_>, model: Option<&Model>) -> (Encoding, Vec<u8>) {
    let [portable, detected] = kernels().map(|kernel| {
        let mut stored = b"before".to_vec();
        let encoding = codec.encode_with(kernel, rows, model, &mut stored);
        (encoding, stored.split_off(6))
    });
    assert!(portable == detected, "{codec:?}: kernels write different bytes");
    let (encoding, stored) = portable;
    assert!(stored.len() <= rows.bytes.len());
    let frame = coded(encoding, &stored, rows, model);
    if frame.bytes().is_ok_and(|bytes| bytes == rows.bytes.len()) {
        for kernel in kernels() {
            check_decoded(kernel, &frame, rows);
        }
    }
    if encoding == Encoding::Planes {
        assert!(by_the_book(&stored, rows, model) == rows.bytes, "the text decodes otherwise");
    }
    (encoding, stored)
}

fn check_decoded(kernel: Kernel, frame: &Coded<'_>, rows: Rows<'_>) {
    let mut out = vec![0xA5; rows.bytes.len()];
    decode_with(kernel, frame, &[0..frame.rows], &mut out).unwrap();
    assert!(out == rows.bytes, "{:?} {} x {}", frame.encoding, rows.dtype.name(), rows.row_values);
    let (step, row_bytes) = (frame.step().unwrap(), frame.row_bytes().unwrap());
    let bytes_of = |range: &Range<u64>| range.start as usize * row_bytes..range.end as usize * row_bytes;
    // From the middle, the last rows, the first rows: ranges need no order, and may meet.
    let middle = frame.rows / 2 / step * step;
    let last = frame.rows.saturating_sub(1) / step * step;
    let ranges = [middle..(middle + step).min(frame.rows), last..frame.rows, 0..step.min(frame.rows), middle..middle];
    let expected: Vec<u8> = ranges.iter().flat_map(|range| rows.bytes[bytes_of(range)].to_vec()).collect();
    let below = rows
        .below
        .map(|below| -> Vec<u8> { ranges.iter().flat_map(|range| below[bytes_of(range)].to_vec()).collect() });
    let mut out = vec![0xA5; expected.len()];
    let frame = Coded { below: below.as_deref(), ..*frame };
    decode_with(kernel, &frame, &ranges, &mut out).unwrap();
    assert!(out == expected, "rows of {:?} {} x {}", frame.encoding, rows.dtype.name(), rows.row_values);
}

/// Bits of a frame, read one by one.
struct BitReader<'a>(&'a [u8], usize);

impl BitReader<'_> {
    fn bit(&mut self) -> usize {
        let bit = self.0[self.1 / 8] >> (self.1 % 8) & 1;
        self.1 += 1;
        usize::from(bit)
    }

    fn field(&mut self, bits: usize) -> usize {
        (0..bits).map(|place| self.bit() << place).sum()
    }

    /// The symbol of a canonical code, from its lengths.
    fn symbol(&mut self, lengths: &[u8]) -> usize {
        let (mut code, mut first) = (0, 0);
        for length in 1..16 {
            code = code << 1 | self.bit();
            first <<= 1;
            let own: Vec<_> = (0..lengths.len()).filter(|&symbol| lengths[symbol] == length).collect();
            if code < first + own.len() {
                return own[code - first];
            }
            first += own.len();
        }
        panic!("no code");
    }
}

/// Where each segment begins, by the text: rows, cut or put together.
fn segments_by_the_book(values: usize, width: usize) -> Vec<usize> {
    let (mut starts, mut at) = (Vec::new(), 0);
    while at < values {
        starts.push(at);
        at += if width < 512 {
            512 / width * width
        } else {
            let pieces = width.div_ceil(512);
            let length = width.div_ceil(pieces).div_ceil(8) * 8;
            length.min(width - at % width)
        };
    }
    starts
}

/// The index of a frame by the text: the length of each segment, and its escapes.
pub(in crate::codec) fn index_by_the_book(stored: &mut &[u8], flags: u8, segments: usize) -> Vec<(usize, usize)> {
    let bit = |bits: &[u8], at: usize| usize::from(bits.get(at / 8).map_or(0, |byte| byte >> (at % 8) & 1));
    let numbers = |stored: &mut &[u8], count: usize, planes: usize| -> Vec<usize> {
        let low = stored.split_off(..count).unwrap();
        let planes: Vec<_> = (0..planes).map(|_| stored.split_off(..count.div_ceil(8)).unwrap()).collect();
        let high = |at: usize| (8..).zip(&planes).map(|(shift, plane)| bit(plane, at) << shift).sum::<usize>();
        low.iter().enumerate().map(|(at, &low)| usize::from(low) + high(at)).collect()
    };
    let head = stored.split_off(..2).unwrap();
    let head = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let lengths = numbers(stored, segments, head >> 12 & 7);
    let mut escapes = vec![0; segments];
    if flags & 2 != 0 {
        let marks = stored.split_off(..segments.div_ceil(8)).unwrap();
        let marked: Vec<_> = (0..segments).filter(|&segment| bit(marks, segment) != 0).collect();
        let counts = numbers(stored, marked.len(), head >> 15);
        marked.iter().zip(counts).for_each(|(&segment, count)| escapes[segment] = count + 1);
    }
    lengths.into_iter().map(|length| (head & 4095) + length).zip(escapes).collect()
}

/// A decoder of `planes` written from FORMAT.md, a value at a time.
fn by_the_book(stored: &[u8], rows: Rows<'_>, model: Option<&Model>) -> Vec<u8> {
    let (width, size) = (rows.row_values as usize, rows.dtype.size());
    let n = rows.bytes.len() / size;
    let m = match rows.dtype {
        Dtype::Float16 | Dtype::Float8E5M2 => 3,
        Dtype::Float8E4M3 => 4,
        _ => 0,
    };
    let (flags, packed, mut rest) = (stored[0], stored[1], &stored[2..]);
    let mut lows = Vec::new();
    for plane in 0..size - 1 {
        lows.push(if packed >> plane & 1 == 0 {
            rest.split_off(..n).unwrap().to_vec()
        } else {
            let length = u32::from_le_bytes(rest.split_off(..4).unwrap().try_into().unwrap());
            ::zstd::decode_all(rest.split_off(..length as usize).unwrap()).unwrap()
        });
    }
    let tops: Vec<usize> = if flags == 4 {
        let plane = if rest.len() == n { rest.to_vec() } else { ::zstd::decode_all(rest).unwrap() };
        plane.into_iter().map(usize::from).collect()
    } else {
        let mut mids = BitReader(rest.split_off(..(n * m).div_ceil(8)).unwrap(), 0);
        let own = if flags & 1 != 0 { rest.split_off(..9).unwrap() } else { &model.unwrap().bytes()[1..] };
        let lengths: Vec<u8> = own[..8].iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
        let starts = segments_by_the_book(n, width);
        let index = index_by_the_book(&mut rest, flags, starts.len());
        let bits: usize = index.iter().map(|segment| segment.0).sum();
        let mut codes = BitReader(rest.split_off(..bits.div_ceil(8)).unwrap(), 0);
        let mut escapes = rest.iter();
        let symbol = |value: usize| {
            let bias = own[8 + if own.len() == 9 { 0 } else { value % width }];
            match codes.symbol(&lengths) {
                14 => 0,
                15 => usize::from(*escapes.next().unwrap()),
                class => (class + usize::from(bias)) % 256,
            }
        };
        (0..n).map(symbol).map(|symbol| symbol << m | mids.field(m)).collect()
    };
    let mut bytes = Vec::new();
    for (value, top) in tops.into_iter().enumerate() {
        let lows = lows.iter().enumerate().map(|(k, plane)| u64::from(plane[value]) << (8 * k));
        let x = lows.fold((top as u64) << (8 * (size - 1)), |x, low| x | low);
        let bits = x >> 1 | (x & 1) << (8 * size - 1);
        bytes.extend_from_slice(&bits.to_le_bytes()[..size]);
    }
    bytes
}

fn sweep(widths: &[usize], row_counts: &[usize]) {
    for &dtype in Dtype::ALL {
        for (&width, kind) in widths.iter().flat_map(|width| KINDS.map(|kind| (width, kind))) {
            let all = data(kind, dtype, *row_counts.last().unwrap(), width);
            let odd = odd_model((0..width).map(|c| (c * 37) as u8).collect());
            let fit = fitted(Codec::Planes, kind, dtype, width.min(400)).filter(|_| width <= 400);
            for bytes in row_counts.iter().map(|rows| &all[..rows * width * dtype.size()]) {
                let rows = rows(dtype, width, bytes);
                for &codec in Codec::ALL {
                    round_trip(codec, rows, None);
                }
                round_trip(Codec::Planes, rows, Some(&odd));
                if fit.is_some() {
                    round_trip(Codec::Planes, rows, fit.as_ref());
                }
            }
        }
    }
}

#[test]
fn every_dtype_and_kind_of_narrow_rows_comes_back() {
    sweep(&[1, 3, 31, 384], &[0, 1, 2, 17, 90]);
}

#[test]
fn every_dtype_and_kind_of_wide_rows_comes_back() {
    sweep(&[4096, 12289], &[0, 1, 2]);
}

#[test]
fn a_row_larger_than_any_window_comes_back() {
    let bytes = data(Gauss, Dtype::BFloat16, 1, 1 << 20).repeat(3);
    let rows = Rows { dtype: Dtype::BFloat16, row_values: 3 << 20, bytes: &bytes, below: None };
    assert_eq!(round_trip(Codec::Planes, rows, None).0, Encoding::Planes);
    assert_eq!(round_trip(Codec::Zstd, rows, None).0, Encoding::Zstd);
}

#[test]
fn gaussian_bf16_shrinks_by_its_exponents_and_a_model_helps() {
    let bytes = data(Gauss, Dtype::BFloat16, 85, 384);
    let rows = Rows { dtype: Dtype::BFloat16, row_values: 384, bytes: &bytes, below: None };
    let model = fitted(Codec::Planes, Gauss, Dtype::BFloat16, 384).expect("a model");
    let (encoding, with) = round_trip(Codec::Planes, rows, Some(&model));
    let (_, without) = round_trip(Codec::Planes, rows, None);
    assert_eq!(encoding, Encoding::Planes);
    assert!(bytes.len() as f64 / with.len() as f64 > 1.45, "{} to {}", bytes.len(), with.len());
    assert!(bytes.len() as f64 / without.len() as f64 > 1.4, "{} to {}", bytes.len(), without.len());
}

#[test]
fn sparse_values_and_upcast_values_shrink_by_every_plane() {
    let bytes = data(HalfZeros, Dtype::BFloat16, 85, 384);
    let rows = Rows { dtype: Dtype::BFloat16, row_values: 384, bytes: &bytes, below: None };
    let model = fitted(Codec::Planes, HalfZeros, Dtype::BFloat16, 384);
    let (encoding, stored) = round_trip(Codec::Planes, rows, model.as_ref());
    assert_eq!(encoding, Encoding::Planes);
    assert!(bytes.len() as f64 / stored.len() as f64 > 2.0, "{} to {}", bytes.len(), stored.len());

    let wide = data(Gauss, Dtype::BFloat16, 42, 384);
    let bytes: Vec<u8> = wide.chunks_exact(2).flat_map(|bf16| [0, 0, bf16[0], bf16[1]]).collect();
    let rows = Rows { dtype: Dtype::Float32, row_values: 384, bytes: &bytes, below: None };
    let (_, stored) = round_trip(Codec::Planes, rows, None);
    assert!(bytes.len() as f64 / stored.len() as f64 > 2.7, "{} to {}", bytes.len(), stored.len());
}

#[test]
fn planes_leaves_to_zstd_what_zstd_does_better() {
    for &dtype in Dtype::ALL {
        for (kind, width) in KINDS.iter().flat_map(|kind| [1, 31, 384, 4096].map(|width| (*kind, width))) {
            let bytes = data(kind, dtype, (64 << 10) / width / dtype.size(), width);
            let rows = Rows { dtype, row_values: width as u64, bytes: &bytes, below: None };
            let model = fitted(Codec::Planes, kind, dtype, width).filter(|_| width < 4096);
            let (_, planes) = round_trip(Codec::Planes, rows, model.as_ref());
            let (_, zstd) = round_trip(Codec::Zstd, rows, None);
            let (planes, zstd) = (planes.len(), zstd.len());
            assert!(planes <= zstd + zstd / 50, "{kind:?} {} x {width}: {planes}, zstd {zstd}", dtype.name());
        }
    }
}

#[test]
fn integers_are_never_planes_and_raw_is_always_stored() {
    let bytes = data(Ramp, Dtype::Int32, 100, 8);
    let rows = Rows { dtype: Dtype::Int32, row_values: 8, bytes: &bytes, below: None };
    assert_eq!(round_trip(Codec::Planes, rows, None).0, Encoding::Zstd);
    assert_eq!(round_trip(Codec::Raw, rows, None).0, Encoding::Stored);
    assert!(Codec::Raw.fit(rows).is_none());
}

#[test]
fn rows_that_do_not_fit_are_encoded_all_the_same() {
    let bytes = data(Gauss, Dtype::BFloat16, 85, 384);
    let model = odd_model(vec![0; 383]);
    let rows = |row_values, bytes| Rows { dtype: Dtype::BFloat16, row_values, bytes, below: None };
    let odd = [
        (rows(384, &bytes[..]), Some(&model)),
        (rows(0, &bytes), None),
        (rows(385, &bytes), None),
        (rows(u64::MAX, &bytes), None),
        (rows(384, &bytes[1..]), None),
    ];
    for (number, (rows, model)) in odd.into_iter().enumerate() {
        // Those of the first are whole, and have a code of their own.
        assert_eq!(round_trip(Codec::Planes, rows, model).0 == Encoding::Planes, number == 0, "{number}");
    }
}

fn planes_frame() -> (Vec<u8>, Vec<u8>, Model) {
    let bytes = data(Gauss, Dtype::BFloat16, 20, 31);
    let model = fitted(Codec::Planes, Gauss, Dtype::BFloat16, 31).unwrap();
    let rows = Rows { dtype: Dtype::BFloat16, row_values: 31, bytes: &bytes, below: None };
    let (encoding, stored) = round_trip(Codec::Planes, rows, Some(&model));
    assert_eq!(encoding, Encoding::Planes);
    (bytes, stored, model)
}

#[test]
fn what_is_around_a_frame_must_fit_it() {
    let (bytes, stored, model) = planes_frame();
    let try_with = |stored: &[u8], dtype, row_values, model: Option<&Model>, rows: u64| {
        let frame = Coded { encoding: Encoding::Planes, stored, dtype, row_values, rows, model, below: None };
        let mut out = vec![0; frame.bytes().unwrap_or(0)];
        decode(&frame, &[0..rows], &mut out).map_err(|error| error.to_string())
    };
    let bf16 = Dtype::BFloat16;
    assert_eq!(try_with(&stored, bf16, 31, Some(&model), 20), Ok(()));
    let small = odd_model(vec![1; 30]);
    assert_eq!(
        try_with(&stored, bf16, 31, Some(&small), 20).unwrap_err(),
        "a model of `30` channels for rows of `31` values"
    );
    assert_eq!(try_with(&stored, bf16, 31, None, 20).unwrap_err(), "a frame of planes without its model");
    let large = odd_model(vec![1; 32]);
    let wrong = [
        try_with(&stored, bf16, 31, Some(&large), 20),
        try_with(&stored, bf16, 31, Some(&Model::new(vec![])), 20),
        try_with(&stored, bf16, 31, Some(&Model::new(vec![2; 8])), 20),
        try_with(&stored, bf16, 31, Some(&Model::new([&[9], &model.bytes()[1..]].concat())), 20),
        try_with(&[0; 4], bf16, 31, None, 0),
        try_with(&[], Dtype::Float8E4M3, 31, None, 0),
        try_with(&stored, Dtype::Int16, 31, None, 20),
        try_with(&stored, bf16, 0, None, 20),
        try_with(&stored, bf16, 310, None, 2),
        try_with(&stored, bf16, u64::MAX, None, 20),
        try_with(&stored, bf16, 31, Some(&model), 19),
        try_with(&stored, bf16, 31, Some(&model), 21),
        try_with(&stored, bf16, 31, Some(&model), u64::MAX),
        try_with(&stored, Dtype::Float32, 31, Some(&model), 20),
        try_with(&stored, Dtype::Float16, 31, Some(&model), 20),
        try_with(&[&stored[..], &[0]].concat(), bf16, 31, Some(&model), 20),
        try_with(&stored[..stored.len() - 1], bf16, 31, Some(&model), 20),
        try_with(&[], bf16, 31, Some(&model), 20),
        try_with(&[255; 64], bf16, 31, Some(&model), 20),
    ];
    for (number, result) in wrong.iter().enumerate() {
        assert!(result.is_err(), "{number}");
    }
    assert_eq!(bytes.len(), 20 * 62);
}

#[test]
fn rows_come_as_often_as_they_are_asked_for() {
    let bytes = data(FewRows, Dtype::BFloat16, 20, 31);
    let whole = rows(Dtype::BFloat16, 31, &bytes);
    for codec in [Codec::Raw, Codec::Zstd, Codec::Planes] {
        let mut stored = Vec::new();
        let encoding = codec.encode(whole, None, &mut stored);
        let ranges = [0..10, 0..10];
        let mut out = vec![0; bytes.len()];
        decode(&coded(encoding, &stored, whole, None), &ranges, &mut out).unwrap();
        assert!(out == bytes[..10 * 62].repeat(2), "{codec:?} {encoding:?}");
    }
}

#[test]
fn rows_are_those_of_the_frame_and_fill_the_buffer() {
    let (bytes, stored, model) = planes_frame();
    let whole = rows(Dtype::BFloat16, 31, &bytes);
    for (encoding, stored) in [(Encoding::Planes, &stored), (Encoding::Stored, &bytes)] {
        let frame = coded(encoding, stored, whole, Some(&model));
        let try_rows = |range: Range<u64>, len| decode(&frame, &[range], &mut vec![0; len]).unwrap_err().to_string();
        assert_eq!(try_rows(19..21, 124), "rows `19..21` of a frame of `20`");
        #[allow(clippy::reversed_empty_ranges, reason = "what is refused")]
        let reversed = try_rows(3..2, 0);
        assert_eq!(reversed, "rows `3..2` of a frame of `20`");
        assert_eq!(try_rows(0..1, 61), "rows of `62` bytes for a buffer of `61`");
    }
}

#[test]
fn a_zstd_frame_is_all_there_is() {
    let bytes = vec![3; 300];
    let rows = Rows { dtype: Dtype::Int8, row_values: 1, bytes: &bytes, below: None };
    let (encoding, mut stored) = round_trip(Codec::Zstd, rows, None);
    assert_eq!(encoding, Encoding::Zstd);
    stored.extend_from_slice(&[0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0]);
    let error = decode(&coded(encoding, &stored, rows, None), &[0..300], &mut [0; 300]).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (Kind::Malformed, "`8` bytes after a zstd frame".to_owned()));
    let frame = Coded { rows: 299, ..coded(Encoding::Stored, &bytes, rows, None) };
    let error = decode(&frame, &[0..299], &mut [0; 299]).unwrap_err();
    assert_eq!(error.to_string(), "a stored frame of `300` bytes where `299` are due");
}

#[test]
fn a_frame_written_by_hand_decodes() {
    // Two bf16 rows of two channels: 1.0, -0.0 / -1.5, 2^60. Exponents 127, 0, 127, 187; biases 126 and 120.
    let values = [0x3F80_u16, 0x8000, 0xBFC0, 0x5D80];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    // Class 1 has the code 0, 14 has 01, 15 has 011, the others seven bits from 111000 on.
    let mut lengths = [7; 16];
    (lengths[1], lengths[14], lengths[15]) = (1, 3, 3);
    (lengths[0], lengths[2], lengths[3]) = (4, 4, 5);
    let share = |lengths: [u8; 16]| lengths.iter().map(|length| 128 >> length).sum::<i32>();
    // What is left over goes to shorter codes, so that every bit means something.
    let spare = (128 - share(lengths)) as usize;
    lengths.iter_mut().filter(|length| **length == 7).take(spare).for_each(|length| *length = 6);
    assert_eq!(share(lengths), 128);
    let codes = prefix::codes(&lengths);
    let mut bits = 0_u32;
    let mut count = 0;
    for class in [1, 14, 1, 15] {
        bits |= u32::from(codes[class]) << count;
        count += u32::from(lengths[class]);
    }
    assert_eq!(count, 8);
    let model = Model::new([&[2], &prefix::pack_lengths(&lengths)[..], &[126, 120]].concat());
    // Flags, no low plane compressed; mantissas and signs; 8 bits, no more in the one segment, which has 1 escape.
    let stored = [2, 0, 0x00, 0x01, 0x81, 0x00, 8, 0, 0, 1, 0, bits as u8, 187];
    let whole = rows(Dtype::BFloat16, 2, &bytes);
    let mut out = [0; 8];
    decode(&coded(Encoding::Planes, &stored, whole, Some(&model)), &[0..2], &mut out).unwrap();
    assert_eq!(out[..], bytes);
    // 8-bit floats in a plane of tops, as it is: -1.0 and 1.0 of e5m2, rotated left.
    let halves = rows(Dtype::Float8E5M2, 1, &[0xBC, 0x3C]);
    let mut out = [0; 2];
    decode(&coded(Encoding::Planes, &[4, 0, 0x79, 0x78], halves, None), &[0..2], &mut out).unwrap();
    assert_eq!(out, [0xBC, 0x3C]);
}

#[test]
fn names_codes_and_sizes() {
    for &codec in Codec::ALL {
        assert_eq!(find(Codec::ALL, "codec", codec.name(), Codec::name).unwrap(), codec);
    }
    let error = find(Codec::ALL, "codec", "gzip", Codec::name).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidOption);
    assert_eq!(error.to_string(), "unknown codec `gzip`: one of raw, zstd, planes, archive, text, base64");
    for (code, &encoding) in (0_u8..).zip(Encoding::ALL) {
        assert_eq!(Encoding::from_code(code), Some(encoding));
        assert_eq!(encoding.code(), code);
    }
    assert_eq!(Encoding::from_code(4), None);
    let rows: Vec<_> = [0, 1, 768, 4097, 1 << 40].iter().map(|&bytes| Codec::Raw.frame_rows(bytes)).collect();
    assert_eq!(rows, [4096, 4096, 5, 1, 1]);
    assert_eq!(Codec::Planes.frame_rows(768), 84);
    assert_eq!(Codec::Planes.frame_rows(20_000), 3);
    assert_eq!(Codec::Zstd.frame_rows(65_537), 1);
}

#[test]
fn a_model_is_named_by_its_bytes() {
    let model = Model::new(vec![1, 2, 3]);
    assert_eq!(model.id(), blake3::hash(&[1, 2, 3]).as_bytes()[..16]);
    assert_eq!(format!("{model:?}"), "Model(b177ec1bf26dfb3b7010d473e6d44713, 3 bytes)");
    assert_ne!(model, Model::new(vec![1, 2]));
}

#[test]
fn models_are_stored_as_they_are_or_smaller_and_only_the_one_asked_for_is_read() {
    let noise = Noise(7).bits().to_le_bytes();
    for (bytes, is_packed) in [(vec![2; 500], true), (noise.to_vec(), false), (vec![], false), (vec![3; 1 << 20], true)]
    {
        let model = Model::new(bytes);
        let stored = model.stored();
        assert_eq!(stored.len() < model.bytes().len(), is_packed);
        assert!(is_packed || stored == model.bytes());
        assert_eq!(Model::read(stored, &model.id()).unwrap(), model);
        // One that is stored otherwise is the same.
        assert_eq!(Model::read(model.bytes(), &model.id()).unwrap(), model);
        let refused = |stored: &[u8], id| Model::read(stored, id).unwrap_err().to_string();
        assert_eq!(refused(stored, &[0; 16]), "a model is not the one it is said to be");
        assert!(!refused(&[stored, &[0]].concat(), &model.id()).is_empty());
    }
    let large = Model::new(vec![2; (1 << 20) + 1]);
    let error = Model::read(large.stored(), &large.id()).unwrap_err();
    assert_eq!(error.kind(), Kind::Malformed);
    assert_eq!(error.to_string(), "a zstd frame of `1048577` bytes where `1048576` are most");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_come_back(
        code in 0_u8..12, codec in 0_usize..3, row_values in 1_u64..70, seed in any::<[u8; 16]>(), rows in 0_usize..40,
    ) {
        let dtype = Dtype::from_code(code).unwrap();
        let len = rows * row_values as usize * dtype.size();
        let bytes: Vec<u8> = seed.iter().copied().cycle().take(len).collect();
        let model = odd_model(seed.iter().copied().cycle().take(row_values as usize).collect());
        round_trip(Codec::ALL[codec], Rows { dtype, row_values, bytes: &bytes, below: None }, Some(&model));
    }

    #[test]
    fn values_come_back_at_every_width(
        code in 0_u8..12, is_archive in any::<bool>(), rows in 1_u64..5, seed in 1_u64..,
        row_values in prop::sample::select(vec![1_u64, 3, 31, 384, 4096, 12_289]), [spread, change] in any::<[u8; 2]>(),
    ) {
        let dtype = Dtype::from_code(code).unwrap();
        let len = (rows * (1000 / row_values).max(1) * row_values) as usize * dtype.size();
        let mut noise = Noise(seed);
        // The last byte of a value has its exponent, about which values spread, and the layer below is much like this one.
        let is_last = |at: usize| (at + 1).is_multiple_of(dtype.size());
        let mut masked = |mask: u8| -> Vec<u8> {
            (0..len).map(|at| noise.bits() as u8 & if is_last(at) { mask } else { 0xFF }).collect()
        };
        let (below, changes) = (masked(spread), masked(change));
        let bytes: Vec<u8> = below.iter().zip(&changes).map(|(below, change)| below ^ change).collect();
        let codec = if is_archive { Codec::Archive } else { Codec::Planes };
        let rows = Rows { dtype, row_values, bytes: &bytes, below: is_archive.then_some(&below) };
        let model = codec.fit(rows).map(|fitted| fitted.model);
        round_trip(codec, rows, model.as_ref());
    }

    #[test]
    fn damage_is_an_error_or_other_bytes(cut in 0.0..1.0, flips in prop::collection::vec((any::<usize>(), 0..8), 0..4)) {
        let (bytes, planes, model) = planes_frame();
        let mut zstd = Vec::new();
        let rows = Rows { dtype: Dtype::BFloat16, row_values: 31, bytes: &bytes, below: None };
        prop_assert_eq!(Codec::Zstd.encode(rows, None, &mut zstd), Encoding::Zstd);
        for (encoding, mut stored) in [(Encoding::Planes, planes), (Encoding::Zstd, zstd)] {
            let whole = stored.len();
            stored.truncate(((whole + 1) as f64 * cut) as usize + flips.len() * whole);
            for &(at, bit) in &flips {
                let at = at % stored.len();
                stored[at] ^= 1_u8 << bit;
            }
            let mut out = vec![0; bytes.len()];
            for kernel in kernels() {
                let result = decode_with(kernel, &coded(encoding, &stored, rows, Some(&model)), &[0..20], &mut out);
                match result {
                    Ok(()) => prop_assert!(encoding == Encoding::Planes || stored.len() == whole),
                    Err(error) => prop_assert!(matches!(error.kind(), Kind::Malformed | Kind::LimitExceeded)),
                }
            }
        }
    }

    #[test]
    fn noise_is_an_error_or_bytes(
        encoding in 0_u8..4, code in 0_u8..12, row_values in any::<u64>(), small in 0_u64..9, rows in 0_u64..40,
        stored in prop::collection::vec(any::<u8>(), 0..300), learned in prop::collection::vec(any::<u8>(), 0..40),
        flags in prop_oneof![Just(None), (0_u8..16).prop_map(Some)],
    ) {
        let (encoding, dtype) = (Encoding::from_code(encoding).unwrap(), Dtype::from_code(code).unwrap());
        let mut stored = stored;
        stored.iter_mut().zip(flags).for_each(|(byte, flags)| *byte = flags);
        let models = [Model::new([&[encoding.code()], &learned[..]].concat()), any_model(small)];
        for (row_values, model) in [(row_values, None), (small, Some(&models[0])), (small, Some(&models[1]))] {
            let frame = Coded { encoding, stored: &stored, dtype, row_values, rows, model, below: None };
            let Ok(bytes) = frame.bytes() else { continue };
            if bytes > 1 << 20 {
                continue;
            }
            let mut out = vec![0; bytes];
            let below = vec![0x40; bytes];
            for kernel in kernels() {
                let _ = decode_with(kernel, &Coded { below: Some(&below), ..frame }, &[0..rows], &mut out);
            }
        }
    }
}
