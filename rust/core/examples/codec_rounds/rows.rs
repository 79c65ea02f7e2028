//! Single rows, read out of frames in memory.

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use actstore::codec::{self, Coded, Kernel};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::coding::{Part, Scheme};
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

/// A row of a piece, counted from its first.
struct Place {
    piece: usize,
    row: usize,
}

/// A row to be read: its frame, before it those of the layers below that it needs, and the rows that are decoded of each.
struct Read<'a> {
    frames: Vec<(Coded<'a>, u64)>,
    rows: Range<u64>,
    /// Bytes of all of them, and of the one wanted.
    bytes: usize,
    wanted: Range<usize>,
}

/// Rows of one frame, and those of the layer below.
struct Buffers {
    rows: Vec<u8>,
    below: Vec<u8>,
}

impl Reader<'_> {
    /// Rows in random order, about `count`: of all streams at once, of one after the other, or of that alone which needs
    /// the most layers below.
    fn places(&self, order: &str, count: usize, seed: u64) -> Outcome<Vec<Place>> {
        let each = |(piece, rows): (usize, &Piece)| (0..rows.rows.len()).map(move |row| Place { piece, row });
        let of = |is_wanted: &dyn Fn(usize) -> bool| -> Vec<Place> {
            self.part.pieces.iter().enumerate().filter(|(_, piece)| is_wanted(piece.stream)).flat_map(each).collect()
        };
        let mut groups: Vec<_> = match order {
            "all" => vec![of(&|_| true)],
            "layers" => (0..self.scheme.plans.len()).map(|stream| of(&|one| one == stream)).collect(),
            "top" => vec![of(&|one| one == self.scheme.top())],
            _ => return Err("no such order".into()),
        };
        let share = count.div_ceil(groups.len().max(1));
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for group in &mut groups {
            for last in (1..group.len()).rev() {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                group.swap(last, usize::try_from(state % (last as u64 + 1))?);
            }
            group.truncate(share);
        }
        Ok(groups.into_iter().flatten().collect())
    }

    fn read(&self, read: &Read<'_>, buffers: &mut Buffers) -> Outcome<()> {
        let Buffers { rows, below } = buffers;
        for (place, (frame, checksum)) in read.frames.iter().enumerate() {
            std::mem::swap(rows, below);
            if self.check && xxh3_64(frame.stored) != *checksum {
                return Err("a checksum that does not match".into());
            }
            let out = rows.get_mut(..read.bytes).ok_or("rows beyond the most")?;
            let below = if place > 0 { below.get(..read.bytes) } else { None };
            codec::decode_with(self.kernel, &Coded { below, ..*frame }, std::slice::from_ref(&read.rows), out)?;
        }
        Ok(())
    }
}

impl Job {
    /// Seconds for a row, of about as many, one after the other, from frames in memory that are found before. The first
    /// rows are compared with what was encoded.
    pub(crate) fn read(&self, reader: &Reader<'_>, order: &str, count: usize, seed: u64) -> Outcome<Value> {
        let places = reader.places(order, count, seed)?;
        let reads = places.iter().map(|place| self.find(reader, place)).collect::<Outcome<Vec<_>>>()?;
        let most = reads.iter().map(|read| read.bytes).max().unwrap_or(0);
        let mut buffers = Buffers { rows: vec![0; most], below: vec![0; most] };
        for (place, read) in places.iter().zip(&reads).take(COMPARED) {
            let piece = at(&reader.part.pieces, place.piece)?;
            let row = piece.rows.start + place.row;
            let expected = self.stream(piece.stream)?.rows(&(row..row + 1))?;
            reader.read(read, &mut buffers)?;
            if buffers.rows.get(read.wanted.clone()) != Some(expected) {
                return Err("a row that is not the one stored".into());
            }
        }
        let start = Instant::now();
        for read in &reads {
            reader.read(read, &mut buffers)?;
            black_box(&buffers.rows);
        }
        Ok(json!(start.elapsed().as_secs_f64() / reads.len().max(1) as f64))
    }

    fn find<'a>(&self, reader: &Reader<'a>, place: &Place) -> Outcome<Read<'a>> {
        let Reader { scheme, part, .. } = *reader;
        let piece = at(&part.pieces, place.piece)?;
        let (plan, stream) = (scheme.plan(piece.stream)?, self.stream(piece.stream)?);
        let (number, row) = (place.row / plan.frame_rows, (place.row % plan.frame_rows) as u64);
        let first = place.piece.checked_sub(usize::try_from(plan.depth)?).ok_or("a chain without its first layer")?;
        let (mut frames, mut step, mut count) = (Vec::new(), 1, 0);
        for index in first..=place.piece {
            let (piece, stored) = (at(&part.pieces, index)?, at(&part.stored, index)?);
            let coded = scheme.coded(self.stream(piece.stream)?, piece.stream, stored, at(&stored.frames, number)?)?;
            step = coded.step()?.max(step);
            count = coded.rows;
            frames.push((coded, *at(at(&part.checksums, index)?, number)?));
        }
        let rows = row / step * step..(row + 1).next_multiple_of(step).min(count);
        let bytes = usize::try_from(rows.end - rows.start)? * stream.row_bytes;
        let wanted = usize::try_from(row - rows.start)? * stream.row_bytes;
        Ok(Read { frames, rows, bytes, wanted: wanted..wanted + stream.row_bytes })
    }
}
