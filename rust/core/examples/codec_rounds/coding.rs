//! What a codec makes of the activations.

use std::ops::Range;

use actstore::codec::{Codec, Coded, Encoding, Kernel, Model, Rows};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::data::{Job, Piece, Stream};
use crate::{Outcome, at, kernels};

/// Bytes of the sample of a model, if its rows are as many as these: as a store has them.
const SAMPLE_BYTES: usize = 256 << 10;
const MIN_SAMPLE_ROWS: usize = 32;
const MAX_SAMPLE_ROWS: usize = 256;

/// A codec, and how it codes each stream.
pub(crate) struct Scheme {
    pub(crate) codec: Codec,
    pub(crate) plans: Vec<Plan>,
}

/// How a stream is coded.
pub(crate) struct Plan {
    pub(crate) frame_rows: usize,
    pub(crate) model: Option<Model>,
    /// Layers below that it needs.
    pub(crate) depth: u64,
}

impl Plan {
    /// Rows of each frame of these.
    pub(crate) fn frames(&self, rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, count) = (rows.end, self.frame_rows);
        rows.clone().step_by(count).map(move |start| start..end.min(start + count))
    }

    pub(crate) fn looks_below(&self) -> bool {
        self.depth > 0
    }
}

impl Scheme {
    /// Layers are given the layer below as a store has it: where the model that was fitted needs it, and the distance to
    /// a key layer allows it.
    fn new(job: &Job, codec: Codec) -> Outcome<Self> {
        let mut plans: Vec<Plan> = Vec::new();
        for (index, stream) in job.streams.iter().enumerate() {
            let depth = plans.last().map_or(0, |plan| plan.depth + 1);
            let model = fit(job, codec, index, stream.follows && codec == Codec::Archive && depth < job.keys)?;
            let depth = if model.as_ref().is_some_and(Model::is_given_below) { depth } else { 0 };
            plans.push(Plan { frame_rows: usize::try_from(codec.frame_rows(stream.row_bytes as u64))?, model, depth });
        }
        Ok(Self { codec, plans })
    }

    pub(crate) fn plan(&self, stream: usize) -> Outcome<&Plan> {
        at(&self.plans, stream)
    }

    /// The stream that needs the most layers below.
    pub(crate) fn top(&self) -> usize {
        self.plans.iter().enumerate().max_by_key(|(_, plan)| plan.depth).map_or(0, |(index, _)| index)
    }

    /// A frame, without the rows below it.
    pub(crate) fn coded<'a>(
        &'a self,
        stream: &Stream,
        index: usize,
        stored: &'a Stored,
        frame: &Frame,
    ) -> Outcome<Coded<'a>> {
        Ok(Coded {
            encoding: frame.encoding,
            stored: stored.bytes.get(frame.bytes.clone()).ok_or("a frame beyond its bytes")?,
            dtype: stream.dtype,
            row_values: stream.row_values,
            rows: frame.rows.len() as u64,
            model: self.plan(index)?.model.as_ref(),
            below: None,
        })
    }
}

/// The model of a stream: fitted to rows evenly spaced over all of it, none where they are too few.
fn fit(job: &Job, codec: Codec, stream: usize, looks_below: bool) -> Outcome<Option<Model>> {
    let this = job.stream(stream)?;
    let count = this.count();
    if count < MIN_SAMPLE_ROWS {
        return Ok(None);
    }
    let wanted = (SAMPLE_BYTES / this.row_bytes.max(1)).clamp(MIN_SAMPLE_ROWS, MAX_SAMPLE_ROWS).min(count);
    let (mut bytes, mut below) = (Vec::new(), Vec::new());
    for row in (0..wanted).map(|number| number * count / wanted) {
        let rows = job.rows(stream, &(row..row + 1), looks_below)?;
        bytes.extend_from_slice(rows.bytes);
        below.extend_from_slice(rows.below.unwrap_or_default());
    }
    let below = looks_below.then_some(below.as_slice());
    let sample = Rows { dtype: this.dtype, row_values: this.row_values, bytes: &bytes, below };
    Ok(codec.fit(sample).map(|fitted| fitted.model))
}

