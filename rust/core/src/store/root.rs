//! The directory of a store: making a new one without touching what is there, and looking at one that is.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::files::Disk;

/// Makes the directory of a new store, or takes one that holds nothing but what an interrupted creation left, as
/// `is_leftover` says of each name. Returns the names in it.
pub(super) fn new_root(root: &Path, disk: &dyn Disk, is_leftover: impl Fn(&OsStr) -> bool) -> Result<Vec<OsString>> {
    let names = match names_in(root) {
        Ok(names) => names,
        Err(_) if root.symlink_metadata().is_ok() => return Err(exists(root, "something")),
        Err(_) => {
            make_directories(root, disk)?;
            Vec::new()
        }
    };
    if names.iter().all(|name| is_leftover(name)) { Ok(names) } else { Err(exists(root, "a directory with files")) }
}

/// Makes a directory, and those above it that are missing.
fn make_directories(path: &Path, disk: &dyn Disk) -> Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) {
        Some(parent) => {
            make_directories(parent, disk)?;
            disk.create_dir(path)?;
            disk.sync_dir(parent)
        }
        None => disk.create_dir(path),
    }
}

/// Names of what is in a directory.
pub(super) fn names_in(directory: &Path) -> Result<Vec<OsString>> {
    let listed = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect());
    listed.map_err(|e| Error::io("list", directory, e))
}

/// Bytes of the files in some directories. One that is renamed or removed meanwhile has none.
pub(super) fn bytes_of_files(directories: &[&Path]) -> Result<u64> {
    let mut bytes = 0;
    for directory in directories {
        for name in names_in(directory)? {
            let path = directory.join(name);
            match path.symlink_metadata() {
                Ok(metadata) => bytes += if metadata.is_file() { metadata.len() } else { 0 },
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("look at", &path, e)),
            }
        }
    }
    Ok(bytes)
}

/// The error for opening a damaged store to write to it.
pub(super) fn damaged(root: &Path, damage: &Error) -> Error {
    let message = format!(
        "nothing can be appended to the damaged store `{}`: {damage}; open it with mode `r` to read the rest",
        root.display()
    );
    Error::new(damage.kind(), message)
}

/// The error for a place that is taken.
pub(super) fn exists(root: &Path, what: &str) -> Error {
    let message =
        format!("`{}` is already {what}; open it with `actstore.open`, or choose another path", root.display());
    Error::new(Kind::StoreExists, message)
}
