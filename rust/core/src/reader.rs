//! The way out: projection on hook point and positions, down to the frames that hold them, decoded in parallel into
//! the caller's buffers.

mod chain;
mod gather;
mod source;
mod tokens;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

pub use self::chain::{chains, decode_frames};
pub use self::gather::Gather;
pub use self::source::Vectors;
pub use self::tokens::{Origins, Tokens};
use crate::codec::{Coded, Model, decode};
use crate::entry::Positions;
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

/// Which rows of a stored activation a selection names: its index, the rows, and their bytes.
pub fn select(entry: &dyn Stored, point: &str, positions: &Positions) -> Result<(usize, Option<Vec<u64>>, u64)> {
    let header = entry.header();
    let index = header.find(point)?;
    let activation = activation_of(entry, index)?;
    let rows = header.document.rows(&activation.point, &activation.layout, positions)?;
    let count = rows.as_ref().map_or(activation.layout.rows(), |rows| rows.len() as u64);
    Ok((index, rows, count * activation.layout.row_bytes()))
}

/// Which token vectors of an entry a selection names: the index of its activation, what they are, and the rows; `None` for
/// all.
fn lookup(entry: &dyn Stored, point: &str, positions: &Positions) -> Result<(usize, Vectors, Option<Vec<u64>>)> {
    let header = entry.header();
    let index = header.find(point)?;
    let activation = activation_of(entry, index)?;
    let vectors = Vectors::of(entry, activation)?;
    Ok((index, vectors, header.document.rows(&activation.point, &activation.layout, positions)?))
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

/// Consecutive frames, read at once.
struct Task<'a> {
    entry: Arc<dyn Stored>,
    activation: usize,
    model: Option<Arc<Model>>,
    start: u64,
    pieces: Vec<Piece<'a>>,
}

fn plan(request: Request<'_>) -> Result<Vec<Task<'_>>> {
    let Request { entry, activation: index, rows, out } = request;
    let activation = activation_of(entry.as_ref(), index)?;
    let pieces = pieces(activation, rows, out)?;
    let model = activation.model.map(|id| entry.model(&id)).transpose()?;
    let starts = frame_starts(activation);
    let mut tasks: Vec<Task<'_>> = Vec::new();
    let mut bytes = 0;
    for piece in pieces {
        let frame = frame_of(activation, piece.frame)?;
        let start = starts.get(piece.frame).copied().unwrap_or_default();
        let follows = |task: &Task<'_>| task.pieces.last().is_some_and(|last| last.frame + 1 == piece.frame);
        match tasks.last_mut().filter(|task| bytes < TASK_BYTES && follows(task)) {
            Some(task) => task.pieces.push(piece),
            None => {
                bytes = 0;
                let (entry, model) = (entry.clone(), model.clone());
                tasks.push(Task { entry, activation: index, model, start, pieces: vec![piece] });
            }
        }
        bytes += frame.length as usize;
    }
    Ok(tasks)
}

fn frame_of(activation: &Activation, frame: usize) -> Result<&Frame> {
    activation.frames.get(frame).ok_or_else(|| malformed(format!("`{}` has no frame `{frame}`", activation.point)))
}

fn frame_starts(activation: &Activation) -> Vec<u64> {
    let lengths = activation.frames.iter().map(|frame| u64::from(frame.length));
    lengths.scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect()
}

/// Where the rows of each frame go.
fn pieces<'a>(activation: &Activation, rows: Option<Vec<u64>>, out: &'a mut [u8]) -> Result<Vec<Piece<'a>>> {
    let row_bytes = size(activation.layout.row_bytes())?;
    let wanted = rows.as_ref().map_or(activation.layout.rows(), |rows| rows.len() as u64);
    if wanted * activation.layout.row_bytes() != out.len() as u64 {
        let message =
            format!("`{}` rows of `{}` do not fit a buffer of `{}` bytes", wanted, activation.point, out.len());
        return Err(Error::new(Kind::InvalidTensor, message));
    }
    match rows {
        _ if out.is_empty() => Ok(Vec::new()),
        None => all_pieces(activation, row_bytes, out),
        Some(rows) => some_pieces(activation, row_bytes, &rows, out),
    }
}

fn all_pieces<'a>(activation: &Activation, row_bytes: usize, mut out: &'a mut [u8]) -> Result<Vec<Piece<'a>>> {
    let mut pieces = Vec::with_capacity(activation.frames.len());
    let rows = activation.layout.rows();
    for frame in 0..activation.frames.len() {
        let first = frame as u64 * activation.frame_rows;
        let count = activation.frame_rows.min(rows - first);
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
    let Task { entry, activation: index, model, start, pieces } = task;
    let activation = activation_of(entry.as_ref(), index)?;
    let key = entry.header().document.key();
    let named = |e: Error| e.within(format!("`{}` of entry `{key}`", activation.point));
    let lengths = pieces.iter().map(|piece| frame_of(activation, piece.frame).map(|frame| frame.length as usize));
    let length = lengths.sum::<Result<usize>>()?;
    let mut pieces = Some(pieces);
    let result = entry.with_bytes(index, start, length, &mut |mut stored| {
        for piece in pieces.take().into_iter().flatten() {
            let frame = frame_of(activation, piece.frame)?;
            let (mine, rest) = stored
                .split_at_checked(frame.length as usize)
                .ok_or_else(|| malformed("frames reach beyond their chunk"))?;
            stored = rest;
            read_frame(activation, frame, mine, model.as_deref(), piece)?;
        }
        Ok(())
    });
    result.map_err(named)
}

fn read_frame(
    activation: &Activation,
    frame: &Frame,
    stored: &[u8],
    model: Option<&Model>,
    piece: Piece<'_>,
) -> Result<()> {
    check_frame(frame, stored).map_err(|e| e.within(format!("frame `{}`", piece.frame)))?;
    decode(&coded(activation, piece.frame, frame, stored, model), &piece.rows, piece.out)
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
