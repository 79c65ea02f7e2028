//! The power goes at the n-th sync, for every n: what was acknowledged is there exactly, what was not is whole or absent.
//!
//! The disk here writes real files and remembers what was synced. After the cut it lays out what could be left: only
//! what was synced, all that was written, or any part of the unsynced writes, in blocks of 512 bytes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use actstore::error::{Error, Kind, Result};
use actstore::files::{Appender, Disk, OsDisk};
use actstore::store::Store;
use actstore::writer::Writer;
use sample::{MEMORY, chance, draft, holds, put, settings, version};

const BLOCK: usize = 512;

/// What a file is on disk for sure, and what it would be if nothing were lost.
#[derive(Clone, Debug, Default)]
struct Image {
    synced: Vec<u8>,
    written: Vec<u8>,
    named: bool,
}

#[derive(Debug, Default)]
struct Power {
    files: BTreeMap<PathBuf, Image>,
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
}

#[derive(Clone, Debug, Default)]
struct CutDisk(Arc<Mutex<Power>>);

struct CutFile {
    inner: Box<dyn Appender>,
    path: PathBuf,
    disk: CutDisk,
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
        power.files.insert(path.to_owned(), Image::default());
        Ok(Box::new(CutFile { inner: OsDisk.create(path)?, path: path.to_owned(), disk: self.clone() }))
    }

    fn resume(&self, path: &Path, length: u64) -> Result<Box<dyn Appender>> {
        let mut power = self.0.lock().unwrap();
        power.on(path)?;
        let inner = OsDisk.resume(path, length)?;
        let written = std::fs::read(path).unwrap();
        power.files.entry(path.to_owned()).or_insert_with(|| Image { named: true, ..Image::default() }).written =
            written;
        Ok(Box::new(CutFile { inner, path: path.to_owned(), disk: self.clone() }))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut power = self.0.lock().unwrap();
        power.sync(path)?;
        power
            .files
            .iter_mut()
            .filter(|(file, _)| file.parent() == Some(path))
            .for_each(|(_, image)| image.named = true);
        OsDisk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut power = self.0.lock().unwrap();
        power.on(from)?;
        let image = power.files.remove(from).unwrap();
        power.files.insert(to.to_owned(), Image { named: false, ..image });
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut power = self.0.lock().unwrap();
        power.on(path)?;
        power.files.remove(path);
        OsDisk.remove(path)
    }
}

impl Appender for CutFile {
    fn append(&mut self, parts: &[&[u8]]) -> Result<()> {
        let mut power = self.disk.0.lock().unwrap();
        power.on(&self.path)?;
        power.files.get_mut(&self.path).unwrap().written.extend(parts.concat());
        self.inner.append(parts)
    }

    fn sync(&mut self) -> Result<()> {
        let mut power = self.disk.0.lock().unwrap();
        power.sync(&self.path)?;
        let image = power.files.get_mut(&self.path).unwrap();
        image.synced = image.written.clone();
        self.inner.sync()
    }

