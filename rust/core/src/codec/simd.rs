//! The inner loops once more, for AVX2, BMI and LZCNT: the same bytes, sooner.
//!
//! Three kinds of `unsafe` are here. Hints of what will be read. Calls of functions that are compiled for these
//! instructions: a [`Kernel`] that says it has them comes from detection alone. And loads and stores through pointers,
//! each beside the slices that bound it.

#![allow(unsafe_code, reason = "vector instructions, and stores that were checked once for many")]

use std::arch::x86_64::*;

use super::bits::BitWriter;
use super::classes::{Code, Decoded, Lane, Segment, Table};
use super::kernel::Kernel;
use super::words::{self, Apart, ESCAPE, Lows, Parts, ZERO};

/// Says that `bytes` will be read soon.
pub(super) fn fetch(bytes: &[u8]) {
    const LINE: usize = 64;
    for line in bytes.chunks(LINE) {
        // SAFETY: every x86-64 has this instruction, and it reads nothing that can be seen.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
}

/// Runs `work`, compiled for these instructions as far as it is inlined.
pub(super) fn run<R>(kernel: Kernel, work: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn run<R>(work: impl FnOnce() -> R) -> R {
        work()
    }
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { run(work) }
}

/// Values of one step.
const STEP: usize = 32;

/// [`words::split_portably`].
pub(super) fn split(kernel: Kernel, parts: Parts, bytes: &[u8], apart: &mut Apart<'_>) {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn run(parts: Parts, bytes: &[u8], apart: &mut Apart<'_>) {
        words::split_portably(parts, bytes, apart);
    }
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { run(parts, bytes, apart) }
}

/// [`words::classify_portably`].
pub(super) fn classify(kernel: Kernel, symbols: &[u8], biases: &[u8], classes: &mut [u8]) -> bool {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn run(symbols: &[u8], biases: &[u8], classes: &mut [u8]) -> bool {
        words::classify_portably(symbols, biases, classes)
    }
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { run(symbols, biases, classes) }
}

/// [`words::symbols_portably`].
pub(super) fn symbols(kernel: Kernel, classes: &[u8], biases: &[u8], symbols: &mut [u8]) {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn run(classes: &[u8], biases: &[u8], symbols: &mut [u8]) {
        words::symbols_portably(classes, biases, symbols);
    }
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { run(classes, biases, symbols) }
}

/// [`words::join_classes_portably`].
pub(super) fn join_classes(kernel: Kernel, classes: &[u8], biases: &[u8], low: &[u8], out: &mut [[u8; 2]]) {
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { join_classes_with_avx2(classes, biases, low, out) }
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn join_classes_with_avx2(classes: &[u8], biases: &[u8], low: &[u8], out: &mut [[u8; 2]]) {
    let ((classes, classes_rest), (low, low_rest)) = (classes.as_chunks::<STEP>(), low.as_chunks::<STEP>());
    let (steps, out_rest) = out.as_chunks_mut::<STEP>();
    let (biases, biases_rest) = biases.split_at_checked(STEP * classes.len()).unwrap_or_default();
    let parts = classes.iter().zip(biases.as_chunks::<STEP>().0).zip(low);
    for (((classes, biases), low), out) in parts.zip(steps) {
        let classes = vector(classes);
        let is_zero = _mm256_cmpeq_epi8(classes, _mm256_set1_epi8(ZERO.cast_signed()));
        let top = _mm256_andnot_si256(is_zero, _mm256_add_epi8(classes, vector(biases)));
        join_step(top, vector(low), out);
    }
    words::join_classes_portably(classes_rest, biases_rest, low_rest, out_rest);
}

#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn join_step(top: __m256i, low: __m256i, out: &mut [[u8; 2]; STEP]) {
    let rotated = |words: __m256i| _mm256_or_si256(_mm256_srli_epi16(words, 1), _mm256_slli_epi16(words, 15));
    let even = rotated(_mm256_unpacklo_epi8(low, top));
    let odd = rotated(_mm256_unpackhi_epi8(low, top));
    if let ([first, second], []) = out.as_flattened_mut().as_chunks_mut() {
        store(first, _mm256_permute2x128_si256(even, odd, 0x20));
        store(second, _mm256_permute2x128_si256(even, odd, 0x31));
    }
}

