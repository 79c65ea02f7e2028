//! Fields of one to eight bits, packed: field i has bits `i * width` on, the first in the lowest bit.

use super::kernel::Kernel;
#[cfg(target_arch = "x86_64")]
use super::simd;

/// Fields that end with a byte.
const GROUP: usize = 8;

/// The width of fields of float16.
const OF_FLOAT16: u32 = 3;
/// The width of fields of bfloat16 where the layer below is known.
const OF_ARCHIVE: u32 = 5;

/// Bytes of `count` fields.
pub(super) fn packed_len(count: usize, width: u32) -> usize {
    (count * width as usize).div_ceil(8)
}

/// Packs fields, each in the low bits of a byte, behind `out`.
#[inline(always)]
pub(super) fn pack(fields: &[u8], width: u32, out: &mut Vec<u8>) {
    if width as usize == GROUP {
        return out.extend_from_slice(fields);
    }
    let start = out.len();
    let end = start + packed_len(fields.len(), width);
    out.resize(end + GROUP, 0);
    let (groups, rest) = fields.as_chunks::<GROUP>();
    let mut last = [0; GROUP];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let groups = groups.iter().chain((!rest.is_empty()).then_some(&last));
    let mut at = start;
    for group in groups {
        if let Some(room) = out.get_mut(at..at + GROUP) {
            let fields = u64::from_le_bytes(*group);
            let packed = match width {
                OF_FLOAT16 => squeeze(fields, OF_FLOAT16),
                OF_ARCHIVE => squeeze(fields, OF_ARCHIVE),
                width => squeeze(fields, width),
            };
            room.copy_from_slice(&packed.to_le_bytes());
        }
        at += width as usize;
    }
    out.truncate(end);
}

/// Unpacks fields from number `first` on, a byte each; beyond the end they are 0.
#[inline(always)]
pub(super) fn unpack(kernel: Kernel, packed: &[u8], width: u32, first: usize, fields: &mut [u8]) {
    if width as usize == GROUP {
        let whole = packed.get(first..).unwrap_or_default();
        return fields.iter_mut().zip(whole).for_each(|(field, byte)| *field = *byte);
    }
    let group = |number: usize| {
        // The widths that matter are constants where they are used: shifts and masks are then made once.
        match width {
            OF_FLOAT16 => spread_group(packed, number, OF_FLOAT16),
            OF_ARCHIVE => spread_group(packed, number, OF_ARCHIVE),
            width => spread_group(packed, number, width),
        }
    };
    let (mut number, skipped) = (first / GROUP, first % GROUP);
    let mut fields = fields;
    if skipped > 0 {
        let (now, later) = fields.split_at_mut((GROUP - skipped).min(fields.len()));
        now.iter_mut().zip(group(number).iter().skip(skipped)).for_each(|(field, byte)| *field = *byte);
        (fields, number) = (later, number + 1);
    }
    let (groups, rest) = fields.as_chunks_mut::<GROUP>();
    let done = unpack_blocks(kernel, packed.get(number * width as usize..).unwrap_or_default(), width, groups);
    number += done;
    for fields in groups.iter_mut().skip(done) {
        *fields = group(number);
        number += 1;
    }
    rest.iter_mut().zip(group(number)).for_each(|(field, byte)| *field = byte);
}

/// Unpacks some of the first groups, as many as vectors of this kernel do; says how many.
#[inline(always)]
fn unpack_blocks(kernel: Kernel, packed: &[u8], width: u32, groups: &mut [[u8; GROUP]]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if kernel.is_avx2() {
        return match width {
            OF_FLOAT16 => simd::unpack::<{ OF_FLOAT16 as usize }>(kernel, packed, groups),
            OF_ARCHIVE => simd::unpack::<{ OF_ARCHIVE as usize }>(kernel, packed, groups),
            _ => 0,
        };
    }
    0
}

/// The fields of a group, a byte each.
#[inline(always)]
fn spread_group(packed: &[u8], number: usize, width: u32) -> [u8; GROUP] {
    let at = number * width as usize;
    let word = match packed.get(at..at + GROUP).and_then(<[u8]>::first_chunk) {
        Some(word) => u64::from_le_bytes(*word),
        None => last_group(packed, at),
    };
    spread(word, width).to_le_bytes()
}

#[cold]
fn last_group(packed: &[u8], at: usize) -> u64 {
    packed.get(at..).unwrap_or_default().iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// Eight fields, each in the low bits of its byte, to eight fields next to each other.
#[inline(always)]
fn squeeze(fields: u64, width: u32) -> u64 {
    let [one, two, four] = masks(width);
    let pairs = fields & one | (fields & one << 8) >> (8 - width);
    let fours = pairs & two | (pairs & two << 16) >> (16 - 2 * width);
    fours & four | (fours & four << 32) >> (32 - 4 * width)
}

/// Undoes [`squeeze`].
#[inline(always)]
fn spread(packed: u64, width: u32) -> u64 {
    let [one, two, four] = masks(width);
    let fours = packed & four | packed << (32 - 4 * width) & four << 32;
    let pairs = fours & two | fours << (16 - 2 * width) & two << 16;
    pairs & one | pairs << (8 - width) & one << 8
}

/// The first of each two bytes, of each two pairs, and of the two fours.
#[inline(always)]
fn masks(width: u32) -> [u64; 3] {
    [low_bits(width) * 0x0001_0001_0001_0001, low_bits(2 * width) * 0x0000_0001_0000_0001, low_bits(4 * width)]
}

#[inline(always)]
fn low_bits(count: u32) -> u64 {
    (1 << count) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_stand_one_after_the_other() {
        let mut out = vec![9];
        pack(&[1, 2, 3, 4, 5], 3, &mut out);
        // From the highest bit: two of the 3, 2, 1; then 5, 4 and the last of the 3.
        assert_eq!(out, [9, 0b1101_0001, 0b0101_1000]);
    }

    proptest! {
        #[test]
        fn fields_come_back_from_anywhere(
            width in 1_u32..=8, bytes in prop::collection::vec(any::<u8>(), 0..300), first in 0_usize..80,
        ) {
            let fields: Vec<u8> = bytes.iter().map(|byte| byte & (u8::MAX >> (8 - width))).collect();
            let mut packed = Vec::new();
            pack(&fields, width, &mut packed);
            prop_assert_eq!(packed.len(), packed_len(fields.len(), width));
            let first = first.min(fields.len());
            for kernel in [Kernel::PORTABLE, Kernel::detect()] {
                let mut back = vec![0xA5; fields.len() - first];
                unpack(kernel, &packed, width, first, &mut back);
                prop_assert_eq!(&back[..], &fields[first..]);
            }
        }
    }
}
