//! The bytes of an LMDB store: the keys of its databases, and the values that no file of records has. Every value is a
//! record header and its payload, without padding.

use super::{Fields, Place, RECORD_HEADER_BYTES, RecordHeader, RecordType, malformed, payload_checksum};
use crate::codec::ModelId;
use crate::entry::ContentId;
use crate::error::{Error, Kind, Result};

/// Most bytes of a chunk that a value holds: with its header it is at most 64 MiB.
pub const PIECE_BYTES: usize = (64 << 20) - RECORD_HEADER_BYTES;

/// The header of a value, which ties it to its store and, by the sequence, to its key.
pub fn value_header(record_type: RecordType, sequence: u64, store: u64, payload: &[u8]) -> RecordHeader {
    let checksum = payload_checksum(&[payload]);
    RecordHeader { record_type, length: payload.len() as u64, sequence, checksum, place: value_place(store) }
}

fn value_place(store: u64) -> Place {
    Place { store, writer: 0, shard: 0 }
}

/// The payload of a value, after a look at its header: that it is whole, and that store, type and sequence are right.
/// The payload's own checksum is left to [`checked_value`].
pub fn value_payload(value: &[u8], record_type: RecordType, sequence: u64, store: u64) -> Result<&[u8]> {
    split_value(value, record_type, sequence, store).map(|(_, payload)| payload)
}

/// The payload of a value whose every byte was checked.
pub fn checked_value(value: &[u8], record_type: RecordType, sequence: u64, store: u64) -> Result<&[u8]> {
    let (header, payload) = split_value(value, record_type, sequence, store)?;
    header.check(payload)?;
    Ok(payload)
}

fn split_value(value: &[u8], record_type: RecordType, sequence: u64, store: u64) -> Result<(RecordHeader, &[u8])> {
    let short =
        || Error::new(Kind::Truncated, format!("a value of `{}` bytes is shorter than its header", value.len()));
    let (header, payload) = value.split_first_chunk::<RECORD_HEADER_BYTES>().ok_or_else(short)?;
    let header = RecordHeader::decode(header)?;
    if (header.record_type, header.sequence, header.place) != (record_type, sequence, value_place(store)) {
        return Err(malformed("another value stands where this one was written"));
    }
    if header.length != payload.len() as u64 {
        let message = format!("a value has `{}` bytes of `{}` that were written", payload.len(), header.length);
        return Err(Error::new(Kind::Truncated, message));
    }
    Ok((header, payload))
}

/// Key of a place or an id: big-endian, so that keys are in the order of numbers.
pub fn number_key(n: u64) -> [u8; 8] {
    n.to_be_bytes()
}

/// The number of a [`number_key`].
pub fn number_of_key(key: &[u8]) -> Result<u64> {
    let key = key.try_into().map_err(|_| malformed(format!("a key of `{}` bytes where a number is due", key.len())))?;
    Ok(u64::from_be_bytes(key))
}

/// Key of a piece of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkKey {
    /// Id of the entry.
    pub id: u64,
    /// Which of its activations.
    pub activation: u32,
    /// Which piece of the chunk.
    pub piece: u32,
}

impl ChunkKey {
    /// The key as stored.
    pub fn encode(&self) -> [u8; 16] {
        let n = (u128::from(self.id) << 64) | (u128::from(self.activation) << 32) | u128::from(self.piece);
        n.to_be_bytes()
    }

    /// Reads a key.
    pub fn decode(key: &[u8]) -> Result<Self> {
        let bytes: [u8; 16] =
            key.try_into().map_err(|_| malformed(format!("a key of `{}` bytes where a chunk's is due", key.len())))?;
        let [i0, i1, i2, i3, i4, i5, i6, i7, a0, a1, a2, a3, p0, p1, p2, p3] = bytes;
        Ok(Self {
            id: u64::from_be_bytes([i0, i1, i2, i3, i4, i5, i6, i7]),
            activation: u32::from_be_bytes([a0, a1, a2, a3]),
            piece: u32::from_be_bytes([p0, p1, p2, p3]),
        })
    }
}

/// Key of a copy of a model.
pub fn model_key(id: &ModelId, copy: u8) -> [u8; 17] {
    let mut key = [copy; 17];
    key.iter_mut().zip(id).for_each(|(to, from)| *to = *from);
    key
}

