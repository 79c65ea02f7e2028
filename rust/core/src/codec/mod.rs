//! Codecs: the rows of one frame to stored bytes, and back.
//!
//! A codec does no I/O and knows neither files nor offsets. How many bytes a frame decodes to, its dtype, the values of
//! a row, its encoding and its model are recorded outside the frame; FORMAT.md says where, and is the one normative text
//! for the encodings and models themselves, byte for byte (sections 7 and 8).
//!
//! What a codec is free to choose is code here: which encoding a frame gets, and which model a hook point. `raw` stores
//! rows as they are, `zstd` compresses whole frames. `planes` is for floats: it takes a frame apart into one plane for
//! each byte of a value, rotated so that the exponent leads the top byte, and compresses only the planes that shrink.
//! Of activations those are the exponents; mantissas are noise. Its model is the rounded mean exponent of each channel.
//! Any bias decodes exactly, so a model learned from the first rows costs later ones at most size, never a bit.

mod float;
pub mod pack;
mod planes;
pub mod text;
mod zstd;

use std::fmt;

pub use pack::{Overflow, Pack, PackCounts};

use crate::error::{Error, Kind, Result};
use crate::tensor::{Dtype, Layout};
use zstd::Scratch;

/// Most bytes of a `raw` frame of more than one row.
pub const RAW_FRAME_BYTES: u64 = 4 << 10;
/// Most bytes of a compressed frame of more than one row.
pub const PACKED_FRAME_BYTES: u64 = 64 << 10;

/// Values that shrink to less than this part as planes have an order that zstd may see more of.
const REGULAR: usize = 3;

/// What a store is configured with. Each backend offers some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Rows as they are.
    Raw,
    /// Every frame through zstd.
    Zstd,
    /// Exponents entropy-coded, sign and mantissa as they are: lossless, small and fast for floats.
    Planes,
    /// Rows as they are, for a backend that writes them as numbers.
    Text,
    /// Rows as they are, for a backend that writes them as base64.
    Base64,
}

impl Codec {
    /// Every codec.
    pub const ALL: &[Codec] = &[Codec::Raw, Codec::Zstd, Codec::Planes, Codec::Text, Codec::Base64];

    /// The name in options and manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Zstd => "zstd",
            Codec::Planes => "planes",
            Codec::Text => "text",
            Codec::Base64 => "base64",
        }
    }

    /// Whether the store is made of text, in which `encoding` is what users call the codec.
    pub const fn is_text(self) -> bool {
        matches!(self, Codec::Text | Codec::Base64)
    }

    /// Whether every frame is its rows as they are.
    pub const fn stores_rows(self) -> bool {
        matches!(self, Codec::Raw | Codec::Text | Codec::Base64)
    }

    /// Rows of a frame, at least 1: as many rows of `row_bytes` as [`RAW_FRAME_BYTES`] or [`PACKED_FRAME_BYTES`] hold.
    /// Rows of no bytes count as one byte.
    pub fn frame_rows(self, row_bytes: u64) -> u64 {
        let most = match self {
            Codec::Raw | Codec::Text | Codec::Base64 => RAW_FRAME_BYTES,
            Codec::Zstd | Codec::Planes => PACKED_FRAME_BYTES,
        };
        (most / row_bytes.max(1)).max(1)
    }

    /// What the codec learns from the first rows of a hook point: `sample` is whole rows of `layout`, in order.
    ///
    /// `None` where the codec has no model for the dtype, where the sample has fewer than 32 rows, or where it shows
    /// that the model would not save its own size. The same sample gives the same model.
    pub fn fit(self, layout: &Layout, sample: &[u8]) -> Option<Model> {
        match self {
            Codec::Raw | Codec::Zstd | Codec::Text | Codec::Base64 => None,
            Codec::Planes => planes::fit(layout, sample),
        }
    }

    /// Appends the stored bytes of a frame to `out` and says how they are encoded.
    ///
    /// The smallest of this codec, zstd and stored wins, so nothing grows. `planes` tries zstd where it saves nothing
    /// itself, or where its result or a look at the rows says that they repeat themselves. The decoder needs `model`
    /// if, and only if, the answer is [`Encoding::Planes`]; a model that does not fit the rows is not used, and the
    /// answer is another.
    pub fn encode(self, rows: Rows<'_>, model: Option<&Model>, out: &mut Vec<u8>) -> Encoding {
        match self {
            Codec::Raw | Codec::Text | Codec::Base64 => store(rows, out),
            Codec::Zstd => Scratch::with(|scratch| encode_zstd(rows, scratch, out)),
            Codec::Planes => Scratch::with(|scratch| encode_planes(rows, model, scratch, out)),
        }
    }
}

