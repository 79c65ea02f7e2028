//! The only writes, syncs, renames and locks. A store does all of them through [`Disk`], so that a test can put a disk
//! in its place that fails, or loses what was not synced.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags, fadvise, fallocate, flock};

use crate::error::{Error, Kind, Result};

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
const MOST_PARTS: usize = 1024;
/// So much is appended before the disk begins to work on it.
const BEGIN_BYTES: u64 = 8 << 20;
/// How often, and how long, a lock that is held is tried again.
const LOOKS: usize = 5;
const LOOK: Duration = Duration::from_millis(2);

/// Changes to files and directories.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a directory that must not exist.
    fn create_dir(&self, path: &Path) -> Result<()>;
    /// Makes a file that must not exist.
    fn create(&self, path: &Path) -> Result<Box<dyn Appender>>;
    /// Opens a file to continue it after its first `length` bytes; what follows them is cut off.
    fn resume(&self, path: &Path, length: u64) -> Result<Box<dyn Appender>>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, path: &Path) -> Result<()>;
    /// Replaces `to` by `from`, atomically.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<()>;
}

/// Gives a file its disk space, an empty one `length` bytes of it: whoever writes to a page through a map is killed where
/// no space is left for it. Changes nothing that is in the file, which others may have open.
pub fn reserve(path: &Path, length: u64) -> Result<()> {
    let failed = |e: io::Error| refuse_link("make room in", path, e);
    let file =
        options(OpenOptions::new().read(true).write(true).create(true).truncate(false)).open(path).map_err(failed)?;
    let taken = match file.metadata().map_err(failed)?.len() {
        0 => fallocate(&file, FallocateFlags::empty(), 0, length),
        present => fallocate(&file, FallocateFlags::KEEP_SIZE, 0, present),
    };
    match taken {
        // Some file systems cannot: space is then given page by page, as ever.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        Err(e) => Err(failed(e.into())),
    }
}

/// A file that grows at its end.
pub trait Appender: Send {
    /// Writes all parts after what is there; on failure nothing of them remains if [`Appender::truncate`] succeeds.
    fn append(&mut self, parts: &[&[u8]]) -> Result<()>;
    /// Makes content and length durable. After a failure the file's state on disk is unknown: it must not be retried.
    fn sync(&mut self) -> Result<()>;
    /// Cuts the file back to `length` bytes.
    fn truncate(&mut self, length: u64) -> Result<()>;
    /// Bytes of the file.
    fn length(&self) -> u64;
}

/// Makes a file, or empties what an interrupted attempt to make it left.
pub fn create_or_empty(disk: &dyn Disk, path: &Path) -> Result<Box<dyn Appender>> {
    match path.symlink_metadata() {
        Ok(_) => disk.resume(path, 0),
        Err(_) => disk.create(path),
    }
}

/// Writes a small file as a whole: beside its name, synced, then renamed over it, then the directory synced.
pub fn replace(disk: &dyn Disk, path: &Path, content: &[u8]) -> Result<()> {
    replace_with(disk, path, |file| file.append(&[content]))
}

/// [`replace`] for a file that is written piece by piece. Where the pieces cannot be written, nothing of them is left.
pub fn replace_with(disk: &dyn Disk, path: &Path, write: impl FnOnce(&mut dyn Appender) -> Result<()>) -> Result<()> {
    let unsynced = path.with_extension("new");
    let mut file = create_or_empty(disk, &unsynced)?;
    if let Err(error) = write(file.as_mut()) {
        // What cannot be removed is emptied by the next attempt.
        let _leftover = disk.remove(&unsynced);
        return Err(error);
    }
    file.sync()?;
    disk.rename(&unsynced, path)?;
    disk.sync_dir(path.parent().unwrap_or(path))
}

