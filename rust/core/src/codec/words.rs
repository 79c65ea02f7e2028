//! Floats taken apart and put together again.
//!
//! Rotated left by one bit, a value has its exponent at the top and its sign at the bottom. Its highest byte is the
//! *symbol*, or for exponents of fewer than eight bits the symbol and below it the `mid` bits; the other bytes are *low*.

use std::ops::Range;

use super::float::Float;
use super::kernel::Kernel;
#[cfg(target_arch = "x86_64")]
use super::simd;
use crate::tensor::Dtype;

/// The class of symbol 0 in every channel, so that zeros cost the same everywhere.
pub(super) const ZERO: u8 = 14;
/// The class of symbols that have none: they stand elsewhere.
pub(super) const ESCAPE: u8 = 15;

/// What the bits of a dtype are for this codec.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    /// Bytes of a value.
    pub(super) width: usize,
    /// Bits of the highest byte that are not the symbol's.
    pub(super) mid: u32,
}

impl Parts {
    /// Those of a dtype of floats.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        let float = Float::of(dtype)?;
        Some(Self { width: dtype.size(), mid: 8 - float.exponent_bits.min(8) })
    }

    /// Bits of a value that stay as they are.
    pub(super) fn kept_bits(self) -> u64 {
        8 * self.lows() as u64 + u64::from(self.mid)
    }

    /// Low bytes of a value.
    pub(super) fn lows(self) -> usize {
        self.width - 1
    }
}

/// Room for the parts of a frame's values from one on; of low plane k, `stride * k` bytes further.
pub(super) struct Apart<'a> {
    pub(super) symbols: &'a mut [u8],
    pub(super) mids: &'a mut [u8],
    pub(super) lows: &'a mut [u8],
    pub(super) stride: usize,
}

impl Apart<'_> {
    /// Room for some of the values.
    pub(super) fn of(&mut self, values: &Range<usize>) -> Apart<'_> {
        Apart {
            symbols: self.symbols.get_mut(values.clone()).unwrap_or_default(),
            mids: self.mids.get_mut(values.clone()).unwrap_or_default(),
            lows: self.lows.get_mut(values.start..).unwrap_or_default(),
            stride: self.stride,
        }
    }
}

/// Takes the values of `bytes` apart; `mids` is empty where there are no mid bits.
#[inline(always)]
pub(super) fn split(kernel: Kernel, parts: Parts, bytes: &[u8], apart: &mut Apart<'_>) {
    #[cfg(target_arch = "x86_64")]
    if kernel.is_avx2() {
        return simd::split(kernel, parts, bytes, apart);
    }
    split_portably(parts, bytes, apart);
}

#[inline(always)]
pub(super) fn split_portably(parts: Parts, bytes: &[u8], apart: &mut Apart<'_>) {
    match parts.width {
        1 => split_words::<u8>(bytes, parts.mid, apart),
        2 => split_words::<u16>(bytes, parts.mid, apart),
        4 => split_words::<u32>(bytes, parts.mid, apart),
        _ => split_words::<u64>(bytes, parts.mid, apart),
    }
}

#[inline(always)]
fn split_words<W: Word>(bytes: &[u8], mid: u32, apart: &mut Apart<'_>) {
    let Apart { symbols, mids, lows, stride } = apart;
    for (raw, symbol) in bytes.chunks_exact(W::BYTES).zip(symbols.iter_mut()) {
        *symbol = W::read(raw).rotated().byte(W::BYTES - 1);
    }
    if mid > 0 {
        for (mid_bits, symbol) in mids.iter_mut().zip(symbols.iter_mut()) {
            *mid_bits = *symbol & ((1 << mid) - 1);
            *symbol >>= mid;
        }
    }
    for (index, low) in lows.chunks_mut((*stride).max(1)).enumerate() {
        for (raw, byte) in bytes.chunks_exact(W::BYTES).zip(low.iter_mut()) {
            *byte = W::read(raw).rotated().byte(index);
        }
    }
}

/// The symbols of classes, by the biases of their channels; of [`ESCAPE`], anything.
#[inline(always)]
pub(super) fn symbols(kernel: Kernel, classes: &[u8], biases: &[u8], symbols: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if kernel.is_avx2() {
        return simd::symbols(kernel, classes, biases, symbols);
    }
    symbols_portably(classes, biases, symbols);
}

// These loops have no branches, so that they are compiled to vectors.
#[inline(always)]
pub(super) fn symbols_portably(classes: &[u8], biases: &[u8], symbols: &mut [u8]) {
    for ((symbol, &class), &bias) in symbols.iter_mut().zip(classes).zip(biases) {
        let is_zero = u8::from(class == ZERO).wrapping_neg();
        *symbol = class.wrapping_add(bias) & !is_zero;
    }
}

/// Values of two bytes without mid bits from their classes, by the biases of their channels, and their low bytes; of
/// [`ESCAPE`], anything.
#[inline(always)]
pub(super) fn join_classes(kernel: Kernel, classes: &[u8], biases: &[u8], low: &[u8], out: &mut [[u8; 2]]) {
    #[cfg(target_arch = "x86_64")]
    if kernel.is_avx2() {
        return simd::join_classes(kernel, classes, biases, low, out);
    }
    join_classes_portably(classes, biases, low, out);
}

