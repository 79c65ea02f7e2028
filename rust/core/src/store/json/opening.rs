//! Making a store's directory, and finding out what the files of a store hold.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::read::summary;
use super::{
    ACTIVATIONS, CODECS, Json, LOCK, Located, MANIFEST, NO_NUMBER, UNFINISHED, UNFINISHED_MANIFEST, is_digest,
};
use crate::error::{Error, Kind, Result};
use crate::files::{Disk, Lock, ReadFile, replace};
use crate::format::{malformed, size};
use crate::manifest::Manifest;
use crate::pool::Pool;
use crate::store::Backend;
use crate::store::root::{damaged, exists, names_in, new_root};

/// Largest manifest that is read.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// How every manifest begins.
const MANIFEST_BEGINS: &[u8] = b"{\"format\":\"actstore\"";

pub(super) fn recognises(path: &Path) -> bool {
    path.join(MANIFEST).symlink_metadata().is_ok()
}

pub(super) fn create(root: &Path, manifest: &Manifest, disk: Arc<dyn Disk>) -> Result<Box<dyn Backend>> {
    if recognises(root) {
        return Err(exists(root, "a store"));
    }
    let names = new_root(root, disk.as_ref(), |name| is_leftover(root, name))?;
    if !names.iter().any(|name| name == ACTIVATIONS) {
        disk.create_dir(&root.join(ACTIVATIONS))?;
    }
    let lock = Lock::acquire(&root.join(LOCK), root)?;
    for directory in [root, root.parent().unwrap_or(root)] {
        disk.sync_dir(directory)?;
    }
    // Last, because it is what makes the directory a store.
    replace(disk.as_ref(), &root.join(MANIFEST), format!("{}\n", manifest.to_json()?).as_bytes())?;
    Ok(Box::new(Json::new(root, manifest, disk, Some(lock), Found::default())))
}

/// Whether an interrupted creation could have left `name`. A user's own file of the same name is not ours to empty.
fn is_leftover(root: &Path, name: &OsStr) -> bool {
    let path = root.join(name);
    match name.to_str() {
        Some(ACTIVATIONS) => names_in(&path).is_ok_and(|names| names.is_empty()),
        Some(LOCK) => begins(&path, |byte, _| byte.is_ascii_digit() || byte == b'\n'),
        Some(UNFINISHED_MANIFEST) => {
            begins(&path, |byte, n| byte == 0 || MANIFEST_BEGINS.get(n).is_none_or(|&ours| ours == byte))
        }
        _ => false,
    }
}

fn begins(path: &Path, ours: impl Fn(u8, usize) -> bool) -> bool {
    let read = || -> Result<Vec<u8>> {
        let file = ReadFile::open(path)?;
        let mut first = vec![0; size(file.length()?.min(MANIFEST_BEGINS.len() as u64))?];
        file.read_at(0, &mut first).map(|()| first)
    };
    read().is_ok_and(|first| first.iter().enumerate().all(|(n, &byte)| ours(byte, n)))
}

pub(super) fn open(root: &Path, writable: bool, disk: Arc<dyn Disk>) -> Result<(Manifest, Box<dyn Backend>)> {
    let manifest = read_manifest(&root.join(MANIFEST))?;
    let lock = writable.then(|| Lock::acquire(&root.join(LOCK), root)).transpose()?;
    let directory = root.join(ACTIVATIONS);
    if !directory.symlink_metadata().map_err(|e| Error::io("open", &directory, e))?.is_dir() {
        let message = format!("`{}` is not a directory; a store never follows links", directory.display());
        return Err(Error::new(Kind::UnsafePath, message));
    }
    let found = Found::read(&directory)?;
    if writable {
        if let Some(damage) = found.damage.first() {
            return Err(damaged(root, damage));
        }
        found.unfinished.iter().try_for_each(|path| disk.remove(path))?;
        // A writer that was killed may have named files durably nowhere but in memory.
        disk.sync_dir(&directory)?;
    }
    let json = Json::new(root, &manifest, disk, lock, found);
    if writable {
        json.refresh_metadata()?;
    }
    Ok((manifest, Box::new(json)))
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let read = || -> Result<Manifest> {
        let file = ReadFile::open(path)?;
        let length = file.length()?;
        if length > MAX_MANIFEST_BYTES {
            return Err(malformed(format!("`{length}` bytes are above the limit of 1 MiB")));
        }
        let mut json = vec![0; size(length)?];
        file.read_at(0, &mut json)?;
        let json = String::from_utf8(json).map_err(|_| malformed("text that is not UTF-8"))?;
        let as_damage = |e: Error| if e.kind() == Kind::InvalidOption { malformed(e.to_string()) } else { e };
        Manifest::parse(&json, CODECS).map_err(as_damage)
    };
    read().map_err(|e| e.within(format!("the manifest `{}`", path.display())))
}

/// What was found when opening.
#[derive(Default)]
pub(super) struct Found {
    /// In the order of writing; those that have no number have the largest.
    pub(super) entries: Vec<(String, Located)>,
    pub(super) damage: Vec<Error>,
    unfinished: Vec<PathBuf>,
}

impl Found {
    fn read(directory: &Path) -> Result<Self> {
        let mut found = Self::default();
        let mut files = Vec::new();
        for name in names_in(directory)? {
            let name = name.to_string_lossy();
            if name.strip_suffix(".json").is_some_and(is_digest) {
                files.push(directory.join(&*name));
            } else if is_unfinished(&name) {
                found.unfinished.push(directory.join(&*name));
            }
        }
        files.sort_unstable();
        let read: Vec<_> = Pool::default().install(|| files.par_iter().map(|path| Listed::read(path)).collect())?;
        let mut listed = Vec::with_capacity(read.len());
        for result in read {
            match result {
                Ok(one) => listed.push(one),
                // Deleted by a writer since the directory was listed.
                Err(error) if error.kind() == Kind::MissingFile => {}
                Err(error) => found.damage.push(error),
            }
        }
        // Where numbers are equal or missing: by time, then, as the files were sorted, by name.
        listed.sort_by(|left, right| {
            let (left, right) = (left.located, right.located);
            left.number.cmp(&right.number).then(left.created.total_cmp(&right.created))
        });
        found.entries = listed.into_iter().map(|one| (one.key, one.located)).collect();
        Ok(found)
    }
}

/// Whether a commit that was cut off left `name`.
fn is_unfinished(name: &str) -> bool {
    let parts = name.strip_suffix(UNFINISHED).and_then(|name| name.split_once(".json."));
    parts.is_some_and(|(digest, number)| is_digest(digest) && number.bytes().all(|byte| byte.is_ascii_digit()))
}

struct Listed {
    key: String,
    located: Located,
}

impl Listed {
    fn read(path: &Path) -> Result<Self> {
        let summary = summary(path).map_err(|e| e.within(format!("the entry in `{}`", path.display())))?;
        let document = summary.head.document;
        let number = summary.head.number.unwrap_or(NO_NUMBER);
        let located = Located { number, content_id: summary.content_id, created: document.created };
        Ok(Self { key: document.key().to_owned(), located })
    }
}
