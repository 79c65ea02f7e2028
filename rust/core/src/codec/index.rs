//! The index of a frame: how many bits each segment has, and how many of its values stand elsewhere.

use std::ops::Range;

use super::malformed;
use crate::error::Result;

/// Numbers have two bytes.
pub(super) const WIDE: u8 = 2;
/// Some values stand elsewhere.
pub(super) const ESCAPES: u8 = 4;

/// An index in the making.
#[derive(Default)]
pub(super) struct Counts {
    bits: Vec<u16>,
    escapes: Vec<u16>,
}

impl Counts {
    /// With room for so many segments.
    pub(super) fn with_room(segments: usize) -> Self {
        Self { bits: Vec::with_capacity(segments), escapes: Vec::with_capacity(segments) }
    }

    /// Adds a segment; `None` where it is too large.
    pub(super) fn push(&mut self, bits: usize, escapes: usize) -> Option<()> {
        self.bits.push(u16::try_from(bits).ok()?);
        self.escapes.push(u16::try_from(escapes).ok()?);
        Some(())
    }

    /// Appends the index; says which flags it has.
    pub(super) fn put(&self, out: &mut Vec<u8>) -> u8 {
        let base = self.bits.iter().copied().min().unwrap_or(0);
        let largest = self.bits.iter().map(|bits| bits - base).chain(self.escapes.iter().copied()).max().unwrap_or(0);
        let any = self.escapes.iter().any(|&count| count > 0);
        let wide = largest > u16::from(u8::MAX);
        out.extend_from_slice(&base.to_le_bytes());
        put(out, wide, self.bits.iter().map(|bits| bits - base));
        if any {
            let mark = |counts: &[u16]| counts.iter().rev().fold(0, |mark, &count| mark << 1 | u8::from(count > 0));
            out.extend(self.escapes.chunks(8).map(mark));
            put(out, wide, self.escapes.iter().copied().filter(|&count| count > 0));
        }
        (if wide { WIDE } else { 0 }) | if any { ESCAPES } else { 0 }
    }
}

fn put(out: &mut Vec<u8>, wide: bool, numbers: impl Iterator<Item = u16>) {
    if wide {
        out.extend(numbers.flat_map(u16::to_le_bytes));
    } else {
        out.extend(numbers.map(|number| (number & 0xFF) as u8));
    }
}

/// An index as it is stored.
pub(super) struct Index<'a> {
    base: usize,
    wide: bool,
    bits: &'a [u8],
    marks: &'a [u8],
    escapes: &'a [u8],
}

impl<'a> Index<'a> {
    /// Reads the index of so many segments.
    pub(super) fn read(flags: u8, segments: usize, fields: &mut Fields<'a>) -> Result<Self> {
        let wide = flags & WIDE != 0;
        let size = 1 + usize::from(wide);
        let base = usize::from(u16::from_le_bytes(*fields.array()?));
        let bits = fields.take(segments * size)?;
        let marks = fields.take(if flags & ESCAPES != 0 { segments.div_ceil(8) } else { 0 })?;
        let escapes = fields.take(ones(marks) * size)?;
        Ok(Self { base, wide, bits, marks, escapes })
    }

    /// Bits of the segments before this one.
    pub(super) fn bits_before(&self, segment: usize) -> usize {
        self.base * segment + self.sum(self.bits, segment)
    }

    /// Values elsewhere of the segments before this one.
    pub(super) fn escapes_before(&self, segment: usize) -> usize {
        self.sum(self.escapes, self.marked_before(segment))
    }

    /// Values elsewhere of all segments.
    pub(super) fn all_escapes(&self) -> usize {
        self.sum(self.escapes, self.escapes.len())
    }

    /// Whether a segment has values elsewhere.
    pub(super) fn is_marked(&self, segment: usize) -> bool {
        self.marks.get(segment / 8).is_some_and(|mark| mark >> (segment % 8) & 1 != 0)
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
                before += self.number(self.escapes, number);
                marked = Some(number + 1);
                start
            })
        })
    }

    fn marked_before(&self, segment: usize) -> usize {
        let (whole, some) = self.marks.split_at_checked(segment / 8).unwrap_or((self.marks, &[]));
        let here = some.first().map_or(0, |mark| (mark & ((1 << (segment % 8)) - 1)).count_ones() as usize);
        ones(whole) + here
    }

    fn number(&self, numbers: &[u8], number: usize) -> usize {
        if self.wide {
            let (pairs, _) = numbers.as_chunks::<2>();
            return pairs.get(number).map_or(0, |pair| usize::from(u16::from_le_bytes(*pair)));
        }
        numbers.get(number).copied().map_or(0, usize::from)
    }

    /// The sum of the first of some numbers.
    fn sum(&self, numbers: &[u8], count: usize) -> usize {
        if self.wide {
            let (pairs, _) = numbers.as_chunks::<2>();
            return pairs.iter().take(count).map(|pair| usize::from(u16::from_le_bytes(*pair))).sum();
        }
        let numbers = numbers.get(..count).unwrap_or(numbers);
        // Sums of 128 bytes fit 16 bits, of which a vector has twice as many as of 32.
        let some = |numbers: &[u8]| numbers.iter().fold(0_u16, |sum, &number| sum.wrapping_add(u16::from(number)));
        numbers.chunks(128).map(|numbers| usize::from(some(numbers))).sum()
    }
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
            segments in prop::collection::vec((0_usize..3584, prop_oneof![9 => Just(0), 1 => 0_usize..513]), 1..200),
            narrow in any::<bool>(),
        ) {
            let segments: Vec<_> = if narrow {
                segments.iter().map(|&(bits, escapes)| (1000 + bits % 256, escapes % 256)).collect()
            } else {
                segments
            };
            let mut counts = Counts::default();
            segments.iter().for_each(|&(bits, escapes)| counts.push(bits, escapes).unwrap());
            let mut out = Vec::new();
            let flags = counts.put(&mut out);
            prop_assert!(!narrow || flags & WIDE == 0);
            let mut fields = Fields(&out);
            let index = Index::read(flags, segments.len(), &mut fields).unwrap();
            prop_assert!(fields.0.is_empty());
            for at in 0..=segments.len() {
                let before = segments.iter().take(at);
                prop_assert_eq!(index.bits_before(at), before.clone().map(|segment| segment.0).sum::<usize>());
                prop_assert_eq!(index.escapes_before(at), before.map(|segment| segment.1).sum::<usize>());
            }
            for (number, segment) in segments.iter().enumerate() {
                prop_assert_eq!(index.is_marked(number), segment.1 > 0);
            }
            prop_assert_eq!(index.all_escapes(), index.escapes_before(segments.len()));
        }
    }
}
