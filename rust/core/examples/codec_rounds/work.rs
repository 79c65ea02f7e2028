//! The work that is timed.

use std::hint::black_box;
use std::time::Instant;

use actstore::codec::{Coded, Kernel};
use rayon::prelude::*;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::calls;
use crate::coding::{Frame, Part, Read, Scheme, Stored};
use crate::data::{Job, Piece};
use crate::{Outcome, at};

/// Rows compared before any are timed.
const COMPARED: usize = 100;

/// From what rows are read, and whether the checksums of their frames are verified each time.
pub(crate) struct Reader<'a> {
    pub(crate) scheme: &'a Scheme,
    pub(crate) kernel: Kernel,
    pub(crate) part: &'a Part,
    pub(crate) check: bool,
}

/// A frame, and which of its rows is wanted.
struct Step<'a> {
    coded: Coded<'a>,
    row: u64,
    bytes: usize,
    /// Whether the row of the step before is the layer below.
    below: bool,
    checksum: u64,
}

impl Job {
    /// Seconds that `work` takes for all parts, each on a thread of its own.
    pub(crate) fn timed(&self, parts: &mut [Part], work: impl Fn(&mut Part) -> Outcome<()> + Sync) -> Outcome<Value> {
        let start = Instant::now();
        match parts {
            [part] => work(part)?,
            parts => self.pool.install(|| parts.par_iter_mut().try_for_each(&work))?,
        }
        Ok(json!(start.elapsed().as_secs_f64()))
    }

    pub(crate) fn encode(&self, scheme: &Scheme, kernel: Kernel, part: &mut Part, fresh: bool) -> Outcome<()> {
        for (piece, stored) in part.pieces.iter().zip(&mut part.encoded) {
            if fresh {
                let bytes = Vec::with_capacity(self.stream(piece.stream)?.rows(&piece.rows)?.len());
                let mut stored = Stored { bytes, frames: Vec::new() };
                self.encode_piece(scheme, kernel, piece, &mut stored)?;
                black_box(&stored);
            } else {
                self.encode_piece(scheme, kernel, piece, stored)?;
            }
        }
        Ok(())
    }

    fn encode_piece(&self, scheme: &Scheme, kernel: Kernel, piece: &Piece, stored: &mut Stored) -> Outcome<()> {
        let (frame_rows, model) = at(&scheme.streams, piece.stream)?;
        stored.bytes.clear();
        stored.frames.clear();
        for start in piece.rows.clone().step_by(*frame_rows) {
            let rows = start..piece.rows.end.min(start + frame_rows);
            let from = stored.bytes.len();
            let input = self.rows(scheme.codec, piece.stream, &rows)?;
            let encoding = calls::encode(scheme.codec, kernel, &input, model.as_ref(), &mut stored.bytes);
            stored.frames.push(Frame { rows, bytes: from..stored.bytes.len(), encoding });
        }
        Ok(())
    }

    pub(crate) fn decode(&self, scheme: &Scheme, kernel: Kernel, part: &mut Part, fresh: bool) -> Outcome<()> {
        let Part { pieces, stored, decoded, .. } = part;
        let mut local = if fresh { vec![Vec::new(); pieces.len()] } else { Vec::new() };
        let outputs = if fresh { &mut local } else { decoded };
        for (index, (piece, stored)) in pieces.iter().zip(stored).enumerate() {
            let (done, rest) = outputs.split_at_mut(index);
            let out = rest.first_mut().ok_or("no output")?;
            let bytes = self.stream(piece.stream)?.rows(&piece.rows)?.len();
            if out.len() != bytes {
                *out = vec![0; bytes];
            }
            self.decode_piece(scheme, kernel, (piece, stored), done.last(), out)?;
            black_box(&out);
            if let (true, Some(before)) = (fresh, done.last_mut()) {
                *before = Vec::new();
            }
        }
        Ok(())
    }

