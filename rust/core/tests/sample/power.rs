//! A disk whose power goes at the n-th sync. It writes real files and remembers what was synced: of files the bytes, of
//! directories which name means which file. After the cut it lays out what could be left: only what was synced, all
//! that was done, or any part of the rest. Unsynced bytes are kept or lost in blocks of 512; an unsynced name means
//! what it meant when its directory was last synced, or anything it meant since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use actstore::error::{Error, Kind, Result};
use actstore::files::{Appender, Disk, OsDisk};

use super::chance;

const BLOCK: usize = 512;

/// What a file is on disk for sure, and what it would be if nothing were lost.
#[derive(Clone, Debug, Default)]
struct Image {
    synced: Vec<u8>,
    written: Vec<u8>,
}

/// What a name means: a file, or nothing.
type Binding = Option<usize>;

#[derive(Debug, Default)]
struct Power {
    files: Vec<Image>,
    /// What each name means since its directory was last synced: the first of these is on disk for sure.
    names: BTreeMap<PathBuf, Vec<Binding>>,
    directories: Vec<PathBuf>,
    syncs: usize,
    cut_at: usize,
}

impl Power {
    /// Counts a sync; the one at which the power goes does not happen, nor does anything after it.
    fn sync(&mut self, path: &Path) -> Result<()> {
        self.syncs += 1;
        self.on(path)
    }

    fn on(&self, path: &Path) -> Result<()> {
        if self.syncs < self.cut_at {
            Ok(())
        } else {
            Err(Error::new(Kind::StorageIo, format!("no power for `{}`", path.display())))
        }
    }

    fn file_of(&self, path: &Path) -> Binding {
        self.names.get(path).and_then(|bindings| *bindings.last().unwrap())
    }

    fn bind(&mut self, path: &Path, binding: Binding) {
        self.names.entry(path.to_owned()).or_insert_with(|| vec![None]).push(binding);
    }

