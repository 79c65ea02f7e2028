//! The bytes of an entry: its header, and the table of its activations and their frames.

use std::collections::HashSet;

use super::{ALIGNMENT, Fields, bounded, malformed, put_varint};
use crate::codec::{Encoding, ModelId};
use crate::entry::{ContentId, Document, MAX_TOKENS};
use crate::error::{Error, Kind, Result};
use crate::hook_point::HookPoint;
use crate::tensor::{Dtype, Layout, MAX_RANK};

/// Most activations of an entry.
pub const MAX_POINTS: usize = 1 << 16;

/// Largest frame, decoded, unless it is a single row.
const MAX_FRAME_BYTES: u64 = 256 << 20;

/// What an activation's name, shape and place take in memory, about.
const NAME_BYTES: usize = 128;

/// What follows in the table of an activation.
const WITHOUT_MODEL: u8 = 0;
const WITH_MODEL: u8 = 1;
const WITH_MODEL_AND_BELOW: u8 = 2;

/// One frame of an activation: how and how large it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// XXH3-64 of the stored bytes.
    pub checksum: u64,
    /// Bytes stored.
    pub length: u32,
    /// How they are encoded.
    pub encoding: Encoding,
}

/// One activation of an entry: what it is, and its frames in the order of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// Where it was seen.
    pub point: HookPoint,
    /// Dtype and shape as stored.
    pub layout: Layout,
    /// Rows of every frame but the last, which has the rest.
    pub frame_rows: u64,
    /// NaN and infinities among the values.
    pub nonfinite: u64,
    /// Finite values clamped when packing.
    pub saturated: u64,
    /// The model its frames use.
    pub model: Option<ModelId>,
    /// The activation of the layer below, by its index, that its `archive` frames are encoded given: one before this one,
    /// of the same layout and frames.
    pub below: Option<usize>,
    /// The frames, consecutive in the activation's chunk.
    pub frames: Vec<Frame>,
}

impl Activation {
    /// Bytes of all frames.
    pub fn stored_bytes(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.length)).sum()
    }

    /// Frames an activation of this layout has; none without bytes.
    pub fn frame_count(layout: &Layout, frame_rows: u64) -> u64 {
        if layout.bytes() == 0 { 0 } else { layout.rows().div_ceil(frame_rows.max(1)) }
    }

    /// Bounds what a reader has to hold to get at one row.
    fn check_frame_bytes(&self) -> Result<()> {
        let bytes = self.frame_rows.min(self.layout.rows()).saturating_mul(self.layout.row_bytes());
        if self.frame_rows > 1 && bytes > MAX_FRAME_BYTES {
            let message = format!("a frame of `{bytes}` bytes of `{}` is above the limit of 256 MiB", self.point);
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        Ok(())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (name, shape) = (self.point.as_str().as_bytes(), self.layout.shape());
        put_varint(out, name.len() as u64);
        out.extend(name);
        out.push(self.layout.dtype().code());
        put_varint(out, shape.len() as u64);
        shape.iter().for_each(|&n| put_varint(out, n));
        [self.frame_rows, self.nonfinite, self.saturated].into_iter().for_each(|n| put_varint(out, n));
        let below = self.below.filter(|_| self.model.is_some());
        out.push(match (self.model, below) {
            (None, _) => WITHOUT_MODEL,
            (Some(_), None) => WITH_MODEL,
            (Some(_), Some(_)) => WITH_MODEL_AND_BELOW,
        });
        out.extend(self.model.iter().flatten());
        below.iter().for_each(|&below| put_varint(out, below as u64));
        put_varint(out, self.frames.len() as u64);
        for frame in &self.frames {
            out.extend(frame.checksum.to_le_bytes());
            put_varint(out, frame.length.into());
            out.push(frame.encoding.code());
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        let name_length = fields.size()?;
        let name = fields.text(name_length)?;
        let (dtype, rank) = (fields.u8()?, bounded(fields.varint()?, MAX_RANK as u64, "axes")?);
        let dtype = Dtype::from_code(dtype).ok_or_else(|| malformed(format!("unknown dtype code `{dtype}`")))?;
        let shape = (0..rank).map(|_| fields.varint()).collect::<Result<Vec<_>>>()?;
        let (layout, frame_rows) = (Layout::new(dtype, shape)?, fields.varint()?);
        let (nonfinite, saturated) = (fields.varint()?, fields.varint()?);
        let (model, below) = match fields.u8()? {
            WITHOUT_MODEL => (None, None),
            WITH_MODEL => (Some(fields.array()?), None),
            WITH_MODEL_AND_BELOW => (Some(fields.array()?), Some(fields.size()?)),
            other => return Err(malformed(format!("`{other}` where a model is present or not"))),
        };
        let point = HookPoint::new(name)?;
        let frames = Vec::new();
        let mut activation = Self { point, layout, frame_rows, nonfinite, saturated, model, below, frames };
        let frames = fields.varint()?;
        if activation.frame_rows == 0 || Self::frame_count(&activation.layout, activation.frame_rows) != frames {
            return Err(malformed(format!(
                "`{frames}` frames are not what the shape of `{}` asks for",
                activation.point
            )));
        }
        activation.check_frame_bytes()?;
        activation.frames = (0..frames).map(|number| activation.decode_frame(number, fields)).collect::<Result<_>>()?;
        Ok(activation)
    }

    fn decode_frame(&self, number: u64, fields: &mut Fields<'_>) -> Result<Frame> {
        let (checksum, length, code) = (fields.u64()?, fields.u32_varint()?, fields.u8()?);
        let encoding = Encoding::from_code(code).ok_or_else(|| malformed(format!("unknown encoding `{code}`")))?;
        let rows = rows_of_frame(self.layout.rows(), self.frame_rows, number);
        if u64::from(length) > rows * self.layout.row_bytes() {
            return Err(malformed(format!("a frame of `{}` is stored in more bytes than it has", self.point)));
        }
        Ok(Frame { checksum, length, encoding })
    }
}

/// Rows of a frame, by its number, of an activation with so many, `frame_rows` a frame; the last frame has the rest.
pub fn rows_of_frame(rows: u64, frame_rows: u64, number: u64) -> u64 {
    frame_rows.min(rows.saturating_sub(number.saturating_mul(frame_rows)))
}

/// Checks that each activation that is encoded given another comes after it, alone, and has the same rows in each frame:
/// so they make chains, which end, and of which one frame has to be held to decode the next.
fn check_below(activations: &[Activation]) -> Result<()> {
    let mut taken = HashSet::new();
    for (index, activation) in activations.iter().enumerate() {
        let Some(below) = activation.below else { continue };
        if !taken.insert(below) {
            return Err(malformed(format!("`{}` is given an activation that another is given too", activation.point)));
        }
        let below = activations.get(below).filter(|_| below < index);
        let alike =
            below.is_some_and(|below| below.layout == activation.layout && below.frame_rows == activation.frame_rows);
        if !alike {
            return Err(malformed(format!("`{}` is given an activation that is not below it", activation.point)));
        }
    }
    Ok(())
}

/// All of an entry but the bytes of its activations.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryHeader {
    /// The metadata document.
    pub document: Document,
    /// Token ids of the whole sequence.
    pub token_ids: Option<Vec<u32>>,
    /// Activations in the order of their hook points.
    pub activations: Vec<Activation>,
}

