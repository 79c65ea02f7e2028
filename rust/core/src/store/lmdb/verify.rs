//! Whether the pages of a store are whole and its databases say the same: what reading every entry does not find. In
//! steps, each a transaction that sees one state of all of them: a writer is not kept waiting, and what it changes
//! between two steps is no damage.

use std::ops::Bound;

use super::failure::Failure;
use super::stored::Shared;
use super::tables::{MANIFEST, MODEL_COPIES, NEXT, Table, Tables, View, hash};
use super::walk::DataFile;
use crate::codec::Model;
use crate::error::{Error, Result};
use crate::format::lmdb::{ChunkKey, IndexRow, checked_value, model_key, model_of_key, number_key, number_of_key};
use crate::format::{EntryHeader, EntryRecord, RecordType, malformed};

/// Values looked at in one transaction, and about how many bytes of them.
const VALUES: usize = 1024;
const BYTES: usize = 64 << 20;
/// How often a walk is begun anew because of a commit.
const WALKS: usize = 3;

/// Checks one value, given with its key, and what others must say of it.
type Check = fn(&View<'_>, &[u8], &[u8]) -> Result<(), Failure>;

type Pick = for<'e> fn(&Tables<'e>) -> Table<'e>;

/// What is damaged; named by the entry's key where it has one.
pub(super) fn verify(shared: &Shared) -> Vec<Error> {
    let mut damage: Vec<Error> = walk(shared).err().into_iter().collect();
    let mut check = |table: Pick, check| {
        let failed = check_all(shared, table, check, &mut damage).err();
        damage.extend(failed);
    };
    check(|tables| tables.manifest, check_manifest);
    check(|tables| tables.index, check_row);
    check(|tables| tables.keys, check_key);
    check(|tables| tables.entries, check_entry);
    check(|tables| tables.chunks, check_chunk);
    check(|tables| tables.models, check_model);
    damage
}

/// Whether the key of every row leads to it: where none does, its entry would be missing without a word.
pub(super) fn keys_lead(shared: &Shared) -> Result<()> {
    let mut damage = Vec::new();
    check_all(shared, |tables| tables.index, check_row, &mut damage)?;
    damage.into_iter().next().map_or(Ok(()), Err)
}

/// Walks the pages of the last commit. A later one may reuse them, and writes its first page meanwhile: then the walk says
/// nothing.
fn walk(shared: &Shared) -> Result<()> {
    let path = shared.environment.data_path();
    let last_commit = || DataFile::open(&path).ok().map(|file| file.txnid());
    for _ in 0..WALKS {
        let before = last_commit();
        let Err(error) = DataFile::open(&path).and_then(|file| file.walk(true)) else { return Ok(()) };
        if last_commit() == before {
            return Err(error);
        }
    }
    Ok(())
}

fn check_all(shared: &Shared, table: Pick, check: Check, damage: &mut Vec<Error>) -> Result<()> {
    let mut last: Option<Vec<u8>> = None;
    loop {
        let reached = shared.read(|view| {
            let from = last.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
            let (range, mut reached, mut bytes) = ((from, Bound::Unbounded), None, 0);
            for value in table(view.tables).range(view.txn, &range)?.take(VALUES) {
                let (key, value) = value?;
                match check(view, key, value) {
                    Ok(()) => {}
                    Err(Failure::Ours(error)) => damage.push(error),
                    Err(failure) => return Err(failure),
                }
                reached = Some(key.to_vec());
                bytes += value.len();
                if bytes >= BYTES {
                    break;
                }
            }
            Ok(reached)
        })?;
        if reached.is_none() {
            return Ok(());
        }
        last = reached;
    }
}

