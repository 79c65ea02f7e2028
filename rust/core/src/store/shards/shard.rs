//! Reading one shard: its entries, chunks and models.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

use super::super::{Stored, lock};
use super::scan::{Found, Group, header_at, named, payload_of, scan};
use super::{Scan, shard_path};
use crate::codec::{Model, ModelId};
use crate::entry::ContentId;
use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;
use crate::format::{
    Change, CommitRecord, EntryHeader, EntryRecord, Extent, ModelPlace, Place, RecordType, Sealed, malformed,
};

/// A shard open for reading.
pub(super) struct Shard {
    pub(super) file: ReadFile,
    pub(super) place: Place,
    places: RwLock<HashMap<ModelId, ModelPlace>>,
    models: Mutex<HashMap<ModelId, Arc<Model>>>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shard").field(&self.file.path()).finish()
    }
}

thread_local! {
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Kept between reads by each thread; larger buffers are given back.
const KEPT_BYTES: usize = 4 << 20;

impl Shard {
    pub(super) fn open(root: &Path, place: Place) -> Result<Self> {
        let file = ReadFile::open(&shard_path(root, place))?;
        Ok(Self { file, place, places: RwLock::default(), models: Mutex::default() })
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
        let found =
            header_at(&self.file, offset, self.place)?.filter(|found| found.header.record_type == RecordType::Seal);
        let found = found.ok_or_else(|| malformed(format!("{}: no seal", named(&self.file, offset))))?;
        Ok((found, CommitRecord::decode(&payload_of(&self.file, &found)?)?))
    }

    pub(super) fn add_models(&self, models: &[ModelPlace]) {
        let mut places = self.places.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        places.extend(models.iter().map(|model| (model.id, *model)));
    }

    fn read_record(&self, offset: u64, record_type: RecordType) -> Result<Vec<u8>> {
        let found = header_at(&self.file, offset, self.place)?.filter(|found| found.header.record_type == record_type);
        let found = found.ok_or_else(|| {
            Error::new(Kind::Checksum, format!("{}: a record header is damaged", named(&self.file, offset)))
        })?;
        payload_of(&self.file, &found)
    }

    fn model(&self, id: &ModelId) -> Result<Arc<Model>> {
        if let Some(model) = lock(&self.models).get(id) {
            return Ok(model.clone());
        }
        let place = self.places.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(id).copied();
        let [first, second] =
            place.ok_or_else(|| malformed("frames name a model that the shard does not have"))?.offsets;
        let bytes =
            self.read_record(first, RecordType::Model).or_else(|_| self.read_record(second, RecordType::Model))?;
        let model = Arc::new(Model::new(bytes));
        lock(&self.models).insert(*id, model.clone());
        Ok(model)
    }

    pub(super) fn header_bytes(&self, offset: u64) -> Result<(Vec<u64>, Vec<u8>)> {
        let payload = self.read_record(offset, RecordType::Entry)?;
        let (offsets, header) = EntryRecord::decode(&payload)?;
        Ok((offsets, header.to_vec()))
    }
}

/// Where an entry is: what the index holds.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) content_id: ContentId,
    pub(super) offset: u64,
    pub(super) shard: Arc<Shard>,
}

impl Located {
    pub(super) fn of(change: &Change, shard: &Arc<Shard>) -> Option<Self> {
        match change {
            Change::Put { content_id, offset, .. } => {
                Some(Self { content_id: *content_id, offset: *offset, shard: shard.clone() })
            }
            Change::Delete { .. } => None,
        }
    }

    pub(super) fn read(&self, key: &str) -> Result<ShardEntry> {
        let read = || -> Result<ShardEntry> {
            let (offsets, header) = self.shard.header_bytes(self.offset)?;
            let header = EntryHeader::decode(&header)?;
            if header.document.key() != key || offsets.len() != header.activations.len() {
                return Err(malformed("the entry's record is another entry's"));
            }
            Ok(ShardEntry { located: self.clone(), offsets, header })
        };
        read().map_err(|e| e.within(format!("entry `{key}` is damaged")))
    }
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
        let base = self.offsets.get(index).copied().ok_or_else(|| malformed("an entry has no such activation"))?;
        let offset = base.checked_add(start).ok_or_else(|| malformed("a chunk lies beyond any file"))?;
        STORED.with_borrow_mut(|bytes| {
            bytes.resize(length, 0);
            let result = self.located.shard.file.read_at(offset, bytes).and_then(|()| f(bytes));
            if bytes.capacity() > KEPT_BYTES {
                *bytes = Vec::new();
            }
            result
        })
    }

    fn model(&self, id: &ModelId) -> Result<Arc<Model>> {
        self.located.shard.model(id)
    }
}
