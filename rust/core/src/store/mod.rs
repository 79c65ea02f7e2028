//! The one table of backends, and the store that users open.

mod backend;
mod index;
pub mod json;
pub mod lmdb;
pub mod memory;
mod poison;
mod read_models;
mod recent;
mod root;
pub mod shards;

#[cfg(test)]
pub(crate) mod contract;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

pub(crate) use self::backend::gone;
pub use self::backend::{Backend, Chunk, Committed, EncodedEntry, Operation, Stored};
pub use self::recent::Recent;
use crate::buffers::Buffers;
use crate::codec::Codec;
use crate::error::{Error, Kind, Result};
use crate::files::{Disk, OsDisk};
use crate::fitting::Models;
use crate::lock::lock;
use crate::manifest::{Manifest, Settings};
use crate::pool::Pool;

type Create = fn(&Path, &Manifest, Arc<dyn Disk>) -> Result<Box<dyn Backend>>;
type Open = fn(&Path, bool, Arc<dyn Disk>) -> Result<(Manifest, Box<dyn Backend>)>;

/// How a backend is made.
pub struct BackendSpec {
    /// What users call it.
    pub name: &'static str,
    /// Whether it lives at a path.
    pub on_disk: bool,
    /// What it can be created with, the default first.
    pub codecs: &'static [Codec],
    recognises: fn(&Path) -> bool,
    create: Create,
    open: Open,
}

/// Every backend. A new one is a file and a line here.
pub const BACKENDS: &[BackendSpec] = &[shards::SPEC, lmdb::SPEC, json::SPEC, memory::SPEC];

/// Codecs of backends that keep frames as they are encoded.
const FRAME_CODECS: &[Codec] = &[Codec::Planes, Codec::Archive, Codec::Zstd, Codec::Raw];

impl BackendSpec {
    /// The backend called `name`.
    pub fn find(name: &str) -> Result<&'static Self> {
        BACKENDS.iter().find(|spec| spec.name == name).ok_or_else(|| {
            let names: Vec<_> = BACKENDS.iter().map(|spec| format!("`{}`", spec.name)).collect();
            Error::new(Kind::InvalidOption, format!("unknown backend `{name}`: one of {}", names.join(", ")))
        })
    }
}

/// Part of the memory of a store that free memory to read into takes, kept to be used again.
const KEPT_PART: u64 = 4;
/// Part of the memory of a store that vectors loaded as a whole take.
const LOADED_PART: u64 = 4;

/// Part of the memory of a store that entries looked up lately take.
const RECENT_PART: u64 = 64;

/// Deletions of one commit, at most.
const DELETES: usize = 16_384;

/// An open store of any backend.
pub struct Store {
    backend: Box<dyn Backend>,
    spec: &'static BackendSpec,
    manifest: Manifest,
    path: Option<PathBuf>,
    writable: bool,
    memory: u64,
    closed: AtomicBool,
    opened_by: u32,
    /// Held from looking for conflicts to the end of the commit, so that two writers cannot both find a key free.
    commit_lock: Mutex<()>,
    models: Mutex<Models>,
    sessions: Mutex<Vec<Weak<dyn Session>>>,
    pool: Pool,
    buffers: Arc<Buffers>,
    recent: Recent,
    loaded: Arc<AtomicU64>,
}

/// Room that loaded vectors take of a store's memory, until this is dropped.
pub struct LoadedRoom {
    bytes: u64,
    loaded: Arc<AtomicU64>,
}

