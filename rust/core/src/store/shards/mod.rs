//! The native store: append-only shards, one log a writer, a manifest. FORMAT.md has the layout of the files.

mod append;
mod log;
mod opening;
mod scan;
mod shard;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use self::append::{ShardWriter, hash_file};
use self::log::Log;
use self::opening::{Contents, create, open, recognises};
use self::scan::{Found, Scan};
use self::shard::{Located, Shard};
use self::verify::verify_shard;
use super::index::Index;
use super::poison::Poison;
use super::root::bytes_of_files;
use super::{Backend, BackendSpec, Committed, FRAME_CODECS, Operation, Recent, Stored};
use crate::entry::{ContentId, hex};
use crate::error::{Error, Kind, Result};
use crate::files::{Disk, Lock};
use crate::format::{Change, CommitRecord, Extent, FORMAT_VERSION, Place, Sealed, malformed};
use crate::lock::{lock, lock_alone, lock_shared};
use crate::manifest::{Durability, Manifest};

/// The line of the table.
pub const SPEC: BackendSpec =
    BackendSpec { name: "shards", on_disk: true, codecs: FRAME_CODECS, recognises, create, open };

/// A shard of this size is sealed and the next one begun.
const SHARD_BYTES: u64 = 512 << 20;
/// A shard with fewer bytes and fewer changes is left open at closing, to be continued: many small sessions do not
/// make many small files, and scanning it stays quick.
const SEAL_AT_CLOSE_BYTES: u64 = 64 << 20;
const SEAL_AT_CLOSE_CHANGES: usize = 4096;
/// With durability `interval`, a commit this long after the last sync syncs. With the writer's own syncs while it is
/// idle, nothing stays unsynced for two seconds.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Until many writers share a store, there is this one.
const WRITER: u32 = 0;

const MANIFEST: &str = "actstore.manifest";
/// What the manifest is called while it is written.
const UNFINISHED_MANIFEST: &str = "actstore.new";
const SHARDS: &str = "shards";
const LOGS: &str = "logs";

fn shard_path(root: &Path, place: Place) -> PathBuf {
    root.join(SHARDS).join(shard_name(place.writer, place.shard))
}

fn shard_name(writer: u32, shard: u32) -> String {
    format!("{writer}-{shard:06}.shard")
}

fn lock_path(root: &Path) -> PathBuf {
    root.join(LOGS).join(format!("{WRITER}.lock"))
}

fn log_path(root: &Path, writer: u32) -> PathBuf {
    root.join(LOGS).join(format!("{writer}.log"))
}

fn place_of(manifest: &Manifest, shard: u32) -> Place {
    Place { store: manifest.store_tag(), writer: WRITER, shard }
}

/// First payload of every shard and log.
fn head_payload(manifest: &Manifest, place: Place) -> String {
    let (writer, shard) = (place.writer, place.shard);
    format!(
        r#"{{"format":"actstore","version":{FORMAT_VERSION},"store_id":"{}","writer":{writer},"shard":{shard}}}"#,
        hex(&manifest.store_id)
    )
}

/// The backend.
struct Shards {
    root: PathBuf,
    manifest: Manifest,
    disk: Arc<dyn Disk>,
    index: RwLock<Index<Located>>,
    /// Every shard with the changes, in order, of those that were there when opening.
    shards: RwLock<BTreeMap<u32, Arc<Shard>>>,
    damage: Vec<Error>,
    writer: Mutex<WriterState>,
    lock: Mutex<Option<Lock>>,
}

struct WriterState {
    current: Option<ShardWriter>,
    next: u32,
    log: Log,
    /// Shards to look at before the first commit: what is left of earlier writers.
    unsealed: Vec<(Arc<Shard>, Scan)>,
    poison: Poison,
    synced_at: Instant,
    unsynced: bool,
}