fn store(rows: Rows<'_>, out: &mut Vec<u8>) -> Encoding {
    out.extend_from_slice(rows.bytes);
    Encoding::Stored
}

fn encode_zstd(rows: Rows<'_>, scratch: &mut Scratch, out: &mut Vec<u8>) -> Encoding {
    let start = out.len();
    if zstd::compress(&mut scratch.general, rows.bytes, out) && out.len() - start < rows.bytes.len() {
        return Encoding::Zstd;
    }
    out.truncate(start);
    store(rows, out)
}

fn encode_planes(rows: Rows<'_>, model: Option<&Model>, scratch: &mut Scratch, out: &mut Vec<u8>) -> Encoding {
    let start = out.len();
    if !planes::encode(rows, model, scratch, out) || out.len() - start >= rows.bytes.len() {
        out.truncate(start);
        return encode_zstd(rows, scratch, out);
    }
    if out.len() - start < rows.bytes.len() / REGULAR || zstd::finds_repeats(rows) {
        let Scratch { general, packed, .. } = scratch;
        packed.clear();
        if zstd::compress(general, rows.bytes, packed) && packed.len() < out.len() - start {
            out.truncate(start);
            out.extend_from_slice(packed);
            return Encoding::Zstd;
        }
    }
    Encoding::Planes
}

/// Decodes one frame into `out`, whose length is what the frame must decode to.
///
/// `model` is the one it was encoded with; [`Encoding::Stored`] and [`Encoding::Zstd`] ignore it. Every malformed input
/// is an error, and none allocates more than `out` plus a constant. After an error `out` holds anything.
pub fn decode(
    encoding: Encoding,
    stored: &[u8],
    dtype: Dtype,
    row_values: u64,
    model: Option<&Model>,
    out: &mut [u8],
) -> Result<()> {
    match encoding {
        Encoding::Stored if stored.len() == out.len() => {
            out.copy_from_slice(stored);
            Ok(())
        }
        Encoding::Stored => {
            let (have, due) = (stored.len(), out.len());
            Err(Error::new(Kind::Malformed, format!("a stored frame of `{have}` bytes where `{due}` are due")))
        }
        Encoding::Zstd => {
            zstd::check(stored, out.len())?;
            Scratch::with(|scratch| zstd::decompress(&mut scratch.decoder, stored, out))
        }
        Encoding::Planes => Scratch::with(|scratch| planes::decode(stored, (dtype, row_values), model, scratch, out)),
    }
}

/// The rows of one frame; `bytes` are whole rows.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Type of a value.
    pub dtype: Dtype,
    /// Values in a row.
    pub row_values: u64,
    /// The rows, one after the other.
    pub bytes: &'a [u8],
}

/// How the bytes of one frame are stored; the codes are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// As they are.
    Stored = 0,
    /// One zstd frame.
    Zstd = 1,
    /// Byte planes, the exponents' entropy-coded.
    Planes = 2,
}

impl Encoding {
    /// Every encoding, in the order of its code.
    pub const ALL: &[Encoding] = &[Encoding::Stored, Encoding::Zstd, Encoding::Planes];

    /// The code in the format.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The encoding of a format code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|encoding| encoding.code() == code)
    }

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Encoding::Stored => "stored",
            Encoding::Zstd => "zstd",
            Encoding::Planes => "planes",
        }
    }
}