/// [`words::join_portably`].
pub(super) fn join(kernel: Kernel, tops: &[u8], lows: &Lows<'_>, out: &mut [u8]) {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn run(tops: &[u8], lows: &Lows<'_>, out: &mut [u8]) {
        if out.len() == 2 * tops.len() { join_pairs(tops, lows, out) } else { words::join_portably(tops, lows, out) }
    }
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { run(tops, lows, out) }
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn join_pairs(tops: &[u8], [low, ..]: &Lows<'_>, out: &mut [u8]) {
    let (steps, out_rest) = out.as_chunks_mut::<2>().0.as_chunks_mut::<STEP>();
    let ((tops, tops_rest), (low, low_rest)) = (tops.as_chunks::<STEP>(), low.as_chunks::<STEP>());
    for ((top, low), out) in tops.iter().zip(low).zip(steps) {
        join_step(vector(top), vector(low), out);
    }
    let lows = [low_rest, &[], &[], &[], &[], &[], &[]];
    words::join_portably(tops_rest, &lows, out_rest.as_flattened_mut());
}

#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn vector(bytes: &[u8; STEP]) -> __m256i {
    // SAFETY: an array of 32 bytes, and no alignment asked for.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn store(out: &mut [u8; STEP], vector: __m256i) {
    // SAFETY: an array of 32 bytes, and no alignment asked for.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), vector) }
}