    fn truncate(&mut self, length: u64) -> Result<()> {
        let mut power = self.disk.0.lock().unwrap();
        power.on(&self.path)?;
        power.files.get_mut(&self.path).unwrap().written.truncate(usize::try_from(length).unwrap());
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

/// Lays out what could be left under another root. Variant 0 keeps what was synced, 1 all that was written, others a part.
fn lay_out(power: &Power, from: &Path, to: &Path, variant: u64) {
    let moved = |path: &Path| to.join(path.strip_prefix(from).unwrap());
    power.directories.iter().for_each(|directory| std::fs::create_dir_all(moved(directory)).unwrap());
    for (n, (path, image)) in power.files.iter().enumerate() {
        let seed = variant * 1000 + n as u64;
        let kept = image.named || variant == 1 || (variant > 1 && chance(seed, 0).is_multiple_of(2));
        if kept {
            let bytes = match variant {
                0 => image.synced.clone(),
                1 => image.written.clone(),
                _ => torn(image, seed),
            };
            std::fs::write(moved(path), bytes).unwrap();
        }
    }
}

/// Versions of keys; `None` where the key is gone.
type Versions = BTreeMap<u64, Option<u64>>;

/// What was acknowledged, and what was being written when the power went.
#[derive(Default)]
struct Progress {
    acknowledged: Versions,
    in_flight: Versions,
}

impl Progress {
    fn begin(&mut self, versions: impl IntoIterator<Item = (u64, Option<u64>)>) {
        self.in_flight = versions.into_iter().collect();
    }

    fn acknowledge(&mut self) {
        self.acknowledged.append(&mut self.in_flight);
    }
}

/// Three sessions of three commits each; later ones replace, the last deletes. Whether all of it was done.
fn work(root: &Path, disk: &CutDisk, durability: &str) -> (Progress, bool) {
    let mut progress = Progress::default();
    let finished = (|| -> Result<()> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut store = Arc::new(Store::create_on(
            Some(root),
            "shards",
            settings("planes", "replace", durability),
            MEMORY,
            disk.clone(),
        )?);
        for session in 0..3u64 {
            let writer = Writer::new(store.clone())?;
            for commit in 0..3u64 {
                let keys = [commit * 2, commit * 2 + 1 + session];
                progress.begin(keys.map(|n| (n, Some(session))));
                for n in keys {
                    writer.put(draft(n, session))?;
                }
                writer.flush()?;
                progress.acknowledge();
            }
            writer.close()?;
            if session == 2 {
                progress.begin([(0, None)]);
                store.delete(&["k0".to_owned()])?;
                progress.acknowledge();
            }
            store.close()?;
            drop((writer, store));
            store = Arc::new(Store::open_on(root, true, MEMORY, disk.clone())?);
        }
        store.close()
    })();
    (progress, finished.is_ok())
}

fn check(root: &Path, progress: &Progress, case: &str) {
    let Progress { acknowledged, in_flight } = progress;
    let store = match Store::open(root, true, MEMORY) {
        Ok(store) => Arc::new(store),
        Err(error) => {
            assert!(acknowledged.is_empty(), "{case}: {error}");
            // What an interrupted creation left does not stand in the way of the next.
            Store::create(Some(root), "shards", settings("raw", "error", "commit"), MEMORY).unwrap();
            return;
        }
    };
    let present: Vec<_> = store.reading().unwrap().keys().unwrap().iter().map(ToString::to_string).collect();
    let found = |n: u64| version(&store, n);
    for n in 0..9 {
        let allowed = [
            acknowledged.get(&n).copied().flatten(),
            in_flight.get(&n).copied().unwrap_or_else(|| acknowledged.get(&n).copied().flatten()),
        ];
        assert!(allowed.contains(&found(n)), "{case}: k{n} is {:?}, not one of {allowed:?}", found(n));
    }
    let landed: Vec<_> = in_flight
        .iter()
        .filter(|(n, _)| acknowledged.get(n) != in_flight.get(n))
        .map(|(n, version)| found(*n) == *version)
        .collect();
    assert!(landed.iter().all(|one| *one == landed[0]), "{case}: a commit is there in part: {in_flight:?}");
    for key in &present {
        let n = key[1..].parse().unwrap();
        holds(&store, n, found(n).unwrap()).unwrap();
    }
    put(&store, [draft(99, 7)]).unwrap();
    store.close().unwrap();
    let again = Store::open(root, false, MEMORY).unwrap();
    assert!(again.reading().unwrap().damage().is_empty(), "{case}");
    holds(&again, 99, 7).unwrap();
    assert_eq!(again.reading().unwrap().len().unwrap(), present.len() + 1);
}

fn cut_everywhere(durability: &str) {
    for cut_at in 1.. {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let disk = CutDisk::default();
        disk.0.lock().unwrap().cut_at = cut_at;
        let (progress, finished) = work(&root, &disk, durability);
        if finished {
            assert!(cut_at > 20, "only {cut_at} syncs were cut");
            return;
        }
        for variant in 0..8 {
            let left = tempfile::tempdir().unwrap();
            lay_out(&disk.0.lock().unwrap(), directory.path(), left.path(), variant);
            check(&left.path().join("store"), &progress, &format!("{durability}, sync {cut_at}, variant {variant}"));
        }
    }
}

#[test]
fn the_power_goes_at_every_sync() {
    cut_everywhere("commit");
}

#[test]
fn the_power_goes_at_every_sync_of_intervals() {
    cut_everywhere("interval");
}