impl EntryHeader {
    /// The header as stored.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let json = self.document.to_json()?;
        let mut out = Vec::with_capacity(json.len() + 512);
        put_varint(&mut out, json.len() as u64);
        out.extend(json.as_bytes());
        put_varint(&mut out, self.token_ids.as_ref().map_or(0, |ids| ids.len() as u64 + 1));
        self.token_ids.iter().flatten().for_each(|&id| put_varint(&mut out, id.into()));
        put_varint(&mut out, self.activations.len() as u64);
        self.activations.iter().for_each(|activation| activation.encode(&mut out));
        Ok(out)
    }

    /// Reads a header whose bytes were checked.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(bytes);
        let json = fields.size()?;
        let document = Document::parse(fields.text(json)?)?;
        let tokens = fields.varint()?.checked_sub(1).map(|n| bounded(n, MAX_TOKENS, "token ids")).transpose()?;
        let token_ids = tokens.map(|n| (0..n).map(|_| fields.u32_varint()).collect()).transpose()?;
        let points = bounded(fields.varint()?, MAX_POINTS as u64, "activations")?;
        let activations = (0..points).map(|_| Activation::decode(&mut fields)).collect::<Result<Vec<_>>>()?;
        fields.end()?;
        let ascending = activations.windows(2).all(|pair| matches!(pair, [left, right] if left.point < right.point));
        if !ascending {
            return Err(malformed("activations are not in the order of their hook points, each once"));
        }
        check_below(&activations)?;
        Ok(Self { document, token_ids, activations })
    }

    /// Bytes that it holds in memory, about.
    pub fn held_bytes(&self) -> usize {
        let Self { document, token_ids, activations } = self;
        let frames = activations.iter().map(|activation| size_of_val(activation.frames.as_slice())).sum::<usize>();
        let texts = usize::try_from(document.held_bytes(token_ids.as_deref())).unwrap_or(usize::MAX);
        texts.saturating_add(frames + activations.len() * (size_of::<Activation>() + NAME_BYTES))
    }

    /// The document in the bytes of a header that were checked, as it is stored.
    pub fn stored_document(bytes: &[u8]) -> Result<&str> {
        let mut fields = Fields::new(bytes);
        let json = fields.size()?;
        fields.text(json)
    }

    /// Place of an activation in the list.
    pub fn find(&self, point: &str) -> Result<usize> {
        self.activations.iter().position(|a| a.point.as_str() == point).ok_or_else(|| {
            let stored: Vec<_> = self.activations.iter().map(|a| format!("`{}`", a.point)).collect();
            let stored = if stored.is_empty() { "nothing".to_owned() } else { stored.join(", ") };
            let message = format!("`{point}` is not stored in entry `{}`; stored: {stored}", self.document.key());
            Error::new(Kind::PointNotStored, message)
        })
    }
}

