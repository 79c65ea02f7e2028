//! Making a store's files, and finding out what the files of a store hold.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::log::{self, Log};
use super::scan::Scan;
use super::shard::Shard;
use super::{
    LOGS, MANIFEST, SHARDS, Shards, UNFINISHED_MANIFEST, WRITER, lock_path, log_path, place_of, shard_name, shard_path,
};
use crate::error::{Error, Kind, Result};
use crate::files::{Disk, Lock, ReadFile, replace};
use crate::format::{MAGIC, RECORD_HEADER_BYTES, RecordHeader, RecordType, aligned, malformed, payload_checksum, size};
use crate::manifest::Manifest;
use crate::store::root::{damaged, exists, names_in, new_root};
use crate::store::{Backend, FRAME_CODECS};

/// A store that lost its manifest is one still: its log and shards say so.
pub(super) fn recognises(path: &Path) -> bool {
    let has_shards = || shard_numbers(path).is_ok_and(|numbers| !numbers.is_empty());
    path.join(MANIFEST).symlink_metadata().is_ok() || (log_path(path, WRITER).is_file() && has_shards())
}

pub(super) fn create(root: &Path, manifest: &Manifest, disk: Arc<dyn Disk>) -> Result<Box<dyn Backend>> {
    make_root(root, disk.as_ref())?;
    let lock = Lock::acquire(&lock_path(root), root)?;
    log::create(disk.as_ref(), root, place_of(manifest, 0), manifest)?;
    for directory in [&root.join(SHARDS), root, root.parent().unwrap_or(root)] {
        disk.sync_dir(directory)?;
    }
    // Last, because it is what makes the directory a store.
    let json = manifest.to_json()?;
    let header = RecordHeader {
        record_type: RecordType::Manifest,
        length: json.len() as u64,
        sequence: 0,
        checksum: payload_checksum(&[json.as_bytes()]),
        place: place_of(manifest, 0),
    };
    let mut record = [header.encode().as_slice(), json.as_bytes()].concat();
    record.resize(RECORD_HEADER_BYTES + size(aligned(header.length))?, 0);
    replace(disk.as_ref(), &root.join(MANIFEST), &record)?;
    let log = log::read(root, place_of(manifest, 0))?;
    Ok(Box::new(Shards::new(root, manifest, disk, Some(lock), Contents { log, ..Contents::default() })))
}

/// Makes the directories; an empty one, or what an interrupted creation left, may be there.
fn make_root(root: &Path, disk: &dyn Disk) -> Result<()> {
    if root.join(MANIFEST).symlink_metadata().is_ok() {
        return Err(exists(root, "a store"));
    }
    let names = new_root(root, disk, |name| is_leftover(root, name))?;
    let mut missing = [SHARDS, LOGS].into_iter().filter(|directory| !names.iter().any(|name| name == directory));
    missing.try_for_each(|directory| disk.create_dir(&root.join(directory)))
}

/// Whether an interrupted creation could have left `name`. A user's own file of the same name is not ours to empty.
fn is_leftover(root: &Path, name: &std::ffi::OsStr) -> bool {
    let path = root.join(name);
    let begun = |path: &Path| ReadFile::open(path).is_ok_and(|file| is_empty_or_ours(&file));
    match name.to_str() {
        Some(SHARDS) => names_in(&path).is_ok_and(|names| names.is_empty()),
        Some(LOGS) => {
            let log = log_path(root, WRITER);
            let ours = |name: &std::ffi::OsString| name == "0.lock" || (name == "0.log" && begun(&log));
            names_in(&path).is_ok_and(|names| names.iter().all(ours))
        }
        Some(UNFINISHED_MANIFEST) => begun(&path),
        _ => false,
    }
}

