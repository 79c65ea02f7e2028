//! The work that is timed.

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use actstore::codec::{self, Coded, Encoding, Kernel};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::coding::{Frame, Part, Scheme, Stored};
use crate::data::{Job, Piece};
use crate::{Outcome, at};

impl Job {
    /// Seconds that `work` takes for all parts, each so many times on a thread of its own; the time of one pass.
    pub(crate) fn timed(
        &self,
        parts: &mut [Part],
        passes: u32,
        work: impl Fn(&mut Part) -> Outcome<()> + Sync,
    ) -> Outcome<Value> {
        let work = |part: &mut Part| (0..passes).try_for_each(|_| work(part));
        let start = Instant::now();
        match parts {
            [part] => work(part)?,
            parts => self.pool.install(|| parts.par_iter_mut().try_for_each(work))?,
        }
        Ok(json!(start.elapsed().as_secs_f64() / f64::from(passes)))
    }

    /// Encodes every piece: into one buffer that is there already, frame after frame, or each piece into a fresh one.
    pub(crate) fn encode(&self, scheme: &Scheme, kernel: Kernel, part: &mut Part, fresh: bool) -> Outcome<()> {
        let Part { pieces, encoded, .. } = part;
        for piece in pieces.iter() {
            if fresh {
                black_box(&self.encode_piece(scheme, kernel, piece)?);
            } else {
                for rows in scheme.plan(piece.stream)?.frames(&piece.rows) {
                    encoded.clear();
                    self.encode_frame(scheme, kernel, (piece.stream, &rows), encoded)?;
                    black_box(&encoded);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn encode_piece(&self, scheme: &Scheme, kernel: Kernel, piece: &Piece) -> Outcome<Stored> {
        let bytes = Vec::with_capacity(self.stream(piece.stream)?.rows(&piece.rows)?.len());
        let mut stored = Stored { bytes, frames: Vec::new() };
        for rows in scheme.plan(piece.stream)?.frames(&piece.rows) {
            let from = stored.bytes.len();
            let encoding = self.encode_frame(scheme, kernel, (piece.stream, &rows), &mut stored.bytes)?;
            stored.frames.push(Frame { rows, bytes: from..stored.bytes.len(), encoding });
        }
        Ok(stored)
    }

    fn encode_frame(
        &self,
        scheme: &Scheme,
        kernel: Kernel,
        (stream, rows): (usize, &Range<usize>),
        out: &mut Vec<u8>,
    ) -> Outcome<Encoding> {
        let plan = scheme.plan(stream)?;
        let input = self.rows(stream, rows, plan.looks_below())?;
        Ok(scheme.codec.encode_with(kernel, input, plan.model.as_ref(), out))
    }

    /// Decodes every piece: frame after frame into one buffer that is there already, or into that and another in turns
    /// where layers are given the one below; or each piece into a fresh one.
    pub(crate) fn decode(&self, scheme: &Scheme, kernel: Kernel, part: &mut Part, fresh: bool) -> Outcome<()> {
        let Part { pieces, stored, decoded: [rows, below], .. } = part;
        if fresh {
            return self.decode_pieces(scheme, kernel, part, |_, _| Ok(()));
        }
        let plans = pieces.iter().map(|piece| scheme.plan(piece.stream)).collect::<Outcome<Vec<_>>>()?;
        let mut first = 0;
        while first < pieces.len() {
            let rest = plans.get(first + 1..).unwrap_or_default();
            let chain = first..first + 1 + rest.iter().take_while(|plan| plan.looks_below()).count();
            for number in 0..at(stored, first)?.frames.len() {
                for index in chain.clone() {
                    std::mem::swap(rows, below);
                    let (piece, stored) = (at(pieces, index)?, at(stored, index)?);
                    let frame = at(&stored.frames, number)?;
                    let bytes = frame.rows.len() * self.stream(piece.stream)?.row_bytes;
                    let given = if index > chain.start { below.get(..bytes) } else { None };
                    let out = room(rows, bytes);
                    self.decode_frame(scheme, kernel, (piece.stream, stored, frame), given, out)?;
                    black_box(&out);
                }
            }
            first = chain.end;
        }
        Ok(())
    }

    /// Decodes each piece into a fresh buffer, which is freed when those that may need it are decoded.
    pub(crate) fn decode_pieces(
        &self,
        scheme: &Scheme,
        kernel: Kernel,
        part: &Part,
        mut done: impl FnMut(&Piece, &[u8]) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut before = Vec::new();
        for (piece, stored) in part.pieces.iter().zip(&part.stored) {
            let stream = self.stream(piece.stream)?;
            let looks_below = scheme.plan(piece.stream)?.looks_below();
            let mut whole = vec![0; stream.rows(&piece.rows)?.len()];
            for frame in &stored.frames {
                let first = (frame.rows.start - piece.rows.start) * stream.row_bytes;
                let range = first..first + frame.rows.len() * stream.row_bytes;
                let below = if looks_below { before.get(range.clone()) } else { None };
                let out = whole.get_mut(range).ok_or("a frame beyond its piece")?;
                self.decode_frame(scheme, kernel, (piece.stream, stored, frame), below, out)?;
            }
            black_box(&whole);
            done(piece, &whole)?;
            before = whole;
        }
        Ok(())
    }

    fn decode_frame(
        &self,
        scheme: &Scheme,
        kernel: Kernel,
        (stream, stored, frame): (usize, &Stored, &Frame),
        below: Option<&[u8]>,
        out: &mut [u8],
    ) -> Outcome<()> {
        let coded = scheme.coded(self.stream(stream)?, stream, stored, frame)?;
        let rows = 0..frame.rows.len() as u64;
        Ok(codec::decode_with(kernel, &Coded { below, ..coded }, std::slice::from_ref(&rows), out)?)
    }

    pub(crate) fn copy(&self, scheme: &Scheme, part: &mut Part, fresh: bool) -> Outcome<()> {
        let Part { pieces, encoded, .. } = part;
        for piece in pieces.iter() {
            let stream = self.stream(piece.stream)?;
            if fresh {
                black_box(&stream.rows(&piece.rows)?.to_vec());
                continue;
            }
            for rows in scheme.plan(piece.stream)?.frames(&piece.rows) {
                encoded.clear();
                encoded.extend_from_slice(stream.rows(&rows)?);
                black_box(&encoded);
            }
        }
        Ok(())
    }
}

/// The first bytes of a buffer, which grows as needed.
fn room(buffer: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
    buffer.get_mut(..bytes).unwrap_or_default()
}