    fn decode_piece(
        &self,
        scheme: &Scheme,
        kernel: Kernel,
        (piece, stored): (&Piece, &Stored),
        before: Option<&Vec<u8>>,
        out: &mut [u8],
    ) -> Outcome<()> {
        let stream = self.stream(piece.stream)?;
        let below = before.filter(|_| scheme.looks_below(stream));
        for frame in &stored.frames {
            let range = (frame.rows.start - piece.rows.start) * stream.row_bytes
                ..(frame.rows.end - piece.rows.start) * stream.row_bytes;
            let below = below.and_then(|below| below.get(range.clone()));
            let out = out.get_mut(range).ok_or("a frame beyond its piece")?;
            let coded = scheme.coded(stream, piece.stream, stored, frame)?;
            calls::decode(kernel, &coded, 0..frame.rows.len() as u64, below, out)?;
        }
        Ok(())
    }

    pub(crate) fn copy(&self, part: &mut Part, fresh: bool) -> Outcome<()> {
        for (piece, out) in part.pieces.iter().zip(&mut part.decoded) {
            let rows = self.stream(piece.stream)?.rows(&piece.rows)?;
            if fresh {
                black_box(&rows.to_vec());
            } else {
                out.clear();
                out.extend_from_slice(rows);
                black_box(&out);
            }
        }
        Ok(())
    }

    /// Seconds for these rows, one after the other, from frames in memory that are found before. The first rows are
    /// compared with what was encoded.
    pub(crate) fn read(&self, reader: &Reader<'_>, reads: &[Read]) -> Outcome<Value> {
        let widest = self.streams.iter().map(|stream| stream.row_bytes).max().unwrap_or(0);
        let mut rows = (vec![0; widest], vec![0; widest]);
        let steps = reads.iter().map(|read| self.steps(reader, read)).collect::<Outcome<Vec<_>>>()?;
        for (read, steps) in reads.iter().zip(&steps).take(COMPARED) {
            let piece = at(&reader.part.pieces, read.piece)?;
            let row = piece.rows.start + read.row;
            let expected = self.stream(piece.stream)?.rows(&(row..row + 1))?;
            read_row(reader, steps, &mut rows)?;
            if rows.0.get(..expected.len()) != Some(expected) {
                return Err("a row that is not the one stored".into());
            }
        }
        let start = Instant::now();
        for steps in &steps {
            read_row(reader, steps, &mut rows)?;
            black_box(&rows);
        }
        Ok(json!(start.elapsed().as_secs_f64()))
    }

    /// The frames to be decoded for a row: those of the layers below that it needs, bottom to top, and its own.
    fn steps<'a>(&self, reader: &Reader<'a>, read: &Read) -> Outcome<Vec<Step<'a>>> {
        let Reader { scheme, part, .. } = *reader;
        let mut first = read.piece;
        while scheme.looks_below(self.stream(at(&part.pieces, first)?.stream)?) {
            first = first.wrapping_sub(1);
        }
        let step = |index: usize| {
            let (piece, stored) = (at(&part.pieces, index)?, at(&part.stored, index)?);
            let stream = self.stream(piece.stream)?;
            let (frame_rows, _) = at(&scheme.streams, piece.stream)?;
            let number = read.row / frame_rows;
            Ok(Step {
                coded: scheme.coded(stream, piece.stream, stored, at(&stored.frames, number)?)?,
                row: (read.row % frame_rows) as u64,
                bytes: stream.row_bytes,
                below: index > first,
                checksum: *at(at(&part.checksums, index)?, number)?,
            })
        };
        (first..=read.piece).map(step).collect()
    }
}

/// Decodes a row into the first of `rows`; the other is for the layer below.
fn read_row(reader: &Reader<'_>, steps: &[Step<'_>], rows: &mut (Vec<u8>, Vec<u8>)) -> Outcome<()> {
    for step in steps {
        let (row, below) = rows;
        std::mem::swap(row, below);
        if reader.check && xxh3_64(step.coded.stored) != step.checksum {
            return Err("a checksum that does not match".into());
        }
        let out = row.get_mut(..step.bytes).ok_or("a row beyond the widest")?;
        let below = if step.below { below.get(..step.bytes) } else { None };
        calls::decode(reader.kernel, &step.coded, step.row..step.row + 1, below, out)?;
    }
    Ok(())
}
