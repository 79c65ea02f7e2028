//! Reading one shard: its entries, chunks and models.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, RwLock};

use super::super::read_models::ReadModels;
use super::super::recent::RecordPlace;
use super::super::{Chunk, Stored};
use super::scan::{Found, Group, View, named, payload_of, scan};
use super::{Scan, shard_path};
use crate::buffers::lend;
use crate::codec::{Model, ModelId};
use crate::entry::{ContentId, Public};
use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;
use crate::format::{
    Change, CommitRecord, EntryHeader, EntryRecord, Extent, MAX_PAYLOAD_BYTES, ModelPlace, Place, RECORD_HEADER_BYTES,
    RecordHeader, RecordType, Sealed, malformed, size,
};
use crate::lock::{lock_alone, lock_shared};

/// A shard open for reading.
pub(super) struct Shard {
    pub(super) file: ReadFile,
    pub(super) place: Place,
    places: RwLock<HashMap<ModelId, ModelPlace>>,
    models: ReadModels,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shard").field(&self.file.path()).finish()
    }
}

impl Shard {
    pub(super) fn open(root: &Path, place: Place) -> Result<Self> {
        let file = ReadFile::open(&shard_path(root, place))?;
        Ok(Self { file, place, places: RwLock::default(), models: ReadModels::default() })
    }

    /// What the shard holds. Of a sealed one its seal says so; a damaged seal is no loss, the commits say the same.
    pub(super) fn read(&self, extent: Option<&Extent>) -> Result<Scan> {
        let durable = extent.map_or(0, |extent| extent.length);
        let length = self.file.length()?;
        if length < durable {
            let message =
                format!("`{}` has `{length}` bytes of `{durable}` that were written", self.file.path().display());
            let mut scan = scan(&self.file, self.place, durable)?;
            scan.damage = vec![Error::new(Kind::Truncated, message)];
            return Ok(scan);
        }
        let sealed = extent.and_then(|extent| extent.seal);
        match sealed.map(|sealed| self.read_seal(sealed)) {
            Some(Ok((seal, commit))) => {
                Ok(Scan { groups: vec![Group { records: Vec::new(), commit }], seal: Some(seal), ..Scan::default() })
            }
            _ => scan(&self.file, self.place, durable),
        }
    }

    fn read_seal(&self, sealed: Sealed) -> Result<(Found, CommitRecord)> {
        let offset = sealed.offset;
        let found = View::of(&self.file, self.place)?
            .header_at(offset)?
            .filter(|found| found.header.record_type == RecordType::Seal);
        let found = found.ok_or_else(|| malformed(format!("{}: no seal", named(&self.file, offset))))?;
        Ok((found, CommitRecord::decode(&payload_of(&self.file, &found)?)?))
    }

    pub(super) fn add_models(&self, models: &[ModelPlace]) {
        let mut places = lock_alone(&self.places);
        places.extend(models.iter().map(|model| (model.id, *model)));
    }

    fn read_record(&self, offset: u64, record_type: RecordType) -> Result<Vec<u8>> {
        let found = View::of(&self.file, self.place)?
            .header_at(offset)?
            .filter(|found| found.header.record_type == record_type);
        let found = found.ok_or_else(|| {
            Error::new(Kind::Checksum, format!("{}: a record header is damaged", named(&self.file, offset)))
        })?;
        payload_of(&self.file, &found)
    }

    /// Lends the payload of an `entry` record, read with its header at once.
    fn with_entry<T>(&self, offset: u64, length: u64, f: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        lend(RECORD_HEADER_BYTES + size(length.min(MAX_PAYLOAD_BYTES))?, |record| {
            self.file.read_at(offset, record)?;
            let damaged = |e: Error| e.within(named(&self.file, offset));
            let (header, payload) =
                record.split_first_chunk::<RECORD_HEADER_BYTES>().ok_or_else(|| malformed("no record header"))?;
            let header = RecordHeader::decode(header).map_err(damaged)?;
            if (header.record_type, header.place) != (RecordType::Entry, self.place) {
                return Err(damaged(malformed("another record stands where an entry was written")));
            }
            header.check(payload).map_err(damaged)?;
            f(payload)
        })
    }

    fn read_model(&self, id: &ModelId) -> Result<Model> {
        let place = lock_shared(&self.places).get(id).copied();
        let [first, second] =
            place.ok_or_else(|| malformed("frames name a model that the shard does not have"))?.offsets;
        let read = |offset| Model::read(&self.read_record(offset, RecordType::Model)?, id);
        read(first).or_else(|_| read(second))
    }

    fn model(&self, id: &ModelId) -> Result<Arc<Model>> {
        self.models.get(id, || self.read_model(id))
    }
}

/// Where an entry is: what the index holds.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) content_id: ContentId,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) shard: Arc<Shard>,
}

