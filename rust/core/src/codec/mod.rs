//! Codecs: the rows of one frame to stored bytes, and back.
//!
//! A codec does no I/O and knows neither files nor offsets. How many rows a frame has, its dtype, the values of a row, its
//! encoding and its model are recorded outside the frame; FORMAT.md says where, and is the one normative text for the
//! encodings and models themselves, byte for byte (sections 7 and 8).
//!
//! What a codec is free to choose is code here: which encoding a frame gets, and which model a hook point. `raw` stores
//! rows as they are, `zstd` compresses whole frames. `planes` is for floats: it codes exponents, less the usual exponent
//! of their channel, with a prefix code that all frames of a hook point share, and keeps signs and mantissas, which are
//! noise. `archive` codes them given the layer below. Any model decodes exactly, so one learned from the first rows costs
//! later ones at most size, never a bit.

mod archive;
mod bits;
mod classes;
mod float;
mod index;
mod kernel;
mod mids;
mod model;
pub mod pack;
mod planes;
mod prefix;
mod segments;
#[cfg(target_arch = "x86_64")]
mod simd;
pub mod text;
mod words;
mod zstd;

use std::ops::Range;

pub use kernel::Kernel;
pub use model::{Fitted, Model, ModelId};
pub use pack::{Overflow, Pack, PackCounts};

use crate::error::{Error, Kind, Result};
use crate::tensor::Dtype;
use model::MOST_BYTES;
use zstd::{Scratch, room};

/// Most bytes of a `raw` frame of more than one row.
pub const RAW_FRAME_BYTES: u64 = 4 << 10;
/// Most bytes of a compressed frame of more than one row.
pub const PACKED_FRAME_BYTES: u64 = 64 << 10;

/// Values that shrink to less than this part have an order that zstd may see more of.
const REGULAR: usize = 2;
/// Values that shrink by less than this part with a model are not what it was learned from.
const FOREIGN: usize = 16;
/// Nor are values of which more than this part have no class in it.
const ESCAPED: usize = 32;

/// What a store is configured with. Each backend offers some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Rows as they are.
    Raw,
    /// Every frame through zstd.
    Zstd,
    /// Exponents entropy-coded, sign and mantissa as they are: lossless, small and fast for floats.
    Planes,
    /// Layers given the layer below: smaller and slower than [`Codec::Planes`], which takes what this does not help.
    Archive,
    /// Rows as they are, for a backend that writes them as numbers.
    Text,
    /// Rows as they are, for a backend that writes them as base64.
    Base64,
}

impl Codec {
    /// Every codec.
    pub const ALL: &[Codec] = &[Codec::Raw, Codec::Zstd, Codec::Planes, Codec::Archive, Codec::Text, Codec::Base64];

    /// The name in options and manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Zstd => "zstd",
            Codec::Planes => "planes",
            Codec::Archive => "archive",
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
            Codec::Zstd | Codec::Planes | Codec::Archive => PACKED_FRAME_BYTES,
        };
        let rows = (most / row_bytes.max(1)).max(1);
        // Lanes decode as many segments each.
        if self.has_models() && rows > 4 { rows - rows % 4 } else { rows }
    }

    /// What the codec learns from a sample of whole rows. `None` where it has no models for the dtype, or a model would
    /// not help. The same sample gives the same model. `archive` learns `planes` where the layer below does not help.
    pub fn fit(self, sample: Rows<'_>) -> Option<Fitted> {
        let given_below = if self == Codec::Archive { archive::fit(sample) } else { None };
        let alone = if self.has_models() { planes::fit(sample) } else { None };
        let fitted = match (given_below, alone) {
            (Some(below), Some(alone)) => Some(if below.pays_beside(&alone) { below } else { alone }),
            (below, alone) => below.or(alone),
        };
        fitted.filter(|fitted| fitted.model.bytes().len() <= MOST_BYTES)
    }

    /// Whether it learns from samples.
    pub const fn has_models(self) -> bool {
        matches!(self, Codec::Planes | Codec::Archive)
    }

    /// Appends the stored bytes of a frame to `out` and says how they are encoded.
    ///
    /// The smallest of those tried, this codec, zstd and stored, wins, so nothing grows. `planes` tries zstd where it
    /// saves nothing itself, or where its result or a look at the rows says that they repeat themselves. A model that
    /// does not fit the rows, or saves little, is not used.
    pub fn encode(self, rows: Rows<'_>, model: Option<&Model>, out: &mut Vec<u8>) -> Encoding {
        self.encode_with(Kernel::detect(), rows, model, out)
    }

    /// [`Codec::encode`] with other instructions than the best that there are; the bytes are the same.
    pub fn encode_with(self, kernel: Kernel, rows: Rows<'_>, model: Option<&Model>, out: &mut Vec<u8>) -> Encoding {
        match self {
            Codec::Raw | Codec::Text | Codec::Base64 => store(rows, out),
            Codec::Zstd => Scratch::with(|scratch| encode_zstd(rows, scratch, out)),
            Codec::Planes | Codec::Archive => Scratch::with(|scratch| encode_floats(kernel, rows, model, scratch, out)),
        }
    }
}