fn is_empty_or_ours(file: &ReadFile) -> bool {
    let mut first = [0; MAGIC.len()];
    match file.length() {
        Ok(length) if length >= first.len() as u64 => {
            file.read_at(0, &mut first).is_ok() && [MAGIC, [0; 4]].contains(&first)
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

pub(super) fn open(root: &Path, writable: bool, disk: Arc<dyn Disk>) -> Result<(Manifest, Box<dyn Backend>)> {
    let manifest = read_manifest(&root.join(MANIFEST))?;
    let lock = writable.then(|| Lock::acquire(&lock_path(root), root)).transpose()?;
    let contents = Contents::read(root, &manifest, writable)?;
    if let (true, Some(damage)) = (writable, contents.damage().next()) {
        return Err(damaged(root, damage));
    }
    let shards = Shards::new(root, &manifest, disk, lock, contents);
    if writable {
        shards.recover()?;
    }
    Ok((manifest, Box::new(shards)))
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let file = ReadFile::open(path)?;
    let mut header = [0; RECORD_HEADER_BYTES];
    let length = file.length()?;
    if length < header.len() as u64 {
        let message = format!("the manifest `{}` has only `{length}` bytes", path.display());
        return Err(Error::new(Kind::Truncated, message));
    }
    file.read_at(0, &mut header)?;
    if !header.starts_with(&MAGIC) {
        let message = format!("`{}` does not begin as a manifest does", path.display());
        return Err(Error::new(Kind::NotAStore, message));
    }
    let read = || -> Result<Manifest> {
        let header = RecordHeader::decode(&header)?;
        let mut payload = vec![0; size(header.length.min(length))?];
        file.read_at(RECORD_HEADER_BYTES as u64, &mut payload)?;
        header.check(&payload)?;
        let text = std::str::from_utf8(&payload).map_err(|_| malformed("text that is not UTF-8"))?;
        let manifest = Manifest::parse(text, FRAME_CODECS)?;
        let ours = (RecordType::Manifest, 0, place_of(&manifest, 0));
        if (header.record_type, header.sequence, header.place) != ours {
            return Err(malformed("its header is not that of this store's manifest"));
        }
        Ok(manifest)
    };
    read().map_err(|e| e.within(format!("the manifest `{}`", path.display())))
}

/// What was found when opening.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) log: Log,
    pub(super) shards: BTreeMap<u32, (Arc<Shard>, Scan)>,
    missing: Vec<Error>,
}

impl Contents {
    fn read(root: &Path, manifest: &Manifest, writable: bool) -> Result<Self> {
        let mut contents = Self { log: log::read(root, place_of(manifest, 0))?, ..Self::default() };
        let mut numbers = shard_numbers(root)?;
        for &number in contents.log.extents.keys().filter(|number| !numbers.contains(number)) {
            let message = format!("`{}` is missing", shard_path(root, place_of(manifest, number)).display());
            contents.missing.push(Error::new(Kind::MissingFile, message));
        }
        numbers.sort_unstable();
        for number in numbers {
            let shard = Arc::new(Shard::open(root, place_of(manifest, number))?);
            let extent = contents.log.extents.get(&number);
            if writable && extent.is_none_or(|extent| extent.seal.is_none()) {
                shard.file.drop_cached();
            }
            let mut scan = shard.read(extent)?;
            // A writer logs a shard before it commits to it. A reader may meet one that was begun meanwhile.
            if writable && extent.is_none() && !scan.groups.is_empty() {
                let message = format!("`{}` is not in the log", shard.file.path().display());
                scan.damage.push(Error::new(Kind::Checksum, message));
            }
            contents.shards.insert(number, (shard, scan));
        }
        Ok(contents)
    }

    pub(super) fn damage(&self) -> impl Iterator<Item = &Error> {
        let scans = self.shards.values().flat_map(|(_, scan)| &scan.damage);
        self.log.damage.iter().chain(&self.missing).chain(scans)
    }
}

fn shard_numbers(root: &Path) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for name in names_in(&root.join(SHARDS))? {
        let number: Option<u32> =
            name.to_str().and_then(|name| name.strip_prefix("0-")?.strip_suffix(".shard")?.parse().ok());
        numbers.extend(number.filter(|&number| name == *shard_name(WRITER, number)));
    }
    Ok(numbers)
}