impl Shards {
    fn new(root: &Path, manifest: &Manifest, disk: Arc<dyn Disk>, lock: Option<Lock>, contents: Contents) -> Self {
        let damage = contents.damage().cloned().collect();
        let next = contents.shards.keys().next_back().map_or(1, |last| last + 1);
        let (mut index, mut shards, mut unsealed) = (Index::default(), BTreeMap::new(), Vec::new());
        for (number, (shard, scan)) in contents.shards {
            for group in &scan.groups {
                apply(&mut index, &shard, &group.commit);
            }
            shards.insert(number, shard.clone());
            let sealed = contents.log.extents.get(&number).is_some_and(|extent| extent.seal.is_some());
            if lock.is_some() && !sealed {
                unsealed.push((shard, scan));
            }
        }
        let log = contents.log;
        let writer = WriterState {
            current: None,
            next,
            log,
            unsealed,
            poison: Poison::default(),
            synced_at: Instant::now(),
            unsynced: false,
        };
        Self {
            root: root.to_owned(),
            manifest: manifest.clone(),
            disk,
            index: RwLock::new(index),
            shards: RwLock::new(shards),
            damage,
            writer: Mutex::new(writer),
            lock: Mutex::new(lock),
        }
    }

    /// Brings what earlier writers left into order: finished shards enter the log, the last one is continued.
    fn recover(&self) -> Result<()> {
        let mut state = lock(&self.writer);
        let unsealed = std::mem::take(&mut state.unsealed);
        let count = unsealed.len();
        for (n, (shard, scan)) in unsealed.into_iter().enumerate() {
            let sealed = match scan.seal {
                Some(seal) => self.adopt_seal(&shard, seal)?,
                None if scan.groups.is_empty() => continue,
                None => {
                    let mut writer = ShardWriter::resume(self.disk.as_ref(), &self.root, shard, &scan)?;
                    if n + 1 == count {
                        state.current = Some(writer);
                        continue;
                    }
                    writer.seal().map_err(|failed| failed.error)?
                }
            };
            self.log(&mut state, sealed)?;
        }
        Ok(())
    }

    /// A shard whose writer ended between its seal and the log. What was read may be in memory only.
    fn adopt_seal(&self, shard: &Shard, seal: Found) -> Result<Extent> {
        self.disk.resume(&shard_path(&self.root, shard.place), seal.end())?.sync()?;
        let mut hasher = blake3::Hasher::new();
        hash_file(shard, seal.end(), &mut hasher)?;
        let sealed = Sealed { offset: seal.offset, blake3: *hasher.finalize().as_bytes() };
        Ok(Extent { shard: shard.place.shard, length: seal.end(), seal: Some(sealed) })
    }

    fn writer<'a>(&self, state: &'a mut WriterState) -> Result<&'a mut ShardWriter> {
        if state.current.is_none() {
            let place = place_of(&self.manifest, state.next);
            let writer = ShardWriter::create(self.disk.as_ref(), &self.root, place, &self.manifest)?;
            self.log(state, writer.extent())?;
            state.next += 1;
            lock_alone(&self.shards).insert(place.shard, writer.shard.clone());
            state.current = Some(writer);
        }
        state.current.as_mut().ok_or_else(|| malformed("no shard to write to"))
    }

    fn sync_current(&self, state: &mut WriterState) -> Result<u64> {
        let Some(writer) = state.current.as_mut().filter(|_| state.unsynced) else { return Ok(0) };
        if let Err(error) = writer.sync() {
            state.poison.set(&error);
            return Err(error);
        }
        (state.synced_at, state.unsynced) = (Instant::now(), false);
        Ok(1)
    }

    fn seal_current(&self, state: &mut WriterState) -> Result<()> {
        // What the seal vouches for must be durable before it is written.
        self.sync_current(state)?;
        let Some(writer) = state.current.as_mut() else { return Ok(()) };
        let sealed = match writer.seal() {
            Ok(sealed) => sealed,
            // Nothing of the seal remains: the shard is whole without it, and the next commit tries again.
            Err(failed) if !failed.fatal && failed.error.kind() == Kind::StorageFull => return Ok(()),
            Err(failed) => {
                state.poison.set(&failed.error);
                return Err(failed.error);
            }
        };
        state.current = None;
        // The seal is durable without the log, which the next writer mends.
        self.log(state, sealed)
    }

    fn log(&self, state: &mut WriterState, extent: Extent) -> Result<()> {
        let appended = log::append(self.disk.as_ref(), &self.root, place_of(&self.manifest, 0), &mut state.log, extent);
        appended.inspect_err(|error| {
            // A full disk is tried again, over what the failed attempt left; a failed sync is not.
            if error.kind() != Kind::StorageFull {
                state.poison.set(error);
            }
        })
    }

    fn index(&self) -> RwLockReadGuard<'_, Index<Located>> {
        lock_shared(&self.index)
    }

    fn must_sync(&self, state: &WriterState) -> bool {
        self.manifest.settings.durability == Durability::Commit || state.synced_at.elapsed() >= SYNC_INTERVAL
    }
}