impl Drop for LoadedRoom {
    fn drop(&mut self) {
        self.loaded.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A writing session, as its store sees it: closing the store ends it first.
pub trait Session: Send + Sync {
    /// Commits what is complete and raises the session's failure. Again: does nothing.
    fn finish(&self) -> Result<()>;
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("backend", &self.spec.name).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Makes a new, empty store. `path` is `None` for backends that live in memory; else nothing, or an empty directory,
    /// may be there.
    pub fn create(path: Option<&Path>, backend: &str, settings: Settings, memory: u64) -> Result<Self> {
        Self::create_on(path, backend, settings, memory, Arc::new(OsDisk))
    }

    /// [`Store::create`] on another disk.
    pub fn create_on(
        path: Option<&Path>,
        backend: &str,
        settings: Settings,
        memory: u64,
        disk: Arc<dyn Disk>,
    ) -> Result<Self> {
        let spec = BackendSpec::find(backend)?;
        if spec.on_disk != path.is_some() {
            let rule = if spec.on_disk { "needs a path" } else { "takes no path" };
            return Err(Error::new(Kind::InvalidOption, format!("backend `{backend}` {rule}")));
        }
        let manifest = Manifest::new(settings)?;
        let path = path
            .map(std::path::absolute)
            .transpose()
            .map_err(|e| Error::io("find", path.unwrap_or(Path::new("")), e))?;
        let backend = (spec.create)(path.as_deref().unwrap_or(Path::new("")), &manifest, disk)?;
        Ok(Self::new(backend, spec, manifest, path, true, memory))
    }

    /// Opens the store at `path`, whatever its backend; reading takes no writer's lock.
    pub fn open(path: &Path, writable: bool, memory: u64) -> Result<Self> {
        Self::open_on(path, writable, memory, Arc::new(OsDisk))
    }

    /// [`Store::open`] on another disk.
    pub fn open_on(path: &Path, writable: bool, memory: u64, disk: Arc<dyn Disk>) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
        let spec = BACKENDS.iter().find(|spec| (spec.recognises)(&path)).ok_or_else(|| {
            let found = if path.exists() { "holds no actstore store" } else { "does not exist" };
            Error::new(Kind::NotAStore, format!("`{}` {found}; create one with `actstore.create`", path.display()))
        })?;
        let (manifest, backend) = (spec.open)(&path, writable, disk)?;
        Ok(Self::new(backend, spec, manifest, Some(path), writable, memory))
    }

    fn new(
        backend: Box<dyn Backend>,
        spec: &'static BackendSpec,
        manifest: Manifest,
        path: Option<PathBuf>,
        writable: bool,
        memory: u64,
    ) -> Self {
        Self {
            backend,
            spec,
            manifest,
            path,
            writable,
            memory,
            closed: AtomicBool::new(false),
            opened_by: std::process::id(),
            commit_lock: Mutex::new(()),
            models: Mutex::default(),
            sessions: Mutex::default(),
            pool: Pool::default(),
            buffers: Buffers::new(usize::try_from(memory / KEPT_PART).unwrap_or(0)),
            recent: Recent::new(usize::try_from(memory / RECENT_PART).unwrap_or(0)),
            loaded: Arc::default(),
        }
    }

    /// Name of the backend.
    pub fn backend_name(&self) -> &'static str {
        self.spec.name
    }

    /// Where it is, if on disk.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Identity, conventions and settings.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Bytes that writing and reading may hold.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Threads for encoding and decoding.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Memory to read into.
    pub fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Room for vectors that are loaded as a whole; `None` where all that are loaded would take over a quarter of the memory.
    pub fn room_to_load(&self, bytes: u64) -> Option<LoadedRoom> {
        let most = self.memory / LOADED_PART;
        let more = |held: u64| held.checked_add(bytes).filter(|&all| all <= most);
        self.loaded.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(LoadedRoom { bytes, loaded: self.loaded.clone() })
    }

    pub(crate) fn models(&self) -> &Mutex<Models> {
        &self.models
    }

    fn shown(&self) -> String {
        self.path.as_ref().map_or_else(|| "memory".to_owned(), |path| path.display().to_string())
    }

    /// The backend, if the handle may still read.
    pub fn reading(&self) -> Result<&dyn Backend> {
        if self.is_closed() {
            return Err(Error::new(Kind::Closed, format!("the store `{}` is closed; open it again", self.shown())));
        }
        if self.writable && self.spec.on_disk && self.opened_by != std::process::id() {
            let message = format!(
                "the store `{}` was opened for writing before this process was forked; open it again here",
                self.shown()
            );
            return Err(Error::new(Kind::ForkedHandle, message));
        }
        Ok(self.backend.as_ref())
    }

