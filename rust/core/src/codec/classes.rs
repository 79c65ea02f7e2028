//! A prefix code of 16 classes: written eight classes at a time, read by up to four lanes at once.

#![allow(
    clippy::indexing_slicing,
    reason = "every index is masked to the size of its table, or below it by a constant"
)]

use super::bits::{BitWriter, load};
use super::kernel::Kernel;
use super::prefix;
#[cfg(target_arch = "x86_64")]
use super::simd;
use super::words::{Apart, Parts, classify, split};

/// Classes of a code.
pub(super) const CLASSES: usize = 16;
/// Bits of a code, at most.
pub(super) const LONGEST: usize = 7;
/// Bits that one look-up decodes from.
const WINDOW: u32 = 11;
/// Classes that one look-up finds, at most.
const FOUND: usize = 6;
/// Look-ups between two loads of bits.
const LOOKUPS: usize = super::bits::LOADED / WINDOW as usize;
/// The same where more bits are loaded before it is known how many the last look-up takes: of 63, up to 7 of a byte that
/// has begun are skipped, and those that this look-up takes.
const LOOKUPS_ALONE: usize = (63 - 7 - WINDOW as usize) / WINDOW as usize;
/// Bytes that a look-up writes.
const WRITTEN: usize = 8;
/// Places for classes: a power of two, so that a mask bounds them.
pub(super) const PLACES: usize = 1 << 15;
/// Places that lanes leave free behind their own: what the look-ups between two loads find, and the last one writes.
pub(super) const SLACK: usize = 40;
const _: () = assert!(LOOKUPS * FOUND + WRITTEN <= SLACK && LOOKUPS_ALONE <= LOOKUPS);

/// Where decoded classes go.
pub(super) type Decoded = [u8; PLACES + WRITTEN];

/// How many bits the code of each class has.
pub(super) type Lengths = [u8; CLASSES];

/// The lengths of the code that is best where class c occurs `counts[c]` times.
pub(super) fn fit(counts: &[u64; CLASSES]) -> Option<Lengths> {
    prefix::lengths(&counts.map(|count| count.max(1)), LONGEST).try_into().ok()
}

/// A complete code of classes below 16, and what encoding looks up.
#[derive(Clone)]
pub(super) struct Code {
    pub(super) lengths: Lengths,
    pub(super) codes: [u8; CLASSES],
    /// For two classes, the first in the low half of the index: their codes, and from bit 16 on the number of bits.
    pairs: [u32; 256],
}

impl Code {
    /// `None` unless every class has a code of at most [`LONGEST`] bits and the code is complete.
    pub(super) fn new(lengths: Lengths) -> Option<Self> {
        if lengths.contains(&0) || !prefix::is_complete(&lengths, LONGEST) {
            return None;
        }
        let mut codes = [0; CLASSES];
        for (to, from) in codes.iter_mut().zip(prefix::codes(&lengths)) {
            [*to, _] = from.to_le_bytes();
        }
        let mut pairs = [0; 256];
        for (index, pair) in pairs.iter_mut().enumerate() {
            let (first, second) = (index & 15, index >> 4 & 15);
            let bits = u32::from(codes[first]) | u32::from(codes[second]) << lengths[first];
            *pair = bits | u32::from(lengths[first] + lengths[second]) << 16;
        }
        Some(Self { lengths, codes, pairs })
    }

    /// Takes the values of a segment apart and appends the codes of their classes; says whether there is an
    /// [`ESCAPE`](super::words::ESCAPE).
    #[inline(always)]
    pub(super) fn take(&self, kernel: Kernel, segment: Segment<'_>, out: &mut BitWriter<'_>) -> bool {
        #[cfg(target_arch = "x86_64")]
        if kernel.is_avx2() && segment.parts.width == 2 {
            return simd::take_pairs(kernel, self, segment, out);
        }
        let Segment { parts, bytes, mut apart, biases, classes } = segment;
        split(kernel, parts, bytes, &mut apart);
        let has_escapes = classify(kernel, apart.symbols, biases, classes);
        self.put(kernel, classes, out);
        has_escapes
    }

    /// Appends the codes of classes.
    #[inline(always)]
    pub(super) fn put(&self, kernel: Kernel, classes: &[u8], out: &mut BitWriter<'_>) {
        #[cfg(target_arch = "x86_64")]
        if kernel.is_avx2() {
            return simd::put_classes(kernel, self, classes, out);
        }
        // A copy that nothing else points to is kept in registers.
        let mut writer = out.again();
        let (steps, rest) = classes.as_chunks::<32>();
        for step in steps {
            writer.put_four(step.as_chunks().0.iter().map(|classes| self.eight(*classes)));
        }
        let (eights, rest) = rest.as_chunks();
        for classes in eights {
            let (bits, count) = self.eight(*classes);
            writer.put(bits, count);
        }
        for &class in rest {
            let class = usize::from(class & 15);
            writer.put(u64::from(self.codes[class]), u32::from(self.lengths[class]));
        }
        (out.at, out.word, out.fill) = (writer.at, writer.word, writer.fill);
    }

