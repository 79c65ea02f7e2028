//! One LMDB environment a data file, shared by all handles of the process, behind a gate: whoever reads or writes holds
//! it, and whoever moves or closes the map waits until nobody does. An environment that is closed (never used yet, after a
//! failed commit, in a forked child) is opened by its next use. No lock of the parent's is ever waited for in a child.
#![allow(unsafe_code, reason = "opening and resizing a memory map; the gate is what makes both sound")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use heed::{Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};

use super::descriptors::{self, LockFile};
use super::failure::{self, Failure};
use super::tables::{First, Tables};
use super::{DATA, LOCK, WRITER_LOCK};
use crate::error::{Error, Kind, Result};
use crate::files::{Lock, already_open, reserve};
use crate::lock::{lock_alone, lock_shared};
use crate::store::root::exists;

/// A map is at least this large; it takes address space only.
const LEAST_MAP: usize = 64 << 20;
/// Maps are multiples of this, and so of every page size.
const MAP_UNIT: usize = 1 << 20;
const READERS: u32 = 1024;
/// A slot for every reader, and LMDB's header before them.
const LOCK_BYTES: u64 = READERS as u64 * 64 + 4096;
const DATABASES: u32 = 16;
/// How often something that another thread is about to let go is tried again.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(2);

/// Every environment of the process. Its list is replaced, never locked.
static ENVIRONMENTS: ArcSwapOption<Vec<Weak<Environment>>> = ArcSwapOption::const_empty();

/// An environment, open or not.
pub(super) struct Environment {
    /// Where it was found last: a store may be moved while it is open.
    root: ArcSwap<PathBuf>,
    /// Device and inode of the data file.
    file: (u64, u64),
    gate: ArcSwap<Gate>,
    /// The process that has a writable handle, or 0.
    writer: AtomicU32,
}

struct Gate {
    process: u32,
    slot: RwLock<Slot>,
}

enum Slot {
    /// With the gate of the process that forked this one, whose environment must be dropped before another is opened.
    Closed(Option<Arc<Gate>>),
    Open(Opened),
}

struct Opened {
    /// Without one, on a read-only file system. Dropped before the environment: closing it gives up LMDB's own lock.
    lock: Option<LockFile>,
    env: Env<WithoutTls>,
    tables: Tables<'static>,
    /// Why it could not be opened for writing, if so.
    read_only: Option<Error>,
}

impl Slot {
    /// What is open, unless another library has made its lock file anew.
    fn usable(&self) -> Option<&Opened> {
        match self {
            Self::Open(opened) if opened.lock.as_ref().is_none_or(LockFile::is_unchanged) => Some(opened),
            Self::Open(_) | Self::Closed(_) => None,
        }
    }
}

impl Gate {
    fn closed(inherited: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { process: std::process::id(), slot: RwLock::new(Slot::Closed(inherited)) })
    }

    fn shared(&self) -> RwLockReadGuard<'_, Slot> {
        lock_shared(&self.slot)
    }

    /// Waits until no transaction of this process is open.
    fn alone(&self) -> RwLockWriteGuard<'_, Slot> {
        lock_alone(&self.slot)
    }
}

impl Environment {
    /// The environment of the data file in `root`, which must exist: the same one through whatever path.
    pub(super) fn at(root: &Path) -> Result<Arc<Self>> {
        let path = root.join(DATA);
        let file = descriptors::identity(&path).map_err(|e| Error::io("open", &path, e))?;
        let gate = ArcSwap::new(Gate::closed(None));
        let mut shared =
            Arc::new(Self { root: ArcSwap::from_pointee(root.to_owned()), file, gate, writer: AtomicU32::new(0) });
        let fresh = shared.clone();
        ENVIRONMENTS.rcu(|known| {
            let mut live: Vec<_> = known.iter().flat_map(|known| known.iter()).cloned().collect();
            live.retain(|environment: &Weak<Self>| environment.strong_count() > 0);
            let found = live.iter().filter_map(Weak::upgrade).find(|environment| environment.file == file);
            if found.is_none() {
                live.push(Arc::downgrade(&fresh));
            }
            shared = found.unwrap_or_else(|| fresh.clone());
            Some(Arc::new(live))
        });
        if shared.check_place().is_err() {
            shared.root.store(Arc::new(root.to_owned()));
        }
        Ok(shared)
    }

    pub(super) fn root(&self) -> Arc<PathBuf> {
        self.root.load_full()
    }

    pub(super) fn data_path(&self) -> PathBuf {
        self.root().join(DATA)
    }

    /// What is written to a file without a name is lost, and another file may have taken its name.
    fn check_place(&self) -> Result<()> {
        if descriptors::identity(&self.data_path()).is_ok_and(|file| file == self.file) {
            return Ok(());
        }
        let message = format!(
            "the store `{}` was moved, deleted or replaced while it was open; open it again where it is now",
            self.root().display()
        );
        Err(Error::new(Kind::MissingFile, message))
    }