    /// The backend, if the handle may still write.
    pub fn writing(&self) -> Result<&dyn Backend> {
        let backend = self.reading()?;
        if self.writable {
            return Ok(backend);
        }
        Err(Error::new(
            Kind::ReadOnly,
            format!("the store `{}` is open for reading; open it with mode `a` to write", self.shown()),
        ))
    }

    /// Applies operations as one commit, after `resolve` has looked at what is stored.
    pub(crate) fn commit_resolved(
        &self,
        resolve: impl FnOnce(&dyn Backend) -> Result<Vec<Operation>>,
    ) -> Result<Committed> {
        let _held = lock(&self.commit_lock);
        let backend = self.writing()?;
        let operations = resolve(backend)?;
        if operations.is_empty() { Ok(Committed::default()) } else { backend.commit(operations) }
    }

    /// The entry of a key.
    pub fn entry(&self, key: &str) -> Result<Arc<dyn Stored>> {
        let backend = self.reading()?;
        backend.recent_entry(key, &self.recent)?.ok_or_else(|| self.missing(backend, key))
    }

    /// [`Store::entry`], its record read and checked anew.
    pub fn entry_anew(&self, key: &str) -> Result<Arc<dyn Stored>> {
        let backend = self.reading()?;
        backend.entry(key)?.ok_or_else(|| self.missing(backend, key))
    }

    /// A damaged store must not claim that an entry never was.
    fn missing(&self, backend: &dyn Backend, key: &str) -> Error {
        match backend.damage().into_iter().next() {
            Some(damage) => Error::new(
                damage.kind(),
                format!("`{key}` is not among the entries that the damaged store can read: {damage}"),
            ),
            None => match backend.len() {
                Ok(entries) => {
                    let message = format!("no entry `{key}` in the store `{}` of {entries} entries", self.shown());
                    Error::new(Kind::NoSuchKey, message)
                }
                Err(error) => error,
            },
        }
    }

    /// Removes entries, durably; says how many there were.
    pub fn delete(&self, keys: &[String]) -> Result<u64> {
        let mut deleted = 0;
        for some in keys.chunks(DELETES) {
            self.commit_resolved(|backend| {
                let mut found = Vec::with_capacity(some.len());
                for key in some {
                    found.extend(backend.content_id(key)?.map(|_| key));
                }
                found.sort_unstable();
                found.dedup();
                deleted += found.len() as u64;
                Ok(found.into_iter().map(|key| Operation::Delete(key.clone())).collect())
            })?;
        }
        self.writing()?.sync()?;
        Ok(deleted)
    }

    /// Ends the use of the store; later calls fail. Closing twice is fine, and in a forked child does nothing.
    pub fn close(&self) -> Result<()> {
        if self.writable && self.opened_by != std::process::id() {
            self.closed.store(true, Ordering::Release);
            return Ok(());
        }
        let sessions: Vec<_> = lock(&self.sessions).drain(..).filter_map(|session| session.upgrade()).collect();
        let finished = sessions.iter().map(|session| session.finish()).fold(Ok(()), Result::and);
        if self.closed.swap(true, Ordering::AcqRel) {
            return finished;
        }
        self.buffers.close();
        self.recent.clear();
        let _held = lock(&self.commit_lock);
        finished.and(self.backend.close())
    }

    pub(crate) fn add_session(&self, session: Weak<dyn Session>) {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(session);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Whoever needs to know whether closing went well calls `close`.
        let _what_close_would_have_said = self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::contract::settings;
    use super::*;

    #[test]
    fn loaded_vectors_share_a_quarter_of_the_memory() {
        let store = Store::create(None, "memory", settings("memory", "error"), 4000).unwrap();
        let first = store.room_to_load(600);
        assert!(first.is_some() && store.room_to_load(401).is_none());
        let second = store.room_to_load(400);
        assert!(second.is_some() && store.room_to_load(1).is_none());
        drop(first);
        assert!(store.room_to_load(600).is_some());
        assert!(store.room_to_load(u64::MAX).is_none());
    }
}