/// Payload of an `entry` record: which entry it is, where its chunks begin in the shard, and its header. In an LMDB
/// store, where chunks have keys, there are no offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRecord<'a> {
    /// What the entry holds; here too, so that entries tell of themselves where a commit is lost.
    pub content_id: ContentId,
    /// Absolute file offset of the first frame of each activation.
    pub offsets: Vec<u64>,
    /// The bytes of an [`EntryHeader`].
    pub header: &'a [u8],
}

impl<'a> EntryRecord<'a> {
    /// The payload as stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(36 + self.offsets.len() * 8 + self.header.len());
        out.extend(self.content_id);
        put_varint(&mut out, self.offsets.len() as u64);
        self.offsets.iter().for_each(|offset| put_varint(&mut out, offset / ALIGNMENT));
        out.extend(self.header);
        out
    }

    /// Reads a payload that was checked.
    pub fn decode(payload: &'a [u8]) -> Result<Self> {
        let mut fields = Fields::new(payload);
        let (content_id, offsets) = (fields.array()?, bounded(fields.varint()?, MAX_POINTS as u64, "chunks")?);
        let offsets = (0..offsets).map(|_| Ok(fields.varint()?.saturating_mul(ALIGNMENT))).collect::<Result<_>>()?;
        Ok(Self { content_id, offsets, header: fields.rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(point: &str, shape: &[u64], frames: Vec<Frame>) -> EntryHeader {
        let layout = Layout::new(Dtype::UInt8, shape.to_vec()).unwrap();
        let point = HookPoint::new(point).unwrap();
        let (frame_rows, nonfinite, saturated, model, below) = (4, 0, 0, None, None);
        let activation = Activation { point, layout, frame_rows, nonfinite, saturated, model, below, frames };
        let document = Document::parse(r#"{"key":"k","key_recipe":"user"}"#).unwrap();
        EntryHeader { document, token_ids: Some(vec![1, u32::MAX]), activations: vec![activation] }
    }

    fn frame(length: u32) -> Frame {
        Frame { checksum: 7, length, encoding: Encoding::Stored }
    }

    #[test]
    fn no_frame_is_stored_in_more_bytes_than_its_own_rows_have() {
        let stored = header("m.x", &[6, 5], vec![frame(20), frame(10)]);
        assert_eq!(EntryHeader::decode(&stored.encode().unwrap()).unwrap(), stored);
        for lengths in [[21, 10], [20, 11]] {
            let grown = header("m.x", &[6, 5], lengths.map(frame).to_vec());
            assert_eq!(EntryHeader::decode(&grown.encode().unwrap()).unwrap_err().kind(), Kind::Malformed);
        }
    }

    #[test]
    fn counts_are_bounded_before_anything_is_made_of_them() {
        let refused = |bytes: &[u8], what: &str| {
            let error = EntryHeader::decode(bytes).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        };
        let json = r#"{"key":"k","key_recipe":"user"}"#;
        let mut begun = Vec::new();
        put_varint(&mut begun, json.len() as u64);
        begun.extend(json.as_bytes());
        let with = |counts: &[u64]| {
            let mut bytes = begun.clone();
            counts.iter().for_each(|&n| put_varint(&mut bytes, n));
            bytes.resize(bytes.len() + 64, 0);
            bytes
        };
        refused(&with(&[MAX_TOKENS + 2]), "token ids");
        refused(&with(&[0, MAX_POINTS as u64 + 1]), "activations");
        let mut ranked = with(&[0, 1, 3]);
        ranked.truncate(ranked.len() - 64);
        ranked.extend(b"m.x\0\x11");
        ranked.resize(ranked.len() + 64, 1);
        refused(&ranked, "axes");
        let mut chunks = vec![0; 32];
        put_varint(&mut chunks, MAX_POINTS as u64 + 1);
        chunks.resize(chunks.len() + MAX_POINTS + 1, 0);
        assert!(EntryRecord::decode(&chunks).unwrap_err().to_string().contains("chunks"));
    }
}