/// The operating system's files.
#[derive(Clone, Copy, Debug)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> Result<()> {
        DirBuilder::new().mode(DIRECTORY_MODE).create(path).map_err(|e| Error::io("create the directory", path, e))
    }

    fn create(&self, path: &Path) -> Result<Box<dyn Appender>> {
        let file = options(OpenOptions::new().write(true).create_new(true))
            .open(path)
            .map_err(|e| Error::io("create", path, e))?;
        Ok(Box::new(OsAppender::new(file, path)))
    }

    fn resume(&self, path: &Path, length: u64) -> Result<Box<dyn Appender>> {
        let file = options(OpenOptions::new().write(true)).open(path).map_err(|e| refuse_link("open", path, e))?;
        let mut appender = OsAppender::new(file, path);
        appender.truncate(length)?;
        Ok(Box::new(appender))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| Error::io("sync the directory", path, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        std::fs::remove_file(path).map_err(|e| Error::io("remove", path, e))
    }
}

/// A link where a file of ours should be is refused: following it would read or write outside the store.
fn options(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(FILE_MODE).custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed())
}

fn refuse_link(what: &str, path: &Path, error: io::Error) -> Error {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => not_a_file(path),
        _ => Error::io(what, path, error),
    }
}

fn not_a_file(path: &Path) -> Error {
    let message = format!("`{}` is not a regular file; a store never follows links", path.display());
    Error::new(Kind::UnsafePath, message)
}

struct OsAppender {
    file: File,
    path: PathBuf,
    length: u64,
    /// Up to where the system was told to begin writing.
    begun: u64,
}

impl OsAppender {
    fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.to_owned(), length: 0, begun: 0 }
    }

    /// Has the disk work on what was appended while more comes, so that a sync waits for little. Nothing relies on it.
    fn begin_writing(&mut self) {
        let length = self.length.saturating_sub(self.begun);
        if length >= BEGIN_BYTES {
            // Pages that nobody needs are written at once; those that still have to be written stay in memory.
            let _advice = fadvise(&self.file, self.begun, NonZero::new(length), Advice::DontNeed);
            self.begun = self.length;
        }
    }
}

impl Appender for OsAppender {
    fn append(&mut self, parts: &[&[u8]]) -> Result<()> {
        use std::io::Seek;
        let failed = |e| Error::io("write", &self.path, e);
        self.file.seek(io::SeekFrom::Start(self.length)).map_err(failed)?;
        for some in parts.chunks(MOST_PARTS) {
            let mut slices: Vec<_> = some.iter().map(|part| IoSlice::new(part)).collect();
            let mut slices = slices.as_mut_slice();
            while !slices.is_empty() {
                match self.file.write_vectored(slices) {
                    Ok(0) if slices.iter().all(|slice| slice.is_empty()) => break,
                    Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                    Ok(written) => {
                        IoSlice::advance_slices(&mut slices, written);
                        self.length += written as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        self.begin_writing();
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("sync", &self.path, e))
    }

    fn truncate(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length).map_err(|e| Error::io("cut", &self.path, e))?;
        (self.length, self.begun) = (length, length);
        Ok(())
    }

    fn length(&self) -> u64 {
        self.length
    }
}

/// Tells a file from others that had or will have its name, and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// A file open for reading at any offset, by any number of threads.
#[derive(Debug)]
pub struct ReadFile {
    file: File,
    path: PathBuf,
}

impl ReadFile {
    /// Opens a regular file; links are refused.
    pub fn open(path: &Path) -> Result<Self> {
        // Without NONBLOCK, opening a FIFO planted in the store would wait for ever.
        let flags = (OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK).bits().cast_signed();
        let file =
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| refuse_link("open", path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io("open", path, e))?;
        if !metadata.is_file() {
            return Err(not_a_file(path));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Bytes of the file now.
    pub fn length(&self) -> Result<u64> {
        self.file.metadata().map(|m| m.len()).map_err(|e| Error::io("read", &self.path, e))
    }

    /// Which file it is, as it is now.
    pub fn identity(&self) -> Result<Identity> {
        let metadata = self.file.metadata().map_err(|e| Error::io("read", &self.path, e))?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Ok(Identity { device: metadata.dev(), inode: metadata.ino(), length: metadata.len(), modified })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `buffer` from `offset` on.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                let end = offset + buffer.len() as u64;
                Error::new(
                    Kind::Truncated,
                    format!("`{}` ends before byte `{end}`, which was committed", self.path.display()),
                )
            }
            _ => Error::io("read", &self.path, e),
        })
    }

    /// Asks that the next reads come from the disk: after a failed sync, memory may hold what the disk does not.
    pub fn drop_cached(&self) {
        // Advice: a kernel that ignores it leaves checksums as the judge.
        let _ignored = fadvise(&self.file, 0, None, Advice::DontNeed);
    }
}

/// Held while a writer lives; released by the kernel when the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    holder: u32,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A forked child shares the lock: it must not release it, and its copy must not keep it alive.
        if self.holder == std::process::id() {
            let _closing_releases_it_anyway = flock(&self.file, FlockOperation::Unlock);
        }
    }
}

