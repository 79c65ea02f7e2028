//! The entries that one model call fills, one a batch row: rows arrive by hook point, step after step, in slots.

use std::sync::{Arc, Mutex};

use crate::encode::Draft;
use crate::entry::{Document, MAX_TOKENS};
use crate::error::{Error, Kind, Result};
use crate::format::size;
use crate::hook_point::HookPoint;
use crate::lock::lock;
use crate::staging::Ring;
use crate::tensor::{Dtype, Layout, Tensor};
use crate::writer::Writer;

/// Rows in a slot: `rows` rows of row layout `layout`, from its `first` row on, of `point`, at byte `offset`.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// From [`Batch::point`].
    pub point: usize,
    /// From [`Batch::rows`].
    pub layout: usize,
    /// First row of the layout that is here.
    pub first: u64,
    /// Rows that are here.
    pub rows: u64,
    /// Where they begin in the slot.
    pub offset: usize,
}

struct Point {
    name: HookPoint,
    row: Layout,
}

/// One entry in the making: the bytes seen so far at each point.
#[derive(Default)]
struct Filling {
    points: Vec<Vec<u8>>,
    reserved: u64,
}

#[derive(Default)]
struct State {
    entries: Vec<Option<Filling>>,
    points: Vec<Point>,
    /// For each layout, where each batch row's rows end.
    layouts: Vec<Vec<u64>>,
}

/// Drafts of one model call. Not visible until finished, dropped if never finished.
pub struct Batch {
    writer: Arc<Writer>,
    state: Mutex<State>,
}

fn no_such(what: &str, index: usize) -> Error {
    Error::new(Kind::InvalidOption, format!("{what} `{index}` was not declared in this batch"))
}

