//! A store in an LMDB environment: one transaction a commit, every value with a checksum, every page walked before LMDB
//! trusts it. Nothing is kept in memory: each look-up reads what was committed last, by whichever process.

mod batch;
mod descriptors;
mod environment;
mod exported;
mod failure;
mod foreign;
mod opening;
mod stored;
mod tables;
mod verify;
mod walk;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;

use self::batch::Batch;
pub use self::exported::put_exported;
pub use self::foreign::{ForeignEntries, ForeignLmdb};
use self::opening::{create, open, recognises};
use self::stored::{LmdbEntry, Shared};
use super::root::bytes_of_files;
use super::{Backend, BackendSpec, Committed, FRAME_CODECS, Operation, Stored};
use crate::entry::ContentId;
use crate::error::{Error, Kind, Result};
use crate::files::Lock;
use crate::format::lmdb::number_of_key;
use crate::format::size;
use crate::lock::lock;

/// The line of the table.
pub const SPEC: BackendSpec =
    BackendSpec { name: "lmdb", on_disk: true, codecs: FRAME_CODECS, recognises, create, open };

/// LMDB's files, in the directory of the store.
const DATA: &str = "data.mdb";
const LOCK: &str = "lock.mdb";
/// Held by the one writer.
const WRITER_LOCK: &str = "actstore.lock";
/// Rows of the index read in one transaction.
const ROWS: usize = 4096;

/// The backend.
struct Lmdb {
    /// Gone once closed, so that the environment closes with its last handle.
    shared: ArcSwapOption<Shared>,
    /// Of a writable handle.
    lock: Mutex<Option<Lock>>,
    /// Whether every key was seen to lead to its row, once.
    keys_lead: AtomicBool,
}

impl Lmdb {
    fn new(shared: Shared, lock: Option<Lock>) -> Self {
        Self { shared: ArcSwapOption::from_pointee(shared), lock: Mutex::new(lock), keys_lead: AtomicBool::new(false) }
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        self.shared.load_full().ok_or_else(|| Error::new(Kind::Closed, "the store is closed; open it again"))
    }
}

impl Backend for Lmdb {
    fn commit(&self, operations: Vec<Operation>) -> Result<Committed> {
        let shared = self.shared()?;
        let batch = Batch::new(operations, shared.store)?;
        shared.environment.write(batch.bytes(), |txn, tables| batch.apply(txn, tables))?;
        Ok(Committed { syncs: 1 })
    }

    /// Every commit is durable when it returns.
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn keys(&self) -> Result<Vec<Arc<str>>> {
        let shared = self.shared()?;
        let (mut keys, mut last) = (Vec::new(), None);
        loop {
            let more = shared.read(|view| {
                let rows = view.rows_after(last, ROWS)?;
                last = rows.last().map(|(place, _)| *place);
                for (place, row) in rows {
                    keys.push(match row {
                        Ok(row) => row.key.into(),
                        Err(error) => view.key_at(place)?.ok_or_else(|| {
                            error.within(format!(
                                "place `{place}` of the index is damaged, and its entry cannot be named"
                            ))
                        })?,
                    });
                }
                Ok(last.is_some())
            })?;
            if !more {
                return Ok(keys);
            }
        }
    }

    fn last_key(&self) -> Result<Option<Arc<str>>> {
        self.shared()?.read(|view| {
            let Some((key, _)) = view.tables.index.last(view.txn)? else { return Ok(None) };
            let row = view.row(number_of_key(key)?)?;
            Ok(row.map(|row| row.key.into()))
        })
    }

    fn len(&self) -> Result<usize> {
        size(self.shared()?.read(|view| Ok(view.tables.index.len(view.txn)?))?)
    }

    fn content_id(&self, key: &str) -> Result<Option<ContentId>> {
        self.shared()?.read(|view| Ok(view.find(key)?.map(|(_, row)| row.content_id)))
    }

    fn entry(&self, key: &str) -> Result<Option<Arc<dyn Stored>>> {
        let shared = self.shared()?;
        match LmdbEntry::find(&shared, key)? {
            Some(entry) => Ok(Some(Arc::new(entry))),
            None => {
                // A damaged store must not claim that an entry never was.
                if !self.keys_lead.load(Ordering::Acquire) {
                    verify::keys_lead(&shared)?;
                    self.keys_lead.store(true, Ordering::Release);
                }
                Ok(None)
            }
        }
    }

    fn file_bytes(&self) -> Result<u64> {
        bytes_of_files(&[&self.shared()?.environment.root()])
    }

    fn verify(&self) -> Vec<Error> {
        self.shared().map_or_else(|error| vec![error], |shared| verify::verify(&shared))
    }

    /// Damage is met when it is read; a structure that LMDB cannot read is never opened.
    fn damage(&self) -> Vec<Error> {
        Vec::new()
    }

    fn close(&self) -> Result<()> {
        let held = lock(&self.lock).take();
        if let Some(shared) = self.shared.swap(None).filter(|_| held.is_some()) {
            shared.environment.release();
        }
        Ok(())
    }
}