    /// Opens the environment if no handle of this process has, after a check of its file that may refuse it.
    pub(super) fn open(&self, check: impl FnOnce() -> Result<()>) -> Result<()> {
        let gate = self.gate();
        let mut slot = gate.alone();
        match &*slot {
            Slot::Open(_) => Ok(()),
            Slot::Closed(_) => check().and_then(|()| self.fill(&mut slot, None)),
        }
    }

    /// Opens the environment of a new store; `first` fills it, in the transaction that makes its databases.
    pub(super) fn create(&self, first: First<'_>) -> Result<()> {
        let gate = self.gate();
        let mut slot = gate.alone();
        match &*slot {
            Slot::Open(_) => Err(exists(&self.root(), "a store")),
            Slot::Closed(_) => self.fill(&mut slot, Some(first)),
        }
    }

    /// Says that this process writes through a handle: one at a time.
    pub(super) fn claim(&self) -> Result<()> {
        let process = std::process::id();
        let claimed = self
            .writer
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |writer| (writer != process).then_some(process));
        claimed.map(drop).map_err(|_| already_open(&self.root()))
    }

    pub(super) fn release(&self) {
        // In a forked child it was claimed by the parent, or not at all: nothing to release.
        let _other = self.writer.compare_exchange(std::process::id(), 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Why the environment cannot be written, if so.
    pub(super) fn read_only(&self) -> Option<Error> {
        match &*self.gate().shared() {
            Slot::Open(opened) => opened.read_only.clone(),
            Slot::Closed(_) => None,
        }
    }

    /// Reads within one transaction. `f` must not read again: whoever waits to move the map would wait for ever.
    pub(super) fn read<T>(&self, f: impl FnOnce(&RoTxn<'_>, &Tables<'_>) -> Result<T, Failure>) -> Result<T> {
        let mut cleared = false;
        loop {
            let gate = self.gate();
            let slot = gate.shared();
            let Some(opened) = slot.usable() else {
                drop(slot);
                self.reopen(&gate)?;
                continue;
            };
            let failed = match opened.env.read_txn() {
                Ok(txn) => return f(&txn, &opened.tables).map_err(|failure| failure.into_error(&self.root())),
                Err(failed) => failed,
            };
            match failed {
                heed::Error::Mdb(MdbError::MapResized) => {
                    drop(slot);
                    self.resize(&gate, |_| Some(0))?;
                }
                heed::Error::Mdb(MdbError::ReadersFull) if !cleared => {
                    opened.env.clear_stale_readers().map_err(|e| failure::of(e, &self.root()))?;
                    cleared = true;
                }
                failed => return Err(failure::of(failed, &self.root())),
            }
        }
    }

    /// Writes within one transaction, begun and committed here: on another thread LMDB's lock would stay taken. Where the
    /// map is too small, it grows and `apply` is called again, on a new transaction. `bytes` is about what it writes.
    pub(super) fn write<T>(
        &self,
        bytes: u64,
        mut apply: impl FnMut(&mut RwTxn<'_>, &Tables<'_>) -> Result<T, Failure>,
    ) -> Result<T> {
        loop {
            self.check_place()?;
            let gate = self.gate();
            let slot = gate.shared();
            let Some(opened) = slot.usable() else {
                drop(slot);
                self.reopen(&gate)?;
                continue;
            };
            let mut attempt = || {
                // What readers held that died would make the file grow with every commit.
                opened.env.clear_stale_readers()?;
                let mut txn = opened.env.write_txn()?;
                let value = apply(&mut txn, &opened.tables)?;
                txn.commit()?;
                Ok(value)
            };
            let failed = match attempt() {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            drop(slot);
            match failed {
                Failure::Lmdb(heed::Error::Mdb(MdbError::MapFull)) => self.resize(&gate, |size| size.checked_mul(2))?,
                Failure::Lmdb(heed::Error::Mdb(MdbError::MapResized)) => self.resize(&gate, |_| Some(0))?,
                // Nothing was written: the transaction is gone without a trace.
                Failure::Ours(error) => return Err(error),
                Failure::Lmdb(error) => {
                    // What LMDB has in memory may not be what the file has; the next use opens it anew.
                    *gate.alone() = Slot::Closed(None);
                    return Err(failure::of_commit(error, &self.root(), bytes));
                }
            }
        }
    }

    /// The gate of this process. In a forked child the parent's is replaced by one that has it to be dropped.
    fn gate(&self) -> Arc<Gate> {
        loop {
            let gate = self.gate.load_full();
            if gate.process == std::process::id() {
                return gate;
            }
            self.gate.compare_and_swap(&gate, Gate::closed(Some(gate.clone())));
        }
    }

    fn resize(&self, gate: &Gate, size: impl FnOnce(usize) -> Option<usize>) -> Result<()> {
        let mut slot = gate.alone();
        let Slot::Open(opened) = &*slot else { return Ok(()) };
        let old = opened.env.info().map_size;
        let too_large = || {
            let message = format!("the store `{}` cannot grow beyond a map of `{old}` bytes", self.root().display());
            Error::new(Kind::LimitExceeded, message)
        };
        let size = size(old).ok_or_else(too_large)?;
        // SAFETY: no transaction of this process is open, and so no slice of the map: both live only while the gate is
        // held by whoever reads or writes, and it is held here alone.
        match unsafe { opened.env.resize(size) } {
            Ok(()) => Ok(()),
            Err(_) => {
                // The old map is gone: the environment must not be used again.
                *slot = Slot::Closed(None);
                Err(too_large())
            }
        }
    }

    /// Opens what is closed, or was taken over by another library, which may still have it.
    fn reopen(&self, gate: &Gate) -> Result<()> {
        let mut slot = gate.alone();
        if matches!(*slot, Slot::Open(_)) && slot.usable().is_none() {
            *slot = Slot::Closed(None);
        }
        self.fill(&mut slot, None)
    }

    /// Opens what is closed.
    fn fill(&self, slot: &mut Slot, first: Option<First<'_>>) -> Result<()> {
        let Slot::Closed(inherited) = slot else { return Ok(()) };
        if let Some(gate) = inherited.take()
            && let Err(held) = drop_inherited(gate)
        {
            *inherited = Some(held);
            let message = format!(
                "another thread was using the store `{}` when this process was forked; fork while nobody does, or start the process anew (`spawn`)",
                self.root().display()
            );
            return Err(Error::new(Kind::ForkedHandle, message));
        }
        *slot = Slot::Open(self.opened(first)?);
        Ok(())
    }

    fn opened(&self, first: Option<First<'_>>) -> Result<Opened> {
        failure::check_version()?;
        self.check_place()?;
        let root = self.root();
        // A handle of the same file may be on its way out in another thread.
        let mut tries = 0..TRIES;
        let (env, lock, read_only) = loop {
            match descriptors::refuse_others(&root).and_then(|()| open_env(&root, 0)) {
                Err(error) if error.kind() == Kind::AlreadyOpen && tries.next().is_some() => {
                    std::thread::sleep(PAUSE);
                }
                opened => break opened?,
            }
        };
        env.clear_stale_readers().map_err(|e| failure::of(e, &root))?;
        let tables = match first {
            Some(first) => Tables::create(&env, first),
            None => Tables::open(&env),
        };
        Ok(Opened { tables: tables.map_err(|failure| failure.into_error(&root))?, env, lock, read_only })
    }
}

type OpenedEnv = (Env<WithoutTls>, Option<LockFile>, Option<Error>);

/// The environment in `root`, with a map that has `room` bytes beyond its file at least; its lock file, and why it can
/// only be read, if so.
pub(super) fn open_env(root: &Path, room: u64) -> Result<OpenedEnv> {
    let path = root.join(DATA);
    let length = path.symlink_metadata().map_err(|e| Error::io("open", &path, e))?.len();
    let size = length.saturating_add(room.max(length));
    let size = usize::try_from(size).unwrap_or(usize::MAX / 2).max(LEAST_MAP);
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(size.next_multiple_of(MAP_UNIT)).max_readers(READERS).max_dbs(DATABASES);
    let reserved = reserve(&root.join(LOCK), LOCK_BYTES);
    let has_lock = reserved.is_ok();
    let writable = reserved.and_then(|()| {
        // SAFETY: the data file was walked before its first use, is changed by LMDB alone, and is open nowhere else in
        // this process: heed refuses the path, the registry the file, the descriptors another library.
        unsafe { options.open(root) }.map_err(|e| failure::of(e, root))
    });
    let (env, read_only) = match writable {
        Ok(env) => (env, None),
        Err(refused) if refused.kind() == Kind::ReadOnly => {
            // SAFETY: reading only is a flag without demands; the rest is as for any opening.
            let env = unsafe { options.flags(EnvFlags::READ_ONLY).open(root) };
            (env.map_err(|e| failure::of_reading(e, root))?, Some(refused))
        }
        Err(error) => return Err(error),
    };
    // On a read-only file system LMDB reads without its lock.
    if !has_lock && Lock::is_held(&root.join(WRITER_LOCK))? {
        let message = format!(
            "`{}` is being written, and where the file system is read-only no lock protects its readers; wait for the \
             writer, or read it where it can be locked",
            root.display()
        );
        return Err(Error::new(Kind::Locked, message));
    }
    let lock = has_lock.then(|| LockFile::open(&root.join(LOCK))).transpose()?;
    Ok((env, lock, read_only))
}

/// Closes what a forked child has of its parent's environment. Gives it back if a thread of the parent's, which does not
/// exist here, was using it.
fn drop_inherited(mut gate: Arc<Gate>) -> std::result::Result<(), Arc<Gate>> {
    for _ in 0..TRIES {
        match Arc::try_unwrap(gate) {
            Ok(alone) => {
                return match alone.slot.into_inner().unwrap_or_else(PoisonError::into_inner) {
                    Slot::Closed(Some(older)) => drop_inherited(older),
                    Slot::Closed(None) | Slot::Open(_) => Ok(()),
                };
            }
            Err(shared) => gate = shared,
        }
        // Other threads of this process let go of it as soon as they see that it was replaced.
        std::thread::sleep(PAUSE);
    }
    Err(gate)
}