/// [`Code::put`].
pub(super) fn put_classes(kernel: Kernel, code: &Code, classes: &[u8], out: &mut BitWriter<'_>) {
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { put_classes_with_avx2(code, classes, out) }
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn put_classes_with_avx2(code: &Code, classes: &[u8], out: &mut BitWriter<'_>) {
    let tables = Tables::of(code);
    // A copy that nothing else points to is kept in registers.
    let mut writer = out.again();
    let (steps, rest) = classes.as_chunks::<STEP>();
    for classes in steps {
        put_step(&tables, vector(classes), &mut writer);
    }
    if !rest.is_empty() {
        // Classes from 128 on have no code and no length.
        let mut last = [0x80; STEP];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        put_step(&tables, vector(&last), &mut writer);
    }
    (out.at, out.word, out.fill) = (writer.at, writer.word, writer.fill);
}

/// [`Code::take`] of values of two bytes, which stay in registers until their codes are written.
pub(super) fn take_pairs(kernel: Kernel, code: &Code, segment: Segment<'_>, out: &mut BitWriter<'_>) -> bool {
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { take_pairs_with_avx2(code, segment, out) }
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn take_pairs_with_avx2(code: &Code, segment: Segment<'_>, out: &mut BitWriter<'_>) -> bool {
    let Segment { parts, bytes, apart: Apart { symbols, mids, lows, stride }, biases, classes } = segment;
    let tables = Tables::of(code);
    let (mid_bits, mid) = (_mm256_set1_epi8((1 << parts.mid) - 1), _mm_cvtsi32_si128(parts.mid.cast_signed()));
    let (steps, bytes) = bytes.as_chunks::<{ 2 * STEP }>();
    // Behind the low bytes of the segment are those of the next one.
    let (step_lows, lows) = lows.get_mut(..symbols.len()).unwrap_or_default().as_chunks_mut();
    let (step_symbols, symbols) = symbols.as_chunks_mut();
    let (step_mids, mids) = mids.as_chunks_mut();
    let (step_classes, classes) = classes.as_chunks_mut();
    let (step_biases, rest_biases) = biases.split_at_checked(STEP * steps.len()).unwrap_or_default();
    let mut step_mids = step_mids.iter_mut();
    let mut writer = out.again();
    let mut escapes = _mm256_setzero_si256();
    let steps = steps.iter().zip(step_biases.as_chunks().0).zip(step_symbols).zip(step_lows).zip(step_classes);
    for ((((bytes, biases), symbols), lows), classes) in steps {
        let (top, low) = split_step(bytes);
        store(lows, low);
        if let Some(mids) = step_mids.next() {
            store(mids, _mm256_and_si256(top, mid_bits));
        }
        // Without their mid bits, bytes shift nothing into those below them.
        let symbol = _mm256_srl_epi16(_mm256_andnot_si256(mid_bits, top), mid);
        store(symbols, symbol);
        let (class, is_escape) = classify_step(symbol, vector(biases));
        store(classes, class);
        escapes = _mm256_or_si256(escapes, is_escape);
        put_step(&tables, class, &mut writer);
    }
    (out.at, out.word, out.fill) = (writer.at, writer.word, writer.fill);
    words::split_portably(parts, bytes, &mut Apart { symbols, mids, lows, stride });
    let rest_escapes = words::classify_portably(symbols, rest_biases, classes);
    put_classes_with_avx2(code, classes, out);
    rest_escapes || _mm256_testz_si256(escapes, escapes) == 0
}

/// [`words::classify_portably`]: the classes, and all bits of those that are escapes.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn classify_step(symbols: __m256i, biases: __m256i) -> (__m256i, __m256i) {
    let (zero, escape) = (_mm256_set1_epi8(ZERO.cast_signed()), _mm256_set1_epi8(ESCAPE.cast_signed()));
    let classes = _mm256_sub_epi8(symbols, biases);
    let is_zero = _mm256_cmpeq_epi8(symbols, _mm256_setzero_si256());
    let is_high = _mm256_cmpeq_epi8(classes, _mm256_max_epu8(classes, zero));
    let is_escape = _mm256_andnot_si256(is_zero, is_high);
    let classes = _mm256_blendv_epi8(classes, escape, is_escape);
    (_mm256_blendv_epi8(classes, zero, is_zero), is_escape)
}

/// Unpacks groups of 8 fields of `WIDTH` bits, below 8: 32 fields at a time, as long as there are bytes enough to load; says
/// how many groups.
pub(super) fn unpack<const WIDTH: usize>(kernel: Kernel, packed: &[u8], groups: &mut [[u8; 8]]) -> usize {
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { unpack_with_avx2::<WIDTH>(packed, groups) }
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn unpack_with_avx2<const WIDTH: usize>(packed: &[u8], groups: &mut [[u8; 8]]) -> usize {
    // Each field is in two bytes, to be brought to the top of them.
    let [mut bytes, mut powers] = [[0; 32]; 2];
    for (field, (bytes, power)) in bytes.as_chunks_mut().0.iter_mut().zip(powers.as_chunks_mut().0).enumerate() {
        let (byte, bit) = (field * WIDTH / 8, field * WIDTH % 8);
        *bytes = [byte.to_le_bytes()[0], (byte + 1).to_le_bytes()[0]];
        *power = (1_u16 << (16 - WIDTH - bit)).to_le_bytes();
    }
    let (bytes, powers) = (vector(&bytes), vector(&powers));
    let down = _mm_cvtsi64_si128(16 - WIDTH as i64);
    let fields = |packed: &[u8; 16]| {
        let words = _mm256_shuffle_epi8(table(packed), bytes);
        _mm256_srl_epi16(_mm256_mullo_epi16(words, powers), down)
    };
    let mut blocks = 0;
    for block in groups.as_flattened_mut().as_chunks_mut::<STEP>().0 {
        let at = blocks * STEP * WIDTH / 8;
        let first = packed.get(at..).and_then(<[u8]>::first_chunk);
        let second = packed.get(at + 2 * WIDTH..).and_then(<[u8]>::first_chunk);
        let (Some(first), Some(second)) = (first, second) else { break };
        store(block, narrow(fields(first), fields(second)));
        blocks += 1;
    }
    blocks * STEP / 8
}

/// The low bytes of 16-bit words below 256, in the order of the words.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn narrow(first: __m256i, second: __m256i) -> __m256i {
    _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0b11_01_10_00)
}

