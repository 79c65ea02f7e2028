//! The text of an activation's rows, and the bytes it stands for.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::skim::elements;
use crate::buffers::lend;
use crate::codec::text::read_rows;
use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;
use crate::format::{Activation, malformed, size};
use crate::tensor::Dtype;

/// Frames with more text together are read one by one, a row with more by its parts.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// White space may be this generous, above which it is there to fill memory.
const MAX_TEXT_PER_BYTE: u64 = 1024;
/// Text of parts that is read at a time.
const PART_BYTES: u64 = 4 << 20;

/// Where an activation's text is.
#[derive(Debug)]
pub(super) enum Text {
    /// Of each frame.
    Rows(Vec<Range<u64>>),
    /// Base64 of all raw bytes, without a break.
    Base64(Range<u64>),
}

impl Text {
    pub(super) fn of_lengths(offset: u64, lengths: &[u64]) -> Option<Self> {
        let mut start = offset;
        let mut next = |&length: &u64| {
            let end = start.checked_add(length)?;
            let text = start..end;
            start = end.checked_add(2)?;
            Some(text)
        };
        Some(Self::Rows(lengths.iter().map(&mut next).collect::<Option<_>>()?))
    }

    pub(super) fn base64(offset: u64, bytes: u64) -> Option<Self> {
        let length = bytes.div_ceil(3).checked_mul(4)?;
        Some(Self::Base64(offset..offset.checked_add(length)?))
    }

    pub(super) fn end(&self) -> u64 {
        match self {
            Self::Rows(frames) => frames.last().map_or(0, |last| last.end),
            Self::Base64(text) => text.end,
        }
    }

    /// Lends raw bytes: those of the rows of `frames`, or those of `bytes`, as it is stored.
    pub(super) fn with_raw(
        &self,
        file: &ReadFile,
        activation: &Activation,
        bytes: Range<u64>,
        f: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Rows(frames) => with_rows(file, activation, frames, &bytes, f),
            Self::Base64(text) => with_decoded(file, activation, text, &bytes, f),
        }
    }
}

pub(super) fn beyond(activation: &Activation) -> Error {
    malformed(format!("bytes beyond the rows of `{}`", activation.point))
}

/// Reads rows from text that may be larger than memory should hold.
struct Parser<'a> {
    file: &'a ReadFile,
    dtype: Dtype,
}

impl Parser<'_> {
    fn read(&self, rows: u64, shape: &[u64], range: Range<u64>, out: &mut [u8]) -> Result<()> {
        let length = range.end.saturating_sub(range.start);
        if let ([parts, shape @ ..], 1, true) = (shape, rows, length > MAX_TEXT_BYTES) {
            return self.read_parts(*parts, shape, range, out);
        }
        if length > MAX_TEXT_BYTES && length / MAX_TEXT_PER_BYTE > out.len() as u64 {
            let message = format!("`{length}` bytes of text for `{}` bytes of values are above the limit", out.len());
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        lend(size(length)?, |text| {
            self.file.read_at(range.start, text)?;
            read_rows(self.dtype, rows, shape, text, out)
                .map_err(|e| e.within(format!("the values from byte `{}` on", range.start)))
        })
    }

    fn read_parts(&self, parts: u64, shape: &[u64], range: Range<u64>, out: &mut [u8]) -> Result<()> {
        let each = out.len() / size(parts)?.max(1);
        let wrong = || malformed(format!("a list is not of the `{parts}` values of its shape"));
        let (mut rest, mut group, mut count) = (out, range.start..range.start, 0);
        let mut take = |group: &Range<u64>, count: u64| -> Result<()> {
            let bytes = size(count)?.checked_mul(each).ok_or_else(wrong)?;
            let mine = rest.split_off_mut(..bytes).ok_or_else(wrong)?;
            self.read(count, shape, group.clone(), mine)
        };
        elements(self.file, range, |part| {
            if count > 0 && part.end - group.start > PART_BYTES {
                take(&group, count)?;
                count = 0;
            }
            group = if count == 0 { part } else { group.start..part.end };
            count += 1;
            Ok(())
        })?;
        take(&group, count)?;
        if rest.is_empty() { Ok(()) } else { Err(wrong()) }
    }
}

/// Text is read by whole frames, because only these have a known place.
fn with_rows(
    file: &ReadFile,
    activation: &Activation,
    frames: &[Range<u64>],
    bytes: &Range<u64>,
    f: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let layout = &activation.layout;
    let frame_bytes = (activation.frame_rows.min(layout.rows()) * layout.row_bytes()).max(1);
    let (first, stop) = (bytes.start / frame_bytes, bytes.end.div_ceil(frame_bytes));
    let frames = frames.get(size(first)?..size(stop)?);
    let Some(frames @ ([head, .., tail] | [head @ tail])) = frames else { return Err(beyond(activation)) };
    let whole = head.start..tail.end;
    let short = whole.end.saturating_sub(whole.start) <= MAX_TEXT_BYTES;
    let start = first * frame_bytes;
    let mut left = (stop * frame_bytes).min(layout.bytes()) - start;
    let parser = Parser { file, dtype: layout.dtype() };
    lend(size(left)?, |raw| {
        let mut rest = &mut *raw;
        for text in if short { std::slice::from_ref(&whole) } else { frames } {
            let length = if short { left } else { frame_bytes.min(left) };
            left -= length;
            let mine = rest.split_off_mut(..size(length)?).ok_or_else(|| beyond(activation))?;
            let rows = length / layout.row_bytes().max(1);
            parser.read(rows, layout.shape().get(1..).unwrap_or_default(), text.clone(), mine)?;
        }
        let wanted = size(bytes.start - start)?..size(bytes.end - start)?;
        f(raw.get(wanted).ok_or_else(|| beyond(activation))?)
    })
}

/// Four characters are three bytes, wherever they stand.
fn with_decoded(
    file: &ReadFile,
    activation: &Activation,
    text: &Range<u64>,
    bytes: &Range<u64>,
    f: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (first, stop) = (bytes.start / 3, bytes.end.div_ceil(3));
    let start = text.start + first * 4;
    if start + (stop - first) * 4 > text.end {
        return Err(beyond(activation));
    }
    lend(size((stop - first) * 4)?, |text| {
        file.read_at(start, text)?;
        lend(size((stop - first) * 3)?, |raw| {
            let decoded = STANDARD.decode_slice(text, raw).map_err(|e| {
                Error::new(Kind::Checksum, format!("what begins at byte `{start}` is not base64")).because(e)
            })?;
            let wanted = size(bytes.start - first * 3)?..size(bytes.end - first * 3)?;
            let raw = raw.get(..decoded).and_then(|raw| raw.get(wanted));
            f(raw.ok_or_else(|| beyond(activation))?)
        })
    })
}
