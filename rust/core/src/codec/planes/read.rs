//! A frame to values.

use std::ops::Range;

use ::zstd::zstd_safe::DCtx;

use super::super::classes::{Decoded, Lane, PLACES, SLACK};
use super::super::index::{ESCAPES, Fields, Index, Walk};
use super::super::kernel::Kernel;
use super::super::segments::{Piece, SEGMENT, Segments};
use super::super::words::{Lows, add_mids, each_escape, join, join_classes, symbols};
use super::super::zstd::{self, Scratch, room};
use super::super::{Coded, Model, malformed, mids};
use super::coder::OWN_BYTES;
use super::{Coder, OWN, PLANE, Shape};
use crate::error::Result;

/// Segments decoded at a time, so that their classes stay in the first-level cache.
const GROUP: usize = 48;
/// Segments decoded side by side.
const LANES: usize = 4;
const _: () = assert!(GROUP * SEGMENT + LANES * SLACK <= PLACES);

/// Decodes rows of a frame into `out`, one range after the other.
pub(in super::super) fn decode(
    kernel: Kernel,
    frame: &Coded<'_>,
    ranges: &[Range<usize>],
    scratch: &mut Scratch,
    out: &mut [u8],
) -> Result<()> {
    let shape = Shape::of(frame.dtype, frame.row_values, frame.bytes()?)?;
    let Scratch { decoder, classes, symbols, rest, .. } = scratch;
    let mut own = None;
    let parsed = Parsed::of(shape, frame.stored, (frame.model, &mut own), decoder, rest)?;
    let classes = room(classes, size_of::<Decoded>()).first_chunk_mut();
    let classes = classes.ok_or_else(|| malformed("no room for classes"))?;
    let symbols = room(symbols, SEGMENT);
    let mut out = out;
    for range in ranges {
        let values = range.start * shape.row_values..range.end * shape.row_values;
        let mine = out.split_off_mut(..values.len() * shape.parts.width);
        let out = mine.ok_or_else(|| malformed("rows do not fit their buffer"))?;
        parsed.decode(kernel, Wanted { values, out }, classes, symbols)?;
    }
    Ok(())
}

/// Values to decode, and room for them.
struct Wanted<'a> {
    values: Range<usize>,
    out: &'a mut [u8],
}

impl Wanted<'_> {
    /// Those that are in a segment of `all`: which, how many of the segment's come before, and their room, `width` bytes each.
    #[inline(always)]
    fn within(&mut self, all: &Range<usize>, width: usize) -> (Range<usize>, usize, &mut [u8]) {
        let here = all.start.max(self.values.start)..all.end.min(self.values.end);
        let (skipped, at) = (here.start - all.start, here.start - self.values.start);
        let out = self.out.get_mut(at * width..(at + here.len()) * width).unwrap_or_default();
        (here, skipped, out)
    }
}

/// A frame in its parts, every length checked.
struct Parsed<'a> {
    shape: Shape,
    lows: Lows<'a>,
    mids: &'a [u8],
    symbols: Symbols<'a>,
}

/// The symbols of a frame: in tops, or coded.
enum Symbols<'a> {
    Plane(&'a [u8]),
    Codes(Codes<'a>),
}

struct Codes<'a> {
    coder: &'a Coder,
    index: Index<'a>,
    bits: &'a [u8],
    escapes: &'a [u8],
}

