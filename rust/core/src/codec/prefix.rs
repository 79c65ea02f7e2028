//! Prefix codes: the best lengths for some counts, and the one code that lengths stand for.

/// Longest code that lengths can stand for.
const LONGEST: u8 = 15;

/// Lengths of the shortest code for symbols of these counts in which none is longer than `longest` bits (package-merge:
/// Larmore and Hirschberg 1990). A symbol that does not occur has length 0, and no code. At least two must occur, and at
/// most `2^longest`. The same counts give the same lengths.
pub(super) fn lengths(counts: &[u64], longest: usize) -> Vec<u8> {
    let occurring = counts.iter().enumerate().filter(|&(_, &count)| count > 0);
    let mut leaves: Vec<(u64, usize)> = occurring.map(|(symbol, &count)| (count, symbol)).collect();
    leaves.sort_unstable();
    let mut levels: Vec<Vec<(u64, bool)>> = Vec::with_capacity(longest);
    for _ in 0..longest {
        let mut level: Vec<_> = leaves.iter().map(|&(count, _)| (count, true)).collect();
        let below = levels.last().map(Vec::as_slice).unwrap_or_default();
        level.extend(below.chunks_exact(2).map(|pair| (pair.iter().map(|item| item.0).sum::<u64>(), false)));
        // Stable: of equal weights, leaves come before packages.
        level.sort_by_key(|item| item.0);
        levels.push(level);
    }
    let mut lengths = vec![0; counts.len()];
    let mut taken = 2 * leaves.len().saturating_sub(1);
    for level in levels.iter().rev() {
        let chosen = level.iter().take(taken).filter(|item| item.1).count();
        for &(_, symbol) in leaves.iter().take(chosen) {
            if let Some(length) = lengths.get_mut(symbol) {
                *length += 1;
            }
        }
        taken = 2 * (taken - chosen);
    }
    lengths
}

/// Whether a code has these lengths, none above `longest`, and every sequence of bits means something in it: in a code
/// that is not complete a decoder could meet bits that do not.
pub(super) fn is_complete(lengths: &[u8], longest: usize) -> bool {
    let share = |&length: &u8| if length == 0 { 0 } else { 1_u64 << (longest - usize::from(length)) };
    lengths.iter().all(|&length| usize::from(length) <= longest)
        && lengths.iter().map(share).sum::<u64>() == 1 << longest
}

/// The canonical code of complete lengths: codes ascend by length, then by symbol. The first bit of a code is its lowest.
pub(super) fn codes(lengths: &[u8]) -> Vec<u16> {
    let mut codes = vec![0; lengths.len()];
    let mut next = 0_u16;
    for length in 1..=LONGEST {
        next <<= 1;
        for (code, _) in codes.iter_mut().zip(lengths).filter(|(_, own)| **own == length) {
            *code = next.reverse_bits() >> (16 - length);
            next = next.wrapping_add(1);
        }
    }
    codes
}

/// Lengths of a model, two a byte, the first in the low half.
pub(super) fn pack_lengths(lengths: &[u8]) -> Vec<u8> {
    lengths.chunks(2).map(|pair| pair.iter().rev().fold(0, |byte, &length| byte << 4 | length & 15)).collect()
}

/// The lengths that [`pack_lengths`] packed, and for an odd number of them a 0 more.
pub(super) fn unpack_lengths(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|&byte| [byte & 15, byte >> 4]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "test data")]

    use proptest::prelude::*;

    use super::*;

    fn bits(counts: &[u64], lengths: &[u8]) -> u64 {
        counts.iter().zip(lengths).map(|(&count, &length)| count * u64::from(length)).sum()
    }

    #[test]
    fn lengths_are_those_of_huffman_where_nothing_limits_them() {
        assert_eq!(lengths(&[1, 1, 2, 4], 7), [3, 3, 2, 1]);
        assert_eq!(lengths(&[5, 0, 5], 7), [1, 0, 1]);
        assert_eq!(lengths(&[1; 16], 7), [4; 16]);
    }

    #[test]
    fn a_limit_costs_as_little_as_it_can() {
        let fibonacci = [1, 1, 2, 3, 5, 8, 13, 21];
        assert_eq!(lengths(&fibonacci, 7), [7, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(lengths(&fibonacci, 3), [3; 8]);
        // All codes there are of at most 4 and 5 bits.
        for longest in [4_usize, 5] {
            let all = (0..longest.pow(8))
                .map(|number| std::array::from_fn(|i| (number / longest.pow(i as u32) % longest) as u8 + 1));
            let best =
                all.filter(|lengths: &[u8; 8]| is_complete(lengths, longest)).map(|lengths| bits(&fibonacci, &lengths));
            assert_eq!(Some(bits(&fibonacci, &lengths(&fibonacci, longest))), best.min(), "{longest}");
        }
    }

    #[test]
    fn codes_ascend_by_length_then_symbol_and_begin_with_their_lowest_bit() {
        assert_eq!(codes(&[2, 1, 3, 3]), [0b01, 0b0, 0b011, 0b111]);
        assert_eq!(codes(&[0, 1, 0, 1]), [0, 0, 0, 1]);
    }

    #[test]
    fn only_complete_codes_are() {
        assert!(is_complete(&[1, 1], 7) && is_complete(&[2, 1, 3, 3], 7) && is_complete(&[0, 1, 1, 0], 1));
        assert!(!is_complete(&[1, 2], 7) && !is_complete(&[1, 1, 1], 7) && !is_complete(&[0, 0], 7));
        assert!(!is_complete(&[1, 2, 3, 4, 5, 6, 7, 8, 8], 7));
    }

    #[test]
    fn packed_lengths_come_back() {
        assert_eq!(pack_lengths(&[1, 2, 15]), [0x21, 0x0F]);
        assert_eq!(unpack_lengths(&[0x21, 0x0F]), [1, 2, 15, 0]);
    }

    proptest! {
        #[test]
        fn every_code_is_complete_free_of_prefixes_and_near_the_entropy(
            counts in prop::collection::vec(0_u64..10_000, 2..90), longest in 7_usize..12,
        ) {
            let used = counts.iter().filter(|&&count| count > 0).count();
            prop_assume!(used >= 2);
            let lengths = lengths(&counts, longest);
            prop_assert!(is_complete(&lengths, longest));
            prop_assert!(counts.iter().zip(&lengths).all(|(&count, &length)| (count > 0) == (length > 0)));
            let codes = codes(&lengths);
            for (i, (&a, &long)) in codes.iter().zip(&lengths).enumerate() {
                for (j, (&b, &short)) in codes.iter().zip(&lengths).enumerate() {
                    let begins = long >= short && short > 0 && a & ((1 << short) - 1) == b;
                    prop_assert!(i == j || !begins);
                }
            }
            let total: u64 = counts.iter().sum();
            let fixed = (usize::BITS - (used - 1).leading_zeros()) as u64;
            prop_assert!(bits(&counts, &lengths) <= total * fixed);
        }
    }
}
