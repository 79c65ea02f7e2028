//! zstd frames whose size is known before they are decoded, and what a thread keeps between frames.

use std::cell::Cell;
use std::io::Cursor;

use ::zstd::zstd_safe::{self, CCtx, CParameter, CompressionLevel, DCtx, ParamSwitch};

use super::{Rows, archive, malformed};
use crate::error::{Error, Kind, Result};

/// Level of the `zstd` codec.
const LEVEL: CompressionLevel = 3;
/// The level at which zstd looks for no matches: what is left is its Huffman coder.
const HUFFMAN_LEVEL: CompressionLevel = -131_072;
/// Largest window a frame may ask for, in bytes.
const MAX_WINDOW: u64 = 1 << 27;
/// Buffers above this are given back after the frame that needed them.
const KEPT_BYTES: usize = 1 << 20;
/// Bytes of a word compared in search of repeats.
const WORD: usize = 8;

const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
const SINGLE_SEGMENT: u8 = 0x20;
const RESERVED: u8 = 0x08;
const DICTIONARY: u8 = 0x03;

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Contexts and buffers that a thread reuses from frame to frame.
pub(super) struct Scratch {
    /// Finds matches and codes what is left.
    pub(super) general: CCtx<'static>,
    /// Entropy coding alone.
    pub(super) huffman: CCtx<'static>,
    pub(super) decoder: DCtx<'static>,
    pub(super) symbols: Vec<u8>,
    pub(super) classes: Vec<u8>,
    pub(super) mids: Vec<u8>,
    pub(super) bits: Vec<u8>,
    pub(super) escapes: Vec<u8>,
    pub(super) rest: Vec<u8>,
    pub(super) packed: Vec<u8>,
    pub(super) places: archive::Places,
}

impl Scratch {
    fn new() -> Self {
        let (mut general, mut huffman) = (CCtx::create(), CCtx::create());
        // A parameter refused would cost ratio, never correctness: every frame says how it is to be decoded.
        let _ = general.set_parameter(CParameter::CompressionLevel(LEVEL));
        let _ = huffman.set_parameter(CParameter::CompressionLevel(HUFFMAN_LEVEL));
        let _ = huffman.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable));
        let places = archive::Places::default();
        let [symbols, classes, mids, bits, escapes, rest, packed] = [const { Vec::new() }; 7];
        Self { general, huffman, decoder: DCtx::create(), symbols, classes, mids, bits, escapes, rest, packed, places }
    }

    /// Runs `work` with this thread's scratch.
    pub(super) fn with<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        // Taken out, not borrowed: a panic below, or a call while the thread ends, costs the scratch and nothing else.
        let kept = SCRATCH.try_with(Cell::take).ok().flatten();
        let mut scratch = kept.unwrap_or_else(|| Box::new(Self::new()));
        let result = work(&mut scratch);
        let Self { symbols, classes, mids, bits, escapes, rest, packed, .. } = &mut *scratch;
        for buffer in [symbols, classes, mids, bits, escapes, rest, packed] {
            if buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
        scratch.places.give_back(KEPT_BYTES);
        let _ = SCRATCH.try_with(|cell| cell.set(Some(scratch)));
        result
    }
}

/// The first `length` bytes of a buffer, which grows as needed; what they hold means nothing.
pub(super) fn room<T: Copy + Default>(buffer: &mut Vec<T>, length: usize) -> &mut [T] {
    if buffer.len() < length {
        buffer.resize(length, T::default());
    }
    buffer.get_mut(..length).unwrap_or_default()
}

/// Appends `bytes` as one frame. Where zstd fails, `out` stays as it was and the answer is `false`.
pub(super) fn compress(context: &mut CCtx<'_>, bytes: &[u8], out: &mut Vec<u8>) -> bool {
    out.reserve(zstd_safe::compress_bound(bytes.len()));
    let end = out.len() as u64;
    let mut cursor = Cursor::new(out);
    cursor.set_position(end);
    context.compress2(&mut cursor, bytes).is_ok()
}

/// Whether rows repeat themselves, by a look at some of their words: zstd uses that and `planes` does not. To try zstd on
/// every frame would cost several times the encoding.
pub(super) fn finds_repeats(rows: Rows<'_>) -> bool {
    let row_bytes = usize::try_from(rows.row_values).unwrap_or(usize::MAX).saturating_mul(rows.dtype.size());
    has_runs(rows.bytes, rows.dtype.size()) || rows_recur(rows.bytes, row_bytes.max(1))
}

