//! Making an LMDB store, and opening one without trust in its file.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use super::environment::Environment;
use super::stored::Shared;
use super::tables::{MANIFEST, NEXT, View};
use super::walk::DataFile;
use super::{DATA, LOCK, Lmdb, WRITER_LOCK};
use crate::error::{Error, Kind, Result};
use crate::files::{Disk, Lock, ReadFile};
use crate::format::lmdb::{Next, checked_value};
use crate::format::{RECORD_HEADER_BYTES, RecordHeader, RecordType, malformed};
use crate::manifest::Manifest;
use crate::store::root::{exists, new_root};
use crate::store::{Backend, FRAME_CODECS};

/// How often a file that another process goes on writing is looked at before LMDB is asked instead.
const LOOKS: usize = 3;
/// A manifest is far smaller.
const MANIFEST_BYTES: usize = 1 << 20;

/// Our stores and other people's environments alike: opening says which it is.
pub(super) fn recognises(path: &Path) -> bool {
    path.join(DATA).symlink_metadata().is_ok_and(|metadata| !metadata.is_dir())
}

pub(super) fn create(root: &Path, manifest: &Manifest, disk: Arc<dyn Disk>) -> Result<Box<dyn Backend>> {
    new_root(root, disk.as_ref(), |name| is_leftover(root, name))?;
    let lock = Lock::acquire(&root.join(WRITER_LOCK), root)?;
    if root.join(DATA).symlink_metadata().is_err() {
        disk.create(&root.join(DATA))?;
    } else if !is_leftover(root, OsStr::new(DATA)) {
        // Another process was faster, and has closed it since.
        return Err(exists(root, "a store"));
    }
    let (store, json) = (manifest.store_tag(), manifest.to_json()?);
    let environment = Environment::at(root)?;
    environment.claim()?;
    let created = environment.create(&mut |txn, tables| {
        let table = (tables.manifest, store);
        View::put(txn, table, MANIFEST.1, (RecordType::Manifest, 0), json.as_bytes())?;
        View::put(txn, table, NEXT, (RecordType::Next, 0), &Next::default().encode())
    });
    let synced = created.and_then(|()| environment.read_only().map_or(Ok(()), Err));
    let synced = synced.and_then(|()| disk.sync_dir(root)).and_then(|()| disk.sync_dir(root.parent().unwrap_or(root)));
    if let Err(error) = synced {
        environment.release();
        return Err(error);
    }
    Ok(Box::new(Lmdb::new(Shared::new(environment, store), Some(lock))))
}

/// Whether an interrupted creation could have left `name`: an environment without a single commit, or less.
fn is_leftover(root: &Path, name: &OsStr) -> bool {
    let path = root.join(name);
    let is_empty = || ReadFile::open(&path).and_then(|file| file.length()).is_ok_and(|length| length == 0);
    match name.to_str() {
        Some(DATA) => is_empty() || DataFile::open(&path).is_ok_and(|file| file.txnid() == 0),
        Some(LOCK | WRITER_LOCK) => path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()),
        _ => false,
    }
}

pub(super) fn open(root: &Path, writable: bool, _disk: Arc<dyn Disk>) -> Result<(Manifest, Box<dyn Backend>)> {
    let writer_lock = root.join(WRITER_LOCK);
    // Taking the lock makes its file, which must not happen in an environment that is not ours.
    if writable && writer_lock.symlink_metadata().is_err() {
        has_manifest(&DataFile::open(&root.join(DATA))?, root)?;
    }
    let lock = writable.then(|| Lock::acquire(&writer_lock, root)).transpose()?;
    // Also where a reader of this process has it open: it did not look at what writing relies on.
    if writable {
        check_file(root, true)?;
    }
    let environment = Environment::at(root)?;
    environment.open(|| if writable { Ok(()) } else { check_file(root, false) })?;
    let manifest = read_manifest(&environment)?;
    if writable {
        environment.read_only().map_or(Ok(()), Err)?;
        environment.claim()?;
    }
    let shared = Shared::new(environment, manifest.store_tag());
    Ok((manifest, Box::new(Lmdb::new(shared, lock))))
}

/// Looks at a file before LMDB does, which trusts it and dies of damage. While another process writes, its pages change
/// under whoever reads them without LMDB's lock: then LMDB must do, and the writer looked when it opened the file.
fn check_file(root: &Path, writable: bool) -> Result<()> {
    let path = root.join(DATA);
    let is_written = || Ok(!writable && Lock::is_held(&root.join(WRITER_LOCK))?);
    for _ in 0..LOOKS {
        let file = match DataFile::open(&path) {
            Ok(_) if is_written()? => return Ok(()),
            Ok(file) => file,
            // Its first pages may be those that are being written.
            Err(_) if is_written()? => continue,
            Err(error) => return Err(error),
        };
        let Err(error) = file.walk(writable).and_then(|()| has_manifest(&file, root)) else { return Ok(()) };
        let moved_on = DataFile::open(&path).is_ok_and(|again| again.txnid() != file.txnid());
        if !moved_on && !is_written()? {
            return Err(error);
        }
    }
    DataFile::open(&path).map(drop)
}

fn has_manifest(file: &DataFile, root: &Path) -> Result<()> {
    let (database, key) = MANIFEST;
    match file.get(Some(database), key, MANIFEST_BYTES)? {
        // Somebody else's database of that name is no damaged store of ours.
        Some(value) if value.starts_with(&crate::format::MAGIC) => Ok(()),
        _ => {
            let message = format!("`{}` is an LMDB environment, but holds no actstore store", root.display());
            Err(Error::new(Kind::NotAStore, message))
        }
    }
}

/// The manifest, whose header must have the tag of the store that it is about.
fn read_manifest(environment: &Environment) -> Result<Manifest> {
    let read = environment.read(|txn, tables| {
        let value = tables.manifest.get(txn, MANIFEST.1)?.ok_or_else(|| malformed("it is missing"))?;
        let header = value.first_chunk::<RECORD_HEADER_BYTES>().ok_or_else(|| malformed("it is too short"))?;
        let store = RecordHeader::decode(header)?.place.store;
        let payload = checked_value(value, RecordType::Manifest, 0, store)?;
        let text = std::str::from_utf8(payload).map_err(|_| malformed("text that is not UTF-8"))?;
        let manifest = Manifest::parse(text, FRAME_CODECS)?;
        if manifest.store_tag() != store {
            return Err(malformed("its header is another store's").into());
        }
        Ok(manifest)
    });
    read.map_err(|e| e.within(format!("the manifest of `{}`", environment.root().display())))
}
