//! One activation of each of many entries, ready to be read, and rows of all of them read at once: each frame that holds
//! some of them is read once.

use std::fmt::{self, Display};
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Request, TASK_BYTES, activation_of, check_frame, frame_starts, read_here};
use crate::codec::{Coded, Model, decode};
use crate::error::{Error, Kind, Result};
use crate::format::{Activation, Frame, malformed, rows_of_frame, size};
use crate::store::{Chunk, Store, Stored};
use crate::tensor::Dtype;

/// Fewer frames than this are read on the calling thread.
const PARALLEL_FRAMES: usize = 16;

/// What a chunk by itself takes, about.
const CHUNK_BYTES: usize = 64;

/// What every token vector of a hook point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// Type of a value.
    pub dtype: Dtype,
    /// Values of a vector.
    pub width: u64,
}

impl Vectors {
    /// Those of an activation of shape [positions, d]; others have none.
    pub(super) fn of(entry: &dyn Stored, activation: &Activation) -> Result<Self> {
        if let [_, width] = *activation.layout.shape() {
            return Ok(Self { dtype: activation.layout.dtype(), width });
        }
        let (point, shape, key) = (&activation.point, activation.layout.shape(), entry.header().document.key());
        let message = format!(
            "`{point}` of entry `{key}` has the shape `{shape:?}`, not [positions, d], so it has no token vectors; read it by entry"
        );
        Err(Error::new(Kind::InvalidTensor, message))
    }

    /// Refuses vectors of entry `key` that do not fit in one array with those of entry `first`.
    pub(super) fn check_same(self, first: &str, other: Self, key: &str, point: &str) -> Result<()> {
        if self == other {
            return Ok(());
        }
        let message = format!(
            "`{point}` has vectors of {self} in entry `{first}` and of {other} in entry `{key}`, which one array cannot hold; read these entries apart"
        );
        Err(Error::new(Kind::InvalidTensor, message))
    }

    /// Bytes of a vector.
    pub fn bytes(self) -> Result<usize> {
        size(self.width * self.dtype.size() as u64)
    }
}

impl Display for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {} values", self.width, self.dtype.name())
    }
}

/// An activation that can be read without its entry's header, unless it is encoded given the layer below.
pub(super) enum Source {
    Alone(Frames),
    Given { entry: Arc<dyn Stored>, activation: usize, frame_rows: u64 },
}

/// The frames of an activation that none is below, and where they lie.
pub(super) struct Frames {
    chunk: Arc<dyn Chunk>,
    holds_entry: bool,
    frames: Box<[Placed]>,
    rows: u64,
    frame_rows: u64,
    model: Option<Arc<Model>>,
}

/// A frame and where it begins in its chunk.
struct Placed {
    start: u64,
    frame: Frame,
}

/// A chunk of a backend that has none without its entry.
struct Whole {
    entry: Arc<dyn Stored>,
    activation: usize,
}

impl Chunk for Whole {
    fn with_bytes(&self, start: u64, length: usize, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.entry.with_bytes(self.activation, start, length, f)
    }
}

impl Source {
    pub(super) fn of(entry: &Arc<dyn Stored>, index: usize) -> Result<Self> {
        let activation = activation_of(entry.as_ref(), index)?;
        let frame_rows = activation.frame_rows;
        if activation.below.is_some() {
            return Ok(Self::Given { entry: entry.clone(), activation: index, frame_rows });
        }
        let alone = entry.chunk(index);
        let holds_entry = alone.is_none();
        let whole = || Arc::new(Whole { entry: entry.clone(), activation: index }) as Arc<dyn Chunk>;
        let placed = frame_starts(activation).into_iter().zip(&activation.frames);
        Ok(Self::Alone(Frames {
            chunk: alone.unwrap_or_else(whole),
            holds_entry,
            frames: placed.map(|(start, &frame)| Placed { start, frame }).collect(),
            rows: activation.layout.rows(),
            frame_rows,
            model: activation.model.map(|id| entry.model(&id)).transpose()?,
        }))
    }

    /// Bytes that it holds in memory, about; `None` where that is an entry, which may be of any size.
    pub(super) fn held_bytes(&self) -> Option<usize> {
        match self {
            Self::Alone(frames) if !frames.holds_entry => {
                Some(size_of::<Self>() + CHUNK_BYTES + size_of_val(frames.frames.as_ref()))
            }
            Self::Alone(_) | Self::Given { .. } => None,
        }
    }

    fn frame_rows(&self) -> u64 {
        match self {
            Self::Alone(frames) => frames.frame_rows,
            Self::Given { frame_rows, .. } => *frame_rows,
        }
    }

    fn read(&self, name: impl Display, vectors: Vectors, cuts: &mut [Cut<'_>]) -> Result<()> {
        match self {
            Self::Alone(frames) => frames.read(vectors, cuts).map_err(|e| e.within(name)),
            Self::Given { entry, activation, frame_rows } => {
                let absolute = |cut: &Cut<'_>| {
                    let first = cut.frame * frame_rows;
                    first + cut.rows.start..first + cut.rows.end
                };
                let rows: Vec<u64> = cuts.iter().flat_map(absolute).collect();
                let mut scratch = vec![0; rows.len() * vectors.bytes()?];
                let (entry, activation) = (entry.clone(), *activation);
                read_here(vec![Request { entry, activation, rows: Some(rows), out: &mut scratch }])?;
                deal(&scratch, cuts)
            }
        }
    }
}

