//! A disk that may have too little space, or refuse to sync.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use actstore::error::{Error, Kind, Result};
use actstore::files::{Appender, Disk, OsDisk};

/// Files of a disk with `space` bytes left, whose syncs may fail.
#[derive(Debug)]
pub(crate) struct Failing {
    pub(crate) space: AtomicU64,
    pub(crate) sync_fails: AtomicBool,
    /// Of directories.
    pub(crate) dir_sync_fails: AtomicBool,
}

#[derive(Clone, Debug)]
pub(crate) struct FailingDisk(Arc<Failing>);

impl FailingDisk {
    pub(crate) fn new() -> (Arc<Self>, Arc<Failing>) {
        let failing = Arc::new(Failing {
            space: AtomicU64::new(u64::MAX / 2),
            sync_fails: AtomicBool::new(false),
            dir_sync_fails: AtomicBool::new(false),
        });
        (Arc::new(Self(failing.clone())), failing)
    }
}

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
        if self.0.dir_sync_fails.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::StorageIo, "cannot sync the directory: input/output error"));
        }
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
        let take = |space: u64| Some(space.saturating_sub(all.len() as u64));
        let space = self.1.0.space.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap();
        let fits = all.len().min(usize::try_from(space).unwrap());
        self.0.append(&[&all[..fits]])?;
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
