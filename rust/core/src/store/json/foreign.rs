//! Reading a file that a person or another program wrote again: its members in any order, formatted in any way, without
//! an index. Every value is read once, in bounded memory, to make what the index would have said.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::lines::{COUNT, FrameLengths, Head, MAX_ENTRY_BYTES, parse, unhex};
use super::read::Point;
use super::rows::Text;
use super::skim::{elements, members};
use crate::codec::pack::count_nonfinite;
use crate::codec::{Codec, Encoding};
use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;
use crate::format::{Activation, Frame, frame_checksum, malformed, size};
use crate::hook_point::HookPoint;
use crate::tensor::{Dtype, Layout};

/// Raw bytes taken at a time.
const BLOCK_BYTES: u64 = 1 << 20;
/// Largest `shape`, `dtype` and so on.
const MAX_MEMBER_BYTES: u64 = 4 << 10;

/// Reads and checks a whole file.
pub(super) fn read(file: &ReadFile) -> Result<(Head, Vec<Point>)> {
    let top = Ranges::of(file, 0..file.length()?)?;
    let head = Head::parse(&top.text("entry", MAX_ENTRY_BYTES)?)?;
    let points = members(file, top.range("activations")?)?;
    let points = points.into_iter().map(|(name, range)| {
        let point = read_point(file, &name, range);
        point.map_err(|e| as_damage(e).within(format!("`{}`", name.escape_debug())))
    });
    Ok((head, points.collect::<Result<_>>()?))
}

/// What a file says that cannot be is damage, whoever wrote it.
fn as_damage(error: Error) -> Error {
    match error.kind() {
        Kind::InvalidTensor | Kind::UnknownPoint => malformed(error.to_string()),
        _ => error,
    }
}

/// The members of an object in a file.
struct Ranges<'a> {
    file: &'a ReadFile,
    members: Vec<(String, Range<u64>)>,
}

impl<'a> Ranges<'a> {
    fn of(file: &'a ReadFile, range: Range<u64>) -> Result<Self> {
        Ok(Self { file, members: members(file, range)? })
    }

    fn find(&self, name: &str) -> Option<Range<u64>> {
        self.members.iter().find(|(other, _)| other == name).map(|(_, range)| range.clone())
    }

    fn range(&self, name: &str) -> Result<Range<u64>> {
        self.find(name).ok_or_else(|| malformed(format!("`{name}` is missing")))
    }

    fn text(&self, name: &str, limit: u64) -> Result<String> {
        let range = self.range(name)?;
        let length = range.end.saturating_sub(range.start);
        if length > limit {
            let message = format!("`{name}` of `{length}` bytes is above the limit of `{limit}`");
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        let mut text = vec![0; size(length)?];
        self.file.read_at(range.start, &mut text)?;
        String::from_utf8(text).map_err(|_| malformed(format!("`{name}` is not UTF-8")))
    }

    fn value<T: serde::de::DeserializeOwned>(&self, name: &str, expected: &str) -> Result<T> {
        parse(name, expected, &self.text(name, MAX_MEMBER_BYTES)?)
    }

    fn optional<T: serde::de::DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        self.find(name).map(|_| self.value(name, expected)).transpose()
    }
}

fn read_point(file: &ReadFile, name: &str, range: Range<u64>) -> Result<Point> {
    let members = Ranges::of(file, range)?;
    let dtype: String = members.value("dtype", "text")?;
    let dtype = Dtype::parse(dtype.strip_prefix("torch.").unwrap_or(&dtype))?;
    let layout = Layout::new(dtype, members.value("shape", "a list of integers from 0 on")?)?;
    let said: [u8; 8] = unhex("xxh3", &members.value::<String>("xxh3", "text")?)?;
    let data = members.range("data")?;
    let frame_rows = Codec::Text.frame_rows(layout.row_bytes());
    let text = match members.optional::<String>("encoding", "text")?.as_deref() {
        None => find_rows(file, &layout, frame_rows, data)?,
        Some("base64") => find_base64(&layout, data)?,
        Some(other) => return Err(malformed(format!("unknown encoding `{other}`; `base64`, or leave it out"))),
    };
    let mut activation = Activation {
        point: HookPoint::new(name)?,
        layout,
        frame_rows,
        nonfinite: 0,
        saturated: members.optional("saturated", COUNT)?.unwrap_or(0),
        model: None,
        below: None,
        frames: Vec::new(),
    };
    let sums = read_rows(file, &activation, &text)?;
    if sums.whole.digest().to_be_bytes() != said {
        return Err(Error::new(Kind::Checksum, "its values do not match its `xxh3`"));
    }
    (activation.nonfinite, activation.frames) = (sums.nonfinite, sums.frames);
    Ok(Point { activation, digest: *sums.digest.finalize().as_bytes(), text })
}

