//! What went wrong in LMDB, in words, and what its error numbers hide.

use std::path::Path;

use heed::MdbError;
use rustix::fs::statvfs;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::{DATA, LOCK};
use crate::error::{Error, Kind, Result};

/// Failure of a transaction: LMDB's, which the environment must look at first, or our own.
#[derive(Debug)]
pub(super) enum Failure {
    Lmdb(heed::Error),
    Ours(Error),
}

impl From<heed::Error> for Failure {
    fn from(error: heed::Error) -> Self {
        Self::Lmdb(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl Failure {
    pub(super) fn into_error(self, root: &Path) -> Error {
        match self {
            Self::Lmdb(error) => of(error, root),
            Self::Ours(error) => error,
        }
    }

    /// The same failure with `context` before its message, unless it is LMDB's.
    pub(super) fn within(self, context: impl FnOnce() -> String) -> Self {
        match self {
            Self::Lmdb(error) => Self::Lmdb(error),
            Self::Ours(error) => Self::Ours(error.within(context())),
        }
    }
}

/// An error of LMDB's about the store at `root`.
pub(super) fn of(error: heed::Error, root: &Path) -> Error {
    let path = root.join(DATA);
    let shown = path.display();
    let (kind, message) = match &error {
        heed::Error::Io(e) => return Error::io("use", &path, copied(e)),
        heed::Error::EnvAlreadyOpened => {
            (Kind::AlreadyOpen, format!("`{shown}` is open in this process already; close it there first"))
        }
        heed::Error::Mdb(MdbError::VersionMismatch) => {
            (Kind::Locked, format!("`{shown}` is open in another LMDB version; close it there first"))
        }
        heed::Error::Mdb(MdbError::ReadersFull) => {
            let message = format!(
                "every reader slot of `{shown}` is taken by a live process; close the store in some of them first"
            );
            (Kind::Locked, message)
        }
        heed::Error::Mdb(MdbError::Corrupted | MdbError::PageNotFound | MdbError::Invalid) => {
            (Kind::Malformed, format!("`{shown}` is damaged: {error}"))
        }
        _ => (Kind::StorageIo, format!("LMDB cannot use `{shown}`: {error}")),
    };
    Error::new(kind, message).because(error)
}

/// An error of opening only to read the store at `root`.
pub(super) fn of_reading(error: heed::Error, root: &Path) -> Error {
    if !matches!(&error, heed::Error::Io(e) if e.kind() == std::io::ErrorKind::PermissionDenied) {
        return of(error, root);
    }
    let message = format!(
        "cannot read `{}` without permission to write its `{LOCK}`, where LMDB notes who reads; ask for it, or read a copy",
        root.display()
    );
    Error::new(Kind::ReadOnly, message).because(error)
}

/// An error of a commit that was about to write `bytes`. Of a write that was cut short LMDB says only that it failed.
pub(super) fn of_commit(error: heed::Error, root: &Path, bytes: u64) -> Error {
    let unexplained = matches!(&error, heed::Error::Io(e) if Errno::from_io_error(e) == Some(Errno::IO));
    if unexplained && is_full(root, bytes) {
        return Error::io("write to", &root.join(DATA), Errno::NOSPC.into()).because(error);
    }
    of(error, root)
}

/// Whether a write of `bytes` does not fit: too little space, or a limit of the size of files.
fn is_full(root: &Path, bytes: u64) -> bool {
    let low = statvfs(root).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < bytes);
    let length = root.join(DATA).metadata().map_or(0, |metadata| metadata.len());
    low || getrlimit(Resource::Fsize).current.is_some_and(|most| most < length.saturating_add(bytes))
}

/// I/O errors cannot be cloned; their number, if they have one, is all there is to them.
fn copied(error: &std::io::Error) -> std::io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), std::io::Error::from_raw_os_error)
}

/// Refuses a build in which another copy of LMDB took the place of the one whose files are read and written here.
pub(super) fn check_version() -> Result<()> {
    let version = heed::lmdb_version();
    if (version.major, version.minor) == (0, 9) && version.patch < 90 {
        return Ok(());
    }
    let message = format!("this build has `{}` where LMDB 0.9 is due", version.string);
    Err(Error::new(Kind::UnsupportedVersion, message))
}
