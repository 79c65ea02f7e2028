//! Reading the file of an entry: its lines where they are as we write them, else all of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lines::{ACTIVATIONS, ENTRY, Head, INDEX, MAX_ENTRY_BYTES, Row, Table, in_order};
use super::rows::{Text, beyond};
use super::{file_name, foreign};
use crate::codec::{Model, ModelId};
use crate::entry::{ContentId, ContentPoint, check_key, content_id};
use crate::error::{Error, Kind, Result};
use crate::files::{Identity, ReadFile};
use crate::format::{Activation, EntryHeader, malformed, size};
use crate::store::{Stored, gone};

/// Bytes looked through at a time for the end of a line.
const SEARCH_BYTES: usize = 64 << 10;
/// Longest last line that is read: that of the largest entry is half as long.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// An activation as found in a file.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) activation: Activation,
    pub(super) digest: [u8; 32],
    pub(super) text: Text,
}

/// What a store keeps of each entry in memory, and what its list of entries shows.
pub(super) struct Summary {
    pub(super) head: Head,
    pub(super) content_id: ContentId,
    pub(super) has_activations: bool,
}

/// Reads all but the activations; the whole file where another program wrote it.
pub(super) fn summary(path: &Path) -> Result<Summary> {
    let file = ReadFile::open(path)?;
    if let Some((head, end)) = first_line(&file)?
        && let Some(content_id) = head.content_id
    {
        check_named(path, &head)?;
        let mut follows = [0; ACTIVATIONS.len() + 1];
        file.read_at(end, &mut follows)?;
        return Ok(Summary { head, content_id, has_activations: follows.ends_with(b"\n") });
    }
    let (head, points) = foreign::read(&file)?;
    let has_activations = !points.is_empty();
    let (content_id, _) = check(path, &head, points)?;
    Ok(Summary { head, content_id, has_activations })
}

/// An entry in a file of its own.
pub(super) struct JsonEntry {
    path: PathBuf,
    identity: Identity,
    content_id: ContentId,
    header: EntryHeader,
    texts: Vec<Text>,
}

/// Reads everything but the rows, by the index where there is one.
pub(super) fn read(path: &Path) -> Result<JsonEntry> {
    read_by(path, |file| match (first_line(file)?, last_line(file)?) {
        (Some((head, _)), Some(table)) => Ok((head, points_of(&table)?)),
        _ => foreign::read(file),
    })
}

/// Reads and checks all of the file, as if it had no index.
pub(super) fn read_whole(path: &Path) -> Result<JsonEntry> {
    read_by(path, foreign::read)
}

fn read_by(path: &Path, read: impl FnOnce(&ReadFile) -> Result<(Head, Vec<Point>)>) -> Result<JsonEntry> {
    let file = ReadFile::open(path)?;
    let (identity, length) = (file.identity()?, file.length()?);
    let (head, points) = read(&file)?;
    let (content_id, points) = check(path, &head, points)?;
    let (mut activations, mut texts) = (Vec::with_capacity(points.len()), Vec::with_capacity(points.len()));
    for Point { activation, text, .. } in points {
        if text.end() > length {
            let message = format!("it ends before the text of `{}`", activation.point);
            return Err(Error::new(Kind::Truncated, message));
        }
        activations.push(activation);
        texts.push(text);
    }
    let header = EntryHeader { document: head.document, token_ids: head.token_ids, activations };
    Ok(JsonEntry { path: path.to_owned(), identity, content_id, header, texts })
}

/// Checks that the parts of a file belong together; gives the content id.
fn check(path: &Path, head: &Head, points: Vec<Point>) -> Result<(ContentId, Vec<Point>)> {
    check_named(path, head)?;
    let points = in_order(points, |point| &point.activation.point)?;
    let contents: Vec<_> = points
        .iter()
        .map(|Point { activation: a, digest, .. }| ContentPoint { point: &a.point, layout: &a.layout, digest: *digest })
        .collect();
    let id = content_id(&head.document, head.token_ids.as_deref(), &contents);
    if head.content_id.is_some_and(|said| said != id) {
        let message =
            "it does not hold what its `content_id` says; to keep a change made by hand, take `content_id` out";
        return Err(Error::new(Kind::Checksum, message));
    }
    if let Some(ids) = &head.token_ids {
        head.document.check_within(ids.len() as u64).map_err(|e| malformed(e.to_string()))?;
    }
    let positions = head.document.stored_positions();
    let layouts = contents.iter().map(|content| (content.point, content.layout));
    for (point, layout) in layouts.filter(|(_, layout)| layout.shape().len() == 2) {
        if positions.is_some_and(|positions| positions != layout.rows()) {
            return Err(malformed(format!("`{point}` has `{}` rows, which are not its positions", layout.rows())));
        }
    }
    drop(contents);
    Ok((id, points))
}

fn check_named(path: &Path, head: &Head) -> Result<()> {
    let key = head.document.key();
    check_key(key).map_err(|e| malformed(e.to_string()))?;
    let name = file_name(key);
    if path.file_name().is_some_and(|found| found == &*name) {
        return Ok(());
    }
    Err(malformed(format!("it holds the entry `{key}`, whose file is `{name}`")))
}