    /// The codes of eight classes, and how many bits they are.
    #[inline(always)]
    fn eight(&self, classes: [u8; 8]) -> (u64, u32) {
        let classes = u64::from_le_bytes(classes);
        let pairs = classes | classes >> 4;
        let (a, b) = (self.pair(pairs), self.pair(pairs >> 16));
        let (c, d) = (self.pair(pairs >> 32), self.pair(pairs >> 48));
        let low = u64::from(a & 0xFFFF) | u64::from(b & 0xFFFF) << (a >> 16);
        let high = u64::from(c & 0xFFFF) | u64::from(d & 0xFFFF) << (c >> 16);
        let low_bits = (a >> 16) + (b >> 16);
        (low | high << low_bits, low_bits + (c >> 16) + (d >> 16))
    }

    #[inline(always)]
    fn pair(&self, index: u64) -> u32 {
        self.pairs[(index & 0xFF) as usize]
    }
}

/// The values of a segment, the biases of their channels, and room for parts and classes.
pub(super) struct Segment<'a> {
    pub(super) parts: Parts,
    pub(super) bytes: &'a [u8],
    pub(super) apart: Apart<'a>,
    pub(super) biases: &'a [u8],
    pub(super) classes: &'a mut [u8],
}

/// Of each window of bits: how many of them are whole codes, in byte 0; the classes of those, from byte 1 on; how many
/// classes they are, at least one, in byte 7.
#[derive(Clone)]
pub(super) struct Table(Box<[u64; 1 << WINDOW]>);

impl Table {
    pub(super) fn new(code: &Code) -> Self {
        let mut single = [(0, 0); 1 << LONGEST];
        for (class, (&bits, &length)) in (0_u64..).zip(code.codes.iter().zip(&code.lengths)) {
            for entry in single.iter_mut().skip(usize::from(bits)).step_by(1 << length) {
                *entry = (class, length);
            }
        }
        let mut table = Box::new([0; 1 << WINDOW]);
        for (window, entry) in table.iter_mut().enumerate() {
            let (mut bits, mut found) = (0, 0);
            while found < FOUND {
                let (class, length) = single[window >> bits & (single.len() - 1)];
                if bits + u32::from(length) > WINDOW {
                    break;
                }
                *entry |= class << (8 * (found + 1));
                bits += u32::from(length);
                found += 1;
            }
            *entry |= (found as u64) << 56 | u64::from(bits);
        }
        Self(table)
    }

    /// Decodes each lane.
    #[inline(always)]
    pub(super) fn decode<const N: usize>(&self, kernel: Kernel, bits: &[u8], lanes: [Lane; N], out: &mut Decoded) {
        #[cfg(target_arch = "x86_64")]
        if kernel.is_avx2() {
            return simd::decode_classes(kernel, self, bits, lanes, out);
        }
        self.decode_portably(bits, lanes, out);
    }

    /// All lanes at once, so that look-ups need not wait for one another. A lane that is full before others goes on to
    /// find classes behind its own, which mean nothing, and stays where it is.
    #[inline(always)]
    pub(super) fn decode_portably<const N: usize>(&self, bits: &[u8], mut lanes: [Lane; N], out: &mut Decoded) {
        if let [lane] = lanes[..] {
            return self.decode_alone(bits, lane, out);
        }
        while lanes.iter().fold(false, |any, lane| any | (lane.place < lane.end)) {
            let mut words = [0; N];
            for (word, lane) in words.iter_mut().zip(&lanes) {
                *word = load(bits, lane.at);
            }
            for _ in 0..LOOKUPS {
                for (word, lane) in words.iter_mut().zip(&mut lanes) {
                    *word = word.wrapping_shr(self.look_up(*word, &mut lane.place, out));
                }
            }
            for (word, lane) in words.iter().zip(&mut lanes) {
                lane.at += word.leading_zeros() as usize;
                lane.place = lane.place.min(lane.end);
            }
        }
    }

    /// One lane: nothing else is there to do while bits are loaded, so they are loaded before it is known how many the
    /// last look-up before them takes.
    #[inline(always)]
    fn decode_alone(&self, bits: &[u8], Lane { at, mut place, end }: Lane, out: &mut Decoded) {
        let (mut start, mut word) = (at & !7, load(bits, at & !7) >> (at & 7));
        while place < end {
            for _ in 1..LOOKUPS_ALONE {
                word = word.wrapping_shr(self.look_up(word, &mut place, out));
            }
            let at = start + word.leading_zeros() as usize;
            start = at & !7;
            let next = load(bits, start);
            word = next >> ((at & 7) + (self.look_up(word, &mut place, out) & 63) as usize);
        }
    }

    /// Writes the classes that a word begins with to a place and puts it behind them; says how many bits they are, in the
    /// lowest six bits.
    #[inline(always)]
    fn look_up(&self, word: u64, place: &mut usize, out: &mut Decoded) -> u32 {
        let entry = self.0[(word & ((1 << WINDOW) - 1)) as usize];
        let at = *place & (PLACES - 1);
        out[at..at + WRITTEN].copy_from_slice(&entry.rotate_right(8).to_le_bytes());
        *place = at + (entry >> 56) as usize;
        (entry & 0xFF) as u32
    }
}

/// Classes to decode: where their bits begin, and which places they fill; [`SLACK`] behind them is overwritten.
#[derive(Clone, Copy, Default)]
pub(super) struct Lane {
    pub(super) at: usize,
    pub(super) place: usize,
    pub(super) end: usize,
}
