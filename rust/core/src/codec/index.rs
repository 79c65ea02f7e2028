//! The index of a frame: how many bits each segment has, and how many of its values stand elsewhere.
//!
//! Numbers have a byte each, of their low bits. Where some are larger, their higher bits are planes: bit k of all numbers
//! is one bit string. To sum the numbers before one is to sum bytes and to count bits.

use std::ops::Range;

use super::malformed;
use crate::error::Result;

/// Some values stand elsewhere.
pub(super) const ESCAPES: u8 = 2;

/// Bits of the least length.
const BASE_BITS: u32 = 12;
/// Planes of high bits of lengths: lengths have no more bits than the least.
const MOST_PLANES: usize = BASE_BITS as usize - 8;
/// The number of a segment's values that stand elsewhere, less 1, has one plane of high bits.
const MANY_ESCAPES: u16 = 1 << 15;

/// An index in the making.
#[derive(Default)]
pub(super) struct Counts {
    lengths: Vec<u16>,
    escapes: Vec<u16>,
}

impl Counts {
    /// With room for so many segments.
    pub(super) fn with_room(segments: usize) -> Self {
        Self { lengths: Vec::with_capacity(segments), escapes: Vec::with_capacity(segments) }
    }

    /// Adds a segment of so many bits or bytes; `None` where it is too large.
    pub(super) fn push(&mut self, length: usize, escapes: usize) -> Option<()> {
        self.lengths.push(u16::try_from(length).ok().filter(|length| length >> BASE_BITS == 0)?);
        self.escapes.push(u16::try_from(escapes).ok().filter(|&escapes| escapes <= 2 << 8)?);
        Some(())
    }

    /// Appends the index; says which flags it has.
    pub(super) fn put(&self, out: &mut Vec<u8>) -> u8 {
        let base = self.lengths.iter().copied().min().unwrap_or(0);
        let lengths: Vec<_> = self.lengths.iter().map(|length| length - base).collect();
        let escapes: Vec<_> = self.escapes.iter().filter_map(|count| count.checked_sub(1)).collect();
        let (planes, many) = (planes_of(&lengths), planes_of(&escapes));
        let head = base | planes << BASE_BITS | if many > 0 { MANY_ESCAPES } else { 0 };
        out.extend_from_slice(&head.to_le_bytes());
        put(out, planes, &lengths);
        if escapes.is_empty() {
            return 0;
        }
        put_plane(out, &self.escapes, |count| count > 0);
        put(out, many, &escapes);
        ESCAPES
    }
}

/// How many planes of high bits numbers need.
fn planes_of(numbers: &[u16]) -> u16 {
    let largest = numbers.iter().copied().max().unwrap_or(0);
    (0..8).find(|plane| largest >> (8 + plane) == 0).unwrap_or(8)
}

fn put(out: &mut Vec<u8>, planes: u16, numbers: &[u16]) {
    out.extend(numbers.iter().map(|number| number.to_le_bytes()[0]));
    for plane in 0..planes {
        put_plane(out, numbers, |number| number >> (8 + plane) & 1 != 0);
    }
}

fn put_plane(out: &mut Vec<u8>, numbers: &[u16], bit: impl Fn(u16) -> bool) {
    let byte = |numbers: &[u16]| numbers.iter().rev().fold(0, |byte, &number| byte << 1 | u8::from(bit(number)));
    out.extend(numbers.chunks(8).map(byte));
}

/// An index as it is stored.
pub(super) struct Index<'a> {
    base: usize,
    lengths: Numbers<'a>,
    marks: &'a [u8],
    escapes: Numbers<'a>,
}

impl<'a> Index<'a> {
    /// Reads the index of so many segments.
    pub(super) fn read(flags: u8, segments: usize, fields: &mut Fields<'a>) -> Result<Self> {
        let head = u16::from_le_bytes(*fields.array()?);
        let has_escapes = flags & ESCAPES != 0;
        let planes = usize::from((head & !MANY_ESCAPES) >> BASE_BITS);
        if planes > MOST_PLANES || head >= MANY_ESCAPES && !has_escapes {
            return Err(malformed(format!("an index that begins with `{head}`")));
        }
        let lengths = Numbers::read(segments, planes, fields)?;
        let marks = fields.take(if has_escapes { segments.div_ceil(8) } else { 0 })?;
        let escapes = Numbers::read(ones_before(marks, segments), usize::from(head >= MANY_ESCAPES), fields)?;
        Ok(Self { base: usize::from(head & ((1 << BASE_BITS) - 1)), lengths, marks, escapes })
    }