    fn add(&mut self, path: &Path, written: Vec<u8>) -> usize {
        self.files.push(Image { written, ..Image::default() });
        let file = self.files.len() - 1;
        self.bind(path, Some(file));
        file
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct CutDisk(Arc<Mutex<Power>>);

struct CutFile {
    inner: Box<dyn Appender>,
    path: PathBuf,
    file: usize,
    disk: CutDisk,
}

impl CutDisk {
    /// A disk that loses power at sync `n`, counted from 1.
    pub(crate) fn cut_at(n: usize) -> Self {
        Self(Arc::new(Mutex::new(Power { cut_at: n, ..Power::default() })))
    }

    /// Lays out what could be left of `from` under `to`. Variant 0 keeps what was synced, 1 all that was done, others a
    /// part of it.
    pub(crate) fn lay_out(&self, from: &Path, to: &Path, variant: u64) {
        let power = self.0.lock().unwrap();
        let moved = |path: &Path| to.join(path.strip_prefix(from).unwrap());
        power.directories.iter().for_each(|directory| std::fs::create_dir_all(moved(directory)).unwrap());
        for (n, (path, bindings)) in power.names.iter().enumerate() {
            let seed = variant * 1000 + n as u64;
            let binding = match variant {
                0 => bindings[0],
                1 => *bindings.last().unwrap(),
                _ => bindings[usize::try_from(chance(seed, 0)).unwrap() % bindings.len()],
            };
            let Some(image) = binding.map(|file| &power.files[file]) else { continue };
            let bytes = match variant {
                0 => image.synced.clone(),
                1 => image.written.clone(),
                _ => torn(image, seed),
            };
            std::fs::write(moved(path), bytes).unwrap();
        }
    }
}

impl Disk for CutDisk {
    fn create_dir(&self, path: &Path) -> Result<()> {
        let mut power = self.0.lock().unwrap();
        power.on(path)?;
        power.directories.push(path.to_owned());
        OsDisk.create_dir(path)
    }

    fn create(&self, path: &Path) -> Result<Box<dyn Appender>> {
        let mut power = self.0.lock().unwrap();
        power.on(path)?;
        let inner = OsDisk.create(path)?;
        let file = power.add(path, Vec::new());
        Ok(Box::new(CutFile { inner, path: path.to_owned(), file, disk: self.clone() }))
    }

    fn resume(&self, path: &Path, length: u64) -> Result<Box<dyn Appender>> {
        let mut power = self.0.lock().unwrap();
        power.on(path)?;
        let inner = OsDisk.resume(path, length)?;
        let written = std::fs::read(path).unwrap();
        let file = match power.file_of(path) {
            Some(file) => file,
            None => power.add(path, Vec::new()),
        };
        power.files[file].written = written;
        Ok(Box::new(CutFile { inner, path: path.to_owned(), file, disk: self.clone() }))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut power = self.0.lock().unwrap();
        power.sync(path)?;
        for (_, bindings) in power.names.iter_mut().filter(|(name, _)| name.parent() == Some(path)) {
            bindings.drain(..bindings.len() - 1);
        }
        OsDisk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut power = self.0.lock().unwrap();
        power.on(from)?;
        let file = power.file_of(from);
        assert!(file.is_some(), "{} is renamed but was never made", from.display());
        power.bind(from, None);
        power.bind(to, file);
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut power = self.0.lock().unwrap();
        power.on(path)?;
        OsDisk.remove(path)?;
        power.bind(path, None);
        Ok(())
    }
}

impl Appender for CutFile {
    fn append(&mut self, parts: &[&[u8]]) -> Result<()> {
        let mut power = self.disk.0.lock().unwrap();
        power.on(&self.path)?;
        power.files[self.file].written.extend(parts.concat());
        self.inner.append(parts)
    }

    fn sync(&mut self) -> Result<()> {
        let mut power = self.disk.0.lock().unwrap();
        power.sync(&self.path)?;
        let image = &mut power.files[self.file];
        image.synced = image.written.clone();
        self.inner.sync()
    }

    fn truncate(&mut self, length: u64) -> Result<()> {
        let mut power = self.disk.0.lock().unwrap();
        power.on(&self.path)?;
        power.files[self.file].written.truncate(usize::try_from(length).unwrap());
        self.inner.truncate(length)
    }

    fn length(&self) -> u64 {
        self.inner.length()
    }
}

/// Some of the unsynced blocks reached the disk, some did not; so did the length.
fn torn(image: &Image, seed: u64) -> Vec<u8> {
    let longest = image.synced.len().max(image.written.len());
    let length = match chance(seed, 1) % 4 {
        0 => image.synced.len(),
        1 | 2 => image.written.len(),
        _ => image.synced.len() + usize::try_from(chance(seed, 2)).unwrap() % (longest - image.synced.len() + 1),
    };
    let mut bytes = image.synced.clone();
    bytes.resize(length, 0);
    for (n, block) in bytes.chunks_mut(BLOCK).enumerate() {
        if !chance(seed, 3 + n as u64).is_multiple_of(4) {
            let written = image.written.get(n * BLOCK..).unwrap_or_default();
            let some = written.len().min(block.len());
            block[..some].copy_from_slice(&written[..some]);
        }
    }
    bytes
}

/// Versions of keys; `None` where the key is gone.
pub(crate) type Versions = BTreeMap<u64, Option<u64>>;

/// What was acknowledged, and what was being written when the power went.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) acknowledged: Versions,
    pub(crate) in_flight: Versions,
}

impl Progress {
    pub(crate) fn begin(&mut self, versions: impl IntoIterator<Item = (u64, Option<u64>)>) {
        self.in_flight = versions.into_iter().collect();
    }

    pub(crate) fn acknowledge(&mut self) {
        self.acknowledged.append(&mut self.in_flight);
    }

    /// Asserts that of key `n` the version that was acknowledged is there, or the one in flight.
    pub(crate) fn allows(&self, n: u64, found: Option<u64>, case: &str) {
        let acknowledged = self.acknowledged.get(&n).copied().flatten();
        let allowed = BTreeSet::from([acknowledged, self.in_flight.get(&n).copied().unwrap_or(acknowledged)]);
        assert!(allowed.contains(&found), "{case}: k{n} is {found:?}, not one of {allowed:?}");
    }
}