/// Whether many words are the word one value later, as in a run of zeros.
fn has_runs(bytes: &[u8], width: usize) -> bool {
    const LOOKS: usize = 256;
    let (mut looks, mut runs) = (0, 0);
    for piece in bytes.chunks((bytes.len() / LOOKS).max(2 * WORD)) {
        let word = |at: usize| piece.get(at..).and_then(<[u8]>::first_chunk::<WORD>);
        let (Some(word), Some(next)) = (word(0), word(width)) else { continue };
        runs += usize::from(u64::from_le_bytes(*word) == u64::from_le_bytes(*next));
        looks += 1;
    }
    5 * runs > looks
}

/// Whether many rows begin like an earlier one, as the embeddings of a repeated token do.
fn rows_recur(bytes: &[u8], row_bytes: usize) -> bool {
    const LOOKS: usize = 256;
    let mut seen = [0_u64; 256];
    let (mut looks, mut again) = (0, 0);
    let step = (bytes.len() / row_bytes / LOOKS).max(1);
    for row in bytes.chunks_exact(row_bytes).step_by(step) {
        let Some(head) = row.first_chunk::<WORD>().map(|head| u64::from_le_bytes(*head)) else { return false };
        // Fibonacci hashing: the highest byte of the product is the slot.
        let [.., slot] = head.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        if let Some(slot) = seen.get_mut(usize::from(slot)) {
            again += usize::from(*slot == head);
            *slot = head;
        }
        looks += 1;
    }
    4 * again > looks
}

/// Checks that `frame` is exactly one frame of `len` bytes of content; decodes nothing.
pub(super) fn check(frame: &[u8], len: usize) -> Result<()> {
    let header = Header::read(frame)?;
    if header.content != len as u64 {
        return Err(malformed(format!("a zstd frame of `{}` bytes where `{len}` are due", header.content)));
    }
    if header.window > MAX_WINDOW {
        let message = format!("a zstd frame with a window of `{}` bytes, above the limit of 128 MiB", header.window);
        return Err(Error::new(Kind::LimitExceeded, message));
    }
    match zstd_safe::find_frame_compressed_size(frame) {
        Ok(size) if size == frame.len() => Ok(()),
        Ok(size) => Err(malformed(format!("`{}` bytes after a zstd frame", frame.len().saturating_sub(size)))),
        Err(code) => Err(damaged(code)),
    }
}

