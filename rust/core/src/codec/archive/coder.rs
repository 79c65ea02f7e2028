//! What `archive` learns of a hook point: how each channel follows from the one below, and a code for each context.

use std::sync::OnceLock;

use half::bf16;

use super::super::bits::LOADED;
use super::super::malformed;
use super::super::prefix::{self, pack_lengths, unpack_lengths};
use super::context::{CONTEXTS, Channels, ESCAPE};
use crate::error::Result;

/// Bits of a code, at most.
pub(super) const LONGEST: usize = 9;
/// Symbols of a context, the escape included.
pub(super) const SYMBOLS: usize = ESCAPE + 1;
/// Bytes of a channel: slope and offset, bfloat16 each, and half octaves.
const CHANNEL_BYTES: usize = 5;
/// Bytes of the lengths of all codes.
const LENGTH_BYTES: usize = CONTEXTS * SYMBOLS / 2;
/// Entries of codes: the code from here on, below it the length alone in bits enough for the sum of some.
pub(super) const CODE_SHIFT: u32 = 16;
/// Of such an entry: the value stands elsewhere. Some of them add up to bits between lengths and codes.
pub(super) const STANDS_ELSEWHERE: u32 = 1 << 8;
const _: () = assert!(TOGETHER * LONGEST < 64 && TOGETHER < 1 << (CODE_SHIFT - 8));
/// Codes that fit a word.
pub(super) const TOGETHER: usize = LOADED / LONGEST;

/// Channels and codes, as encoding and decoding use them.
pub(in super::super) struct Coder {
    pub(super) channels: Channels,
    /// One over what each of them differs by.
    pub(super) scales: Vec<f32>,
    /// By context, times 256, and symbol.
    pub(super) codes: Box<Codes>,
    lengths: Vec<u8>,
    table: OnceLock<Box<Table>>,
}

/// Entries of codes, as encoding looks them up: what a `u16` cannot reach needs no check. Only the first are ever used.
pub(super) type Codes = [u32; 1 << 16];

/// By context and the next bits: the symbol in the upper byte, and in the lower the length of its code. As large as
/// [`Codes`], for the same reason.
pub(super) type Table = [u16; 1 << 16];
const _: () = assert!(CONTEXTS << LONGEST <= 1 << 16);

/// The lengths of a context's codes.
pub(super) type Lengths = [u8; SYMBOLS];

/// The bytes of a model.
pub(super) fn bytes_of(channels: &Channels, lengths: &[Lengths; CONTEXTS]) -> Vec<u8> {
    let numbers = channels.slopes.iter().chain(&channels.offsets);
    let mut bytes: Vec<u8> = numbers.flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
    bytes.extend(channels.half_octaves.iter().map(|&spread| (spread & 0xFF) as u8));
    bytes.extend(pack_lengths(lengths.as_flattened()));
    bytes
}

impl Coder {
    /// Reads a model.
    pub(in super::super) fn read(bytes: &[u8]) -> Result<Self> {
        let of_channels = bytes.len().checked_sub(LENGTH_BYTES).filter(|bytes| bytes % CHANNEL_BYTES == 0);
        let count = of_channels.ok_or_else(|| malformed("a model is cut short"))? / CHANNEL_BYTES;
        let (slopes, rest) = bytes.split_at_checked(2 * count).unwrap_or_default();
        let (offsets, rest) = rest.split_at_checked(2 * count).unwrap_or_default();
        let (half_octaves, lengths) = rest.split_at_checked(count).unwrap_or_default();
        let numbers = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect::<Result<Vec<_>>>();
        let half_octaves = half_octaves.iter().copied().map(u16::from).collect();
        let channels = Channels { slopes: numbers(slopes)?, offsets: numbers(offsets)?, half_octaves };
        let lengths = unpack_lengths(lengths);
        let codes = codes(&lengths)?;
        Ok(Self { scales: channels.scales(), channels, codes, lengths, table: OnceLock::new() })
    }

    /// Values of the rows that it is for.
    pub(super) fn channels(&self) -> usize {
        self.scales.len()
    }

    /// Lengths of the codes, context by context.
    pub(super) fn lengths(&self) -> &[u8] {
        &self.lengths
    }

    /// What decoding looks up.
    pub(in super::super) fn table(&self) -> &Table {
        self.table.get_or_init(|| {
            let mut table = zeros();
            let contexts = table.as_chunks_mut::<{ 1 << LONGEST }>().0.iter_mut();
            for (entries, lengths) in contexts.zip(self.lengths.chunks(SYMBOLS)) {
                for (symbol, (code, &length)) in (0_u16..).zip(prefix::codes(lengths).into_iter().zip(lengths)) {
                    let entries = entries.iter_mut().skip(usize::from(code)).step_by(1 << length);
                    entries.take(if length == 0 { 0 } else { usize::MAX }).for_each(|entry| {
                        *entry = symbol << 8 | u16::from(length);
                    });
                }
            }
            table
        })
    }
}