impl<'a> Parsed<'a> {
    fn of(
        shape: Shape,
        stored: &'a [u8],
        coders: (Option<&'a Model>, &'a mut Option<Coder>),
        decoder: &mut DCtx<'_>,
        rest: &'a mut Vec<u8>,
    ) -> Result<Self> {
        let mut fields = Fields(stored);
        let &[flags, packed] = fields.array()?;
        // Of a plane of tops the symbols are no part by themselves.
        let shape = if flags == PLANE { shape.with_tops() } else { shape };
        let known = flags == PLANE || flags & !(OWN | ESCAPES) == 0;
        if !known || packed >> shape.parts.lows() != 0 {
            return Err(malformed(format!("a frame of planes with flags `{flags}` and `{packed}`")));
        }
        let planes = packed.count_ones() as usize + usize::from(flags == PLANE);
        let mut rooms = room(rest, planes * shape.values).chunks_exact_mut(shape.values);
        let mut lows = Lows::default();
        for (index, low) in lows.iter_mut().take(shape.parts.lows()).enumerate() {
            if packed >> index & 1 == 0 {
                *low = fields.take(shape.values)?;
                continue;
            }
            let length = u32::from_le_bytes(*fields.array()?);
            let frame = fields.take(usize::try_from(length).unwrap_or(usize::MAX))?;
            *low = expand(decoder, frame, rooms.next().unwrap_or_default())?;
        }
        let mids = fields.take(mids::packed_len(shape.values, shape.parts.mid))?;
        let symbols = match (flags, fields.0) {
            (PLANE, plane) if plane.len() == shape.values => Symbols::Plane(plane),
            (PLANE, frame) => Symbols::Plane(expand(decoder, frame, rooms.next().unwrap_or_default())?),
            (_, codes) => Symbols::Codes(Codes::of(shape, flags, coders, codes)?),
        };
        Ok(Self { shape, lows, mids, symbols })
    }

    fn decode(&self, kernel: Kernel, mut wanted: Wanted<'_>, classes: &mut Decoded, symbols: &mut [u8]) -> Result<()> {
        let segments = self.shape.segments;
        let covering = segments.covering(&wanted.values);
        let mut pieces = segments.pieces(covering.clone());
        let codes = match &self.symbols {
            Symbols::Codes(codes) => codes,
            Symbols::Plane(plane) => {
                for Piece { values, .. } in pieces {
                    self.join(kernel, &values, plane.get(values.clone()).unwrap_or_default(), &mut wanted);
                }
                return Ok(());
            }
        };
        if covering.len() <= LANES {
            for low in self.lows.iter().take(self.shape.parts.lows()) {
                kernel.fetch(low.get(wanted.values.clone()).unwrap_or_default());
            }
        }
        let mut escapes = codes.index.starts(covering.clone());
        let mut first = covering.start;
        let mut walk = codes.index.walk();
        while first < covering.end {
            let left = covering.end - first;
            // Lanes of the same length: none waits for another.
            let group = if left < LANES { left } else { (left - left % LANES).min(GROUP) };
            let each = group.div_ceil(LANES);
            let starts = codes.find_classes(kernel, segments, (first..first + group, each), &mut walk, classes);
            for mut start in starts.into_iter().take(group / each) {
                for (piece, escapes) in pieces.by_ref().zip(escapes.by_ref()).take(each) {
                    let classes = classes.get(start..start + piece.values.len()).unwrap_or_default();
                    self.put(kernel, (codes, piece, escapes), classes, symbols, &mut wanted)?;
                    start += classes.len();
                }
            }
            first += group;
        }
        Ok(())
    }