impl Located {
    pub(super) fn of(change: &Change, shard: &Arc<Shard>) -> Option<Self> {
        match change {
            Change::Put { content_id, offset, length, .. } => {
                Some(Self { content_id: *content_id, offset: *offset, length: *length, shard: shard.clone() })
            }
            Change::Delete { .. } => None,
        }
    }

    pub(super) fn place(&self) -> RecordPlace {
        let Place { writer, shard, .. } = self.shard.place;
        (writer, shard, self.offset)
    }

    pub(super) fn read(&self, key: &str) -> Result<ShardEntry> {
        self.with_record(key, |record| {
            let header = EntryHeader::decode(record.header)?;
            if header.document.key() != key || record.offsets.len() != header.activations.len() {
                return Err(of_another());
            }
            Ok(ShardEntry { located: self.clone(), offsets: record.offsets, header })
        })
    }

    /// The document as people see it.
    pub(super) fn public_document(&self, key: &str) -> Result<String> {
        self.with_record(key, |record| {
            let document = Public::of_stored(EntryHeader::stored_document(record.header)?)?;
            if document.has_key(key) { document.to_json() } else { Err(of_another()) }
        })
    }

    fn with_record<T>(&self, key: &str, f: impl FnOnce(EntryRecord<'_>) -> Result<T>) -> Result<T> {
        let result = self.shard.with_entry(self.offset, self.length, |payload| {
            let record = EntryRecord::decode(payload)?;
            if record.content_id == self.content_id { f(record) } else { Err(of_another()) }
        });
        result.map_err(|e| e.within(format!("entry `{key}` is damaged")))
    }
}

fn of_another() -> Error {
    malformed("the entry's record is another entry's")
}

/// An entry in a shard.
pub(super) struct ShardEntry {
    located: Located,
    offsets: Vec<u64>,
    header: EntryHeader,
}

impl Stored for ShardEntry {
    fn header(&self) -> &EntryHeader {
        &self.header
    }

    fn content_id(&self) -> ContentId {
        self.located.content_id
    }

    fn with_bytes(
        &self,
        index: usize,
        start: u64,
        length: usize,
        f: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let chunk = self.chunk_at(index).ok_or_else(|| malformed("an entry has no such activation"))?;
        chunk.with_bytes(start, length, f)
    }

    fn read_into(&self, index: usize, start: u64, out: &mut [u8], check: &dyn Fn(&[u8]) -> Result<()>) -> Result<()> {
        let chunk = self.chunk_at(index).ok_or_else(|| malformed("an entry has no such activation"))?;
        chunk.shard.file.read_at(chunk.place_of(start)?, out).and_then(|()| check(out))
    }

    fn model(&self, id: &ModelId) -> Result<Arc<Model>> {
        self.located.shard.model(id)
    }

    fn chunk(&self, index: usize) -> Option<Arc<dyn Chunk>> {
        self.chunk_at(index).map(|chunk| Arc::new(chunk) as Arc<dyn Chunk>)
    }
}

impl ShardEntry {
    fn chunk_at(&self, index: usize) -> Option<ShardChunk> {
        self.offsets.get(index).map(|&offset| ShardChunk { shard: self.located.shard.clone(), offset })
    }
}

/// The frames of one activation in a shard.
struct ShardChunk {
    shard: Arc<Shard>,
    offset: u64,
}

impl ShardChunk {
    fn place_of(&self, start: u64) -> Result<u64> {
        self.offset.checked_add(start).ok_or_else(|| malformed("a chunk lies beyond any file"))
    }
}

impl Chunk for ShardChunk {
    fn with_bytes(&self, start: u64, length: usize, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let offset = self.place_of(start)?;
        lend(length, |bytes| self.shard.file.read_at(offset, bytes).and_then(|()| f(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::contract::{bare_entry, settings};
    use super::super::super::{Operation, Store};
    use super::super::place_of;
    use super::*;

    #[test]
    fn an_entry_is_found_by_its_own_key_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("s");
        let store = Store::create(Some(&root), "shards", settings("shards", "error"), 1 << 20).unwrap();
        let entry = bare_entry(r#"{"key":"k","key_recipe":"user"}"#);
        store.writing().unwrap().commit(vec![Operation::Put(Box::new(entry))]).unwrap();
        let shard = Arc::new(Shard::open(&root, place_of(store.manifest(), 1)).unwrap());
        let scan = shard.read(None).unwrap();
        let located = Located::of(&scan.groups[0].commit.changes[0], &shard).unwrap();
        assert_eq!(located.read("k").unwrap().header().document.key(), "k");
        assert!(located.public_document("k").unwrap().starts_with(r#"{"key":"k","#));
        for error in [located.read("other").err().unwrap(), located.public_document("other").unwrap_err()] {
            assert!(error.to_string().ends_with("the entry's record is another entry's"), "{error}");
        }
    }
}