/// Bits of a sample with a model that was fitted to another; `None` where it is not for such rows.
pub fn bits(sample: Rows<'_>, model: &Model) -> Option<u64> {
    match model.encoding()? {
        Encoding::Planes => planes::bits(sample, model.planes().ok()?),
        Encoding::Archive => archive::bits(sample, model.archive().ok()?),
        Encoding::Stored | Encoding::Zstd => None,
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

/// Encodes with `model`, as what it is for, or as planes without one where that is smaller.
fn encode_floats(
    kernel: Kernel,
    rows: Rows<'_>,
    model: Option<&Model>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Encoding {
    let (start, len) = (out.len(), rows.bytes.len());
    let is_given_below = model.is_some_and(Model::is_given_below);
    let mut encoding = if is_given_below { Encoding::Archive } else { Encoding::Planes };
    let encoded = match model {
        Some(model) if is_given_below => archive::encode(kernel, rows, model, scratch, out),
        model => planes::encode(kernel, rows, model, scratch, out),
    };
    let mut size = if encoded.is_some() { out.len() - start } else { len };
    // What escaped is that of these rows only where they were just encoded as planes.
    let escaped = if encoded.is_some() && encoding == Encoding::Planes { scratch.escapes.len() } else { 0 };
    let is_foreign = size > len - len / FOREIGN || escaped * ESCAPED > len / rows.dtype.size();
    if model.is_some() && is_foreign {
        let with_model = out.split_off(start);
        let encoded = planes::encode(kernel, rows, None, scratch, out);
        if encoded.is_some() && out.len() - start < size {
            size = out.len() - start;
            encoding = Encoding::Planes;
        } else {
            out.truncate(start);
            out.extend_from_slice(&with_model);
        }
    }
    if size >= len {
        out.truncate(start);
        return encode_zstd(rows, scratch, out);
    }
    let may_be_smaller = size < len / REGULAR || zstd::finds_repeats(rows);
    if may_be_smaller && replace_by_zstd(rows, start, scratch, out) { Encoding::Zstd } else { encoding }
}

/// Puts a zstd frame in place of what is behind `start`, if it is smaller; says whether it is.
fn replace_by_zstd(rows: Rows<'_>, start: usize, scratch: &mut Scratch, out: &mut Vec<u8>) -> bool {
    let Scratch { general, packed, .. } = scratch;
    packed.clear();
    let is_smaller = zstd::compress(general, rows.bytes, packed) && packed.len() < out.len() - start;
    if is_smaller {
        out.truncate(start);
        out.extend_from_slice(packed);
    }
    is_smaller
}

/// A frame as it is stored, and what has to be known to decode it.
#[derive(Clone, Copy)]
pub struct Coded<'a> {
    /// How it is stored.
    pub encoding: Encoding,
    /// The stored bytes.
    pub stored: &'a [u8],
    /// Type of a value.
    pub dtype: Dtype,
    /// Values in a row.
    pub row_values: u64,
    /// Rows in the frame.
    pub rows: u64,
    /// The model of its activation; some encodings ignore it, and frames that bring their own.
    pub model: Option<&'a Model>,
    /// The rows below those that are asked for, which `archive` needs.
    pub below: Option<&'a [u8]>,
}

impl Coded<'_> {
    /// Rows that are decoded together: a range of them begins and ends at multiples of this, or at the end.
    pub fn step(&self) -> Result<u64> {
        if self.encoding == Encoding::Archive { archive::step(self).map(|rows| rows as u64) } else { Ok(1) }
    }

    /// Bytes of a row.
    fn row_bytes(&self) -> Result<usize> {
        let bytes = usize::try_from(self.row_values).ok().and_then(|values| values.checked_mul(self.dtype.size()));
        bytes.ok_or_else(|| malformed(format!("rows of `{}` values", self.row_values)))
    }

    /// Bytes that the whole frame decodes to.
    fn bytes(&self) -> Result<usize> {
        let bytes = usize::try_from(self.rows).ok().and_then(|rows| rows.checked_mul(self.row_bytes().ok()?));
        bytes.ok_or_else(|| malformed(format!("a frame of `{}` rows", self.rows)))
    }
}

/// Decodes some rows of a frame into `out`, which has exactly their bytes, one range after the other.
///
/// Every malformed input is an error, and none allocates more than some times the bytes of the frame, plus a constant.
/// After an error `out` holds anything.
pub fn decode(frame: &Coded<'_>, rows: &[Range<u64>], out: &mut [u8]) -> Result<()> {
    decode_with(Kernel::detect(), frame, rows, out)
}

/// [`decode`] with other instructions than the best that there are.
pub fn decode_with(kernel: Kernel, frame: &Coded<'_>, rows: &[Range<u64>], out: &mut [u8]) -> Result<()> {
    let (row_bytes, bytes) = (frame.row_bytes()?, frame.bytes()?);
    let of_usize = |range: &Range<u64>| match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) if start <= end && range.end <= frame.rows => Ok(start..end),
        _ => Err(malformed(format!("rows `{range:?}` of a frame of `{}`", frame.rows))),
    };
    // One range is usual, and not worth an allocation.
    let (one, more);
    let ranges: &[Range<usize>] = if let [range] = rows {
        one = [of_usize(range)?];
        &one
    } else {
        more = rows.iter().map(of_usize).collect::<Result<Vec<_>>>()?;
        &more
    };
    let due = ranges.iter().map(|range| range.len() * row_bytes).sum::<usize>();
    if due != out.len() {
        return Err(malformed(format!("rows of `{due}` bytes for a buffer of `{}`", out.len())));
    }
    match frame.encoding {
        Encoding::Stored if frame.stored.len() == bytes => copy_rows(frame.stored, row_bytes, ranges, out),
        Encoding::Stored => {
            let have = frame.stored.len();
            Err(malformed(format!("a stored frame of `{have}` bytes where `{bytes}` are due")))
        }
        Encoding::Zstd => {
            zstd::check(frame.stored, bytes)?;
            Scratch::with(|Scratch { decoder, rest, .. }| {
                if matches!(ranges, [range] if range.len() * row_bytes == bytes) {
                    return zstd::decompress(decoder, frame.stored, out);
                }
                let whole = room(rest, bytes);
                zstd::decompress(decoder, frame.stored, whole)?;
                copy_rows(whole, row_bytes, ranges, out)
            })
        }
        Encoding::Planes => Scratch::with(|scratch| planes::decode(kernel, frame, ranges, scratch, out)),
        Encoding::Archive => Scratch::with(|scratch| archive::decode(kernel, frame, ranges, scratch, out)),
    }
}

