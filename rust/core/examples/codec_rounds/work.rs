//! The work that is timed.

use std::hint::black_box;
use std::time::Instant;

use actstore::codec::{self, Coded, Kernel};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::Outcome;
use crate::coding::{Frame, Part, Scheme, Stored};
use crate::data::{Job, Piece};

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
        let plan = scheme.plan(piece.stream)?;
        stored.bytes.clear();
        stored.frames.clear();
        for start in piece.rows.clone().step_by(plan.frame_rows) {
            let rows = start..piece.rows.end.min(start + plan.frame_rows);
            let from = stored.bytes.len();
            let input = self.rows(piece.stream, &rows, plan.looks_below())?;
            let encoding = scheme.codec.encode_with(kernel, input, plan.model.as_ref(), &mut stored.bytes);
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
        let looks_below = scheme.plan(piece.stream)?.looks_below();
        let below = before.filter(|_| looks_below);
        for frame in &stored.frames {
            let range = (frame.rows.start - piece.rows.start) * stream.row_bytes
                ..(frame.rows.end - piece.rows.start) * stream.row_bytes;
            let below = below.and_then(|below| below.get(range.clone()));
            let out = out.get_mut(range).ok_or("a frame beyond its piece")?;
            let coded = scheme.coded(stream, piece.stream, stored, frame)?;
            let rows = 0..frame.rows.len() as u64;
            codec::decode_with(kernel, &Coded { below, ..coded }, std::slice::from_ref(&rows), out)?;
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
}