/// The frames of a piece.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Stored {
    pub(crate) bytes: Vec<u8>,
    pub(crate) frames: Vec<Frame>,
}

#[derive(Clone, PartialEq)]
pub(crate) struct Frame {
    pub(crate) rows: Range<usize>,
    pub(crate) bytes: Range<usize>,
    pub(crate) encoding: Encoding,
}

/// What one thread works on, and its buffers.
pub(crate) struct Part {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) stored: Vec<Stored>,
    pub(crate) checksums: Vec<Vec<u64>>,
    /// A frame, encoded; and the rows of one, with those below them.
    pub(crate) encoded: Vec<u8>,
    pub(crate) decoded: [Vec<u8>; 2],
}

/// Everything encoded with one codec.
pub(crate) struct Coding {
    pub(crate) scheme: Scheme,
    pub(crate) parts: Vec<Part>,
}

impl Coding {
    /// Encodes everything, and checks that every kernel writes the same bytes and reads the rows back.
    pub(crate) fn new(job: &Job, codec: Codec) -> Outcome<Self> {
        let scheme = Scheme::new(job, codec)?;
        let mut parts = Vec::new();
        for pieces in &job.parts {
            let pieces = pieces.clone();
            let encoded = pieces.iter().map(|piece| job.encode_piece(&scheme, Kernel::detect(), piece));
            let stored = encoded.collect::<Outcome<Vec<Stored>>>()?;
            let checksum = |stored: &Stored, frame: &Frame| stored.bytes.get(frame.bytes.clone()).map_or(0, xxh3_64);
            let checksums = |stored: &Stored| stored.frames.iter().map(|frame| checksum(stored, frame)).collect();
            let checksums = stored.iter().map(checksums).collect();
            let part = Part { pieces, stored, checksums, encoded: Vec::new(), decoded: Default::default() };
            for kernel in kernels() {
                let wrong = |stream: usize| -> Outcome<()> {
                    let (codec, kernel, name) = (codec.name(), kernel.name(), &job.stream(stream)?.name);
                    Err(format!("{codec} on {kernel} does not keep {name}").into())
                };
                for (piece, stored) in part.pieces.iter().zip(&part.stored) {
                    if job.encode_piece(&scheme, kernel, piece)? != *stored {
                        wrong(piece.stream)?;
                    }
                }
                job.decode_pieces(&scheme, kernel, &part, |piece, decoded| {
                    let is_kept = decoded == job.stream(piece.stream)?.rows(&piece.rows)?;
                    if is_kept { Ok(()) } else { wrong(piece.stream) }
                })?;
            }
            parts.push(part);
        }
        Ok(Self { scheme, parts })
    }

    pub(crate) fn sizes(&self, job: &Job) -> Outcome<Value> {
        let mut all = Vec::new();
        for (index, stream) in job.streams.iter().enumerate() {
            let pieces = self.parts.iter().flat_map(|part| part.pieces.iter().zip(&part.stored));
            let stored: Vec<_> = pieces.filter(|(piece, _)| piece.stream == index).map(|(_, stored)| stored).collect();
            let frames = || stored.iter().flat_map(|stored| &stored.frames);
            let of = |encoding: Encoding| frames().filter(|frame| frame.encoding == encoding).count();
            let encodings = Encoding::ALL.iter().map(|&one| (one.name().to_owned(), json!(of(one))));
            let plan = self.scheme.plan(index)?;
            all.push(json!({
                "name": stream.name,
                "raw": stream.bytes.len(),
                "stored": stored.iter().map(|stored| stored.bytes.len()).sum::<usize>(),
                "frames": frames().count(),
                "model": plan.model.as_ref().map_or(0, |model| model.stored().len()),
                "depth": plan.depth,
                "encodings": encodings.filter(|(_, count)| *count != 0).collect::<serde_json::Map<_, _>>(),
            }));
        }
        Ok(Value::Array(all))
    }
}
