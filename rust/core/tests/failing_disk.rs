//! The disk is full, or refuses to sync: what was committed stays, the caller is told, and after a failed sync nothing
//! more is written through that handle.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use actstore::error::{Error, Kind, Result};
use actstore::files::{Appender, Disk, OsDisk};
use actstore::store::Store;
use actstore::writer::Writer;
use sample::{MEMORY, draft, holds, put, settings};

/// Files of a disk with `space` bytes left, whose syncs may fail.
#[derive(Debug)]
struct Failing {
    space: AtomicU64,
    sync_fails: AtomicBool,
}

#[derive(Clone, Debug)]
struct FailingDisk(Arc<Failing>);

struct FailingFile(Box<dyn Appender>, FailingDisk);

impl Disk for FailingDisk {
    fn create_dir(&self, path: &Path) -> Result<()> {
        OsDisk.create_dir(path)
    }

    fn create(&self, path: &Path) -> Result<Box<dyn Appender>> {
        Ok(Box::new(FailingFile(OsDisk.create(path)?, self.clone())))
    }

    fn resume(&self, path: &Path, length: u64) -> Result<Box<dyn Appender>> {
        Ok(Box::new(FailingFile(OsDisk.resume(path, length)?, self.clone())))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        OsDisk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        OsDisk.remove(path)
    }
}

impl Appender for FailingFile {
    /// A full disk takes what still fits before it refuses.
    fn append(&mut self, parts: &[&[u8]]) -> Result<()> {
        let all = parts.concat();
        let space = self.1.0.space.load(Ordering::SeqCst);
        let fits = all.len().min(usize::try_from(space).unwrap());
        self.0.append(&[&all[..fits]])?;
        self.1.0.space.store(space - fits as u64, Ordering::SeqCst);
        if fits < all.len() {
            return Err(Error::new(Kind::StorageFull, "cannot write: no space left"));
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        if self.1.0.sync_fails.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::StorageIo, "cannot sync: input/output error"));
        }
        self.0.sync()
    }

    fn truncate(&mut self, length: u64) -> Result<()> {
        self.0.truncate(length)
    }

    fn length(&self) -> u64 {
        self.0.length()
    }
}

fn store(root: &Path) -> (Arc<Store>, Arc<Failing>) {
    let failing = Arc::new(Failing { space: AtomicU64::new(u64::MAX / 2), sync_fails: AtomicBool::new(false) });
    let disk = Arc::new(FailingDisk(failing.clone()));
    let store = Store::create_on(Some(root), "shards", settings("planes", "error", "commit"), MEMORY, disk).unwrap();
    (Arc::new(store), failing)
}

#[test]
fn a_full_disk_costs_only_what_did_not_fit() {
    for space in (0..6000).step_by(97) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let (store, failing) = store(&root);
        put(&store, [draft(1, 0)]).unwrap();
        failing.space.store(space, Ordering::SeqCst);
        let first = put(&store, [draft(2, 0), draft(3, 0)]);
        if let Err(error) = &first {
            assert_eq!(error.kind(), Kind::StorageFull, "{space}: {error}");
            assert!(store.entry("k2").is_err() && store.entry("k3").is_err());
            failing.space.store(u64::MAX / 2, Ordering::SeqCst);
            put(&store, [draft(2, 0), draft(3, 0)])
                .unwrap_or_else(|e| panic!("{space}: no retry after space was freed: {e}"));
        }
        failing.space.store(u64::MAX / 2, Ordering::SeqCst);
        store.close().unwrap();
        let again = Store::open(&root, true, MEMORY).unwrap();
        for n in 1..4 {
            holds(&again, n, 0).unwrap();
        }
    }
}

#[test]
fn a_failed_sync_ends_writing_until_the_store_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let (store, failing) = store(&root);
    put(&store, [draft(1, 0)]).unwrap();
    failing.sync_fails.store(true, Ordering::SeqCst);
    assert_eq!(put(&store, [draft(2, 0)]).unwrap_err().kind(), Kind::StorageIo);
    failing.sync_fails.store(false, Ordering::SeqCst);
    let error = put(&store, [draft(3, 0)]).unwrap_err();
    assert_eq!(error.kind(), Kind::WriterFailed);
    assert!(
        error.to_string().ends_with("close the store and open it again: cannot sync: input/output error"),
        "{error}"
    );
    assert_eq!(store.delete(&["k1".to_owned()]).unwrap_err().kind(), Kind::WriterFailed);
    holds(&store, 1, 0).unwrap();
    store.close().unwrap();
    let again = Arc::new(Store::open(&root, true, MEMORY).unwrap());
    holds(&again, 1, 0).unwrap();
    put(&again, [draft(3, 0)]).unwrap();
    holds(&again, 3, 0).unwrap();
}

#[test]
fn the_first_failure_of_a_session_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (store, failing) = store(&directory.path().join("store"));
    let writer = Writer::new(store.clone()).unwrap();
    failing.space.store(100, Ordering::SeqCst);
    writer.put(draft(1, 0)).unwrap();
    assert_eq!(writer.flush().unwrap_err().kind(), Kind::StorageFull);
    failing.space.store(u64::MAX / 2, Ordering::SeqCst);
    for _ in 0..2 {
        assert_eq!(writer.put(draft(2, 0)).unwrap_err().kind(), Kind::StorageFull);
    }
    assert_eq!(writer.close().unwrap_err().kind(), Kind::StorageFull);
    assert_eq!(store.reading().unwrap().len().unwrap(), 0);
    put(&store, [draft(2, 0)]).unwrap();
    holds(&store, 2, 0).unwrap();
}
