//! A frame to values.

#![allow(clippy::indexing_slicing, reason = "a table as large as its indices, and indices below a constant")]

use std::ops::Range;

use super::super::bits::load;
use super::super::index::{ESCAPES, Fields, Index, Walk};
use super::super::kernel::Kernel;
use super::super::zstd::{Scratch, room};
use super::super::{Coded, malformed, mids};
use super::coder::{Coder, LONGEST, TOGETHER, Table};
use super::context::{BFloat16, ESCAPE_SYMBOL, Float16, Half, locate, predict, restore};
use super::{Places, Shape};
use crate::error::Result;
use crate::tensor::Dtype;

/// Bits of a row's step.
const STEP_BITS: u32 = 4;
/// Symbols in upper bytes from here on are escapes.
const ESCAPE_ABOVE: u16 = ESCAPE_SYMBOL << 8;
/// Values among which escapes are looked for together.
const LOOKED_AT: usize = 32;
/// Segments decoded side by side.
const LANES: usize = 4;

/// Decodes rows of a frame into `out`, one range after the other, given the rows of the same ranges below. Ranges begin
/// and end at multiples of [`Shape::step`], or at the end.
pub(in super::super) fn decode(
    kernel: Kernel,
    frame: &Coded<'_>,
    ranges: &[Range<usize>],
    scratch: &mut Scratch,
    out: &mut [u8],
) -> Result<()> {
    let shape = Shape::of(frame.row_values, frame.bytes()?)?;
    let model = frame.model.ok_or_else(|| malformed("a frame given the layer below without its model"))?;
    let below = frame.below.filter(|below| below.len() == out.len());
    let below = below.ok_or_else(|| malformed("a frame given the layer below without that layer"))?;
    let coder = shape.coder(model)?;
    let (out, below) = (out.as_chunks_mut::<2>().0, below.as_chunks::<2>().0);
    let at = |range: &Range<usize>| range.start * shape.row_values..range.end * shape.row_values;
    kernel.run(
        #[inline(always)]
        || match frame.dtype {
            Dtype::BFloat16 => {
                let parsed = Parsed::of::<BFloat16>(shape, coder, frame.stored)?;
                parsed.decode::<BFloat16>(kernel, ranges.iter().map(at), below, scratch, out)
            }
            Dtype::Float16 => {
                let parsed = Parsed::of::<Float16>(shape, coder, frame.stored)?;
                parsed.decode::<Float16>(kernel, ranges.iter().map(at), below, scratch, out)
            }
            dtype => Err(malformed(format!("a frame given the layer below of {}", dtype.name()))),
        },
    )
}

/// A frame in its parts, every length checked.
struct Parsed<'a> {
    shape: Shape,
    coder: &'a Coder,
    steps: &'a [u8],
    raws: &'a [u8],
    index: Index<'a>,
    codes: &'a [u8],
    escapes: &'a [[u8; 2]],
}

impl<'a> Parsed<'a> {
    fn of<H: Half>(shape: Shape, coder: &'a Coder, stored: &'a [u8]) -> Result<Self> {
        let mut fields = Fields(stored);
        let &[flags] = fields.array()?;
        if flags & !ESCAPES != 0 {
            return Err(malformed(format!("a frame given the layer below with flags `{flags}`")));
        }
        let steps = fields.take(mids::packed_len(shape.values / shape.row_values, STEP_BITS))?;
        let raws = fields.take(mids::packed_len(shape.values, H::RAW))?;
        let segments = shape.segments.count();
        let index = Index::read(flags, segments, &mut fields)?;
        let codes = fields.take(index.length(0..segments))?;
        let (escapes, rest) = fields.0.as_chunks::<2>();
        if escapes.len() != index.all_escapes() || !rest.is_empty() {
            return Err(malformed("a frame does not end with its escapes"));
        }
        Ok(Self { shape, coder, steps, raws, index, codes, escapes })
    }

    #[inline(always)]
    fn decode<H: Half>(
        &self,
        kernel: Kernel,
        ranges: impl Iterator<Item = Range<usize>>,
        below: &[[u8; 2]],
        scratch: &mut Scratch,
        out: &mut [[u8; 2]],
    ) -> Result<()> {
        let segments = self.shape.segments;
        // As many periods as keep every lane busy.
        let together = LANES.div_ceil(segments.per_period()) * segments.period();
        let (mut below, mut out) = (below, out);
        for range in ranges {
            let is_cut = |at: usize| at.is_multiple_of(segments.period()) || at == self.shape.values;
            if !is_cut(range.start) || !is_cut(range.end) {
                return Err(malformed(format!("values `{range:?}` of rows that are decoded together")));
            }
            let mut walk = self.index.walk();
            let mut starts = self.index.starts(segments.segment_of(range.start)..usize::MAX);
            for first in range.clone().step_by(together) {
                let values = first..(first + together).min(range.end);
                let below = below.split_off(..values.len()).unwrap_or_default();
                let out = out.split_off_mut(..values.len()).unwrap_or_default();
                self.decode_some::<H>(kernel, (values, &mut walk, &mut starts), below, scratch, out)?;
            }
        }
        Ok(())
    }

