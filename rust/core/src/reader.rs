//! The way out: projection on hook point and positions, down to the frames that hold them, decoded in parallel into
//! the caller's buffers.

mod ahead;
mod chain;
mod documents;
mod entries;
mod gather;
mod scan;
mod selection;
mod source;
mod tokens;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

pub use self::ahead::{Ahead, Parts};
pub use self::chain::{chains, decode_frames};
pub use self::documents::Documents;
pub use self::entries::Entries;
pub use self::gather::gather;
pub use self::scan::{Scan, Scanned};
pub use self::selection::{Selected, read_selected, select};
use self::selection::{lookup, read_into_own};
pub use self::source::Vectors;
pub use self::tokens::{Batch, Batches, Tokens};
use crate::codec::{Coded, Encoding, Model, decode};
use crate::error::{Error, Kind, Result};
use crate::format::{Activation, Frame, frame_checksum, malformed, rows_of_frame, size};
use crate::store::{Store, Stored};

/// Stored bytes that one read and one task take at a time.
const TASK_BYTES: usize = 1 << 20;
/// Work smaller than this is done on the calling thread.
const PARALLEL_BYTES: usize = 256 << 10;

/// Rows of one activation, and where they go.
pub struct Request<'a> {
    /// The entry.
    pub entry: Arc<dyn Stored>,
    /// Index of the activation in its header.
    pub activation: usize,
    /// Rows in the order wanted; `None` for all.
    pub rows: Option<Vec<u64>>,
    /// As many bytes as the rows have.
    pub out: &'a mut [u8],
}

/// Fills every request's buffer. On an error some buffers may be filled.
pub fn read(store: &Store, requests: Vec<Request<'_>>) -> Result<()> {
    store.reading()?;
    let total: usize = requests.iter().map(|request| request.out.len()).sum();
    if total < PARALLEL_BYTES {
        return read_here(requests);
    }
    let (tasks, columns) = plan_all(requests)?;
    store.pool().install(|| {
        tasks.into_par_iter().try_for_each(run)?;
        columns.into_par_iter().try_for_each(chain::Column::run)
    })?
}

/// [`read`] on the calling thread.
fn read_here(requests: Vec<Request<'_>>) -> Result<()> {
    let (tasks, columns) = plan_all(requests)?;
    tasks.into_iter().try_for_each(run)?;
    columns.into_iter().try_for_each(chain::Column::run)
}

fn plan_all(requests: Vec<Request<'_>>) -> Result<(Vec<Task<'_>>, Vec<chain::Column<'_>>)> {
    let (columns, alone) = chain::columns(requests)?;
    let tasks = alone.into_iter().map(plan).collect::<Result<Vec<_>>>()?;
    Ok((tasks.into_iter().flatten().collect(), columns))
}

/// The stored bytes of an activation, every frame checked and none decoded.
pub fn stored_frames(entry: &dyn Stored, index: usize) -> Result<Vec<u8>> {
    let activation = activation_of(entry, index)?;
    let mut bytes = Vec::with_capacity(size(activation.stored_bytes())?);
    let mut frames = activation.frames.iter().enumerate().peekable();
    while let Some(&(first, _)) = frames.peek() {
        let mut piece = Vec::new();
        let mut length = 0;
        while let Some(next) = frames.next_if(|_| length < TASK_BYTES) {
            length += next.1.length as usize;
            piece.push(next);
        }
        let start = bytes.len() as u64;
        entry
            .with_bytes(index, start, length, &mut |stored| {
                bytes.extend_from_slice(stored);
                Ok(())
            })
            .map_err(|e| named(e, first, entry, activation))?;
        let mut stored = bytes.get(size(start)?..).unwrap_or_default();
        for (number, frame) in piece {
            let (mine, rest) = stored.split_at_checked(frame.length as usize).unwrap_or_default();
            stored = rest;
            check_frame(frame, mine).map_err(|e| named(e, number, entry, activation))?;
        }
    }
    Ok(bytes)
}

fn activation_of(entry: &dyn Stored, index: usize) -> Result<&Activation> {
    entry.header().activations.get(index).ok_or_else(|| malformed("an entry has no such activation"))
}

fn check_frame(frame: &Frame, stored: &[u8]) -> Result<()> {
    if frame_checksum(stored) == frame.checksum {
        return Ok(());
    }
    Err(Error::new(Kind::Checksum, "it does not match its checksum"))
}

fn named(error: Error, frame: usize, entry: &dyn Stored, activation: &Activation) -> Error {
    let key = entry.header().document.key();
    error.within(format!("frame `{frame}` of `{}` of entry `{key}`", activation.point))
}

/// Some rows of one frame, and where they go.
struct Piece<'a> {
    frame: usize,
    rows: Vec<Range<u64>>,
    out: &'a mut [u8],
}

