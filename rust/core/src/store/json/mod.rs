//! A directory that a person can read: one JSON file an entry, made of lines so that our reader finds its way without
//! parsing numbers, and `metadata.json`, a list of them made from the files. Each file is complete and synced before it
//! gets its name: that is its commit, and no file but it says anything that a reader relies on.

mod foreign;
mod lines;
mod metadata;
mod opening;
mod read;
mod rows;
mod skim;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use rayon::prelude::*;

use self::opening::{Found, create, open, recognises};
use self::write::{Failed, write};
use super::index::Index;
use super::poison::Poison;
use super::root::bytes_of_files;
use super::{Backend, BackendSpec, Committed, EncodedEntry, Operation, Stored};
use crate::codec::Codec;
use crate::entry::{ContentId, key_of_prompt};
use crate::error::{Error, Kind, Result};
use crate::files::{Disk, Lock};
use crate::format::frame_checksum;
use crate::lock::{lock, lock_alone, lock_shared};
use crate::manifest::Manifest;
use crate::pool::Pool;

/// The line of the table.
pub const SPEC: BackendSpec = BackendSpec { name: "json", on_disk: true, codecs: CODECS, recognises, create, open };

const CODECS: &[Codec] = &[Codec::Text, Codec::Base64];

const MANIFEST: &str = "actstore.json";
/// What the manifest is called while it is written.
const UNFINISHED_MANIFEST: &str = "actstore.new";
const LOCK: &str = "actstore.lock";
const ACTIVATIONS: &str = "activations";
/// What entries are called while they are written, after the name they will have.
const UNFINISHED: &str = ".new";
/// Files written at the same time, at most: where the disk is full, the rest of a commit is not begun.
const AT_ONCE: usize = 32;