/// Model and copy of a [`model_key`].
pub fn model_of_key(key: &[u8]) -> Result<(ModelId, u8)> {
    let mut fields = Fields::new(key);
    let found = (fields.array()?, fields.u8()?);
    fields.end()?;
    Ok(found)
}

/// Payload of a value of `keys`: the place of the entry's row.
pub fn encode_number(n: u64) -> [u8; 8] {
    n.to_le_bytes()
}

/// Reads a payload of [`encode_number`].
pub fn decode_number(payload: &[u8]) -> Result<u64> {
    let mut fields = Fields::new(payload);
    let n = fields.u64()?;
    fields.end()?;
    Ok(n)
}

/// Payload of a value of `index`: all that is to know of an entry without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexRow<'a> {
    /// What the entry holds.
    pub content_id: ContentId,
    /// What its record and chunks are stored under; no other entry ever has it.
    pub id: u64,
    /// Its key.
    pub key: &'a str,
}

impl<'a> IndexRow<'a> {
    /// The payload as stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40 + self.key.len());
        out.extend(self.content_id);
        out.extend(self.id.to_le_bytes());
        out.extend(self.key.as_bytes());
        out
    }

    /// Reads a payload that was checked.
    pub fn decode(payload: &'a [u8]) -> Result<Self> {
        let mut fields = Fields::new(payload);
        let (content_id, id) = (fields.array()?, fields.u64()?);
        let key = fields.text(fields.rest.len())?;
        Ok(Self { content_id, id, key })
    }
}

/// Payload of the value `next` of `manifest`: numbers that were never given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Id of the next entry.
    pub id: u64,
    /// Place of the next key.
    pub place: u64,
}

impl Next {
    /// The payload as stored.
    pub fn encode(&self) -> [u8; 16] {
        (u128::from(self.id) | (u128::from(self.place) << 64)).to_le_bytes()
    }

    /// Reads a payload that was checked.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(payload);
        let next = Self { id: fields.u64()?, place: fields.u64()? };
        fields.end()?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_numbers_and_come_back() {
        let keys: Vec<_> = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 255), (1, 0, 256), (256, 0, 0), (u64::MAX, 7, 9)]
            .map(|(id, activation, piece)| ChunkKey { id, activation, piece })
            .to_vec();
        assert!(keys.windows(2).all(|pair| pair[0].encode() < pair[1].encode()));
        for key in keys {
            assert_eq!(ChunkKey::decode(&key.encode()).unwrap(), key);
            assert_eq!(number_of_key(&number_key(key.id)).unwrap(), key.id);
            assert_eq!(decode_number(&encode_number(key.id)).unwrap(), key.id);
        }
        assert_eq!(model_of_key(&model_key(&[7; 16], 1)).unwrap(), ([7; 16], 1));
    }

    #[test]
    fn rows_come_back_and_short_ones_are_refused() {
        let row = IndexRow { content_id: [3; 32], id: 99, key: "schlüssel" };
        let bytes = row.encode();
        assert_eq!(IndexRow::decode(&bytes).unwrap(), row);
        assert_eq!(IndexRow::decode(&bytes[..39]).unwrap_err().kind(), Kind::Malformed);
        let next = Next { id: 5, place: 1 << 40 };
        assert_eq!(Next::decode(&next.encode()).unwrap(), next);
        assert!(Next::decode(&next.encode()[..15]).is_err());
    }

    #[test]
    fn a_value_is_known_by_its_header() {
        let payload = b"payload";
        let header = value_header(RecordType::Index, 4, 11, payload).encode();
        let value = [header.as_slice(), payload].concat();
        assert_eq!(checked_value(&value, RecordType::Index, 4, 11).unwrap(), payload);
        for (record_type, sequence, store) in
            [(RecordType::Key, 4, 11), (RecordType::Index, 5, 11), (RecordType::Index, 4, 12)]
        {
            assert_eq!(checked_value(&value, record_type, sequence, store).unwrap_err().kind(), Kind::Malformed);
        }
        assert_eq!(value_payload(&value[..70], RecordType::Index, 4, 11).unwrap_err().kind(), Kind::Truncated);
        assert_eq!(value_payload(&value[..9], RecordType::Index, 4, 11).unwrap_err().kind(), Kind::Truncated);
        let mut flipped = value.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(value_payload(&flipped, RecordType::Index, 4, 11).is_ok());
        assert_eq!(checked_value(&flipped, RecordType::Index, 4, 11).unwrap_err().kind(), Kind::Checksum);
    }
}
