//! The named databases of a store, and reading them with every value checked.

use std::ops::Bound;
use std::sync::Arc;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, RoTxn, RwTxn, WithoutTls};

use super::failure::Failure;
use crate::error::{Error, Kind};
use crate::format::lmdb::{
    IndexRow, Next, checked_value, decode_number, number_key, number_of_key, value_header, value_payload,
};
use crate::format::{EntryHeader, EntryRecord, RecordType, malformed};

/// Names of the databases, in the order of [`Tables`].
const NAMES: [&str; 6] = ["manifest", "keys", "index", "entries", "chunks", "models"];
/// Where the manifest is, for whoever reads it without LMDB.
pub(super) const MANIFEST: (&str, &[u8]) = ("manifest", b"manifest");
pub(super) const NEXT: &[u8] = b"next";
/// Entries share models: a damaged copy must not cost them all.
pub(super) const MODEL_COPIES: u8 = 2;

pub(super) type Table<'e> = Database<'e, Bytes, Bytes>;

/// What fills a new store.
pub(super) type First<'f> = &'f mut dyn FnMut(&mut RwTxn<'_>, &Tables<'_>) -> Result<(), Failure>;

/// The named databases of a store.
#[derive(Clone, Copy)]
pub(super) struct Tables<'e> {
    /// The manifest, and the numbers not given out yet.
    pub(super) manifest: Table<'e>,
    /// From the hash of a key to its place.
    pub(super) keys: Table<'e>,
    /// From place to content id, id and key.
    pub(super) index: Table<'e>,
    /// From id to the entry's record.
    pub(super) entries: Table<'e>,
    /// From id, activation and piece to bytes of a chunk.
    pub(super) chunks: Table<'e>,
    /// From model id and copy to the model.
    pub(super) models: Table<'e>,
}

impl<'e> Tables<'e> {
    fn of([manifest, keys, index, entries, chunks, models]: [Table<'e>; 6]) -> Self {
        Self { manifest, keys, index, entries, chunks, models }
    }

    /// Makes the databases of a new store and fills them, in one transaction.
    pub(super) fn create(env: &Env<WithoutTls>, first: First<'_>) -> Result<Tables<'static>, Failure> {
        let txn = env.write_txn()?;
        let made = env.create_databases_and_commit::<_, _, (), Failure>(txn, |opener, txn| {
            let mut tables = Vec::with_capacity(NAMES.len());
            for name in NAMES {
                tables.push(opener.create_database::<Bytes, Bytes>(txn, Some(name))?);
            }
            let tables: [_; 6] = tables.try_into().map_err(|_| incomplete())?;
            first(txn, &Tables::of(tables))?;
            Ok(CommitOrAbort::Commit(tables))
        })?;
        Ok(Tables::of(made.commit().ok_or_else(incomplete)?))
    }

    pub(super) fn open(env: &Env<WithoutTls>) -> Result<Tables<'static>, Failure> {
        let txn = env.read_txn()?;
        let opened = env.open_databases_and_commit::<_, _, (), Failure>(txn, |opener, txn| {
            let mut tables = Vec::with_capacity(NAMES.len());
            for name in NAMES {
                tables.push(opener.open_database::<Bytes, Bytes>(txn, Some(name))?.ok_or_else(incomplete)?);
            }
            let tables: [_; 6] = tables.try_into().map_err(|_| incomplete())?;
            Ok(CommitOrAbort::Commit(tables))
        })?;
        Ok(Tables::of(opened.commit().ok_or_else(incomplete)?))
    }
}

fn incomplete() -> Error {
    malformed(format!("the environment lacks a database of a store: {}", NAMES.join(", ")))
}

/// What stands for a key of any length in an LMDB key, which has at most 511 bytes.
pub(super) fn hash(key: &str) -> [u8; 32] {
    *blake3::hash(key.as_bytes()).as_bytes()
}

/// One transaction's view of a store.
#[derive(Clone, Copy)]
pub(super) struct View<'t> {
    pub(super) txn: &'t RoTxn<'t>,
    pub(super) tables: &'t Tables<'t>,
    /// First bytes of the store id, which every value carries.
    pub(super) store: u64,
}