fn copy_rows(from: &[u8], row_bytes: usize, ranges: &[Range<usize>], out: &mut [u8]) -> Result<()> {
    let mut out = out;
    for range in ranges {
        let rows = from.get(range.start * row_bytes..range.end * row_bytes);
        let room = out.split_at_mut_checked(range.len() * row_bytes);
        let (Some(rows), Some((mine, others))) = (rows, room) else { return Err(malformed("rows beyond their frame")) };
        mine.copy_from_slice(rows);
        out = others;
    }
    Ok(())
}

fn malformed(message: impl Into<String>) -> Error {
    Error::new(Kind::Malformed, message)
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
    /// The same rows of the layer below, where they are known and alike.
    pub below: Option<&'a [u8]>,
}

/// How the bytes of one frame are stored; the codes are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// As they are.
    Stored = 0,
    /// One zstd frame.
    Zstd = 1,
    /// Exponents coded, signs and mantissas as they are.
    Planes = 2,
    /// Coded given the layer below.
    Archive = 3,
}

impl Encoding {
    /// Every encoding, in the order of its code.
    pub const ALL: &[Encoding] = &[Encoding::Stored, Encoding::Zstd, Encoding::Planes, Encoding::Archive];

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
            Encoding::Archive => "archive",
        }
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
mod tests;