/// Of 16-bit values, rotated left by one, the high bytes and the low ones.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn split_step(bytes: &[u8; 2 * STEP]) -> (__m256i, __m256i) {
    // SAFETY: an array of 64 bytes, and no alignment asked for.
    let load = |at: usize| unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) };
    let (first, second) = (load(0), load(STEP));
    let byte = _mm256_set1_epi16(0xFF);
    let low =
        |words| _mm256_and_si256(_mm256_or_si256(_mm256_slli_epi16(words, 1), _mm256_srli_epi16(words, 15)), byte);
    let top = |words| _mm256_and_si256(_mm256_srli_epi16(words, 7), byte);
    (narrow(top(first), top(second)), narrow(low(first), low(second)))
}

/// Of each class its code, how long that is, and the power of two of that length.
struct Tables {
    codes: __m256i,
    lengths: __m256i,
    powers: __m256i,
}

impl Tables {
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn of(code: &Code) -> Self {
        let powers = table(&[1, 2, 4, 8, 16, 32, 64, 128, 0, 0, 0, 0, 0, 0, 0, 0]);
        let lengths = table(&code.lengths);
        Self { codes: table(&code.codes), lengths, powers: _mm256_shuffle_epi8(powers, lengths) }
    }
}

#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn table(entries: &[u8; 16]) -> __m256i {
    // SAFETY: an array of 16 bytes, and no alignment asked for.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(entries.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn put_step(tables: &Tables, classes: __m256i, out: &mut BitWriter<'_>) {
    let (codes, lengths) = (_mm256_shuffle_epi8(tables.codes, classes), _mm256_shuffle_epi8(tables.lengths, classes));
    // Two codes to one of 14 bits: the second times the power that its place is.
    let weights = _mm256_slli_epi16(_mm256_shuffle_epi8(tables.powers, classes), 8);
    let codes = _mm256_maddubs_epi16(_mm256_or_si256(weights, _mm256_set1_epi16(1)), codes);
    let lengths = _mm256_maddubs_epi16(lengths, _mm256_set1_epi8(1));
    // Two of those to one of 28 bits.
    let low = _mm256_set1_epi32(0xFFFF);
    let second = _mm256_sllv_epi32(_mm256_srli_epi32(codes, 16), _mm256_and_si256(lengths, low));
    let codes = _mm256_or_si256(_mm256_and_si256(codes, low), second);
    let lengths = _mm256_madd_epi16(lengths, _mm256_set1_epi16(1));
    // And two of those to one of 56 bits.
    let low = _mm256_set1_epi64x(0xFFFF_FFFF);
    let first = _mm256_and_si256(lengths, low);
    let second = _mm256_sllv_epi64(_mm256_srli_epi64(codes, 32), first);
    let codes = _mm256_or_si256(_mm256_and_si256(codes, low), second);
    let lengths = _mm256_add_epi64(first, _mm256_srli_epi64(lengths, 32));
    out.put_four([
        (_mm256_extract_epi64(codes, 0).cast_unsigned(), _mm256_extract_epi32(lengths, 0).cast_unsigned()),
        (_mm256_extract_epi64(codes, 1).cast_unsigned(), _mm256_extract_epi32(lengths, 2).cast_unsigned()),
        (_mm256_extract_epi64(codes, 2).cast_unsigned(), _mm256_extract_epi32(lengths, 4).cast_unsigned()),
        (_mm256_extract_epi64(codes, 3).cast_unsigned(), _mm256_extract_epi32(lengths, 6).cast_unsigned()),
    ]);
}

/// [`Table::decode_portably`].
pub(super) fn decode_classes<const N: usize>(
    kernel: Kernel,
    table: &Table,
    bits: &[u8],
    lanes: [Lane; N],
    out: &mut Decoded,
) {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn run<const N: usize>(table: &Table, bits: &[u8], lanes: [Lane; N], out: &mut Decoded) {
        table.decode_portably(bits, lanes, out);
    }
    debug_assert!(kernel.is_avx2());
    // SAFETY: the kernel was detected.
    unsafe { run(table, bits, lanes, out) }
}