impl Lock {
    /// Takes the lock at `path` of the store at `root`, or says who holds it.
    pub fn acquire(path: &Path, root: &Path) -> Result<Self> {
        let mut file = options(OpenOptions::new().read(true).write(true).create(true).truncate(false))
            .open(path)
            .map_err(|e| refuse_link("lock", path, e))?;
        match retried(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {
                let holder = format!("{}\n", std::process::id());
                let write = |file: &mut File| file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
                write(&mut file).map_err(|e| Error::io("lock", path, e))?;
                Ok(Self { file, holder: std::process::id() })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(held(path, root)),
            Err(e) => Err(Error::io("lock", path, e.into())),
        }
    }

    /// Whether a writer, of this process or another, has the lock at `path`. Makes no file.
    pub fn is_held(path: &Path) -> Result<bool> {
        let file = match ReadFile::open(path) {
            Ok(file) => file.file,
            Err(error) if error.kind() == Kind::MissingFile => return Ok(false),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(Error::io("look at the lock", path, e.into())),
        }
    }
}

/// Takes a lock that somebody may have for a moment only: [`Lock::is_held`] takes it to see whether it is free.
fn retried(take: impl Fn() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    for _ in 0..LOOKS {
        match take() {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOOK),
            taken => return taken,
        }
    }
    take()
}

/// The error for a second writer of the store at `root` in this process.
pub fn already_open(root: &Path) -> Error {
    let root = root.display();
    let message = format!("`{root}` is already open for writing in this process; use that handle, or close it first");
    Error::new(Kind::AlreadyOpen, message)
}

fn held(path: &Path, root: &Path) -> Error {
    let holder = std::fs::read_to_string(path).unwrap_or_default();
    let store = root.display();
    match holder.trim() {
        pid if pid == std::process::id().to_string() => already_open(root),
        pid => Error::new(
            Kind::Locked,
            format!("`{store}` is being written by process `{pid}`; wait for it, or open the store with mode `r`"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_never_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        std::fs::write(&target, b"theirs").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(ReadFile::open(&link).unwrap_err().kind(), Kind::UnsafePath);
        assert_eq!(OsDisk.resume(&link, 0).err().unwrap().kind(), Kind::UnsafePath);
        assert_eq!(Lock::acquire(&link, directory.path()).unwrap_err().kind(), Kind::UnsafePath);
        assert_eq!(std::fs::read(&target).unwrap(), b"theirs");
    }

    #[test]
    fn parts_are_appended_in_order_and_cut_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut file = OsDisk.create(&path).unwrap();
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|n| n.to_le_bytes().to_vec()).collect();
        file.append(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        file.append(&[b"", b"end"]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [parts.concat(), b"end".to_vec()].concat());
        file.truncate(4).unwrap();
        file.append(&[b"x"]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0, 0, 0, 0, b'x']);
        assert_eq!(OsDisk.create(&path).err().unwrap().kind(), Kind::StorageIo);
    }

    #[test]
    fn room_is_made_without_touching_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        reserve(&path, 5000).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; 5000]);
        std::fs::write(&path, b"theirs").unwrap();
        reserve(&path, 5000).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn a_lock_has_one_holder() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.lock");
        let lock = Lock::acquire(&path, directory.path()).unwrap();
        assert_eq!(Lock::acquire(&path, directory.path()).unwrap_err().kind(), Kind::AlreadyOpen);
        assert!(Lock::is_held(&path).unwrap());
        drop(lock);
        assert!(!Lock::is_held(&path).unwrap());
        assert!(!Lock::is_held(&directory.path().join("none")).unwrap());
        assert!(!directory.path().join("none").exists());
        assert!(Lock::acquire(&path, directory.path()).is_ok());
    }
}