/// The first line and where it ends, if it is as we write it.
fn first_line(file: &ReadFile) -> Result<Option<(Head, u64)>> {
    let length = file.length()?;
    let mut begin = [0; ENTRY.len()];
    if length < begin.len() as u64 {
        return Ok(None);
    }
    file.read_at(0, &mut begin)?;
    if begin != ENTRY.as_bytes() {
        return Ok(None);
    }
    let Some(end) = find_forward(file, length.min(MAX_ENTRY_BYTES))? else { return Ok(None) };
    let mut follows = [0; ACTIVATIONS.len()];
    if end + follows.len() as u64 >= length {
        return Ok(None);
    }
    file.read_at(end + 1, &mut follows)?;
    if follows != ACTIVATIONS.as_bytes() {
        return Ok(None);
    }
    let mut line = vec![0; size(end)?];
    file.read_at(0, &mut line)?;
    Ok(Head::parse_line(&line).transpose()?.map(|head| (head, end + 1)))
}

/// The last line, if it is as we write it.
fn last_line(file: &ReadFile) -> Result<Option<Table>> {
    let Some(last) = file.length()?.checked_sub(1) else { return Ok(None) };
    let Some(start) = find_back(file, last)? else { return Ok(None) };
    let mut begin = [0; INDEX.len()];
    if last - start < begin.len() as u64 {
        return Ok(None);
    }
    file.read_at(start, &mut begin)?;
    if begin != INDEX.as_bytes() {
        return Ok(None);
    }
    let mut line = vec![0; size(last - start)?];
    file.read_at(start, &mut line)?;
    Ok(Table::parse_line(&line))
}

/// Where the first line ends.
fn find_forward(file: &ReadFile, length: u64) -> Result<Option<u64>> {
    let (mut at, mut block) = (0, vec![0; SEARCH_BYTES]);
    while at < length {
        let some = block.get_mut(..size((length - at).min(SEARCH_BYTES as u64))?).unwrap_or_default();
        file.read_at(at, some)?;
        if let Some(found) = some.iter().position(|&byte| byte == b'\n') {
            return Ok(Some(at + found as u64));
        }
        at += some.len() as u64;
    }
    Ok(None)
}

/// Where the line begins whose end is at `end`.
fn find_back(file: &ReadFile, mut end: u64) -> Result<Option<u64>> {
    let (mut block, lowest) = (vec![0; SEARCH_BYTES], end.saturating_sub(MAX_INDEX_BYTES));
    while end > lowest {
        let some = block.get_mut(..size(end.min(SEARCH_BYTES as u64))?).unwrap_or_default();
        let start = end - some.len() as u64;
        file.read_at(start, some)?;
        if let Some(found) = some.iter().rposition(|&byte| byte == b'\n') {
            return Ok(Some(start + found as u64 + 1));
        }
        end = start;
    }
    Ok(None)
}

fn points_of(table: &Table) -> Result<Vec<Point>> {
    let point = |row: &Row| {
        let (activation, digest) = row.activation()?;
        let text = match &row.text {
            Some(lengths) => Text::of_lengths(row.offset, lengths),
            None => Text::base64(row.offset, activation.layout.bytes()),
        };
        let text = text.ok_or_else(|| malformed(format!("the text of `{}` lies beyond any file", row.point)))?;
        Ok(Point { activation, digest, text })
    };
    let misread = |e: Error| if e.kind().is_damage() { e } else { malformed(e.to_string()) };
    table.points.iter().map(point).collect::<Result<_>>().map_err(misread)
}

impl Stored for JsonEntry {
    fn header(&self) -> &EntryHeader {
        &self.header
    }

    fn content_id(&self) -> ContentId {
        self.content_id
    }

    fn with_bytes(
        &self,
        index: usize,
        start: u64,
        length: usize,
        f: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let parts = self.header.activations.get(index).zip(self.texts.get(index));
        let (activation, text) = parts.ok_or_else(|| malformed("an entry has no such activation"))?;
        let file = self.open()?;
        if length == 0 {
            return f(&[]);
        }
        let end = start.checked_add(length as u64).filter(|&end| end <= activation.layout.bytes());
        let end = end.ok_or_else(|| beyond(activation))?;
        let named = |e: Error| if e.kind().is_damage() { e.within(format!("`{}`", self.path.display())) } else { e };
        text.with_raw(&file, activation, start..end, f).map_err(named)
    }

    fn model(&self, _: &ModelId) -> Result<Arc<Model>> {
        Err(malformed("an entry of text has no models"))
    }
}

impl JsonEntry {
    /// The file that the header was read from, as it was.
    fn open(&self) -> Result<ReadFile> {
        let gone = || gone(self.header.document.key());
        let file = ReadFile::open(&self.path)
            .map_err(|error| if error.kind() == Kind::MissingFile { gone() } else { error })?;
        if file.identity()? == self.identity { Ok(file) } else { Err(gone()) }
    }

    /// Whether both were read from one file, as it is now.
    pub(super) fn is_of_the_file_of(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Whether two readings of a file agree.
    pub(super) fn says_what(&self, other: &Self) -> bool {
        (&self.header, self.content_id) == (&other.header, other.content_id)
    }
}