    /// Decodes the values of whole periods.
    #[inline(always)]
    fn decode_some<H: Half>(
        &self,
        kernel: Kernel,
        (values, walk, starts): (Range<usize>, &mut Walk<'_, '_>, &mut impl Iterator<Item = Option<usize>>),
        below: &[[u8; 2]],
        scratch: &mut Scratch,
        out: &mut [[u8; 2]],
    ) -> Result<()> {
        let Scratch { mids: raws, places: Places { uppers, contexts, origins, .. }, .. } = scratch;
        let row_values = self.shape.row_values;
        let (uppers, raws) = (room(uppers, row_values), room(raws, values.len()));
        let (contexts, origins) = (room(contexts, values.len()), room(origins, values.len()));
        let places = contexts.chunks_mut(row_values).zip(origins.chunks_mut(row_values));
        for ((row, below), (contexts, origins)) in
            (values.start / row_values..).zip(below.chunks(row_values)).zip(places)
        {
            let step = self.steps.get(row / 2).map_or(0, |steps| steps >> (4 * (row % 2)) & 15);
            predict::<H>(&self.coder.channels, below, uppers);
            locate::<H, LONGEST>(&self.coder.channels.half_octaves, step, uppers, contexts, origins);
        }
        mids::unpack(kernel, self.raws, H::RAW, values.start, raws);
        let first = self.shape.segments.segment_of(values.start);
        self.read_symbols(first, walk, contexts);
        restore::<H>(contexts, raws, origins, out);
        self.put_escapes(starts, contexts, out)
    }

    /// Replaces the contexts of whole periods from a segment on by symbols in upper bytes.
    #[inline(always)]
    fn read_symbols(&self, first: usize, walk: &mut Walk<'_, '_>, places: &mut [u16]) {
        let (period, longest) = (self.shape.segments.period(), self.shape.segments.longest());
        let places = places.chunks_mut(period).flat_map(|period| period.chunks_mut(longest));
        let mut lanes = (first..).zip(places).map(|(segment, places)| Lane { at: 8 * walk.start(segment), places });
        while let Some(lane) = lanes.next() {
            let [second, third, fourth] = [lanes.next(), lanes.next(), lanes.next()].map(Option::unwrap_or_default);
            read_codes(self.coder.table(), self.codes, [lane, second, third, fourth]);
        }
    }

    /// Puts the values of whole periods that stand elsewhere where they belong, as `starts` says where those begin.
    #[inline(always)]
    fn put_escapes(
        &self,
        starts: &mut impl Iterator<Item = Option<usize>>,
        symbols: &[u16],
        out: &mut [[u8; 2]],
    ) -> Result<()> {
        let (period, longest) = (self.shape.segments.period(), self.shape.segments.longest());
        let symbols = symbols.chunks(period).flat_map(|period| period.chunks(longest));
        let out = out.chunks_mut(period).flat_map(|period| period.chunks_mut(longest));
        for ((symbols, out), start) in symbols.zip(out).zip(starts) {
            let Some(start) = start else { continue };
            let mut escapes = self.escapes.iter().skip(start);
            for (symbols, out) in symbols.chunks(LOOKED_AT).zip(out.chunks_mut(LOOKED_AT)) {
                if symbols.iter().fold(0, |any, symbol| any | symbol) < ESCAPE_ABOVE {
                    continue;
                }
                for (_, value) in symbols.iter().zip(out).filter(|(symbol, _)| **symbol >= ESCAPE_ABOVE) {
                    *value = *escapes.next().ok_or_else(|| malformed("a frame has fewer escapes than it needs"))?;
                }
            }
        }
        Ok(())
    }
}

/// A segment to decode: where its codes begin, and the contexts of its values, which symbols replace.
#[derive(Default)]
struct Lane<'a> {
    at: usize,
    places: &'a mut [u16],
}

impl<'a> Lane<'a> {
    /// Its first words.
    #[inline(always)]
    fn split_off(&mut self, words: usize) -> std::slice::IterMut<'a, [u16; TOGETHER]> {
        let words = self.places.split_off_mut(..words * TOGETHER).unwrap_or_default();
        words.as_chunks_mut().0.iter_mut()
    }

    /// Decodes what is left.
    #[inline(always)]
    fn finish(self, table: &Table, codes: &[u8]) {
        let mut at = self.at;
        for places in self.places.chunks_mut(TOGETHER) {
            let mut bits = load(codes, at);
            places.iter_mut().for_each(|place| look_up(table, place, &mut bits));
            at += bits.leading_zeros() as usize;
        }
    }
}

/// Replaces a context by the entry of the symbol that `bits` begins with, and shifts them behind it.
#[inline(always)]
fn look_up(table: &Table, place: &mut u16, bits: &mut u64) {
    *place = table[usize::from(*place | (*bits & ((1 << LONGEST) - 1)) as u16)];
    *bits >>= *place & 63;
}

/// Decodes each lane: all at once as far as they go together, so that look-ups need not wait for one another.
#[inline(always)]
fn read_codes(table: &Table, codes: &[u8], lanes: [Lane<'_>; LANES]) {
    let words = lanes.iter().map(|lane| lane.places.len() / TOGETHER).min().unwrap_or(0);
    let [mut a, mut b, mut c, mut d] = lanes;
    let (words_a, words_b) = (a.split_off(words), b.split_off(words));
    let (words_c, words_d) = (c.split_off(words), d.split_off(words));
    for ((word_a, word_b), (word_c, word_d)) in words_a.zip(words_b).zip(words_c.zip(words_d)) {
        let (mut bits_a, mut bits_b) = (load(codes, a.at), load(codes, b.at));
        let (mut bits_c, mut bits_d) = (load(codes, c.at), load(codes, d.at));
        for i in 0..TOGETHER {
            look_up(table, &mut word_a[i], &mut bits_a);
            look_up(table, &mut word_b[i], &mut bits_b);
            look_up(table, &mut word_c[i], &mut bits_c);
            look_up(table, &mut word_d[i], &mut bits_d);
        }
        a.at += bits_a.leading_zeros() as usize;
        b.at += bits_b.leading_zeros() as usize;
        c.at += bits_c.leading_zeros() as usize;
        d.at += bits_d.leading_zeros() as usize;
    }
    for lane in [a, b, c, d] {
        lane.finish(table, codes);
    }
}