impl Batch {
    /// Drafts for `rows` batch rows.
    pub fn new(writer: Arc<Writer>, rows: usize) -> Result<Self> {
        writer.check()?;
        if rows as u64 > MAX_TOKENS {
            let message = format!("a batch of `{rows}` rows is above the limit of {MAX_TOKENS}");
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        let entries = (0..rows).map(|_| Some(Filling::default())).collect();
        Ok(Self { writer, state: Mutex::new(State { entries, ..State::default() }) })
    }

    /// Declares a hook point whose rows have this dtype and shape.
    pub fn point(&self, name: &str, dtype: Dtype, row_shape: &[u64]) -> Result<usize> {
        let point = Point { name: HookPoint::new(name)?, row: Layout::new(dtype, row_shape.to_vec())? };
        let mut state = lock(&self.state);
        state.points.push(point);
        Ok(state.points.len() - 1)
    }

    /// Declares a row layout: `counts[b]` rows belong to batch row b, one batch row after the other.
    pub fn rows(&self, counts: &[u64]) -> Result<usize> {
        let mut state = lock(&self.state);
        if counts.len() != state.entries.len() {
            let message = format!("`{}` row counts for a batch of `{}`", counts.len(), state.entries.len());
            return Err(Error::new(Kind::InvalidOption, message));
        }
        let ends = counts.iter().scan(0u64, |end, &count| {
            *end = end.saturating_add(count);
            Some(*end)
        });
        let ends: Vec<_> = ends.collect();
        if ends.last().is_some_and(|&end| end > MAX_TOKENS) {
            let message = format!("`{}` rows of one forward are above the limit of {MAX_TOKENS}", counts.len());
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        state.layouts.push(ends);
        Ok(state.layouts.len() - 1)
    }

    /// Copies pieces out of a filled slot into the drafts and releases the slot, also on failure.
    pub fn take(&self, ring: &Ring, slot: usize, pieces: &[Piece]) -> Result<()> {
        let taken = ring.with_bytes(slot, |bytes| pieces.iter().try_for_each(|piece| self.take_piece(bytes, piece)));
        ring.release(slot);
        taken.map_err(|error| self.writer.keep(error))
    }

    fn take_piece(&self, bytes: &[u8], piece: &Piece) -> Result<()> {
        let row_bytes = {
            let state = lock(&self.state);
            state.points.get(piece.point).ok_or_else(|| no_such("hook point", piece.point))?.row.bytes()
        };
        let length = piece.rows.checked_mul(row_bytes).map_or(Ok(usize::MAX), size)?;
        let rows = piece.offset.checked_add(length).and_then(|end| bytes.get(piece.offset..end)).ok_or_else(|| {
            Error::new(
                Kind::InvalidTensor,
                format!("`{}` rows at byte `{}` reach beyond their slot", piece.rows, piece.offset),
            )
        })?;
        // Waits for the queue: the state must not be locked meanwhile.
        self.writer.reserve(rows.len() as u64)?;
        let dealt = lock(&self.state).deal(piece, row_bytes, rows);
        let used = dealt.as_ref().copied().unwrap_or(0);
        self.writer.release(rows.len() as u64 - used);
        dealt.map(drop)
    }

    /// Completes the entry of batch row `row` and queues it. Every point must have exactly `captured` rows; `select`
    /// keeps only these, in this order.
    pub fn finish(
        &self,
        row: usize,
        document: Document,
        token_ids: Vec<u32>,
        captured: u64,
        select: Option<&[u64]>,
    ) -> Result<()> {
        let (filling, mut activations) = (self.remove(row)?, Vec::new());
        let reserved = filling.reserved;
        let built = {
            let state = lock(&self.state);
            let one = |(bytes, point): (Vec<u8>, &Point)| activation(&document, point, bytes, captured, select);
            let mut points = filling.points;
            points.resize_with(state.points.len(), Vec::new);
            points.into_iter().zip(&state.points).try_for_each(|pair| one(pair).map(|a| activations.push(a)))
        };
        let draft = built.and_then(|()| Draft::new(document, Some(token_ids), activations));
        match draft {
            Ok(draft) => self.writer.submit(draft, reserved),
            Err(error) => {
                self.writer.release(reserved);
                Err(self.writer.reject(error))
            }
        }
    }

    /// Drops the entry of batch row `row` and counts it as refused.
    pub fn reject(&self, row: usize) -> Result<()> {
        self.writer.release(self.remove(row)?.reserved);
        self.writer.count_rejected();
        Ok(())
    }

    fn remove(&self, row: usize) -> Result<Filling> {
        lock(&self.state).entries.get_mut(row).and_then(Option::take).ok_or_else(|| no_such("batch row", row))
    }
}

impl State {
    /// Appends the rows to the entries they belong to; says how many bytes found one.
    fn deal(&mut self, piece: &Piece, row_bytes: u64, mut rows: &[u8]) -> Result<u64> {
        let ends = self.layouts.get(piece.layout).ok_or_else(|| no_such("row layout", piece.layout))?;
        let last = ends.last().copied().unwrap_or(0);
        let end = piece.first.saturating_add(piece.rows);
        if end > last {
            return Err(Error::new(Kind::RowsNotTokens, format!("rows up to `{end}` of a layout of `{last}`")));
        }
        let (mut at, mut used) = (piece.first, 0);
        let mut entry = ends.partition_point(|&end| end <= at);
        while at < end {
            let stop = ends.get(entry).copied().unwrap_or(end).min(end);
            let (mine, rest) = rows.split_at(size((stop - at) * row_bytes)?.min(rows.len()));
            if let Some(filling) = self.entries.get_mut(entry).and_then(Option::as_mut) {
                filling.append(piece.point, mine);
                used += mine.len() as u64;
            }
            (rows, at, entry) = (rest, stop, entry + 1);
        }
        Ok(used)
    }
}

impl Filling {
    fn append(&mut self, point: usize, rows: &[u8]) {
        if self.points.len() <= point {
            self.points.resize_with(point + 1, Vec::new);
        }
        if let Some(bytes) = self.points.get_mut(point) {
            bytes.extend_from_slice(rows);
        }
        self.reserved += rows.len() as u64;
    }
}

/// The law: rows stored are the tokens selected.
fn activation(
    document: &Document,
    point: &Point,
    bytes: Vec<u8>,
    captured: u64,
    select: Option<&[u64]>,
) -> Result<(HookPoint, Tensor)> {
    let row_bytes = size(point.row.bytes())?;
    let rows = if row_bytes == 0 { captured } else { bytes.len() as u64 / row_bytes as u64 };
    let kept = select.map_or(rows, |rows| rows.len() as u64);
    if rows != captured || document.stored_positions().is_some_and(|positions| positions != kept) {
        let positions = document.stored_positions().unwrap_or(kept);
        let message = format!(
            "`{}` has `{rows}` rows where `{captured}` tokens were fed to the model, and keeps `{kept}` for `{positions}` positions; the entry is refused",
            point.name
        );
        return Err(Error::new(Kind::RowsNotTokens, message));
    }
    let bytes = match select {
        None => bytes,
        Some(rows) => rows.iter().map(|&row| row_of(&bytes, row_bytes, row)).collect::<Result<Vec<_>>>()?.concat(),
    };
    let mut shape = vec![kept];
    shape.extend(point.row.shape());
    Ok((point.name.clone(), Tensor::new(Layout::new(point.row.dtype(), shape)?, bytes)?))
}

fn row_of(bytes: &[u8], row_bytes: usize, row: u64) -> Result<&[u8]> {
    let start = size(row)?.checked_mul(row_bytes);
    let range = start.and_then(|start| Some(start..start.checked_add(row_bytes)?));
    range
        .and_then(|range| bytes.get(range))
        .ok_or_else(|| Error::new(Kind::RowsNotTokens, format!("row `{row}` was selected but never captured")))
}

impl Drop for Batch {
    fn drop(&mut self) {
        let unfinished = lock(&self.state).entries.iter().flatten().map(|filling| filling.reserved).sum();
        self.writer.release(unfinished);
    }
}