/// What is wanted of consecutive frames.
enum Part<'a> {
    /// Every row: the number of the first frame and the one after the last.
    Whole(Range<usize>, &'a mut [u8]),
    Pieces(Vec<Piece<'a>>),
}

/// Consecutive frames, read at once.
struct Task<'a> {
    entry: Arc<dyn Stored>,
    activation: usize,
    model: Option<Arc<Model>>,
    start: u64,
    length: usize,
    part: Part<'a>,
}

fn plan(request: Request<'_>) -> Result<Vec<Task<'_>>> {
    let Request { entry, activation: index, rows, out } = request;
    let activation = activation_of(entry.as_ref(), index)?;
    let model = activation.model.map(|id| entry.model(&id)).transpose()?;
    let task = |(start, length, part)| {
        let (entry, model) = (entry.clone(), model.clone());
        Task { entry, activation: index, model, start, length, part }
    };
    let parts = match rows {
        None => whole_parts(activation, out)?,
        Some(rows) => pieces_together(activation, pieces(activation, Some(rows), out)?)?,
    };
    Ok(parts.into_iter().map(task).collect())
}

/// Where it begins in its chunk, its bytes there, and what is wanted of them.
type Place<'a> = (u64, usize, Part<'a>);

fn whole_parts<'a>(activation: &Activation, mut out: &'a mut [u8]) -> Result<Vec<Place<'a>>> {
    check_room(activation, activation.layout.rows(), out)?;
    let row_bytes = size(activation.layout.row_bytes())?;
    let (mut parts, mut first, mut start) = (Vec::new(), 0, 0);
    while first < activation.frames.len() {
        let (mut end, mut length, mut rows) = (first, 0, 0);
        while let Some(frame) = activation.frames.get(end).filter(|_| length < TASK_BYTES) {
            length += frame.length as usize;
            rows += frame_row_count(activation, end);
            end += 1;
        }
        let (mine, rest) = out.split_at_mut(size(rows)? * row_bytes);
        parts.push((start, length, Part::Whole(first..end, mine)));
        (first, start, out) = (end, start + length as u64, rest);
    }
    Ok(parts)
}

fn pieces_together<'a>(activation: &Activation, pieces: Vec<Piece<'a>>) -> Result<Vec<Place<'a>>> {
    let starts = frame_starts(activation);
    let mut parts: Vec<Place<'a>> = Vec::new();
    let mut last = None;
    for piece in pieces {
        let (number, frame) = (piece.frame, frame_of(activation, piece.frame)?.length as usize);
        let follows = last.replace(number).is_some_and(|last| last + 1 == number);
        match parts.last_mut().filter(|(_, length, _)| follows && *length < TASK_BYTES) {
            Some((_, length, Part::Pieces(pieces))) => {
                *length += frame;
                pieces.push(piece);
            }
            _ => {
                let start = starts.get(number).copied().unwrap_or_default();
                parts.push((start, frame, Part::Pieces(vec![piece])));
            }
        }
    }
    Ok(parts)
}

fn frame_of(activation: &Activation, frame: usize) -> Result<&Frame> {
    activation.frames.get(frame).ok_or_else(|| malformed(format!("`{}` has no frame `{frame}`", activation.point)))
}

fn frame_starts(activation: &Activation) -> Vec<u64> {
    let lengths = activation.frames.iter().map(|frame| u64::from(frame.length));
    lengths.scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect()
}

/// Refuses a buffer that so many rows do not fill.
fn check_room(activation: &Activation, rows: u64, out: &[u8]) -> Result<()> {
    if rows.checked_mul(activation.layout.row_bytes()) == Some(out.len() as u64) {
        return Ok(());
    }
    let message = format!("`{rows}` rows of `{}` do not fit a buffer of `{}` bytes", activation.point, out.len());
    Err(Error::new(Kind::InvalidTensor, message))
}

/// Where the rows of each frame go.
fn pieces<'a>(activation: &Activation, rows: Option<Vec<u64>>, out: &'a mut [u8]) -> Result<Vec<Piece<'a>>> {
    let row_bytes = size(activation.layout.row_bytes())?;
    let wanted = rows.as_ref().map_or(activation.layout.rows(), |rows| rows.len() as u64);
    check_room(activation, wanted, out)?;
    match rows {
        _ if out.is_empty() => Ok(Vec::new()),
        None => all_pieces(activation, row_bytes, out),
        Some(rows) => some_pieces(activation, row_bytes, &rows, out),
    }
}

fn all_pieces<'a>(activation: &Activation, row_bytes: usize, mut out: &'a mut [u8]) -> Result<Vec<Piece<'a>>> {
    let mut pieces = Vec::with_capacity(activation.frames.len());
    for frame in 0..activation.frames.len() {
        let count = frame_row_count(activation, frame);
        let (mine, rest) = out.split_at_mut(size(count)? * row_bytes);
        out = rest;
        pieces.push(Piece { frame, rows: std::iter::once(0..count).collect(), out: mine });
    }
    Ok(pieces)
}