/// Zero or a normal number: what is smaller is not the same number everywhere.
fn number(bytes: [u8; 2]) -> Result<f32> {
    let value = bf16::from_le_bytes(bytes);
    if value.is_normal() || value.to_bits() == 0 {
        return Ok(value.to_f32());
    }
    Err(malformed(format!("`{value}` as a parameter of a model")))
}

/// Zeros that take no memory before they are written.
fn zeros<T: Copy + Default>() -> Box<[T; 1 << 16]> {
    vec![T::default(); 1 << 16].try_into().unwrap_or_else(|_| Box::new([T::default(); 1 << 16]))
}

fn codes(lengths: &[u8]) -> Result<Box<Codes>> {
    let mut codes = zeros();
    for (entries, lengths) in codes.as_chunks_mut::<256>().0.iter_mut().zip(lengths.chunks(SYMBOLS)) {
        if lengths.last().is_none_or(|&escape| escape == 0) || !prefix::is_complete(lengths, LONGEST) {
            return Err(malformed("the lengths of a code do not make one"));
        }
        let own = prefix::codes(lengths);
        let own = own.into_iter().zip(lengths).map(|(code, &length)| u32::from(code) << CODE_SHIFT | u32::from(length));
        let own: Vec<_> = own.collect();
        // What has no code has that of the escape.
        *entries = [own.last().copied().unwrap_or(0) | STANDS_ELSEWHERE; 256];
        for (entry, own) in entries.iter_mut().zip(own).take(ESCAPE).filter(|(_, own)| own & 15 > 0) {
            *entry = own;
        }
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = f32> {
        let normal = any::<u16>().prop_map(bf16::from_bits).prop_filter("normal", |value| value.is_normal());
        prop_oneof![9 => normal.prop_map(bf16::to_f32), 1 => Just(0.0)]
    }

    fn lengths() -> impl Strategy<Value = Lengths> {
        let counts = prop::collection::vec(prop_oneof![Just(0_u64), 1..100_000_u64], ESCAPE);
        counts.prop_map(|mut counts| {
            counts[0] += 1;
            counts.push(1);
            prefix::lengths(&counts, LONGEST).try_into().unwrap()
        })
    }

    fn model(channels: usize) -> Vec<u8> {
        let mut lengths = [0; SYMBOLS];
        (lengths[0], lengths[ESCAPE]) = (1, 1);
        let numbers = vec![1.0; channels];
        let channels = Channels { slopes: numbers.clone(), offsets: numbers, half_octaves: vec![180; channels] };
        bytes_of(&channels, &[lengths; CONTEXTS])
    }

    #[test]
    fn damaged_models_are_refused() {
        let whole = model(3);
        assert_eq!(Coder::read(&whole).unwrap().channels(), 3);
        for length in (0..whole.len()).filter(|length| !(whole.len() - length).is_multiple_of(CHANNEL_BYTES)) {
            assert!(Coder::read(&whole[..length]).is_err());
        }
        assert!(Coder::read(&[]).is_err() && Coder::read(&[&whole[..], &[0]].concat()).is_err());
        let numbers = [bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY, bf16::from_bits(1), bf16::from_bits(0x8000)];
        for number in numbers {
            for at in 0..6 {
                let mut damaged = whole.clone();
                damaged[2 * at..2 * at + 2].copy_from_slice(&number.to_le_bytes());
                assert!(Coder::read(&damaged).is_err(), "{number}");
            }
        }
        for byte in whole.len() - LENGTH_BYTES..whole.len() {
            for length in [1, 2, 9, 10, 15, 0x20] {
                let mut damaged = whole.clone();
                damaged[byte] ^= length;
                assert!(Coder::read(&damaged).is_err());
            }
        }
    }

    #[test]
    fn a_code_needs_an_escape() {
        let mut lengths = [0; SYMBOLS];
        lengths[..2].fill(1);
        let channels = Channels::default();
        assert!(Coder::read(&bytes_of(&channels, &[lengths; CONTEXTS])).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_model_comes_back(
            channels in prop::collection::vec((number(), number(), 0_u16..256), 0..40),
            lengths in prop::collection::vec(lengths(), CONTEXTS),
        ) {
            let channels = Channels {
                slopes: channels.iter().map(|channel| channel.0).collect(),
                offsets: channels.iter().map(|channel| channel.1).collect(),
                half_octaves: channels.iter().map(|channel| channel.2).collect(),
            };
            let lengths: [Lengths; CONTEXTS] = lengths.try_into().unwrap();
            let coder = Coder::read(&bytes_of(&channels, &lengths)).unwrap();
            prop_assert_eq!(&coder.channels, &channels);
            prop_assert_eq!(coder.lengths(), lengths.as_flattened());
        }
    }
}