impl Frames {
    /// Reads consecutive frames at once.
    fn read(&self, vectors: Vectors, cuts: &mut [Cut<'_>]) -> Result<()> {
        let frames = cuts.first().zip(cuts.last()).map(|(first, last)| (first.frame, last.frame));
        let Some((first, last)) = frames else { return Ok(()) };
        let (start, end) = (self.placed(first)?.start, self.end(last)?);
        let length = size(end - start)?;
        self.chunk.with_bytes(start, length, &mut |stored| {
            cuts.chunk_by_mut(|left, right| left.frame == right.frame).try_for_each(|cuts| {
                let Some(number) = cuts.first().map(|cut| cut.frame) else { return Ok(()) };
                let from = size(self.placed(number)?.start - start)?..size(self.end(number)? - start)?;
                let stored = stored.get(from).ok_or_else(|| malformed("frames reach beyond their chunk"))?;
                self.read_frame(vectors, number, stored, cuts).map_err(|e| e.within(format!("frame `{number}`")))
            })
        })
    }

    fn read_frame(&self, vectors: Vectors, number: u64, stored: &[u8], cuts: &mut [Cut<'_>]) -> Result<()> {
        let frame = &self.placed(number)?.frame;
        check_frame(frame, stored)?;
        let rows = rows_of_frame(self.rows, self.frame_rows, number);
        let (encoding, model, dtype, row_values) =
            (frame.encoding, self.model.as_deref(), vectors.dtype, vectors.width);
        let coded = Coded { encoding, stored, dtype, row_values, rows, model, below: None };
        if let [cut] = cuts {
            return decode(&coded, std::slice::from_ref(&cut.rows), cut.out);
        }
        let ranges: Vec<_> = cuts.iter().map(|cut| cut.rows.clone()).collect();
        let mut scratch = vec![0; cuts.iter().map(|cut| cut.out.len()).sum()];
        decode(&coded, &ranges, &mut scratch)?;
        deal(&scratch, cuts)
    }

    fn placed(&self, number: u64) -> Result<&Placed> {
        self.frames.get(size(number)?).ok_or_else(|| malformed(format!("no frame `{number}`")))
    }

    fn end(&self, number: u64) -> Result<u64> {
        self.placed(number).map(|placed| placed.start + u64::from(placed.frame.length))
    }
}

/// Rows of a frame, one after the other, and where they go.
struct Cut<'a> {
    /// Of those that are read together.
    task: usize,
    source: usize,
    frame: u64,
    rows: Range<u64>,
    out: &'a mut [u8],
}

fn deal(mut rows: &[u8], cuts: &mut [Cut<'_>]) -> Result<()> {
    for cut in cuts {
        let (mine, rest) = rows.split_at_checked(cut.out.len()).ok_or_else(|| malformed("rows beyond their frame"))?;
        cut.out.copy_from_slice(mine);
        rows = rest;
    }
    Ok(())
}

/// Consecutive rows of a source, and where they go.
pub(super) struct Rows<'a> {
    pub(super) source: usize,
    pub(super) first: u64,
    pub(super) out: &'a mut [u8],
}

/// Fills all of `rows`. `sources` gives the key of a source, and the source.
pub(super) fn read_rows<'s>(
    store: &Store,
    point: &str,
    vectors: Vectors,
    mut rows: Vec<Rows<'_>>,
    sources: impl Fn(usize) -> Option<(&'s str, &'s Source)> + Sync,
) -> Result<()> {
    rows.sort_unstable_by_key(|rows| (rows.source, rows.first));
    let mut plan = Plan { cuts: Vec::with_capacity(rows.len()), row_bytes: vectors.bytes()?, task: 0, task_bytes: 0 };
    for rows in rows {
        let (_, source) = sources(rows.source).ok_or_else(no_source)?;
        plan.add(rows, source.frame_rows())?;
    }
    let mut cuts = plan.cuts;
    let run = |cuts: &mut [Cut<'_>]| {
        let Some(number) = cuts.first().map(|cut| cut.source) else { return Ok(()) };
        let (key, source) = sources(number).ok_or_else(no_source)?;
        source.read(format_args!("`{point}` of entry `{key}`"), vectors, cuts)
    };
    if cuts.len() < PARALLEL_FRAMES {
        return cuts.chunk_by_mut(|left, right| left.task == right.task).try_for_each(run);
    }
    store.pool().install(|| cuts.par_chunk_by_mut(|left, right| left.task == right.task).try_for_each(run))?
}

fn no_source() -> Error {
    malformed("rows of an entry that was not looked up")
}

/// Rows cut where frames end, in tasks.
struct Plan<'a> {
    cuts: Vec<Cut<'a>>,
    row_bytes: usize,
    task: usize,
    task_bytes: usize,
}

impl<'a> Plan<'a> {
    fn add(&mut self, rows: Rows<'a>, frame_rows: u64) -> Result<()> {
        let Rows { source, mut first, mut out } = rows;
        while !out.is_empty() {
            let (frame, start) = (first / frame_rows, first % frame_rows);
            let count = (frame_rows - start).min((out.len() / self.row_bytes) as u64);
            let (mine, rest) = out.split_at_mut(size(count)? * self.row_bytes);
            if !self.is_of_task(source, frame) {
                (self.task, self.task_bytes) = (self.task + 1, 0);
            }
            self.task_bytes += mine.len();
            self.cuts.push(Cut { task: self.task, source, frame, rows: start..start + count, out: mine });
            (first, out) = (first + count, rest);
        }
        Ok(())
    }

    /// A frame is read by one task, and a task reads consecutive frames of a source while it is small.
    fn is_of_task(&self, source: usize, frame: u64) -> bool {
        self.cuts.last().is_some_and(|last| {
            let follows = last.frame + 1 == frame && self.task_bytes < TASK_BYTES;
            last.source == source && (last.frame == frame || follows)
        })
    }
}