    /// Bits, or bytes, of these segments.
    pub(super) fn length(&self, segments: Range<usize>) -> usize {
        self.base * segments.len() + self.lengths.sum(segments)
    }

    /// Where segments begin, of which each is asked for after those before it.
    pub(super) fn walk(&self) -> Walk<'_, 'a> {
        Walk { index: self, segment: 0, at: 0 }
    }

    /// Values elsewhere of the segments before this one.
    fn escapes_before(&self, segment: usize) -> usize {
        let marked = self.marked_before(segment);
        marked + self.escapes.sum(0..marked)
    }

    /// Values elsewhere of all segments.
    pub(super) fn all_escapes(&self) -> usize {
        self.escapes.low.len() + self.escapes.sum(0..self.escapes.low.len())
    }

    /// Whether a segment has values elsewhere.
    fn is_marked(&self, segment: usize) -> bool {
        bit(self.marks, segment) != 0
    }

    /// Of segments one after the other where their values elsewhere begin, if they have any.
    pub(super) fn starts(&self, segments: Range<usize>) -> impl Iterator<Item = Option<usize>> {
        let (mut before, mut marked) = (0, None);
        segments.map(move |segment| {
            self.is_marked(segment).then(|| {
                let number = *marked.get_or_insert_with(|| {
                    before = self.escapes_before(segment);
                    self.marked_before(segment)
                });
                let start = before;
                before += 1 + self.escapes.get(number);
                marked = Some(number + 1);
                start
            })
        })
    }

    fn marked_before(&self, segment: usize) -> usize {
        ones_before(self.marks, segment)
    }
}

/// A segment, and where it begins.
pub(super) struct Walk<'i, 'a> {
    index: &'i Index<'a>,
    segment: usize,
    at: usize,
}

impl Walk<'_, '_> {
    /// Where a segment begins that is none of those before the last one.
    #[inline(always)]
    pub(super) fn start(&mut self, segment: usize) -> usize {
        self.at += self.index.length(self.segment..segment);
        self.segment = segment;
        self.at
    }
}

/// Numbers: a byte each of their low bits, and planes of the bits above them, the lowest first.
struct Numbers<'a> {
    low: &'a [u8],
    planes: &'a [u8],
}

impl<'a> Numbers<'a> {
    fn read(count: usize, planes: usize, fields: &mut Fields<'a>) -> Result<Self> {
        Ok(Self { low: fields.take(count)?, planes: fields.take(planes * count.div_ceil(8))? })
    }

    fn planes(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        (8..).zip(self.planes.chunks(self.low.len().div_ceil(8).max(1)))
    }

    fn get(&self, number: usize) -> usize {
        let high = self.planes().map(|(shift, plane)| bit(plane, number) << shift).sum::<usize>();
        high + self.low.get(number).copied().map_or(0, usize::from)
    }

    /// The sum of some of them.
    fn sum(&self, some: Range<usize>) -> usize {
        let low = self.low.get(some.clone()).unwrap_or_default();
        sum(low) + self.planes().map(|(shift, plane)| ones_within(plane, &some) << shift).sum::<usize>()
    }
}

/// The sum of bytes: of eight at a time in four sums of 16 bits, which no more than 32 times eight can fill.
fn sum(bytes: &[u8]) -> usize {
    const FOURS: u64 = 0x0001_0001_0001_0001;
    const LOW: u64 = 0xFF * FOURS;
    let (words, rest) = bytes.as_chunks::<8>();
    let add = |sums: u64, word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        sums + (word & LOW) + (word >> 8 & LOW)
    };
    let some = |words: &[[u8; 8]]| (words.iter().fold(0, add).wrapping_mul(FOURS) >> 48) as usize;
    words.chunks(32).map(some).sum::<usize>() + rest.iter().map(|&byte| usize::from(byte)).sum::<usize>()
}

fn bit(bits: &[u8], at: usize) -> usize {
    bits.get(at / 8).map_or(0, |byte| usize::from(byte >> (at % 8) & 1))
}