/// Whether bytes begin like a frame.
pub(super) fn is_frame(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// The content of a frame, which is at most so many bytes.
pub(super) fn expand(frame: &[u8], most: usize) -> Result<Vec<u8>> {
    let content = Header::read(frame)?.content;
    let length = usize::try_from(content).ok().filter(|&length| length <= most);
    let length =
        length.ok_or_else(|| malformed(format!("a zstd frame of `{content}` bytes where `{most}` are most")))?;
    check(frame, length)?;
    let mut out = vec![0; length];
    Scratch::with(|scratch| decompress(&mut scratch.decoder, frame, &mut out))?;
    Ok(out)
}

/// Decodes a frame that passed [`check`] for `out.len()`.
pub(super) fn decompress(context: &mut DCtx<'_>, frame: &[u8], out: &mut [u8]) -> Result<()> {
    match context.decompress(out, frame) {
        Ok(len) if len == out.len() => Ok(()),
        Ok(len) => Err(malformed(format!("a zstd frame decodes to `{len}` bytes where `{}` are due", out.len()))),
        Err(code) => Err(damaged(code)),
    }
}

fn damaged(code: usize) -> Error {
    malformed(format!("a zstd frame that cannot be decoded: {}", zstd_safe::get_error_name(code)))
}

/// What a frame says about itself (RFC 8878, 3.1.1.1).
struct Header {
    content: u64,
    window: u64,
}

impl Header {
    fn read(frame: &[u8]) -> Result<Self> {
        let (magic, fields) = frame.split_first_chunk::<4>().ok_or_else(short)?;
        let (&descriptor, fields) = fields.split_first().ok_or_else(short)?;
        if *magic != MAGIC || descriptor & RESERVED != 0 {
            return Err(malformed("not a zstd frame"));
        }
        if descriptor & DICTIONARY != 0 {
            return Err(malformed("a zstd frame that needs a dictionary"));
        }
        if descriptor & SINGLE_SEGMENT != 0 {
            let content = Self::content(descriptor, fields)?;
            return Ok(Self { content, window: content });
        }
        let (&window, fields) = fields.split_first().ok_or_else(short)?;
        let base = 1 << (10 + (window >> 3));
        let window = base + base / 8 * u64::from(window & 7);
        Ok(Self { content: Self::content(descriptor, fields)?, window })
    }

    fn content(descriptor: u8, fields: &[u8]) -> Result<u64> {
        let (len, offset) = match (descriptor >> 6, descriptor & SINGLE_SEGMENT) {
            (0, 0) => return Err(malformed("a zstd frame that does not say its size")),
            (0, _) => (1, 0),
            (1, _) => (2, 256),
            (2, _) => (4, 0),
            _ => (8, 0),
        };
        let field = fields.get(..len).ok_or_else(short)?;
        let content = field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        Ok(content.saturating_add(offset))
    }
}

fn short() -> Error {
    malformed("a zstd frame shorter than its header")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data")]

    use proptest::prelude::*;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        assert!(Scratch::with(|scratch| compress(&mut scratch.general, bytes, &mut frame)));
        frame
    }

    /// A frame of one raw block with the header fields given.
    fn by_hand(descriptor: u8, fields: &[u8], content: &[u8]) -> Vec<u8> {
        let block = (content.len() as u32) << 3 | 1;
        [&MAGIC, &[descriptor][..], fields, &block.to_le_bytes()[..3], content].concat()
    }

    fn decode(frame: &[u8], len: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        check(frame, len)?;
        Scratch::with(|scratch| decompress(&mut scratch.decoder, frame, &mut out))?;
        Ok(out)
    }

    fn refusal(frame: &[u8], len: usize) -> (Kind, String) {
        let error = decode(frame, len).unwrap_err();
        (error.kind(), error.to_string())
    }

    fn malformed_as(message: &str) -> (Kind, String) {
        (Kind::Malformed, message.to_owned())
    }

    #[test]
    fn frames_come_back_behind_what_was_there() {
        for len in [0, 1, 300, 70_000, 3 << 20] {
            let bytes: Vec<u8> = (0..len).map(|i: u32| (i / 3) as u8).collect();
            let mut out = vec![9, 9];
            Scratch::with(|scratch| {
                assert!(compress(&mut scratch.general, &bytes, &mut out));
                let middle = out.len();
                assert!(compress(&mut scratch.huffman, &bytes, &mut out));
                assert_eq!(out[..2], [9, 9]);
                assert!(decode(&out[2..middle], bytes.len()).unwrap() == bytes);
                assert!(decode(&out[middle..], bytes.len()).unwrap() == bytes);
            });
        }
    }

    #[test]
    fn looks_find_what_repeats() {
        let mut noise = 1_u32;
        let mut next = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        };
        let random: Vec<u8> = (0..1 << 16).map(|_| next()).collect();
        assert!(!has_runs(&random, 2) && !rows_recur(&random, 768));
        let sparse: Vec<u8> = random.iter().map(|byte| if *byte < 128 { 0 } else { *byte }).collect();
        assert!(!has_runs(&sparse, 2) && !rows_recur(&sparse, 768));
        let mut tenth = random.clone();
        tenth[..6500].fill(0);
        assert!(!has_runs(&tenth, 2));
        let mut half = random.clone();
        half[..1 << 15].fill(0);
        assert!(has_runs(&half, 2) && has_runs(&half, 8));
        let repeated: Vec<u8> = random[..768 * 40].repeat(2);
        assert!(!has_runs(&repeated, 2) && rows_recur(&repeated, 768));
        assert!(!rows_recur(&repeated, 4) && !rows_recur(&[], 768) && !has_runs(&[], 2));
    }

    #[test]
    fn a_bomb_is_refused_before_anything_is_allocated() {
        let bomb = packed(&vec![0; 64 << 20]);
        assert!(bomb.len() < 1 << 13);
        let refused = "a zstd frame of `67108864` bytes where `16` are due";
        assert_eq!(refusal(&bomb, 16), malformed_as(refused));
        // Low plane 0 of 16 values is compressed.
        let stored = [&[4, 1], &(bomb.len() as u32).to_le_bytes()[..], &bomb, &[0; 16]].concat();
        let capacity = std::thread::spawn(move || {
            let mut out = [0; 32];
            let (encoding, dtype) = (crate::codec::Encoding::Planes, crate::tensor::Dtype::BFloat16);
            let stored = &stored;
            let frame =
                crate::codec::Coded { encoding, stored, dtype, row_values: 16, rows: 1, model: None, below: None };
            let rows = 0..1;
            let error = crate::codec::decode(&frame, &[rows], &mut out);
            assert_eq!(error.unwrap_err().to_string(), refused);
            Scratch::with(|scratch| scratch.symbols.capacity() + scratch.rest.capacity() + scratch.packed.capacity())
        });
        assert!(capacity.join().unwrap() <= 64);
    }

    #[test]
    fn a_frame_that_lies_about_its_size_is_refused() {
        // 16 are due and said, but the block holds 17 or 15.
        let short = by_hand(SINGLE_SEGMENT, &[15], &[7; 15]);
        assert_eq!(refusal(&short, 16), malformed_as("a zstd frame of `15` bytes where `16` are due"));
        for len in [15, 17] {
            let (kind, message) = refusal(&by_hand(SINGLE_SEGMENT, &[16], &vec![7; len]), 16);
            assert_eq!(kind, Kind::Malformed);
            assert!(message.starts_with("a zstd frame that cannot be decoded: "), "{message}");
        }
        // A run of 2^17 - 1 bytes in a frame that says 16.
        let block = 0x1F_FFFF_u32 << 3 | 3;
        let run = [&MAGIC[..], &[SINGLE_SEGMENT, 16], &block.to_le_bytes()[..3], &[0]].concat();
        assert_eq!(refusal(&run, 16).0, Kind::Malformed);
        assert_eq!(decode(&by_hand(SINGLE_SEGMENT, &[16], &[7; 16]), 16).unwrap(), [7; 16]);
    }

    #[test]
    fn what_a_header_may_not_say() {
        let content = [7; 16];
        let big = by_hand(0x80, &[18 << 3, 16, 0, 0, 0], &content);
        assert_eq!(
            refusal(&big, 16),
            (
                Kind::LimitExceeded,
                "a zstd frame with a window of `268435456` bytes, above the limit of 128 MiB".to_owned()
            )
        );
        let just_above = by_hand(0x80, &[17 << 3 | 1, 16, 0, 0, 0], &content);
        assert_eq!(refusal(&just_above, 16).0, Kind::LimitExceeded);
        assert_eq!(decode(&by_hand(0x80, &[17 << 3, 16, 0, 0, 0], &content), 16).unwrap(), content);
        let window = |byte: u8| Header::read(&by_hand(0x80, &[byte, 16, 0, 0, 0], &content)).unwrap().window;
        assert_eq!([window(0), window(7), window(16 << 3 | 5)], [1024, 1920, (1 << 26) / 8 * 13]);
        let unsized_frame = by_hand(0, &[0], &content);
        assert_eq!(refusal(&unsized_frame, 16), malformed_as("a zstd frame that does not say its size"));
        let dictionary = by_hand(SINGLE_SEGMENT | 1, &[5, 16], &content);
        assert_eq!(refusal(&dictionary, 16), malformed_as("a zstd frame that needs a dictionary"));
        let reserved = by_hand(SINGLE_SEGMENT | RESERVED, &[16], &content);
        assert_eq!(refusal(&reserved, 16), malformed_as("not a zstd frame"));
    }

    #[test]
    fn a_frame_is_alone() {
        let frame = packed(&[1; 100]);
        let skippable = [0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0];
        assert_eq!(refusal(&[&frame[..], &[0]].concat(), 100), malformed_as("`1` bytes after a zstd frame"));
        let and_empty = [&frame[..], &packed(&[])[..]].concat();
        assert_eq!(refusal(&and_empty, 100), malformed_as("`9` bytes after a zstd frame"));
        assert_eq!(refusal(&[&frame[..], &skippable].concat(), 100).0, Kind::Malformed);
        assert_eq!(refusal(&[&skippable, &frame[..]].concat(), 100), malformed_as("not a zstd frame"));
        assert_eq!(refusal(&[], 0), malformed_as("a zstd frame shorter than its header"));
        for len in 0..frame.len() {
            assert_eq!(refusal(&frame[..len], 100).0, Kind::Malformed);
        }
    }

    #[test]
    fn large_buffers_are_given_back() {
        std::thread::spawn(|| {
            Scratch::with(|scratch| {
                scratch.symbols.resize(KEPT_BYTES * 2, 0);
                scratch.rest.resize(KEPT_BYTES / 2, 0);
            });
            Scratch::with(|scratch| {
                assert_eq!(scratch.symbols.capacity(), 0);
                assert!(scratch.rest.capacity() > 0);
                // Taken, so a second one is made, and the first stays.
                Scratch::with(|inner| assert_eq!(inner.rest.capacity(), 0));
                assert!(scratch.rest.capacity() > 0);
            });
        })
        .join()
        .unwrap();
    }

    proptest! {
        #[test]
        fn headers_are_read_as_zstd_reads_them(
            descriptor in any::<u8>(), fields in prop::collection::vec(any::<u8>(), 0..14),
        ) {
            let descriptor = descriptor & !DICTIONARY;
            let frame = [&MAGIC[..], &[descriptor], &fields].concat();
            let theirs = zstd_safe::get_frame_content_size(&frame).ok().flatten();
            let ours = Header::read(&frame).ok();
            // zstd refuses windows above 2^31 here, and we do so later.
            if let Some(ours) = ours.as_ref().filter(|ours| ours.window <= 1 << 31 || descriptor & SINGLE_SEGMENT != 0) {
                prop_assert_eq!(Some(ours.content), theirs);
            }
            if theirs.is_some() {
                prop_assert_eq!(ours.map(|ours| ours.content), theirs);
            }
        }
    }
}