fn some_pieces<'a>(
    activation: &Activation,
    row_bytes: usize,
    rows: &[u64],
    mut out: &'a mut [u8],
) -> Result<Vec<Piece<'a>>> {
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    for rows in rows.chunk_by(|left, right| left / activation.frame_rows == right / activation.frame_rows) {
        let (mine, rest) = out.split_at_mut(rows.len() * row_bytes);
        out = rest;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for row in rows.iter().map(|row| row % activation.frame_rows) {
            match ranges.last_mut().filter(|range| range.end == row) {
                Some(range) => range.end += 1,
                None => ranges.push(row..row + 1),
            }
        }
        let frame = rows.first().map_or(0, |row| row / activation.frame_rows);
        pieces.push(Piece { frame: size(frame)?, rows: ranges, out: mine });
    }
    Ok(pieces)
}

fn run(task: Task<'_>) -> Result<()> {
    let Task { entry, activation: index, model, start, length, part } = task;
    let activation = activation_of(entry.as_ref(), index)?;
    let decoder = Decoder { activation, model: model.as_deref() };
    let result = match part {
        Part::Whole(range, out) if decoder.are_stored(&range, length, out) => {
            entry.read_into(index, start, out, &|stored| decoder.check(range.clone(), stored))
        }
        Part::Whole(range, out) => {
            entry.with_bytes(index, start, length, &mut |stored| decoder.read_whole(range.clone(), stored, out))
        }
        Part::Pieces(mut pieces) => {
            entry.with_bytes(index, start, length, &mut |stored| decoder.read_pieces(&mut pieces, stored))
        }
    };
    result.map_err(|e| e.within(format!("`{}` of entry `{}`", activation.point, entry.header().document.key())))
}

/// Decodes the frames of an activation.
struct Decoder<'a> {
    activation: &'a Activation,
    model: Option<&'a Model>,
}

impl Decoder<'_> {
    /// Whether the rows are stored as they are, so that they can be read to where they are wanted.
    fn are_stored(&self, range: &Range<usize>, length: usize, out: &[u8]) -> bool {
        let frames = self.activation.frames.get(range.clone()).unwrap_or_default();
        length == out.len() && frames.iter().all(|frame| frame.encoding == Encoding::Stored)
    }

    fn check(&self, range: Range<usize>, mut stored: &[u8]) -> Result<()> {
        range.into_iter().try_for_each(|number| self.next(number, &mut stored).map(drop))
    }

    fn read_whole(&self, range: Range<usize>, mut stored: &[u8], mut out: &mut [u8]) -> Result<()> {
        let row_bytes = size(self.activation.layout.row_bytes())?;
        for number in range {
            let (frame, mine) = self.next(number, &mut stored)?;
            let rows = frame_row_count(self.activation, number);
            let (room, rest) = out.split_at_mut(size(rows)? * row_bytes);
            out = rest;
            decode(&coded(self.activation, number, frame, mine, self.model), std::slice::from_ref(&(0..rows)), room)?;
        }
        Ok(())
    }

    fn read_pieces(&self, pieces: &mut [Piece<'_>], mut stored: &[u8]) -> Result<()> {
        pieces.iter_mut().try_for_each(|piece| {
            let (frame, mine) = self.next(piece.frame, &mut stored)?;
            decode(&coded(self.activation, piece.frame, frame, mine, self.model), &piece.rows, piece.out)
        })
    }

    /// Takes the bytes of a frame, checked, from those that begin with them.
    fn next<'b>(&self, number: usize, stored: &mut &'b [u8]) -> Result<(&Frame, &'b [u8])> {
        let frame = frame_of(self.activation, number)?;
        let (mine, rest) = stored
            .split_at_checked(frame.length as usize)
            .ok_or_else(|| malformed("frames reach beyond their chunk"))?;
        *stored = rest;
        check_frame(frame, mine).map_err(|e| e.within(format!("frame `{number}`")))?;
        Ok((frame, mine))
    }
}

/// A frame by its number, as a codec has to know it.
fn coded<'a>(
    activation: &Activation,
    number: usize,
    frame: &Frame,
    stored: &'a [u8],
    model: Option<&'a Model>,
) -> Coded<'a> {
    let layout = &activation.layout;
    let rows = frame_row_count(activation, number);
    let (dtype, row_values) = (layout.dtype(), layout.row_values());
    Coded { encoding: frame.encoding, stored, dtype, row_values, rows, model, below: None }
}

fn frame_row_count(activation: &Activation, frame: usize) -> u64 {
    rows_of_frame(activation.layout.rows(), activation.frame_rows, frame as u64)
}
