//! Values to a frame.

use ::zstd::zstd_safe::CCtx;

use super::super::bits::{BitWriter, ROOM};
use super::super::classes::{LONGEST, Segment};
use super::super::index::Counts;
use super::super::kernel::Kernel;
use super::super::segments::{Piece, SEGMENT};
use super::super::words::{Apart, add_mids, classify, each_escape, split};
use super::super::zstd::{self, Scratch, room};
use super::super::{Model, Rows, mids};
use super::{Coder, HEADER_BYTES, LENGTH_BYTES, OWN, PLANE, Shape};

/// Appends the `planes` form of `rows`; nothing, or part of it, where they have none.
pub(in super::super) fn encode(
    kernel: Kernel,
    rows: Rows<'_>,
    model: Option<&Model>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Option<()> {
    let shape = Shape::of(rows.dtype, rows.row_values, rows.bytes.len()).ok()?;
    let model = model.and_then(|model| shape.coder(model).ok());
    let Scratch { huffman, symbols, mids, bits, escapes, .. } = scratch;
    let symbols = room(symbols, shape.values);
    let mids = room(mids, if shape.parts.mid > 0 { shape.values } else { 0 });
    let start = out.len();
    out.resize(start + HEADER_BYTES + shape.values * shape.parts.lows(), 0);
    let lows = out.get_mut(start + HEADER_BYTES..)?;
    let mut values =
        Values { kernel, shape, bytes: rows.bytes, apart: Apart { symbols, mids, lows, stride: shape.values } };
    let own = if model.is_none() { values.own() } else { None };
    let coder = model.or(own.as_ref().map(|(coder, _)| coder));
    let codes = coder.map(|coder| values.code(coder, model.is_none(), (&mut *bits, &mut *escapes)));
    let packed = pack_lows(huffman, shape.values, start + HEADER_BYTES, out);
    let flags = if let Some(codes) = codes {
        mids::pack(mids, shape.parts.mid, out);
        out.extend_from_slice(own.as_ref().map_or(&[], |(_, bytes)| bytes));
        let (counts, length) = codes?;
        let flags = counts.put(out);
        out.extend_from_slice(bits.get(..length)?);
        out.extend_from_slice(escapes);
        flags | if own.is_some() { OWN } else { 0 }
    } else {
        add_mids(shape.parts, symbols, mids);
        put_plane(huffman, if mids.is_empty() { symbols } else { mids }, out);
        PLANE
    };
    out.get_mut(start..start + HEADER_BYTES)?.copy_from_slice(&[flags, packed]);
    Some(())
}

/// The values of a frame, and room for their parts.
struct Values<'a> {
    kernel: Kernel,
    shape: Shape,
    bytes: &'a [u8],
    apart: Apart<'a>,
}

impl Values<'_> {
    /// Takes all values apart; says with which coder of their own they are coded, if with any.
    fn own(&mut self) -> Option<(Coder, Vec<u8>)> {
        split(self.kernel, self.shape.parts, self.bytes, &mut self.apart);
        Coder::own(self.shape.parts, self.apart.symbols, self.apart.mids)
    }

    /// The codes of the symbols, and how many bytes of `bits` they are. Unless the values are apart, they are taken apart
    /// on the way: segment by segment, so that they stay in the first-level cache.
    fn code(
        &mut self,
        coder: &Coder,
        are_apart: bool,
        (bits, escapes): (&mut Vec<u8>, &mut Vec<u8>),
    ) -> Option<(Counts, usize)> {
        let Shape { parts, segments, .. } = self.shape;
        let mut writer = BitWriter::new(room(bits, (self.shape.values * LONGEST).div_ceil(8) + ROOM));
        let mut counts = Counts::with_room(segments.count());
        let mut classes = [0; SEGMENT];
        escapes.clear();
        for Piece { values, channel } in segments.pieces(0..segments.count()) {
            let (bits_before, escapes_before) = (writer.bits(), escapes.len());
            let (biases, classes) = (coder.biases(channel), classes.get_mut(..values.len())?);
            let has_escapes = if are_apart {
                let has_escapes = classify(self.kernel, self.apart.symbols.get(values.clone())?, biases, classes);
                coder.code.put(self.kernel, classes, &mut writer);
                has_escapes
            } else {
                let bytes = self.bytes.get(parts.width * values.start..parts.width * values.end)?;
                let segment = Segment { parts, bytes, apart: self.apart.of(&values), biases, classes };
                coder.code.take(self.kernel, segment, &mut writer)
            };
            if has_escapes {
                let symbols = self.apart.symbols.get(values)?;
                each_escape(classes, |place| escapes.extend(symbols.get(place)));
            }
            counts.push(writer.bits() - bits_before, escapes.len() - escapes_before)?;
        }
        Some((counts, writer.finish()))
    }
}

/// Compresses the low planes, which begin at `start` of `out`, as far as that makes them smaller; says which.
fn pack_lows(huffman: &mut CCtx<'_>, values: usize, start: usize, out: &mut Vec<u8>) -> u8 {
    if !out.get(start..).unwrap_or_default().chunks(values).any(skewed) {
        return 0;
    }
    let (lows, mut packed) = (out.split_off(start), 0);
    for (index, low) in lows.chunks(values).enumerate() {
        if !skewed(low) {
            out.extend_from_slice(low);
            continue;
        }
        let at = out.len();
        out.extend_from_slice(&[0; LENGTH_BYTES]);
        let smaller = put_plane(huffman, low, out);
        let length = u32::try_from(out.len() - at - LENGTH_BYTES);
        match (smaller, length, out.get_mut(at..at + LENGTH_BYTES)) {
            (true, Ok(length), Some(field)) => {
                field.copy_from_slice(&length.to_le_bytes());
                packed |= 1 << index;
            }
            _ => drop(out.drain(at..at + LENGTH_BYTES)),
        }
    }
    packed
}

/// Appends a plane: as one zstd frame where that is smaller, else as it is. Says whether it was smaller.
fn put_plane(huffman: &mut CCtx<'_>, plane: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    if zstd::compress(huffman, plane, out) && out.len() - start < plane.len() {
        return true;
    }
    out.truncate(start);
    out.extend_from_slice(plane);
    false
}

/// Whether Huffman coding would shrink `bytes`, by a look at some of them: whether two of those are the same byte half
/// again as often as two random ones.
fn skewed(bytes: &[u8]) -> bool {
    const SAMPLE: usize = 512;
    let mut counts = [0_u32; 256];
    let (mut total, mut pairs) = (0_u64, 0_u64);
    for &byte in bytes.iter().step_by((bytes.len() / SAMPLE).max(1)) {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            pairs += 2 * u64::from(*count);
            *count += 1;
            total += 1;
        }
    }
    2 * 256 * pairs > 3 * total * total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_with_frequent_bytes_are_skewed() {
        let mut state = 1_u32;
        let random = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        let random: Vec<u8> = random.take(1 << 16).collect();
        let sparse: Vec<u8> = random.iter().map(|byte| if *byte < 90 { 0 } else { *byte }).collect();
        assert!(!skewed(&random) && skewed(&sparse) && !skewed(&[]) && !skewed(&[1]));
    }
}
