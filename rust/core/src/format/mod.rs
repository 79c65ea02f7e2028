//! The only place that knows byte offsets. Writer and reader of each structure stand side by side; FORMAT.md is the
//! normative text. All integers are little-endian. Here: records, which every file is a sequence of.

mod commit;
mod entry;
pub mod lmdb;

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

pub use self::commit::{Change, CommitRecord, Extent, ModelPlace, Sealed};
pub use self::entry::{Activation, EntryHeader, EntryRecord, Frame, MAX_POINTS, rows_of_frame};
use crate::error::{Error, Kind, Result};

/// Major version of the format. Version 0 may change without notice.
pub const FORMAT_VERSION: u8 = 0;
/// Records, and the chunks within data records, begin at multiples of this.
pub const ALIGNMENT: u64 = 64;
/// Bytes of a record header.
pub const RECORD_HEADER_BYTES: usize = 64;
/// First bytes of every record, so of every file.
pub const MAGIC: [u8; 4] = *b"ACTR";
/// Largest payload of a record that is read whole: everything but `data`.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 30;

const CHECKED_HEADER_BYTES: usize = RECORD_HEADER_BYTES - 4;

/// An integer of the format as a size in memory.
pub fn size(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| malformed(format!("a size of `{n}` bytes does not fit this machine")))
}

/// The error for checksummed bytes that say something impossible.
pub fn malformed(message: impl Into<String>) -> Error {
    Error::new(Kind::Malformed, message)
}

/// `length` rounded up to the alignment of records.
pub const fn aligned(length: u64) -> u64 {
    length.next_multiple_of(ALIGNMENT)
}

/// Checksum of a frame's stored bytes.
pub fn frame_checksum(stored: &[u8]) -> u64 {
    xxh3_64(stored)
}

/// Checksum of a record's payload given in pieces.
pub fn payload_checksum(parts: &[&[u8]]) -> u128 {
    let mut hasher = Xxh3::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.digest128()
}

/// The next link of a commit chain: over the previous link and the headers of the records it commits.
pub fn chain(previous: u128, headers: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&previous.to_le_bytes());
    hasher.update(headers);
    hasher.digest128()
}

/// What a record holds; the codes are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordType {
    /// First record of a shard or log: which store, writer and shard.
    Head = 1,
    /// Frames of one hook point, of the entries of one commit.
    Data = 2,
    /// One entry: document, token ids, table of activations.
    Entry = 3,
    /// What a codec learned.
    Model = 4,
    /// Makes the records since the previous commit durable and visible.
    Commit = 5,
    /// Last record of a finished shard: all its commits in one.
    Seal = 6,
    /// The manifest.
    Manifest = 7,
    /// In a log: how much of a shard is durable.
    Extent = 8,
    /// In an LMDB store: the place of an entry's row.
    Key = 128,
    /// In an LMDB store: a row of the index.
    Index = 129,
    /// In an LMDB store: numbers not given out yet.
    Next = 130,
}

impl RecordType {
    const ALL: [Self; 11] = [
        Self::Head,
        Self::Data,
        Self::Entry,
        Self::Model,
        Self::Commit,
        Self::Seal,
        Self::Manifest,
        Self::Extent,
        Self::Key,
        Self::Index,
        Self::Next,
    ];

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u8 == code)
    }
}

/// Ties a record to its place, so that a block of another store, file or age is never taken for ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First 8 bytes of the store id.
    pub store: u64,
    /// Number of the writer; 0 in a manifest.
    pub writer: u32,
    /// Number of the shard; 0 in a log or manifest.
    pub shard: u32,
}

/// The 64 bytes before every payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the payload is.
    pub record_type: RecordType,
    /// Bytes of payload, padding not counted.
    pub length: u64,
    /// Number of the record in its file, from 0.
    pub sequence: u64,
    /// XXH3-128 of the payload.
    pub checksum: u128,
    /// Where the record belongs.
    pub place: Place,
}

impl RecordHeader {
    /// Bytes of header, payload and padding.
    pub fn span(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + aligned(self.length)
    }

