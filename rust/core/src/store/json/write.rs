//! Writing the file of an entry, as text of bounded size at a time.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::lines::{ACTIVATIONS, Row, Table, head_line};
use crate::codec::text::write_rows;
use crate::codec::{Codec, Encoding};
use crate::error::{Error, Result};
use crate::files::{Appender, Disk};
use crate::format::{Activation, frame_checksum, malformed, size};
use crate::store::EncodedEntry;
use crate::tensor::Dtype;

/// Text is written to the file in pieces of about this size.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// A multiple of three, so that the base64 of pieces joins to that of the whole.
const BASE64_BYTES: usize = 3 << 18;

/// Why a file was not written, and whether the disk can be trusted with another.
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) fatal: bool,
}

/// Writes a new file and syncs it. On failure some of it may be there.
pub(super) fn write(
    disk: &dyn Disk,
    path: &Path,
    entry: &EncodedEntry,
    number: u64,
    codec: Codec,
) -> Result<(), Failed> {
    let usable = |error| Failed { error, fatal: false };
    let file = disk.create(path).map_err(usable)?;
    let mut out = Out { file, text: Vec::new() };
    write_entry(&mut out, entry, number, codec).map_err(usable)?;
    out.file.sync().map_err(|error| Failed { error, fatal: true })
}

/// A file and the text that it does not have yet.
pub(super) struct Out<A> {
    file: A,
    text: Vec<u8>,
}

impl<'a> Out<&'a mut dyn Appender> {
    pub(super) fn to(file: &'a mut dyn Appender) -> Self {
        Self { file, text: Vec::new() }
    }
}

impl<A: std::ops::DerefMut<Target: Appender>> Out<A> {
    pub(super) fn push(&mut self, text: &str) -> Result<()> {
        self.text.extend_from_slice(text.as_bytes());
        self.flush_above(BLOCK_BYTES)
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        self.flush_above(0)
    }

    fn offset(&self) -> u64 {
        self.file.length() + self.text.len() as u64
    }

    fn flush_above(&mut self, length: usize) -> Result<()> {
        if self.text.len() > length {
            self.file.append(&[&self.text])?;
            self.text.clear();
        }
        Ok(())
    }
}

type OutFile = Out<Box<dyn Appender>>;

fn write_entry(out: &mut OutFile, entry: &EncodedEntry, number: u64, codec: Codec) -> Result<()> {
    let header = &entry.header;
    let mut table = Table::default();
    out.push(&head_line(&header.document, header.token_ids.as_deref(), number, &entry.content_id)?)?;
    out.push(ACTIVATIONS)?;
    for (n, (activation, chunk)) in header.activations.iter().zip(&entry.chunks).enumerate() {
        check_rows(activation, chunk)?;
        out.push(if n == 0 { "\n" } else { ",\n" })?;
        table.points.push(write_activation(out, activation, chunk, codec)?);
    }
    out.push("},\n")?;
    out.push(&table.line()?)?;
    out.finish()
}

/// Frames that are anything but rows would be written as numbers that mean nothing.
fn check_rows(activation: &Activation, chunk: &[u8]) -> Result<()> {
    let rows = activation.frames.iter().all(|frame| frame.encoding == Encoding::Stored);
    if rows && chunk.len() as u64 == activation.layout.bytes() {
        return Ok(());
    }
    Err(malformed(format!("`{}` is encoded; text is made of rows as they are", activation.point)))
}

fn write_activation(out: &mut OutFile, activation: &Activation, chunk: &[u8], codec: Codec) -> Result<Row> {
    let layout = &activation.layout;
    let point = serde_json::Value::from(activation.point.as_str());
    let saturated = match activation.saturated {
        0 => String::new(),
        n => format!("\"saturated\": {n}, "),
    };
    let encoding = if codec == Codec::Base64 { "\"encoding\": \"base64\", " } else { "" };
    out.push(&format!(
        "{point}: {{\"_type\": \"torch.Tensor\", \"dtype\": \"torch.{}\", \"shape\": {:?}, {saturated}{encoding}\"xxh3\": \"{:016x}\", \"data\": ",
        layout.dtype().name(),
        layout.shape(),
        frame_checksum(chunk),
    ))?;
    let (offset, text) = match codec {
        Codec::Base64 => (write_base64(out, chunk)?, None),
        _ => write_numbers(out, activation, chunk)?,
    };
    out.push("}")?;
    Ok(Row::new(activation, blake3::hash(chunk).as_bytes(), offset, text))
}

/// Says where the first character stands.
fn write_base64(out: &mut OutFile, chunk: &[u8]) -> Result<u64> {
    out.push("\"")?;
    let offset = out.offset();
    for bytes in chunk.chunks(BASE64_BYTES) {
        out.push(&STANDARD.encode(bytes))?;
    }
    out.push("\"")?;
    Ok(offset)
}

/// Says where the first row's text begins, and how much text each frame has. What has no values is `[]`, whatever its
/// shape: there may be any number of empty rows.
fn write_numbers(out: &mut OutFile, activation: &Activation, chunk: &[u8]) -> Result<(u64, Option<Vec<u64>>)> {
    let layout = &activation.layout;
    let (open, close) = match layout.shape() {
        [] => ("", ""),
        _ if chunk.is_empty() => ("[", "]"),
        _ => ("[\n", "]"),
    };
    out.push(open)?;
    let offset = out.offset();
    let mut rest = chunk;
    let mut rows = layout.rows();
    let mut lengths = Vec::with_capacity(activation.frames.len());
    for frame in &activation.frames {
        let (bytes, after) = rest.split_at_checked(frame.length as usize).unwrap_or((rest, &[]));
        let count = activation.frame_rows.min(rows);
        if !lengths.is_empty() {
            out.push(",\n")?;
        }
        let start = out.offset();
        write_lists(out, layout.dtype(), count, layout.shape().get(1..).unwrap_or_default(), bytes)?;
        lengths.push(out.offset() - start);
        (rest, rows) = (after, rows - count);
    }
    out.push(close)?;
    Ok((offset, Some(lengths)))
}

/// Lists with a new line between them, the large ones piece by piece.
fn write_lists(out: &mut OutFile, dtype: Dtype, count: u64, shape: &[u64], bytes: &[u8]) -> Result<()> {
    let each = bytes.len() / size(count)?.max(1);
    match shape {
        [parts, shape @ ..] if each > BLOCK_BYTES => {
            for (n, list) in bytes.chunks(each).enumerate() {
                out.push(if n == 0 { "[" } else { ",\n[" })?;
                write_lists(out, dtype, *parts, shape, list)?;
                out.push("]")?;
            }
        }
        _ => {
            let lists = (BLOCK_BYTES / each.max(1)).max(1);
            for (n, lists) in bytes.chunks((lists * each).max(1)).enumerate() {
                out.push(if n == 0 { "" } else { ",\n" })?;
                write_rows(dtype, (lists.len() / each.max(1)) as u64, shape, lists, &mut out.text);
                out.flush_above(BLOCK_BYTES)?;
            }
        }
    }
    Ok(())
}