impl<'t> View<'t> {
    /// A value whose every byte was checked.
    pub(super) fn value(
        &self,
        table: Table<'_>,
        key: &[u8],
        record_type: RecordType,
        sequence: u64,
    ) -> Result<Option<&'t [u8]>, Failure> {
        let value = table.get(self.txn, key)?;
        Ok(value.map(|value| checked_value(value, record_type, sequence, self.store)).transpose()?)
    }

    /// A value whose header was checked, and so its length, but not its bytes.
    pub(super) fn unchecked_value(
        &self,
        table: Table<'_>,
        key: &[u8],
        record_type: RecordType,
        sequence: u64,
    ) -> Result<Option<&'t [u8]>, Failure> {
        let value = table.get(self.txn, key)?;
        Ok(value.map(|value| value_payload(value, record_type, sequence, self.store)).transpose()?)
    }

    /// The place of a key.
    pub(super) fn place(&self, hash: &[u8; 32]) -> Result<Option<u64>, Failure> {
        let Some(value) = self.tables.keys.get(self.txn, hash)? else { return Ok(None) };
        // The value's sequence is the place itself.
        let place = value.last_chunk::<8>().map(|place| decode_number(place)).transpose()?.unwrap_or_default();
        checked_value(value, RecordType::Key, place, self.store)?;
        Ok(Some(place))
    }

    /// The row at a place.
    pub(super) fn row(&self, place: u64) -> Result<Option<IndexRow<'t>>, Failure> {
        let payload = self.value(self.tables.index, &number_key(place), RecordType::Index, place)?;
        Ok(payload.map(IndexRow::decode).transpose()?)
    }

    /// Place and row of a key.
    pub(super) fn find(&self, key: &str) -> Result<Option<(u64, IndexRow<'t>)>, Failure> {
        let find = || -> Result<_, Failure> {
            let Some(place) = self.place(&hash(key))? else { return Ok(None) };
            match self.row(place)?.filter(|row| row.key == key) {
                Some(row) => Ok(Some((place, row))),
                None => Err(malformed(format!("place `{place}` of the index is not its own")).into()),
            }
        };
        find().map_err(|failure| failure.within(|| format!("entry `{key}` is damaged")))
    }

    /// Rows of at most `most` places after `place`, in the order of writing; a damaged one is an error in its place.
    pub(super) fn rows_after(&self, place: Option<u64>, most: usize) -> Result<Vec<(u64, RowOf<'t>)>, Failure> {
        let after = place.map(number_key);
        let from = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
        let range = (from, Bound::Unbounded);
        let mut rows = Vec::new();
        for row in self.tables.index.range(self.txn, &range)?.take(most) {
            let (key, value) = row?;
            let place = number_of_key(key)?;
            let payload = checked_value(value, RecordType::Index, place, self.store);
            rows.push((place, payload.and_then(IndexRow::decode)));
        }
        Ok(rows)
    }

    /// The key whose row is damaged, from the record of its entry: damage to a row must not hide the entry's name.
    pub(super) fn key_at(&self, place: u64) -> Result<Option<Arc<str>>, Failure> {
        for record in self.tables.entries.iter(self.txn)? {
            let (id, value) = record?;
            let payload = checked_value(value, RecordType::Entry, number_of_key(id)?, self.store);
            let header = payload.and_then(EntryRecord::decode).and_then(|record| EntryHeader::decode(record.header));
            let Ok(header) = header else { continue };
            if self.place(&hash(header.document.key()))? == Some(place) {
                return Ok(Some(header.document.key().into()));
            }
        }
        Ok(None)
    }

    /// The numbers not given out yet.
    pub(super) fn next(&self) -> Result<Next, Failure> {
        let payload = self.value(self.tables.manifest, NEXT, RecordType::Next, 0)?;
        let missing = || Error::new(Kind::Malformed, "the store does not say which numbers are free");
        Ok(Next::decode(payload.ok_or_else(missing)?)?)
    }

    /// Puts a value with its header.
    pub(super) fn put(
        txn: &mut RwTxn<'_>,
        (table, store): (Table<'_>, u64),
        key: &[u8],
        (record_type, sequence): (RecordType, u64),
        payload: &[u8],
    ) -> Result<(), Failure> {
        use std::io::Write;
        let header = value_header(record_type, sequence, store, payload).encode();
        table.put_reserved(txn, key, header.len() + payload.len(), |space| {
            space.write_all(&header)?;
            space.write_all(payload)
        })?;
        Ok(())
    }
}

/// A row, or why it cannot be read.
pub(super) type RowOf<'t> = crate::error::Result<IndexRow<'t>>;