#[inline(always)]
pub(super) fn join_classes_portably(classes: &[u8], biases: &[u8], low: &[u8], out: &mut [[u8; 2]]) {
    for ((out, &low), (&class, &bias)) in out.iter_mut().zip(low).zip(classes.iter().zip(biases)) {
        let is_zero = u8::from(class == ZERO).wrapping_neg();
        *out = join_pair(class.wrapping_add(bias) & !is_zero, low);
    }
}

/// A value of two bytes.
#[inline(always)]
pub(super) fn join_pair(top: u8, low: u8) -> [u8; 2] {
    (u16::from(top) << 8 | u16::from(low)).rotate_right(1).to_le_bytes()
}

/// Calls `found` with the place of each [`ESCAPE`]. There are few: most steps are seen to have none at once.
#[inline(always)]
pub(super) fn each_escape(classes: &[u8], mut found: impl FnMut(usize)) {
    const STEP: usize = 8;
    // The one class that carries into bit 4 when 1 is added.
    let carries = |classes: u64| (classes + u64::MAX / 0xFF) & ((u64::MAX / 0xFF) << 4);
    let mut look = |place: usize, classes: u64| {
        let mut carries = carries(classes);
        while carries != 0 {
            found(place + (carries.trailing_zeros() / 8) as usize);
            carries &= carries - 1;
        }
    };
    let (steps, rest) = classes.as_chunks::<STEP>();
    for (number, classes) in steps.iter().enumerate() {
        look(STEP * number, u64::from_le_bytes(*classes));
    }
    look(STEP * steps.len(), rest.iter().rev().fold(0, |word, &class| word << 8 | u64::from(class)));
}

/// Mid bits to top bytes.
#[inline(always)]
pub(super) fn add_mids(parts: Parts, symbols: &[u8], mids: &mut [u8]) {
    for (top, &symbol) in mids.iter_mut().zip(symbols) {
        *top |= symbol << parts.mid;
    }
}

/// Puts values together from their top bytes and their low ones.
#[inline(always)]
pub(super) fn join(kernel: Kernel, tops: &[u8], lows: &Lows<'_>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if kernel.is_avx2() {
        return simd::join(kernel, tops, lows, out);
    }
    join_portably(tops, lows, out);
}

/// The planes of low bytes: as many as a value has.
pub(super) type Lows<'a> = [&'a [u8]; 7];

#[inline(always)]
pub(super) fn join_portably(tops: &[u8], lows: &Lows<'_>, out: &mut [u8]) {
    let [low, middle, high, ..] = lows;
    match out.len() / tops.len().max(1) {
        1 => {
            for (out, &top) in out.iter_mut().zip(tops) {
                *out = top.rotate_right(1);
            }
        }
        2 => {
            for ((out, &top), &low) in out.as_chunks_mut::<2>().0.iter_mut().zip(tops).zip(*low) {
                *out = join_pair(top, low);
            }
        }
        4 => {
            let lows = low.iter().zip(*middle).zip(*high);
            for ((out, &top), ((&low, &middle), &high)) in out.as_chunks_mut::<4>().0.iter_mut().zip(tops).zip(lows) {
                let (top, high) = (u32::from(top) << 24, u32::from(high) << 16);
                *out = (top | high | u32::from(middle) << 8 | u32::from(low)).rotate_right(1).to_le_bytes();
            }
        }
        _ => {
            for (value, (out, &top)) in out.as_chunks_mut::<8>().0.iter_mut().zip(tops).enumerate() {
                let low = |plane: &&[u8]| u64::from(plane.get(value).copied().unwrap_or(0));
                let bits = lows.iter().rev().fold(u64::from(top), |bits, plane| bits << 8 | low(plane));
                *out = bits.rotate_right(1).to_le_bytes();
            }
        }
    }
}

/// The classes of symbols, by the biases of their channels; says whether there is an [`ESCAPE`].
#[inline(always)]
pub(super) fn classify(kernel: Kernel, symbols: &[u8], biases: &[u8], classes: &mut [u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if kernel.is_avx2() {
        return simd::classify(kernel, symbols, biases, classes);
    }
    classify_portably(symbols, biases, classes)
}

#[inline(always)]
pub(super) fn classify_portably(symbols: &[u8], biases: &[u8], classes: &mut [u8]) -> bool {
    let mut escapes = 0;
    for ((to, &symbol), &bias) in classes.iter_mut().zip(symbols).zip(biases) {
        let class = symbol.wrapping_sub(bias);
        let is_zero = u8::from(symbol == 0).wrapping_neg();
        let is_escape = u8::from(class >= ZERO).wrapping_neg() & !is_zero;
        escapes |= is_escape;
        *to = class & !(is_zero | is_escape) | ZERO & is_zero | ESCAPE & is_escape;
    }
    escapes != 0
}

/// An unsigned integer as wide as a value.
trait Word: Copy {
    const BYTES: usize;
    fn read(raw: &[u8]) -> Self;
    fn rotated(self) -> Self;
    fn byte(self, index: usize) -> u8;
}

macro_rules! words {
    ($($word:ident)*) => {$(
        impl Word for $word {
            const BYTES: usize = size_of::<$word>();
            #[inline(always)]
            fn read(raw: &[u8]) -> Self {
                raw.try_into().map_or(0, $word::from_le_bytes)
            }
            #[inline(always)]
            fn rotated(self) -> Self {
                self.rotate_left(1)
            }
            #[inline(always)]
            fn byte(self, index: usize) -> u8 {
                ((self >> (8 * index)) & 0xFF) as u8
            }
        }
    )*};
}
words!(u8 u16 u32 u64);