fn check_manifest(view: &View<'_>, key: &[u8], value: &[u8]) -> Result<(), Failure> {
    if key == MANIFEST.1 {
        let checked = checked_value(value, RecordType::Manifest, 0, view.store);
        return Ok(checked.map(drop).map_err(|e| e.within("the manifest"))?);
    }
    if key != NEXT {
        return Err(malformed(format!("`{}` is no value of the manifest", key.escape_ascii())).into());
    }
    let next = view.next()?;
    let above = |table: Table<'_>, next: u64| -> Result<bool, Failure> {
        let last = table.last(view.txn)?.map(|(key, _)| number_of_key(key)).transpose()?;
        Ok(last.is_none_or(|last| last < next))
    };
    if above(view.tables.index, next.place)? && above(view.tables.entries, next.id)? {
        return Ok(());
    }
    Err(malformed("numbers are said to be free that are taken").into())
}

fn check_row(view: &View<'_>, key: &[u8], value: &[u8]) -> Result<(), Failure> {
    let place = number_of_key(key)?;
    let row = checked_value(value, RecordType::Index, place, view.store).and_then(IndexRow::decode);
    let row = row.map_err(|e| e.within(format!("place `{place}` of the index")))?;
    match view.place(&hash(row.key)) {
        Ok(Some(led)) if led == place => Ok(()),
        Ok(_) => Err(malformed(format!("the key of entry `{}` leads elsewhere", row.key)).into()),
        Err(failure) => Err(failure.within(|| format!("the key of entry `{}`", row.key))),
    }
}

fn check_key(view: &View<'_>, key: &[u8], _value: &[u8]) -> Result<(), Failure> {
    let hashed = key.try_into().map_err(|_| malformed("a key is no hash"))?;
    let Some(place) = view.place(hashed).map_err(|f| f.within(|| "the place of a key".to_owned()))? else {
        return Ok(());
    };
    match view.row(place) {
        Ok(Some(row)) if hash(row.key) == *hashed => Ok(()),
        // The row has been told of by itself.
        Err(Failure::Ours(_)) => Ok(()),
        Ok(_) => Err(malformed(format!("a key leads to place `{place}` of the index, which is not its own")).into()),
        Err(failure) => Err(failure),
    }
}

fn check_entry(view: &View<'_>, key: &[u8], value: &[u8]) -> Result<(), Failure> {
    let id = number_of_key(key)?;
    let payload = checked_value(value, RecordType::Entry, id, view.store);
    let header = payload.and_then(EntryRecord::decode).and_then(|record| EntryHeader::decode(record.header));
    // A damaged record has been told of by its entry.
    let Ok(header) = header else { return Ok(()) };
    match view.find(header.document.key()) {
        Ok(Some((_, row))) if row.id == id => Ok(()),
        Err(Failure::Ours(_)) => Ok(()),
        Ok(_) => Err(malformed(format!("the index does not have id `{id}`, `{}`", header.document.key())).into()),
        Err(failure) => Err(failure),
    }
}

/// Damage to the bytes of a piece is told of by its entry.
fn check_chunk(view: &View<'_>, key: &[u8], _value: &[u8]) -> Result<(), Failure> {
    let ChunkKey { id, activation, piece } = ChunkKey::decode(key)?;
    if view.tables.entries.get(view.txn, &number_key(id))?.is_some() {
        return Ok(());
    }
    Err(malformed(format!("piece `{piece}` of activation `{activation}` of id `{id}` belongs to no entry")).into())
}

fn check_model(view: &View<'_>, key: &[u8], value: &[u8]) -> Result<(), Failure> {
    let (id, copy) = model_of_key(key)?;
    let check = || -> Result<(), Failure> {
        let bytes = checked_value(value, RecordType::Model, copy.into(), view.store)?;
        Model::read(bytes, &id)?;
        if copy >= MODEL_COPIES {
            return Err(malformed("there are no such copies").into());
        }
        for other in 0..MODEL_COPIES {
            if view.tables.models.get(view.txn, &model_key(&id, other))?.is_none() {
                return Err(malformed(format!("copy `{other}` is missing")).into());
            }
        }
        Ok(())
    };
    check().map_err(|failure| failure.within(|| format!("copy `{copy}` of model `{}`", crate::entry::hex(&id))))
}
