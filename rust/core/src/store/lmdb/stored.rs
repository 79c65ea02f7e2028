//! Reading the entries of an LMDB store, each read in a short transaction of its own.

use std::sync::Arc;

use super::environment::Environment;
use super::failure::Failure;
use super::tables::{MODEL_COPIES, View};
use crate::buffers::lend;
use crate::codec::{Model, ModelId};
use crate::entry::ContentId;
use crate::error::{Error, Result};
use crate::format::lmdb::{ChunkKey, IndexRow, PIECE_BYTES, model_key, number_key};
use crate::format::{EntryHeader, EntryRecord, RecordType, malformed, size};
use crate::store::read_models::ReadModels;
use crate::store::{Chunk, Stored, gone};

/// What the handle of a store and its entries have in common.
pub(super) struct Shared {
    pub(super) environment: Arc<Environment>,
    /// First bytes of the store id.
    pub(super) store: u64,
    models: ReadModels,
}

impl Shared {
    pub(super) fn new(environment: Arc<Environment>, store: u64) -> Self {
        Self { environment, store, models: ReadModels::default() }
    }

    /// Reads within one transaction.
    pub(super) fn read<T>(&self, f: impl FnOnce(&View<'_>) -> Result<T, Failure>) -> Result<T> {
        self.environment.read(|txn, tables| f(&View { txn, tables, store: self.store }))
    }

    fn model(&self, id: &ModelId) -> Result<Arc<Model>> {
        self.models.get(id, || self.read(|view| read_model(view, id)))
    }
}

/// The first copy of a model that is whole.
fn read_model(view: &View<'_>, id: &ModelId) -> Result<Model, Failure> {
    let mut failed = malformed("frames name a model that the store does not have");
    for copy in 0..MODEL_COPIES {
        match view.value(view.tables.models, &model_key(id, copy), RecordType::Model, copy.into()) {
            Ok(Some(bytes)) => match Model::read(bytes, id) {
                Ok(model) => return Ok(model),
                Err(error) => failed = error,
            },
            Ok(None) => {}
            Err(Failure::Ours(error)) => failed = error,
            Err(failure) => return Err(failure),
        }
    }
    Err(failed.into())
}

/// The header of the entry that a row of the index is about.
fn read_header(view: &View<'_>, row: &IndexRow<'_>) -> Result<EntryHeader, Failure> {
    let record = view.value(view.tables.entries, &number_key(row.id), RecordType::Entry, row.id)?;
    let record = EntryRecord::decode(record.ok_or_else(|| malformed("its record is missing"))?)?;
    let header = EntryHeader::decode(record.header)?;
    if header.document.key() != row.key || record.content_id != row.content_id || !record.offsets.is_empty() {
        return Err(malformed("its record is another entry's").into());
    }
    Ok(header)
}

/// An entry as it was when it was looked up.
pub(super) struct LmdbEntry {
    shared: Arc<Shared>,
    header: EntryHeader,
    content_id: ContentId,
    id: u64,
}

impl LmdbEntry {
    pub(super) fn find(shared: &Arc<Shared>, key: &str) -> Result<Option<Self>> {
        shared.read(|view| {
            let Some((_, row)) = view.find(key)? else { return Ok(None) };
            let header =
                read_header(view, &row).map_err(|failure| failure.within(|| format!("entry `{key}` is damaged")))?;
            Ok(Some(Self { shared: shared.clone(), header, content_id: row.content_id, id: row.id }))
        })
    }

    fn chunk_at(&self, index: usize) -> Option<LmdbChunk> {
        self.header.activations.get(index)?;
        let (activation, key) = (u32::try_from(index).ok()?, self.header.document.key().into());
        Some(LmdbChunk { shared: self.shared.clone(), key, id: self.id, activation })
    }
}

fn beyond() -> Error {
    malformed("frames reach beyond their chunk")
}

impl Stored for LmdbEntry {
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
        let chunk = self.chunk_at(index).ok_or_else(|| malformed("an entry has no such activation"))?;
        chunk.with_bytes(start, length, f)
    }

    fn model(&self, id: &ModelId) -> Result<Arc<Model>> {
        self.shared.model(id)
    }

    fn chunk(&self, index: usize) -> Option<Arc<dyn Chunk>> {
        self.chunk_at(index).map(|chunk| Arc::new(chunk) as Arc<dyn Chunk>)
    }
}

/// The pieces of one activation.
struct LmdbChunk {
    shared: Arc<Shared>,
    key: Box<str>,
    id: u64,
    activation: u32,
}

impl LmdbChunk {
    fn piece<'t>(&self, view: &View<'t>, piece: usize) -> Result<&'t [u8], Failure> {
        let piece = u32::try_from(piece).map_err(|_| beyond())?;
        let key = ChunkKey { id: self.id, activation: self.activation, piece }.encode();
        let bytes = view.unchecked_value(view.tables.chunks, &key, RecordType::Data, self.id)?;
        match bytes {
            Some(bytes) => Ok(bytes),
            None if view.tables.entries.get(view.txn, &number_key(self.id))?.is_some() => {
                Err(malformed("a piece of its chunk is missing").into())
            }
            None => Err(gone(&self.key).into()),
        }
    }

    /// Fills `out` from byte `from` of a piece on.
    fn assemble(&self, view: &View<'_>, mut piece: usize, mut from: usize, mut out: &mut [u8]) -> Result<(), Failure> {
        while !out.is_empty() {
            let (mine, rest) = out.split_at_mut(out.len().min(PIECE_BYTES - from));
            let bytes = self.piece(view, piece)?.get(from..from + mine.len()).ok_or_else(beyond)?;
            mine.copy_from_slice(bytes);
            (piece, from, out) = (piece + 1, 0, rest);
        }
        Ok(())
    }
}

impl Chunk for LmdbChunk {
    /// Only the headers of values are checked here: every frame has a checksum of its own, which its reader checks.
    fn with_bytes(&self, start: u64, length: usize, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (piece, from) = (size(start)? / PIECE_BYTES, size(start)? % PIECE_BYTES);
        if length <= PIECE_BYTES - from {
            return self.shared.read(|view| {
                let bytes = self.piece(view, piece)?;
                Ok(f(bytes.get(from..from + length).ok_or_else(beyond)?)?)
            });
        }
        lend(length, |bytes| self.shared.read(|view| self.assemble(view, piece, from, bytes)).and_then(|()| f(bytes)))
    }
}