/// Where the text of each frame is.
fn find_rows(file: &ReadFile, layout: &Layout, frame_rows: u64, data: Range<u64>) -> Result<Text> {
    if layout.bytes() == 0 {
        return find_nothing(file, data);
    }
    if layout.shape().is_empty() {
        return Ok(Text::Rows(vec![data]));
    }
    let (mut rows, mut frames): (u64, Vec<Range<u64>>) = (0, Vec::new());
    elements(file, data, |row| {
        if rows == layout.rows() {
            return Err(malformed(format!("`data` has more rows than the `{rows}` of its shape")));
        }
        match frames.last_mut().filter(|_| !rows.is_multiple_of(frame_rows)) {
            Some(frame) => frame.end = row.end,
            None => frames.push(row),
        }
        rows += 1;
        Ok(())
    })?;
    if rows == layout.rows() {
        return Ok(Text::Rows(frames));
    }
    Err(malformed(format!("`data` has `{rows}` rows of the `{}` of its shape", layout.rows())))
}

/// Lists of nothing, as deep as they may be.
fn find_nothing(file: &ReadFile, data: Range<u64>) -> Result<Text> {
    let mut at = data.start;
    let mut block = vec![0; size(BLOCK_BYTES.min(data.end.saturating_sub(at)))?];
    while at < data.end {
        let some = block.get_mut(..size(BLOCK_BYTES.min(data.end - at))?).unwrap_or_default();
        file.read_at(at, some)?;
        if !some.iter().all(|byte| b"[], \t\r\n".contains(byte)) {
            return Err(malformed("`data` has values, its shape has none"));
        }
        at += some.len() as u64;
    }
    Ok(Text::Rows(Vec::new()))
}

fn find_base64(layout: &Layout, data: Range<u64>) -> Result<Text> {
    let text = Text::base64(data.start + 1, layout.bytes());
    let fits = |text: &Text| matches!(text, Text::Base64(range) if range.end + 1 == data.end);
    text.filter(fits).ok_or_else(|| {
        malformed(format!("`data` is not the base64 of `{}` bytes, without breaks and escapes", layout.bytes()))
    })
}

/// What reading all values of an activation gives.
struct Sums {
    whole: Xxh3,
    digest: blake3::Hasher,
    nonfinite: u64,
    frames: Vec<Frame>,
}

fn read_rows(file: &ReadFile, activation: &Activation, text: &Text) -> Result<Sums> {
    let layout = &activation.layout;
    let lengths = FrameLengths::new(layout, activation.frame_rows)?;
    let mut sums = Sums { whole: Xxh3::new(), digest: blake3::Hasher::new(), nonfinite: 0, frames: Vec::new() };
    let frame_bytes = u64::from(lengths.of(0)).max(1);
    let step = (BLOCK_BYTES / frame_bytes).max(1) * frame_bytes;
    let mut start = 0;
    while start < layout.bytes() {
        let end = (start + step).min(layout.bytes());
        text.with_raw(file, activation, start..end, &mut |raw| {
            sums.whole.update(raw);
            sums.digest.update(raw);
            sums.nonfinite += count_nonfinite(layout.dtype(), raw);
            for frame in raw.chunks(size(frame_bytes)?) {
                let length = lengths.of(sums.frames.len() as u64);
                sums.frames.push(Frame { checksum: frame_checksum(frame), length, encoding: Encoding::Stored });
            }
            Ok(())
        })?;
        start = end;
    }
    Ok(sums)
}