    /// The header as stored.
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(RECORD_HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend([self.record_type as u8, FORMAT_VERSION, 0, 0]);
        bytes.extend(self.length.to_le_bytes());
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.checksum.to_le_bytes());
        bytes.extend(self.place.store.to_le_bytes());
        bytes.extend(self.place.writer.to_le_bytes());
        bytes.extend(self.place.shard.to_le_bytes());
        bytes.resize(CHECKED_HEADER_BYTES, 0);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let mut header = [0; RECORD_HEADER_BYTES];
        header.copy_from_slice(&bytes);
        header
    }

    /// Reads a header and checks its magic, checksum and version. The header's layout is that of every version, so the
    /// checksum comes first: a changed byte is damage, not another version.
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<Self> {
        let mut fields = Fields::new(bytes);
        if fields.take(4)? != MAGIC {
            return Err(Error::new(Kind::Checksum, "no record begins here"));
        }
        let (code, version) = (fields.u8()?, fields.u8()?);
        let (checked, stored) = bytes.split_at(CHECKED_HEADER_BYTES);
        if stored != crc32c::crc32c(checked).to_le_bytes() {
            return Err(Error::new(Kind::Checksum, "a record header does not match its checksum"));
        }
        if version > FORMAT_VERSION {
            return Err(unsupported_version(version));
        }
        let known = RecordType::from_code(code);
        let reserved_before = fields.u16()?;
        let header = known.map(|record_type| -> Result<Self> {
            Ok(Self {
                record_type,
                length: fields.u64()?,
                sequence: fields.u64()?,
                checksum: fields.u128()?,
                place: Place { store: fields.u64()?, writer: fields.u32()?, shard: fields.u32()? },
            })
        });
        match header.transpose()? {
            Some(header) if reserved_before == 0 && fields.u32()? == 0 => Ok(header),
            _ => {
                let message = format!("a record of type `{code}`, written by a later build: upgrade actstore");
                Err(Error::new(Kind::UnsupportedVersion, message))
            }
        }
    }

    /// Checks a payload against the header.
    pub fn check(&self, payload: &[u8]) -> Result<()> {
        if payload.len() as u64 != self.length || xxh3_128(payload) != self.checksum {
            return Err(Error::new(Kind::Checksum, "a record does not match its checksum"));
        }
        Ok(())
    }
}

/// The error for a store of a later format.
pub fn unsupported_version(version: u8) -> Error {
    let message = format!(
        "written in format version `{version}`; this build reads versions up to {FORMAT_VERSION}: upgrade actstore"
    );
    Error::new(Kind::UnsupportedVersion, message)
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n)
        .map_err(|_| Error::new(Kind::LimitExceeded, format!("`{n}` items are above the limit of an entry")))
}

/// How many of something there are, which a byte of a record may make many more in memory.
fn bounded(n: u64, most: u64, what: &str) -> Result<u64> {
    if n <= most { Ok(n) } else { Err(malformed(format!("`{n}` {what} are above the limit of {most}"))) }
}

/// Appends a number in as few bytes as it has groups of seven bits, the lowest first; all but the last have the highest
/// bit set (LEB128).
fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

fn small(n: usize) -> Result<u16> {
    u16::try_from(n).map_err(|_| Error::new(Kind::LimitExceeded, format!("a name of `{n}` bytes is above the limit")))
}

/// Reads fields one after the other and never beyond the end.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.rest.split_at_checked(n).ok_or_else(|| malformed("a record ends before its fields do"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Result<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// What [`put_varint`] wrote: no number has a second spelling.
    fn varint(&mut self) -> Result<u64> {
        let mut n = 0;
        for ((place, &byte), shift) in self.rest.iter().enumerate().zip((0..u64::BITS).step_by(7)) {
            let bits = u64::from(byte & 0x7F);
            n |= bits << shift;
            if byte & 0x80 == 0 {
                self.rest = self.rest.get(place + 1..).unwrap_or_default();
                let is_least = (bits << shift) >> shift == bits && (bits > 0 || shift == 0);
                return if is_least { Ok(n) } else { Err(malformed("a number with bits too many")) };
            }
        }
        Err(malformed("a number without an end"))
    }

    fn u32_varint(&mut self) -> Result<u32> {
        let n = self.varint()?;
        u32::try_from(n).map_err(|_| malformed(format!("`{n}` where no number is above {}", u32::MAX)))
    }

    fn size(&mut self) -> Result<usize> {
        self.varint().and_then(size)
    }

    fn text(&mut self, n: usize) -> Result<&'a str> {
        std::str::from_utf8(self.take(n)?).map_err(|_| malformed("text that is not UTF-8"))
    }

    fn end(&self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(malformed(format!("`{n}` bytes follow the last field of a record"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_comes_back_in_as_few_bytes_as_it_has_groups(n: u64, shift in 0..64_u32) {
            let n = n >> shift;
            let mut stored = Vec::new();
            put_varint(&mut stored, n);
            prop_assert_eq!(stored.len(), (u64::BITS - n.leading_zeros()).div_ceil(7).max(1) as usize);
            let mut fields = Fields::new(&stored);
            prop_assert_eq!(fields.varint().unwrap(), n);
            fields.end().unwrap();
        }
    }

    #[test]
    fn a_number_has_no_other_spelling() {
        let longest = [&[0xFF; 9][..], &[1]].concat();
        assert_eq!(Fields::new(&longest).varint().unwrap(), u64::MAX);
        let too_large = [&[0xFF; 9][..], &[2]].concat();
        for spelling in [&[0x80, 0][..], &[0xFF, 0x80, 0], &too_large, &[0x80; 11], &[0x80], &[]] {
            assert_eq!(Fields::new(spelling).varint().unwrap_err().kind(), Kind::Malformed, "{spelling:?}");
        }
    }
}