    /// Puts what is wanted of a segment's values where it belongs.
    #[inline(always)]
    fn put(
        &self,
        kernel: Kernel,
        (codes, piece, escapes): (&Codes<'_>, Piece, Option<usize>),
        classes: &[u8],
        symbols: &mut [u8],
        wanted: &mut Wanted<'_>,
    ) -> Result<()> {
        // Two bytes, no mid bits, and none stands elsewhere: the usual case has a shorter way.
        if let (2, 0, None) = (self.shape.parts.width, self.shape.parts.mid, escapes) {
            let [low, ..] = self.lows;
            let (here, skipped, out) = wanted.within(&piece.values, 2);
            let classes = classes.get(skipped..skipped + here.len()).unwrap_or_default();
            let (biases, low) = (codes.coder.biases(piece.channel + skipped), low.get(here).unwrap_or_default());
            join_classes(kernel, classes, biases, low, out.as_chunks_mut().0);
            return Ok(());
        }
        let symbols = symbols.get_mut(..classes.len()).unwrap_or_default();
        codes.symbols(kernel, (piece.channel, escapes), classes, symbols)?;
        self.join(kernel, &piece.values, symbols, wanted);
        Ok(())
    }

    /// Puts together what is wanted of a segment's values.
    fn join(&self, kernel: Kernel, all: &Range<usize>, symbols: &[u8], wanted: &mut Wanted<'_>) {
        let parts = self.shape.parts;
        let (here, skipped, out) = wanted.within(all, parts.width);
        let symbols = symbols.get(skipped..skipped + here.len()).unwrap_or_default();
        let mut tops;
        let tops = if parts.mid == 0 {
            symbols
        } else {
            tops = [0; SEGMENT];
            let tops = tops.get_mut(..symbols.len()).unwrap_or_default();
            mids::unpack(kernel, self.mids, parts.mid, here.start, tops);
            add_mids(parts, symbols, tops);
            tops
        };
        let mut lows = Lows::default();
        for (mine, low) in lows.iter_mut().zip(self.lows).take(parts.lows()) {
            *mine = low.get(here.clone()).unwrap_or_default();
        }
        join(kernel, tops, &lows, out);
    }
}

impl<'a> Codes<'a> {
    fn of(
        shape: Shape,
        flags: u8,
        (model, own): (Option<&'a Model>, &'a mut Option<Coder>),
        stored: &'a [u8],
    ) -> Result<Self> {
        let mut fields = Fields(stored);
        let coder = match (flags & OWN != 0, model) {
            (true, _) => own.insert(Coder::read(fields.take(OWN_BYTES)?)?),
            (false, Some(model)) => shape.coder(model)?,
            (false, None) => return Err(malformed("a frame of planes without its model")),
        };
        let segments = shape.segments.count();
        let index = Index::read(flags, segments, &mut fields)?;
        let bits = fields.0.len().checked_sub(index.all_escapes());
        let bits = fields.take(bits.ok_or_else(|| malformed("a frame is cut short"))?)?;
        if bits.len() != index.length(0..segments).div_ceil(8) {
            return Err(malformed("the codes of a frame are not as long as its index says"));
        }
        Ok(Self { coder, index, bits, escapes: fields.0 })
    }

    /// Decodes consecutive segments in lanes of `each`; says where their classes begin.
    fn find_classes(
        &self,
        kernel: Kernel,
        segments: Segments,
        (group, each): (Range<usize>, usize),
        walk: &mut Walk<'_, '_>,
        classes: &mut Decoded,
    ) -> [usize; LANES] {
        let stride = each * segments.longest() + SLACK;
        let mut lane = |number: usize| {
            let first = (group.start + number * each).min(group.end);
            let due = segments.start((first + each).min(group.end)) - segments.start(first);
            let place = number * stride;
            Lane { at: walk.start(first), place, end: place + due }
        };
        let table = self.coder.table();
        if group.len() == 1 {
            table.decode(kernel, self.bits, [lane(0)], classes);
        } else {
            table.decode(kernel, self.bits, std::array::from_fn::<_, LANES, _>(lane), classes);
        }
        std::array::from_fn(|number| number * stride)
    }

    /// The symbols of a segment of these classes, whose channels begin at one of the period's, and whose escapes, if it
    /// has any, begin at one of all.
    fn symbols(
        &self,
        kernel: Kernel,
        (channel, escapes): (usize, Option<usize>),
        classes: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        symbols(kernel, classes, self.coder.biases(channel), out);
        let Some(first) = escapes else { return Ok(()) };
        let mut escapes = self.escapes.iter().skip(first);
        let mut missing = false;
        each_escape(classes, |place| match (out.get_mut(place), escapes.next()) {
            (Some(symbol), Some(escape)) => *symbol = *escape,
            _ => missing = true,
        });
        if missing { Err(malformed("a frame has fewer escapes than it needs")) } else { Ok(()) }
    }
}

fn expand<'a>(decoder: &mut DCtx<'_>, frame: &[u8], room: &'a mut [u8]) -> Result<&'a [u8]> {
    zstd::check(frame, room.len())?;
    zstd::decompress(decoder, frame, room)?;
    Ok(room)
}
