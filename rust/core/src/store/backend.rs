//! What a backend must do.

use std::sync::Arc;

use super::recent::Recent;
use crate::codec::{Model, ModelId};
use crate::entry::ContentId;
use crate::error::{Error, Kind, Result};
use crate::format::EntryHeader;

/// An entry on its way into a backend: everything encoded and checksummed.
#[derive(Clone, Debug)]
pub struct EncodedEntry {
    /// Document, token ids, and the table of frames.
    pub header: EntryHeader,
    /// Its content id.
    pub content_id: ContentId,
    /// Stored bytes of each activation, frame after frame, in the header's order.
    pub chunks: Vec<Vec<u8>>,
    /// The models its frames use.
    pub models: Vec<Arc<Model>>,
}

impl EncodedEntry {
    /// Bytes of all frames.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    /// Bytes held in memory, about: frames, token ids and text.
    pub fn held_bytes(&self) -> u64 {
        self.stored_bytes() + self.header.document.held_bytes(self.header.token_ids.as_deref())
    }
}

/// One change of a commit.
#[derive(Debug)]
pub enum Operation {
    /// Adds an entry, or replaces the one of the same key.
    Put(Box<EncodedEntry>),
    /// Removes an entry; a missing one is fine.
    Delete(String),
}

/// What a commit cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Syncs of file content.
    pub syncs: u64,
}

/// A stored entry, as its backend lends it. Once the entry is replaced or deleted its bytes are either still the same, or
/// refused as [`Kind::NoSuchKey`]: never others.
pub trait Stored: Send + Sync {
    /// All but the bytes of its activations.
    fn header(&self) -> &EntryHeader;
    /// Its content id.
    fn content_id(&self) -> ContentId;
    /// Lends exactly `length` stored bytes of activation `index` of the header, from `start` of its chunk on.
    fn with_bytes(&self, index: usize, start: u64, length: usize, f: &mut dyn FnMut(&[u8]) -> Result<()>)
    -> Result<()>;
    /// Fills `out` with stored bytes of activation `index`, from `start` of its chunk on, if `check` finds them right.
    fn read_into(&self, index: usize, start: u64, out: &mut [u8], check: &dyn Fn(&[u8]) -> Result<()>) -> Result<()> {
        self.with_bytes(index, start, out.len(), &mut |stored| {
            check(stored)?;
            out.copy_from_slice(stored);
            Ok(())
        })
    }
    /// A model that its frames name.
    fn model(&self, id: &ModelId) -> Result<Arc<Model>>;
    /// Activation `index` by itself, where that takes less memory than the entry; `None` where it does not.
    fn chunk(&self, _index: usize) -> Option<Arc<dyn Chunk>> {
        None
    }
}

/// The stored bytes of one activation, without the entry around them.
pub trait Chunk: Send + Sync {
    /// [`Stored::with_bytes`].
    fn with_bytes(&self, start: u64, length: usize, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

/// The error for bytes of the entry `key` that are not there any more.
pub(crate) fn gone(key: &str) -> Error {
    let message = format!("entry `{key}` was replaced or deleted after it was looked up; look it up again");
    Error::new(Kind::NoSuchKey, message)
}

/// A place that holds encoded entries: atomic commits, look-up by key, concurrent readers. It never looks inside a chunk,
/// unless its codecs store rows as they are.
pub trait Backend: Send + Sync {
    /// Applies all operations, in order: visible together, and durable as `durability` says, or none of them. Where every
    /// entry is a file of its own, each by itself: after a failure those before it stand.
    fn commit(&self, operations: Vec<Operation>) -> Result<Committed>;
    /// Makes every earlier commit durable, whatever the level of durability.
    fn sync(&self) -> Result<()>;
    /// Keys in the order of writing.
    fn keys(&self) -> Result<Vec<Arc<str>>>;
    /// The key written last.
    fn last_key(&self) -> Result<Option<Arc<str>>>;
    /// Number of entries.
    fn len(&self) -> Result<usize>;
    /// Whether there are none.
    fn is_empty(&self) -> Result<bool> {
        self.len().map(|entries| entries == 0)
    }
    /// Content id of a key, without reading the entry.
    fn content_id(&self, key: &str) -> Result<Option<ContentId>>;
    /// The entry of a key; checks its header.
    fn entry(&self, key: &str) -> Result<Option<Arc<dyn Stored>>>;
    /// [`Backend::entry`], whose record may have been read and checked before, and be among the `recent`.
    fn recent_entry(&self, key: &str, _recent: &Recent) -> Result<Option<Arc<dyn Stored>>> {
        self.entry(key)
    }
    /// The document of a key as [`Document::to_public_json`](crate::entry::Document::to_public_json) shows it.
    fn public_document(&self, key: &str) -> Result<Option<String>> {
        self.entry(key)?.map(|entry| entry.header().document.to_public_json()).transpose()
    }
    /// Bytes of all files.
    fn file_bytes(&self) -> Result<u64>;
    /// Checks everything that no entry's frames cover, and says what is damaged.
    fn verify(&self) -> Vec<Error>;
    /// Damage met when opening: entries may be missing because of it.
    fn damage(&self) -> Vec<Error>;
    /// Ends writing. Called once.
    fn close(&self) -> Result<()>;
}