/// Names a model: the first 16 bytes of the BLAKE3 hash of its bytes.
pub type ModelId = [u8; 16];

/// What a codec learned from the first rows of a hook point, and all of its frames share.
#[derive(Clone, PartialEq, Eq)]
pub struct Model {
    id: ModelId,
    bytes: Vec<u8>,
}

impl Model {
    /// The model of these bytes. Whether they fit the rows of a frame is checked when it is decoded.
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut id = ModelId::default();
        blake3::Hasher::new().update(&bytes).finalize_xof().fill(&mut id);
        Self { id, bytes }
    }

    /// The name.
    pub fn id(&self) -> ModelId {
        self.id
    }

    /// The bytes, as they are stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({:032x}, {} bytes)", u128::from_be_bytes(self.id), self.bytes.len())
    }
}

/// The one of `all` called `name`, or an error that lists them.
pub(crate) fn find<T: Copy>(all: &[T], what: &str, name: &str, name_of: impl Fn(T) -> &'static str) -> Result<T> {
    all.iter().copied().find(|&one| name_of(one) == name).ok_or_else(|| {
        let known: Vec<_> = all.iter().map(|&one| name_of(one)).collect();
        Error::new(Kind::InvalidOption, format!("unknown {what} `{name}`: one of {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data")]

    use proptest::prelude::*;

    use super::*;

    /// Deterministic bits (xorshift).
    struct Noise(u64);

    impl Noise {
        fn bits(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn gauss(&mut self) -> f64 {
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
        let layout = Layout::new(dtype, vec![64, width as u64]).unwrap();
        codec.fit(&layout, &data(kind, dtype, 64, width))
    }

    fn round_trip(codec: Codec, rows: Rows<'_>, model: Option<&Model>) -> (Encoding, Vec<u8>) {
        let mut stored = b"before".to_vec();
        let encoding = codec.encode(rows, model, &mut stored);
        let stored = stored.split_off(6);
        assert!(stored.len() <= rows.bytes.len());
        let mut out = vec![0xA5; rows.bytes.len()];
        decode(encoding, &stored, rows.dtype, rows.row_values, model, &mut out).unwrap();
        assert!(out == rows.bytes, "{codec:?} {encoding:?} {} x {}", rows.dtype.name(), rows.row_values);
        if encoding == Encoding::Planes {
            assert!(by_the_book(&stored, rows, model) == rows.bytes, "the text decodes otherwise");
        }
        (encoding, stored)
    }

    /// A decoder of `planes` written from FORMAT.md, a value at a time.
    fn by_the_book(stored: &[u8], rows: Rows<'_>, model: Option<&Model>) -> Vec<u8> {
        let width = rows.dtype.size();
        let count = rows.bytes.len() / width;
        let (mut planes, mut at) = (Vec::new(), 0);
        for plane in 0..width {
            let mut len = stored.len() - at;
            if plane != width - 1 {
                len = u32::from_le_bytes(stored[at..at + 4].try_into().unwrap()) as usize;
                at += 4;
            }
            let part = &stored[at..at + len];
            planes.push(if len == count { part.to_vec() } else { ::zstd::decode_all(part).unwrap() });
            at += len;
        }
        let mut bytes = Vec::new();
        for value in 0..count {
            let r = u32::from(planes[0][value]);
            let top = match model.map(|m| u32::from(m.bytes()[value % rows.row_values as usize])) {
                None => r,
                Some(_) if r == 128 => 0,
                Some(b) if r == (256 - b) % 256 => (128 + b) % 256,
                Some(b) => (r + b) % 256,
            };
            let lows = planes[1..].iter().map(|plane| u64::from(plane[value]));
            let x = lows.enumerate().fold(u64::from(top) << (8 * (width - 1)), |x, (k, byte)| x | byte << (8 * k));
            let bits = x >> 1 | (x & 1) << (8 * width - 1);
            bytes.extend_from_slice(&bits.to_le_bytes()[..width]);
        }
        bytes
    }

    fn sweep(widths: &[usize], row_counts: &[usize]) {
        for &dtype in Dtype::ALL {
            for (&width, kind) in widths.iter().flat_map(|width| KINDS.map(|kind| (width, kind))) {
                let all = data(kind, dtype, *row_counts.last().unwrap(), width);
                let odd = Model::new((0..width).map(|c| (c * 37) as u8).collect());
                let fit = fitted(Codec::Planes, kind, dtype, width.min(400)).filter(|_| width <= 400);
                for bytes in row_counts.iter().map(|rows| &all[..rows * width * dtype.size()]) {
                    let rows = Rows { dtype, row_values: width as u64, bytes };
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
        let rows = Rows { dtype: Dtype::BFloat16, row_values: 3 << 20, bytes: &bytes };
        assert_eq!(round_trip(Codec::Planes, rows, None).0, Encoding::Planes);
        assert_eq!(round_trip(Codec::Zstd, rows, None).0, Encoding::Zstd);
    }

    #[test]
    fn gaussian_bf16_shrinks_by_its_exponents_and_a_model_helps() {
        let bytes = data(Gauss, Dtype::BFloat16, 85, 384);
        let rows = Rows { dtype: Dtype::BFloat16, row_values: 384, bytes: &bytes };
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
        let rows = Rows { dtype: Dtype::BFloat16, row_values: 384, bytes: &bytes };
        let model = fitted(Codec::Planes, HalfZeros, Dtype::BFloat16, 384);
        let (encoding, stored) = round_trip(Codec::Planes, rows, model.as_ref());
        assert_eq!(encoding, Encoding::Planes);
        assert!(bytes.len() as f64 / stored.len() as f64 > 2.0, "{} to {}", bytes.len(), stored.len());

        let wide = data(Gauss, Dtype::BFloat16, 42, 384);
        let bytes: Vec<u8> = wide.chunks_exact(2).flat_map(|bf16| [0, 0, bf16[0], bf16[1]]).collect();
        let rows = Rows { dtype: Dtype::Float32, row_values: 384, bytes: &bytes };
        let (_, stored) = round_trip(Codec::Planes, rows, None);
        assert!(bytes.len() as f64 / stored.len() as f64 > 2.7, "{} to {}", bytes.len(), stored.len());
    }

    #[test]
    fn planes_leaves_to_zstd_what_zstd_does_better() {
        for &dtype in Dtype::ALL {
            for (kind, width) in KINDS.iter().flat_map(|kind| [1, 31, 384, 4096].map(|width| (*kind, width))) {
                let bytes = data(kind, dtype, (64 << 10) / width / dtype.size(), width);
                let rows = Rows { dtype, row_values: width as u64, bytes: &bytes };
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
        let rows = Rows { dtype: Dtype::Int32, row_values: 8, bytes: &bytes };
        assert_eq!(round_trip(Codec::Planes, rows, None).0, Encoding::Zstd);
        assert_eq!(round_trip(Codec::Raw, rows, None).0, Encoding::Stored);
        assert!(Codec::Raw.fit(&Layout::new(Dtype::BFloat16, vec![64, 384]).unwrap(), &bytes).is_none());
    }

    #[test]
    fn rows_that_do_not_fit_are_encoded_all_the_same() {
        let bytes = data(Gauss, Dtype::BFloat16, 85, 384);
        let model = Model::new(vec![0; 383]);
        let rows = |row_values, bytes| Rows { dtype: Dtype::BFloat16, row_values, bytes };
        let odd = [
            (rows(384, &bytes[..]), Some(&model)),
            (rows(0, &bytes), None),
            (rows(385, &bytes), None),
            (rows(u64::MAX, &bytes), None),
            (rows(384, &bytes[1..]), None),
        ];
        for (rows, model) in odd {
            assert_ne!(round_trip(Codec::Planes, rows, model).0, Encoding::Planes);
        }
    }

    fn planes_frame() -> (Vec<u8>, Vec<u8>, Model) {
        let bytes = data(Gauss, Dtype::BFloat16, 20, 31);
        let model = fitted(Codec::Planes, Gauss, Dtype::BFloat16, 31).unwrap();
        let rows = Rows { dtype: Dtype::BFloat16, row_values: 31, bytes: &bytes };
        let (encoding, stored) = round_trip(Codec::Planes, rows, Some(&model));
        assert_eq!(encoding, Encoding::Planes);
        (bytes, stored, model)
    }

    #[test]
    fn what_is_around_a_frame_must_fit_it() {
        let (bytes, stored, model) = planes_frame();
        let try_with = |stored: &[u8], dtype, row_values, model: Option<&Model>, len| {
            let mut out = vec![0; len];
            decode(Encoding::Planes, stored, dtype, row_values, model, &mut out).map_err(|error| error.to_string())
        };
        let bf16 = Dtype::BFloat16;
        assert_eq!(try_with(&stored, bf16, 31, Some(&model), bytes.len()), Ok(()));
        let small = Model::new(vec![1; 30]);
        assert_eq!(
            try_with(&stored, bf16, 31, Some(&small), bytes.len()).unwrap_err(),
            "a model of `30` channels for rows of `31` values"
        );
        let large = Model::new(vec![1; 32]);
        let wrong = [
            try_with(&stored, bf16, 31, Some(&large), bytes.len()),
            try_with(&[0; 4], bf16, 31, None, 0),
            try_with(&[], Dtype::Float8E4M3, 31, None, 0),
            try_with(&stored, Dtype::Int16, 31, None, bytes.len()),
            try_with(&stored, bf16, 0, None, bytes.len()),
            try_with(&stored, bf16, 32, None, bytes.len()),
            try_with(&stored, bf16, u64::MAX, None, bytes.len()),
            try_with(&stored, bf16, 31, Some(&model), bytes.len() - 62),
            try_with(&stored, bf16, 31, Some(&model), bytes.len() + 62),
            try_with(&stored, bf16, 31, Some(&model), 0),
            try_with(&stored, Dtype::Float32, 31, Some(&model), bytes.len()),
            try_with(&[&stored[..], &[0]].concat(), bf16, 31, Some(&model), bytes.len()),
            try_with(&[], bf16, 31, Some(&model), bytes.len()),
            try_with(&[255; 64], bf16, 31, Some(&model), bytes.len()),
        ];
        for (number, result) in wrong.iter().enumerate() {
            assert!(result.is_err(), "{number}");
        }
    }

    #[test]
    fn a_zstd_frame_is_all_there_is() {
        let bytes = vec![3; 300];
        let rows = Rows { dtype: Dtype::Int8, row_values: 1, bytes: &bytes };
        let (encoding, mut stored) = round_trip(Codec::Zstd, rows, None);
        assert_eq!(encoding, Encoding::Zstd);
        stored.extend_from_slice(&[0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0]);
        let error = decode(encoding, &stored, rows.dtype, 1, None, &mut [0; 300]).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (Kind::Malformed, "`8` bytes after a zstd frame".to_owned()));
        let error = decode(Encoding::Stored, &bytes, rows.dtype, 1, None, &mut [0; 299]).unwrap_err();
        assert_eq!(error.to_string(), "a stored frame of `300` bytes where `299` are due");
    }

    #[test]
    fn a_frame_written_by_hand_decodes() {
        // Two bf16 rows of two channels: 1.0, -0.0 / -1.5, 2.0. Exponents 127, 0, 127, 128; biases 126 and 128.
        let values = [0x3F80_u16, 0x8000, 0xBFC0, 0x4000];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let stored = [4, 0, 0, 0, 1, 128, 1, 0, 0x00, 0x01, 0x81, 0x00];
        let mut out = [0; 8];
        decode(Encoding::Planes, &stored, Dtype::BFloat16, 2, Some(&Model::new(vec![126, 128])), &mut out).unwrap();
        assert_eq!(out[..], bytes);
        // An 8-bit float is one plane, without a length: rotated left, -1.0 of e5m2 (0xBC) is 0x79.
        let mut out = [0; 2];
        decode(Encoding::Planes, &[0x79, 0x78], Dtype::Float8E5M2, 1, None, &mut out).unwrap();
        assert_eq!(out, [0xBC, 0x3C]);
    }

    #[test]
    fn names_codes_and_sizes() {
        for &codec in Codec::ALL {
            assert_eq!(find(Codec::ALL, "codec", codec.name(), Codec::name).unwrap(), codec);
        }
        let error = find(Codec::ALL, "codec", "gzip", Codec::name).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidOption);
        assert_eq!(error.to_string(), "unknown codec `gzip`: one of raw, zstd, planes, text, base64");
        for (code, &encoding) in (0_u8..).zip(Encoding::ALL) {
            assert_eq!(Encoding::from_code(code), Some(encoding));
            assert_eq!(encoding.code(), code);
        }
        assert_eq!(Encoding::from_code(3), None);
        let rows: Vec<_> = [0, 1, 768, 4097, 1 << 40].iter().map(|&bytes| Codec::Raw.frame_rows(bytes)).collect();
        assert_eq!(rows, [4096, 4096, 5, 1, 1]);
        assert_eq!(Codec::Planes.frame_rows(768), 85);
        assert_eq!(Codec::Zstd.frame_rows(65_537), 1);
    }

    #[test]
    fn a_model_is_named_by_its_bytes() {
        let model = Model::new(vec![1, 2, 3]);
        assert_eq!(model.id(), blake3::hash(&[1, 2, 3]).as_bytes()[..16]);
        assert_eq!(format!("{model:?}"), "Model(b177ec1bf26dfb3b7010d473e6d44713, 3 bytes)");
        assert_ne!(model, Model::new(vec![1, 2]));
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
            let model = Model::new(seed.iter().copied().cycle().take(row_values as usize).collect());
            round_trip(Codec::ALL[codec], Rows { dtype, row_values, bytes: &bytes }, Some(&model));
        }

        #[test]
        fn damage_is_an_error_or_other_bytes(cut in 0.0..1.0, flips in prop::collection::vec((any::<usize>(), 0..8), 0..4)) {
            let (bytes, planes, model) = planes_frame();
            let mut zstd = Vec::new();
            let rows = Rows { dtype: Dtype::BFloat16, row_values: 31, bytes: &bytes };
            prop_assert_eq!(Codec::Zstd.encode(rows, None, &mut zstd), Encoding::Zstd);
            for (encoding, mut stored) in [(Encoding::Planes, planes), (Encoding::Zstd, zstd)] {
                let whole = stored.len();
                stored.truncate(((whole + 1) as f64 * cut) as usize + flips.len() * whole);
                for &(at, bit) in &flips {
                    let at = at % stored.len();
                    stored[at] ^= 1_u8 << bit;
                }
                let mut out = vec![0; bytes.len()];
                let result = decode(encoding, &stored, Dtype::BFloat16, 31, Some(&model), &mut out);
                match result {
                    Ok(()) => prop_assert_eq!(stored.len(), whole),
                    Err(error) => prop_assert!(matches!(error.kind(), Kind::Malformed | Kind::LimitExceeded)),
                }
            }
        }

        #[test]
        fn noise_is_an_error_or_bytes(
            encoding in 0_u8..3, code in 0_u8..12, row_values in any::<u64>(), small in 0_u64..9, len in 0_usize..300,
            stored in prop::collection::vec(any::<u8>(), 0..300), biases in 0_usize..9,
        ) {
            let (encoding, dtype) = (Encoding::from_code(encoding).unwrap(), Dtype::from_code(code).unwrap());
            let (mut out, model) = (vec![0; len], Model::new(vec![7; biases]));
            for row_values in [row_values, small] {
                let _ = decode(encoding, &stored, dtype, row_values, Some(&model), &mut out);
                let _ = decode(encoding, &stored, dtype, row_values, None, &mut out);
            }
        }
    }
}
