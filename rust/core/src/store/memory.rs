//! A store that lives as long as its handle: the backend that the others are compared with.

use std::path::Path;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use super::index::Index;
use super::{Backend, BackendSpec, Committed, EncodedEntry, FRAME_CODECS, Operation, Stored};
use crate::codec::{Model, ModelId};
use crate::entry::ContentId;
use crate::error::{Error, Kind, Result};
use crate::files::Disk;
use crate::format::{EntryHeader, malformed, size};
use crate::lock::{lock_alone, lock_shared};
use crate::manifest::Manifest;

/// The line of the table.
pub const SPEC: BackendSpec = BackendSpec {
    name: "memory",
    on_disk: false,
    codecs: FRAME_CODECS,
    recognises: |_| false,
    create: |_, _, _| Ok(Box::<Memory>::default()),
    open,
};

fn open(path: &Path, _writable: bool, _disk: Arc<dyn Disk>) -> Result<(Manifest, Box<dyn Backend>)> {
    Err(Error::new(Kind::NotAStore, format!("`{}` cannot be a store in memory", path.display())))
}

#[derive(Default)]
struct Memory {
    index: RwLock<Index<Arc<EncodedEntry>>>,
}

impl Memory {
    fn index(&self) -> RwLockReadGuard<'_, Index<Arc<EncodedEntry>>> {
        lock_shared(&self.index)
    }
}

impl Stored for EncodedEntry {
    fn header(&self) -> &EntryHeader {
        &self.header
    }

    fn content_id(&self) -> ContentId {
        self.content_id
    }

    fn with_bytes(
        &self,
        index: usize,
        start: u64,
        length: usize,
        f: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let start = size(start)?;
        let bytes = self.chunks.get(index).and_then(|chunk| chunk.get(start..start.checked_add(length)?));
        f(bytes.ok_or_else(|| malformed("frames reach beyond their chunk"))?)
    }

    fn model(&self, id: &ModelId) -> Result<Arc<Model>> {
        let model = self.models.iter().find(|model| model.id() == *id);
        model.cloned().ok_or_else(|| malformed("an entry names a model it does not have"))
    }
}

impl Backend for Memory {
    fn commit(&self, operations: Vec<Operation>) -> Result<Committed> {
        let mut index = lock_alone(&self.index);
        for operation in operations {
            match operation {
                Operation::Put(entry) => {
                    let entry: Arc<EncodedEntry> = Arc::from(entry);
                    index.put(entry.header.document.key().into(), entry.clone());
                }
                Operation::Delete(key) => index.delete(&key),
            }
        }
        Ok(Committed::default())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn keys(&self) -> Result<Vec<Arc<str>>> {
        Ok(self.index().keys())
    }

    fn last_key(&self) -> Result<Option<Arc<str>>> {
        Ok(self.index().last_key())
    }

    fn len(&self) -> Result<usize> {
        Ok(self.index().len())
    }

    fn content_id(&self, key: &str) -> Result<Option<ContentId>> {
        Ok(self.index().get(key).map(|entry| entry.content_id))
    }

    fn entry(&self, key: &str) -> Result<Option<Arc<dyn Stored>>> {
        Ok(self.index().get(key).cloned().map(|entry| entry as Arc<dyn Stored>))
    }

    fn file_bytes(&self) -> Result<u64> {
        Ok(0)
    }

    fn verify(&self) -> Vec<Error> {
        Vec::new()
    }

    fn damage(&self) -> Vec<Error> {
        Vec::new()
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
