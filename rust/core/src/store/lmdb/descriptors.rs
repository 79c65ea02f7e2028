//! Files of a store that something else in this process has open. LMDB's lock is the process's: it would be lost as soon
//! as the other closes the lock file, and two LMDBs in one process would not see each other at all.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{DATA, LOCK};
use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;

const SINGLE_FILE_LOCK: &str = "data.mdb-lock";

/// Device and inode of a file.
pub(super) fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    path.symlink_metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Refuses a store whose lock file is open in this process, under the name it has for an environment that is a directory,
/// or the one it has where the data file is taken for the environment. The data file tells nothing: a process started by
/// one that has it open has it too. Called where no environment of ours has them; without `/proc` nothing is known.
pub(super) fn refuse_others(root: &Path) -> Result<()> {
    let locks: Vec<_> = [LOCK, SINGLE_FILE_LOCK].iter().flat_map(|name| identity(&root.join(name))).collect();
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return Ok(()) };
    let files = open.flatten().flat_map(|descriptor| descriptor.path().metadata());
    if files.map(|metadata| (metadata.dev(), metadata.ino())).any(|file| locks.contains(&file)) {
        let message = format!(
            "another LMDB library in this process has `{}` open; close it there first",
            root.join(DATA).display()
        );
        return Err(Error::new(Kind::AlreadyOpen, message));
    }
    Ok(())
}

/// The lock file of an open environment. Another LMDB library in this process is not kept from opening the environment: it
/// makes the lock file anew in a form of its own, and whoever then waits for a lock in it waits for ever.
pub(super) struct LockFile {
    file: ReadFile,
    form: [u8; 8],
}

impl LockFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, mut form) = (ReadFile::open(path)?, [0; 8]);
        file.read_at(0, &mut form)?;
        Ok(Self { file, form })
    }

    /// Whether it still has the form that our LMDB gave it.
    pub(super) fn is_unchanged(&self) -> bool {
        let mut form = [0; 8];
        self.file.read_at(0, &mut form).is_ok() && form == self.form
    }
}
