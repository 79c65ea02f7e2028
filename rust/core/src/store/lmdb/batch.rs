//! The operations of a commit, made ready before its transaction begins, and applied as often as that has to be begun.

use std::ops::Bound;

use heed::RwTxn;

use super::failure::Failure;
use super::tables::{MODEL_COPIES, NEXT, Table, Tables, View, hash};
use crate::codec::Model;
use crate::error::{Error, Kind, Result};
use crate::format::lmdb::{ChunkKey, IndexRow, Next, PIECE_BYTES, encode_number, model_key, number_key};
use crate::format::{EntryRecord, MAX_PAYLOAD_BYTES, RECORD_HEADER_BYTES, RecordType};
use crate::store::{EncodedEntry, Operation};

/// What LMDB writes for a value beside its bytes, generously: pages of the trees that lead to it.
const PAGES_OF_A_VALUE: u64 = 8 * 4096;

enum Change {
    Put { entry: Box<EncodedEntry>, record: Vec<u8> },
    Delete { key: String },
}

/// The operations of a commit.
pub(super) struct Batch {
    changes: Vec<Change>,
    store: u64,
}

impl Batch {
    pub(super) fn new(operations: Vec<Operation>, store: u64) -> Result<Self> {
        let change = |operation| match operation {
            Operation::Delete(key) => Ok(Change::Delete { key }),
            Operation::Put(entry) => {
                let record = record_of(&entry)?;
                Ok(Change::Put { entry, record })
            }
        };
        Ok(Self { changes: operations.into_iter().map(change).collect::<Result<_>>()?, store })
    }

    /// About how many bytes the commit writes.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = |change: &Change| match change {
            Change::Delete { .. } => PAGES_OF_A_VALUE,
            Change::Put { entry, record } => {
                let models: usize = entry.models.iter().map(|model| 2 * model.stored().len()).sum();
                let values = (3 + entry.chunks.len() + 2 * entry.models.len()) as u64;
                entry.stored_bytes() + (record.len() + models) as u64 + values * PAGES_OF_A_VALUE
            }
        };
        self.changes.iter().map(bytes).sum()
    }

    /// Makes the changes.
    pub(super) fn apply(&self, txn: &mut RwTxn<'_>, tables: &Tables<'_>) -> Result<(), Failure> {
        let mut applying = Applying { txn, tables, store: self.store, next: Next::default() };
        applying.next = applying.view().next()?;
        let before = applying.next;
        for change in &self.changes {
            match change {
                Change::Put { entry, record } => applying.put(entry, record)?,
                Change::Delete { key } => applying.delete(key)?,
            }
        }
        if applying.next != before {
            let next = applying.next.encode();
            applying.value(tables.manifest, NEXT, (RecordType::Next, 0), &next)?;
        }
        Ok(())
    }
}

fn record_of(entry: &EncodedEntry) -> Result<Vec<u8>> {
    let header = entry.header.encode()?;
    let record = EntryRecord { content_id: entry.content_id, offsets: Vec::new(), header: &header }.encode();
    if record.len() as u64 > MAX_PAYLOAD_BYTES - RECORD_HEADER_BYTES as u64 {
        let key = entry.header.document.key();
        let message = format!("entry `{key}` has a header of `{}` bytes, above the limit of 1 GiB", record.len());
        return Err(Error::new(Kind::LimitExceeded, message));
    }
    Ok(record)
}

struct Applying<'b, 'e> {
    txn: &'b mut RwTxn<'e>,
    tables: &'b Tables<'b>,
    store: u64,
    next: Next,
}

impl Applying<'_, '_> {
    fn view(&self) -> View<'_> {
        View { txn: self.txn, tables: self.tables, store: self.store }
    }

    fn value(&mut self, table: Table<'_>, key: &[u8], of: (RecordType, u64), payload: &[u8]) -> Result<(), Failure> {
        View::put(self.txn, (table, self.store), key, of, payload)
    }

    /// A replaced entry keeps its place; its id, as every new entry's, is one that nothing was ever stored under, so that
    /// whoever looked the old one up never reads the new one's bytes.
    fn put(&mut self, entry: &EncodedEntry, record: &[u8]) -> Result<(), Failure> {
        let key = entry.header.document.key();
        let found = self.view().find(key)?.map(|(place, row)| (place, row.id));
        let place = match found {
            Some((place, old)) => {
                self.remove(old)?;
                place
            }
            None => {
                let place = self.next.place;
                self.next.place += 1;
                self.value(self.tables.keys, &hash(key), (RecordType::Key, place), &encode_number(place))?;
                place
            }
        };
        let id = self.next.id;
        self.next.id += 1;
        entry.models.iter().try_for_each(|model| self.model(model))?;
        self.value(self.tables.entries, &number_key(id), (RecordType::Entry, id), record)?;
        for (activation, chunk) in (0..).zip(&entry.chunks) {
            for (piece, bytes) in (0..).zip(chunk.chunks(PIECE_BYTES)) {
                let key = ChunkKey { id, activation, piece }.encode();
                self.value(self.tables.chunks, &key, (RecordType::Data, id), bytes)?;
            }
        }
        let row = IndexRow { content_id: entry.content_id, id, key }.encode();
        self.value(self.tables.index, &number_key(place), (RecordType::Index, place), &row)
    }

    fn delete(&mut self, key: &str) -> Result<(), Failure> {
        let found = self.view().find(key)?.map(|(place, row)| (place, row.id));
        let Some((place, id)) = found else { return Ok(()) };
        self.tables.keys.delete(self.txn, &hash(key))?;
        self.tables.index.delete(self.txn, &number_key(place))?;
        self.remove(id)
    }

    /// Removes what is stored under an id.
    fn remove(&mut self, id: u64) -> Result<(), Failure> {
        self.tables.entries.delete(self.txn, &number_key(id))?;
        let [first, last] = [0, u32::MAX].map(|n| ChunkKey { id, activation: n, piece: n }.encode());
        self.tables
            .chunks
            .delete_range(self.txn, &(Bound::Included(first.as_slice()), Bound::Included(last.as_slice())))?;
        Ok(())
    }

    /// Both copies of a model, where they are not there already; models are never removed, since entries share them.
    fn model(&mut self, model: &Model) -> Result<(), Failure> {
        for copy in 0..MODEL_COPIES {
            let key = model_key(&model.id(), copy);
            let stored = self.view().value(self.tables.models, &key, RecordType::Model, copy.into());
            let present = match stored {
                Ok(stored) => {
                    stored.is_some_and(|bytes| bytes == model.stored() || Model::read(bytes, &model.id()).is_ok())
                }
                // A damaged copy is written again.
                Err(Failure::Ours(_)) => false,
                Err(failure) => return Err(failure),
            };
            if !present {
                self.value(self.tables.models, &key, (RecordType::Model, copy.into()), model.stored())?;
            }
        }
        Ok(())
    }
}