fn ones_before(bits: &[u8], at: usize) -> usize {
    let (whole, some) = bits.split_at_checked(at / 8).unwrap_or((bits, &[]));
    let here = some.first().map_or(0, |byte| (byte & ((1 << (at % 8)) - 1)).count_ones() as usize);
    ones(whole) + here
}

fn ones_within(bits: &[u8], some: &Range<usize>) -> usize {
    let bits = bits.get(some.start / 8..).unwrap_or_default();
    ones_before(bits, some.end - some.start / 8 * 8) - ones_before(bits, some.start % 8)
}

fn ones(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word).count_ones());
    words.chain(rest.iter().map(|byte| byte.count_ones())).map(|ones| ones as usize).sum()
}

/// Fields of a frame, one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("a frame is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N]> {
        self.take(N)?.first_chunk().ok_or_else(|| malformed("a frame is cut short"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_an_index_says_comes_back(
            segments in prop::collection::vec((0_usize..3585, prop_oneof![9 => Just(0), 1 => 0_usize..513]), 1..900),
            spread in prop_oneof![Just(1), Just(256), Just(300), Just(1000), Just(3585)],
            most_escapes in prop_oneof![Just(1), Just(257), Just(513)],
        ) {
            let segments = segments.iter();
            let segments = segments.map(|&(bits, escapes)| (3584 - bits % spread, escapes % most_escapes));
            let segments: Vec<_> = segments.collect();
            let mut counts = Counts::default();
            segments.iter().for_each(|&(bits, escapes)| counts.push(bits, escapes).unwrap());
            let mut out = Vec::new();
            let flags = counts.put(&mut out);
            prop_assert!(spread > 256 || most_escapes > 1 || out.len() == 2 + segments.len());
            let mut fields = Fields(&out);
            let index = Index::read(flags, segments.len(), &mut fields).unwrap();
            prop_assert!(fields.0.is_empty());
            for at in 0..=segments.len() {
                let before = segments.iter().take(at);
                prop_assert_eq!(index.length(0..at), before.clone().map(|segment| segment.0).sum::<usize>());
                prop_assert_eq!(index.escapes_before(at), before.map(|segment| segment.1).sum::<usize>());
            }
            for (from, to) in (0..segments.len()).flat_map(|from| [(from, from + 1), (from, segments.len())]) {
                let some = segments.iter().take(to).skip(from);
                prop_assert_eq!(index.length(from..to), some.map(|segment| segment.0).sum::<usize>());
            }
            let mut due = 0;
            for ((number, segment), start) in segments.iter().enumerate().zip(index.starts(0..segments.len())) {
                prop_assert_eq!(index.is_marked(number), segment.1 > 0);
                prop_assert_eq!(start, (segment.1 > 0).then_some(due));
                due += segment.1;
            }
            prop_assert_eq!(index.all_escapes(), due);
        }
    }

    #[test]
    fn bytes_are_summed_whatever_they_are() {
        for count in 0..1100 {
            assert_eq!(sum(&vec![255; count]), 255 * count);
        }
    }

    #[test]
    fn what_fills_the_last_byte_is_ignored() {
        // Three segments of 9, 9 and 8 bits with a plane, of which the second has two escapes.
        let stored = [0x08, 0x10, 1, 1, 0, 0b1111_1000, 0b1111_1010, 1];
        let mut fields = Fields(&stored);
        let index = Index::read(ESCAPES, 3, &mut fields).unwrap();
        assert!(fields.0.is_empty());
        assert_eq!([0, 1, 2, 3].map(|segment| index.length(0..segment)), [0, 9, 18, 26]);
        assert_eq!((index.all_escapes(), index.is_marked(0), index.is_marked(1)), (2, false, true));
        assert_eq!(index.starts(0..3).collect::<Vec<_>>(), [None, Some(0), None]);
    }

    #[test]
    fn numbers_beyond_the_format_are_refused() {
        let mut counts = Counts::default();
        assert_eq!([counts.push(4096, 0), counts.push(0, 513), counts.push(4095, 512)], [None, None, Some(())]);
        for (head, flags) in [(0x5000_u16, ESCAPES), (0x8000, 0)] {
            let stored = [&head.to_le_bytes()[..], &[0; 64]].concat();
            assert!(Index::read(flags, 1, &mut Fields(&stored)).is_err());
        }
    }
}