fn apply(index: &mut Index<Located>, shard: &Arc<Shard>, commit: &CommitRecord) {
    shard.add_models(&commit.models);
    for change in &commit.changes {
        match (change, Located::of(change, shard)) {
            (Change::Put { key, .. }, Some(located)) => index.put(key.clone(), located),
            (Change::Put { key, .. } | Change::Delete { key }, _) => index.delete(key),
        }
    }
}

impl Backend for Shards {
    fn commit(&self, operations: Vec<Operation>) -> Result<Committed> {
        let mut state = lock(&self.writer);
        state.poison.check(&self.root)?;
        let writer = self.writer(&mut state)?;
        let commit = match writer.commit(&operations) {
            Ok(commit) => commit,
            Err(failed) => {
                if failed.fatal {
                    state.poison.set(&failed.error);
                }
                return Err(failed.error);
            }
        };
        let (shard, full) = (writer.shard.clone(), writer.length() >= SHARD_BYTES);
        state.unsynced = true;
        let syncs = if self.must_sync(&state) { self.sync_current(&mut state)? } else { 0 };
        apply(&mut lock_alone(&self.index), &shard, &commit);
        if full {
            self.seal_current(&mut state)?;
        }
        Ok(Committed { syncs })
    }

    fn sync(&self) -> Result<()> {
        let mut state = lock(&self.writer);
        state.poison.check(&self.root)?;
        self.sync_current(&mut state).map(drop)
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
        Ok(self.index().get(key).map(|located| located.content_id))
    }

    fn entry(&self, key: &str) -> Result<Option<Arc<dyn Stored>>> {
        let located = self.index().get(key).cloned();
        located.map(|located| located.read(key).map(|entry| Arc::new(entry) as Arc<dyn Stored>)).transpose()
    }

    fn recent_entry(&self, key: &str, recent: &Recent) -> Result<Option<Arc<dyn Stored>>> {
        let Some(located) = self.index().get(key).cloned() else { return Ok(None) };
        if let Some(entry) = recent.get(located.place(), key, &located.content_id) {
            return Ok(Some(entry));
        }
        let entry: Arc<dyn Stored> = Arc::new(located.read(key)?);
        recent.add(located.place(), &entry);
        Ok(Some(entry))
    }

    fn public_document(&self, key: &str) -> Result<Option<String>> {
        let located = self.index().get(key).cloned();
        located.map(|located| located.public_document(key)).transpose()
    }

    fn file_bytes(&self) -> Result<u64> {
        bytes_of_files(&[&self.root, &self.root.join(SHARDS), &self.root.join(LOGS)])
    }

    fn verify(&self) -> Vec<Error> {
        let mut damage = self.damage.clone();
        let shards: Vec<_> = lock_shared(&self.shards).values().cloned().collect();
        let extents = lock(&self.writer).log.extents.clone();
        for shard in shards {
            let found = verify_shard(&shard, extents.get(&shard.place.shard));
            damage.extend(found.unwrap_or_else(|error| vec![error]));
        }
        damage
    }

    fn damage(&self) -> Vec<Error> {
        self.damage.clone()
    }

    fn close(&self) -> Result<()> {
        // Released when this returns, however it does: a closed store must not keep others from writing.
        let _released = lock(&self.lock).take();
        let mut state = lock(&self.writer);
        if state.poison.is_set() {
            return Ok(());
        }
        self.sync_current(&mut state)?;
        let Some(writer) = state.current.as_mut() else { return Ok(()) };
        if writer.length() >= SEAL_AT_CLOSE_BYTES || writer.changes() >= SEAL_AT_CLOSE_CHANGES {
            return self.seal_current(&mut state);
        }
        // Says how much is durable, so that later damage there is never taken for a torn tail.
        let extent = writer.extent();
        if state.log.extents.get(&extent.shard) == Some(&extent) {
            return Ok(());
        }
        self.log(&mut state, extent)
    }
}