/// What the file of a key is called: a digest is its own name. The text of a prompt and the key made of it share a name;
/// the second of them is refused.
fn file_name(key: &str) -> String {
    if is_digest(key) { format!("{key}.json") } else { format!("{}.json", key_of_prompt(key)) }
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

const NO_NUMBER: u64 = u64::MAX;

/// What the index holds of an entry.
#[derive(Clone, Copy, Debug)]
struct Located {
    /// Its place in the order of writing, which a replaced entry keeps.
    number: u64,
    content_id: ContentId,
    created: f64,
}

/// The backend.
struct Json {
    root: PathBuf,
    codec: Codec,
    disk: Arc<dyn Disk>,
    index: RwLock<Index<Located>>,
    damage: Vec<Error>,
    writer: Mutex<WriterState>,
    lock: Mutex<Option<Lock>>,
    pool: Pool,
}

#[derive(Default)]
struct WriterState {
    next_number: u64,
    /// Files begun, so that no two have the same name while they are written.
    begun: u64,
    changed: bool,
    poison: Poison,
}

/// What a commit does to one file.
enum Change<'a> {
    Put { entry: &'a EncodedEntry, key: &'a str, number: u64, unfinished: PathBuf, replaces: bool },
    Delete { key: &'a str },
}

impl Json {
    fn new(root: &Path, manifest: &Manifest, disk: Arc<dyn Disk>, lock: Option<Lock>, found: Found) -> Self {
        let mut index = Index::default();
        let mut next_number = 0;
        for (key, mut located) in found.entries {
            // What another program wrote comes last and has no number yet.
            if located.number == NO_NUMBER {
                located.number = next_number;
            }
            next_number = next_number.max(located.number + 1);
            index.put(key.into(), located);
        }
        let writer = WriterState { next_number, ..WriterState::default() };
        Self {
            root: root.to_owned(),
            codec: manifest.settings.codec,
            disk,
            index: RwLock::new(index),
            damage: found.damage,
            writer: Mutex::new(writer),
            lock: Mutex::new(lock),
            pool: Pool::default(),
        }
    }

    fn directory(&self) -> PathBuf {
        self.root.join(ACTIVATIONS)
    }

    fn path_of(&self, key: &str) -> PathBuf {
        self.directory().join(file_name(key))
    }

    fn index(&self) -> RwLockReadGuard<'_, Index<Located>> {
        lock_shared(&self.index)
    }

    /// Gives every operation its number and the name of its unfinished file.
    fn plan<'a>(&self, state: &mut WriterState, operations: &'a [Operation]) -> Vec<Change<'a>> {
        let index = self.index();
        let mut numbers: HashMap<&str, Option<u64>> = HashMap::new();
        let mut change = |operation: &'a Operation| match operation {
            Operation::Delete(key) => {
                let stored = numbers.insert(key, None).unwrap_or_else(|| index.get(key).map(|located| located.number));
                stored.map(|_| Change::Delete { key })
            }
            Operation::Put(entry) => {
                let key = entry.header.document.key();
                let stored = *numbers.entry(key).or_insert_with(|| index.get(key).map(|located| located.number));
                let number = stored.unwrap_or(state.next_number);
                numbers.insert(key, Some(number));
                state.next_number = state.next_number.max(number + 1);
                let mut unfinished = self.path_of(key).into_os_string();
                unfinished.push(format!(".{}{UNFINISHED}", state.begun));
                state.begun += 1;
                let (unfinished, replaces) = (unfinished.into(), stored.is_some());
                Some(Change::Put { entry, key, number, unfinished, replaces })
            }
        };
        operations.iter().filter_map(&mut change).collect()
    }

    /// Writes the new files of some changes, then makes the changes in their order. After a failure those in `done`
    /// stand, and no unfinished file is left.
    fn apply<'a>(&self, changes: &'a [Change<'a>], done: &mut Vec<&'a Change<'a>>) -> Result<(), Failed> {
        let prepare = |change: &Change<'_>| match change {
            Change::Delete { .. } => Ok(()),
            Change::Put { entry, number, unfinished, .. } => {
                write(self.disk.as_ref(), unfinished, entry, *number, self.codec)
            }
        };
        let written: Vec<_> = self
            .pool
            .install(|| changes.par_iter().map(prepare).collect())
            .map_err(|error| Failed { error, fatal: false })?;
        let finish = |(change, written): (&'a Change<'a>, Result<(), Failed>)| {
            written.and_then(|()| self.finish(change)).map(|()| done.push(change))
        };
        let result = changes.iter().zip(written).try_for_each(finish);
        if result.is_err() {
            self.remove_unfinished(changes);
        }
        result
    }

    /// Gives a file its name, or takes it away.
    fn finish(&self, change: &Change<'_>) -> Result<(), Failed> {
        let unknown = |error| Failed { error, fatal: true };
        match change {
            Change::Delete { key } => match self.disk.remove(&self.path_of(key)) {
                Err(error) if error.kind() != Kind::MissingFile => Err(unknown(error)),
                _ => Ok(()),
            },
            Change::Put { key, unfinished, replaces, .. } => {
                let path = self.path_of(key);
                if !replaces && path.symlink_metadata().is_ok() {
                    return Err(Failed { error: taken(key, &path), fatal: false });
                }
                self.disk.rename(unfinished, &path).map_err(unknown)
            }
        }
    }

    fn remove_unfinished(&self, changes: &[Change<'_>]) {
        for change in changes {
            if let Change::Put { unfinished, .. } = change {
                // What cannot be removed now is when the store is next opened for writing.
                let _leftover = self.disk.remove(unfinished);
            }
        }
    }

    fn show(&self, done: &[&Change<'_>]) {
        let mut index = lock_alone(&self.index);
        for change in done {
            match change {
                Change::Put { entry, key, number, .. } => {
                    let (content_id, created) = (entry.content_id, entry.header.document.created);
                    index.put((*key).into(), Located { number: *number, content_id, created });
                }
                Change::Delete { key } => index.delete(key),
            }
        }
    }

    fn entries(&self) -> Vec<(Arc<str>, Located)> {
        let index = self.index();
        let located = |key: Arc<str>| index.get(&key).copied().map(|located| (key, located));
        index.keys().into_iter().filter_map(located).collect()
    }

    /// Lists the entries anew where the list is not of these. A full disk is no reason to fail: the next writer does it.
    fn refresh_metadata(&self) -> Result<()> {
        let written = metadata::refresh(self.disk.as_ref(), &self.root, &self.entries(), &self.pool);
        written.or_else(|error| if error.kind() == Kind::StorageFull { Ok(()) } else { Err(error) })
    }

    /// Damage that reading the entry's frames does not meet.
    fn verify_file(&self, key: &str) -> Option<Error> {
        let path = self.path_of(key);
        let by_index = read::read(&path).ok()?;
        let error = match read::read_whole(&path) {
            Ok(whole) if whole.says_what(&by_index) || !whole.is_of_the_file_of(&by_index) => return None,
            // Deleted between the two readings.
            Err(error) if error.kind() == Kind::MissingFile => return None,
            Ok(_) => Error::new(Kind::Checksum, "its index does not say what the rest of the file says"),
            Err(error) => error,
        };
        let frames_are_sound = (0..by_index.header().activations.len()).all(|n| frames_match(&by_index, n));
        frames_are_sound.then(|| error.within(format!("entry `{key}` in `{}`", path.display())))
    }
}

/// Why a file that is not an entry's own cannot be written over.
fn taken(key: &str, path: &Path) -> Error {
    let file = path.display();
    let message = match read::summary(path) {
        Ok(other) => format!(
            "entry `{key}` cannot be written: its file would be `{file}`, which holds entry `{}`; give another key",
            other.head.document.key()
        ),
        Err(_) => format!(
            "entry `{key}` cannot be written: its file `{file}` is there already and holds no entry of this store; move it away, or give another key"
        ),
    };
    Error::new(Kind::KeyConflict, message)
}

fn frames_match(entry: &dyn Stored, index: usize) -> bool {
    let mut start = 0;
    entry.header().activations.get(index).is_some_and(|activation| {
        activation.frames.iter().all(|frame| {
            let mut matches = false;
            let read = entry.with_bytes(index, start, frame.length as usize, &mut |raw| {
                matches = frame_checksum(raw) == frame.checksum;
                Ok(())
            });
            start += u64::from(frame.length);
            read.is_ok() && matches
        })
    })
}

impl Backend for Json {
    fn commit(&self, operations: Vec<Operation>) -> Result<Committed> {
        let mut state = lock(&self.writer);
        state.poison.check(&self.root)?;
        let changes = self.plan(&mut state, &operations);
        let mut done = Vec::new();
        let applied = changes.chunks(AT_ONCE).try_for_each(|some| self.apply(some, &mut done));
        let synced = if done.is_empty() { Ok(()) } else { self.disk.sync_dir(&self.directory()) };
        self.show(&done);
        state.changed |= !done.is_empty();
        let synced = synced.map_err(|error| Failed { error, fatal: true });
        applied.and(synced).map_err(|Failed { error, fatal }| {
            if fatal {
                state.poison.set(&error);
            }
            error
        })?;
        let syncs = done.iter().filter(|change| matches!(change, Change::Put { .. })).count();
        Ok(Committed { syncs: syncs as u64 })
    }

    /// Every commit is durable when it returns.
    fn sync(&self) -> Result<()> {
        lock(&self.writer).poison.check(&self.root)
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
        if self.index().get(key).is_none() {
            return Ok(None);
        }
        let path = self.path_of(key);
        let mut read = read::read(&path);
        if read.as_ref().is_err_and(|error| error.kind() == Kind::MissingFile) {
            // Of what the writer deletes a reader learns in no other way.
            if lock(&self.lock).is_none() {
                return Ok(None);
            }
            // A commit may have deleted it that is not done yet; while this is held there is none.
            let _no_commit = lock(&self.writer);
            if self.index().get(key).is_none() {
                return Ok(None);
            }
            read = read::read(&path);
        }
        let read = read.map_err(|e| e.within(format!("entry `{key}` in `{}`", path.display())))?;
        Ok(Some(Arc::new(read)))
    }

    fn file_bytes(&self) -> Result<u64> {
        bytes_of_files(&[&self.root, &self.directory()])
    }

    fn verify(&self) -> Vec<Error> {
        let keys = self.index().keys();
        let found = self.pool.install(|| keys.par_iter().filter_map(|key| self.verify_file(key)).collect::<Vec<_>>());
        self.damage.iter().cloned().chain(found.unwrap_or_else(|error| vec![error])).collect()
    }

    fn damage(&self) -> Vec<Error> {
        self.damage.clone()
    }

    fn close(&self) -> Result<()> {
        // Released when this returns, however it does: a closed store must not keep others from writing.
        let _released = lock(&self.lock).take();
        let mut state = lock(&self.writer);
        if state.poison.is_set() || !std::mem::take(&mut state.changed) {
            return Ok(());
        }
        self.refresh_metadata()
    }
}
