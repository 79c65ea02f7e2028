//! What a codec makes of the activations.

use std::ops::Range;

use actstore::codec::{Codec, Coded, Encoding, Kernel, Model};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::calls;
use crate::data::{Job, Piece, Stream};
use crate::{Outcome, at};

/// Most bytes of the sample of a model, as the writer takes them.
const SAMPLE_BYTES: usize = 1 << 20;
/// Fewest rows of it.
const SAMPLE_ROWS: usize = 32;

/// A codec, and for each stream the rows of a frame and what was learned.
pub(crate) struct Scheme {
    pub(crate) codec: Codec,
    pub(crate) streams: Vec<(usize, Option<Model>)>,
}

impl Scheme {
    fn new(job: &Job, codec: Codec, single: bool) -> Outcome<Self> {
        let fit = |(index, stream): (usize, &Stream)| {
            let frame_rows = if single { 1 } else { usize::try_from(codec.frame_rows(stream.row_bytes as u64))? };
            let first = stream.cuts.iter().find(|cut| cut.len() >= SAMPLE_ROWS).or(stream.cuts.first());
            let first = first.ok_or("a stream without rows")?;
            let sample = first.start..first.end.min(first.start + (SAMPLE_BYTES / stream.row_bytes.max(1)).max(1));
            Ok((frame_rows, calls::fit(codec, &job.rows(codec, index, &sample)?)))
        };
        Ok(Self { codec, streams: job.streams.iter().enumerate().map(fit).collect::<Outcome<_>>()? })
    }

    pub(crate) fn looks_below(&self, stream: &Stream) -> bool {
        stream.chained && calls::looks_below(self.codec)
    }

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
            model: at(&self.streams, index)?.1.as_ref(),
            below: None,
        })
    }
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
    pub(crate) encoded: Vec<Stored>,
    pub(crate) decoded: Vec<Vec<u8>>,
}

/// A row of a piece, counted from its first.
pub(crate) struct Read {
    pub(crate) piece: usize,
    pub(crate) row: usize,
}

impl Part {
    /// That many rows, any as likely as another.
    pub(crate) fn reads(&self, count: usize, seed: u64) -> Outcome<Vec<Read>> {
        let each = |(piece, rows): (usize, &Piece)| (0..rows.rows.len()).map(move |row| Read { piece, row });
        let mut all: Vec<Read> = self.pieces.iter().enumerate().flat_map(each).collect();
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for last in (1..all.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            all.swap(last, usize::try_from(state % (last as u64 + 1))?);
        }
        all.truncate(count);
        Ok(all)
    }
}

/// Everything encoded with one codec.
pub(crate) struct Coding {
    pub(crate) scheme: Scheme,
    pub(crate) single: bool,
    pub(crate) parts: Vec<Part>,
}

impl Coding {
    /// Encodes everything, and checks that every kernel writes the same bytes and reads the rows back.
    pub(crate) fn new(job: &Job, codec: Codec, single: bool) -> Outcome<Self> {
        let scheme = Scheme::new(job, codec, single)?;
        let mut parts = Vec::new();
        for pieces in &job.parts {
            let count = pieces.len();
            let mut part = Part {
                pieces: pieces.clone(),
                stored: Vec::new(),
                checksums: Vec::new(),
                encoded: vec![Stored::default(); count],
                decoded: vec![Vec::new(); count],
            };
            job.encode(&scheme, Kernel::detect(), &mut part, false)?;
            part.stored = part.encoded.clone();
            let checksum = |stored: &Stored, frame: &Frame| stored.bytes.get(frame.bytes.clone()).map_or(0, xxh3_64);
            let checksums = |stored: &Stored| stored.frames.iter().map(|frame| checksum(stored, frame)).collect();
            part.checksums = part.stored.iter().map(checksums).collect();
            for kernel in calls::kernels() {
                job.encode(&scheme, kernel, &mut part, false)?;
                job.decode(&scheme, kernel, &mut part, false)?;
                for (piece, decoded) in pieces.iter().zip(&part.decoded) {
                    let stream = job.stream(piece.stream)?;
                    if part.encoded != part.stored || decoded != stream.rows(&piece.rows)? {
                        return Err(
                            format!("{} on {} does not keep {}", codec.name(), kernel.name(), stream.name).into()
                        );
                    }
                }
            }
            parts.push(part);
        }
        Ok(Self { scheme, single, parts })
    }

    pub(crate) fn sizes(&self, job: &Job) -> Outcome<Value> {
        let mut all = Vec::new();
        for (index, stream) in job.streams.iter().enumerate() {
            let pieces = self.parts.iter().flat_map(|part| part.pieces.iter().zip(&part.stored));
            let stored: Vec<_> = pieces.filter(|(piece, _)| piece.stream == index).map(|(_, stored)| stored).collect();
            let frames = || stored.iter().flat_map(|stored| &stored.frames);
            let encodings = Encoding::ALL
                .iter()
                .map(|one| (one.name().to_owned(), json!(frames().filter(|frame| frame.encoding == *one).count())));
            all.push(json!({
                "name": stream.name,
                "raw": stream.bytes.len(),
                "stored": stored.iter().map(|stored| stored.bytes.len()).sum::<usize>(),
                "frames": frames().count(),
                "model": at(&self.scheme.streams, index)?.1.as_ref().map_or(0, |model| model.bytes().len()),
                "encodings": encodings.collect::<serde_json::Map<_, _>>(),
            }));
        }
        Ok(Value::Array(all))
    }
}
