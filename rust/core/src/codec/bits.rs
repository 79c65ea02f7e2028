//! Bits one after the other in bytes, the first in the lowest bit: appended some at a time, loaded a word at a time.

/// Bits of [`load`] that can be relied on.
pub(super) const LOADED: usize = 56;
/// Above the bits of a word, so that leading zeros tell by how much it was shifted.
const SENTINEL: u64 = 1 << 63;
/// Room that a writer needs behind the bits that it is given.
pub(super) const WORD: usize = 8;

/// Room that a writer needs for four pieces at once.
pub(super) const ROOM: usize = 32 + WORD;

/// Bits on their way into a buffer with [`WORD`] bytes of room behind them.
pub(super) struct BitWriter<'a> {
    pub(super) out: &'a mut [u8],
    pub(super) at: usize,
    pub(super) word: u64,
    pub(super) fill: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0, word: 0, fill: 0 }
    }

    /// The same writer, for some more bits.
    #[inline(always)]
    pub(super) fn again(&mut self) -> BitWriter<'_> {
        BitWriter { out: self.out, at: self.at, word: self.word, fill: self.fill }
    }

    /// Bits so far.
    pub(super) fn bits(&self) -> usize {
        8 * self.at + self.fill as usize
    }

    /// Appends the low `count` bits of `bits`, 56 at most; the others are zeros.
    #[inline(always)]
    pub(super) fn put(&mut self, bits: u64, count: u32) {
        let word = self.word | bits << self.fill;
        let fill = self.fill + count;
        if let Some(room) = self.out.get_mut(self.at..self.at + WORD) {
            room.copy_from_slice(&word.to_le_bytes());
        }
        self.at += (fill >> 3) as usize;
        self.word = word >> (fill & !7);
        self.fill = fill & 7;
    }

    /// Appends four pieces like [`Self::put`], or nothing where there is no [`ROOM`]: one look at that is enough for all.
    #[inline(always)]
    pub(super) fn put_four(&mut self, pieces: impl IntoIterator<Item = (u64, u32)>) {
        let Some(room) = self.out.get_mut(self.at..).and_then(<[u8]>::first_chunk_mut::<ROOM>) else { return };
        let mut at = 0;
        for (bits, count) in pieces {
            let word = self.word | bits << self.fill;
            let fill = self.fill + count;
            // The mask says to the compiler what `ROOM` says to readers: four pieces end below 32 bytes.
            let at_most = at & (ROOM - WORD - 1);
            if let Some(room) = room.get_mut(at_most..at_most + WORD) {
                room.copy_from_slice(&word.to_le_bytes());
            }
            at += (fill >> 3) as usize;
            self.word = word >> (fill & !7);
            self.fill = fill & 7;
        }
        self.at += at;
    }

    /// Fills the last byte with zeros.
    pub(super) fn align(&mut self) {
        self.put(0, self.fill.wrapping_neg() & 7);
    }

    /// Bytes in all; what is left of the last one is zeros.
    pub(super) fn finish(self) -> usize {
        self.bits().div_ceil(8)
    }
}

/// The bits from `at` on, at least [`LOADED`] of them, zeros where there are no more, below a sentinel.
#[inline(always)]
pub(super) fn load(bytes: &[u8], at: usize) -> u64 {
    let byte = at >> 3;
    let word = match bytes.get(byte..byte + WORD).and_then(<[u8]>::first_chunk) {
        Some(word) => u64::from_le_bytes(*word),
        None => last_word(bytes, byte),
    };
    word >> (at & 7) | SENTINEL
}

#[cold]
#[inline(never)]
fn last_word(bytes: &[u8], byte: usize) -> u64 {
    bytes.get(byte..).unwrap_or_default().iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_put_is_loaded(pieces in prop::collection::vec((any::<u64>(), 0_u32..=56), 0..60)) {
            let mut out = vec![0xA5; pieces.len() * 7 + WORD];
            let mut writer = BitWriter::new(&mut out);
            let mut starts = Vec::new();
            for &(bits, count) in &pieces {
                starts.push(writer.bits());
                writer.put(bits & ((1 << count) - 1), count);
            }
            let len = writer.finish();
            out.truncate(len);
            for (&(bits, count), &start) in pieces.iter().zip(&starts) {
                prop_assert_eq!((load(&out, start) ^ bits) & ((1 << count) - 1), 0);
            }
            prop_assert_eq!(load(&out, 8 * len + 64), SENTINEL);
        }
    }
}
