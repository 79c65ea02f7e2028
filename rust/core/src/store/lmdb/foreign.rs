//! LMDB environments that other programs made: what the database without a name has, by key and in the order of keys.
//!
//! LMDB itself is not used: it would make or change a lock file, which a directory that cannot be written has no room for,
//! and trusts every number in a file that may have come from anywhere. The pages are read as the walk over our own stores
//! reads them, each checked before anything in it is followed.

use std::path::Path;

use super::DATA;
use super::walk::DataFile;
use super::walk::cursor::Cursor;
use crate::error::{Error, Kind, Result};

/// An environment as its last commit left it. Nothing is written or locked, so a program that writes to it is only
/// noticed: reading then fails as `locked`.
#[derive(Debug)]
pub struct ForeignLmdb {
    file: DataFile,
}

impl ForeignLmdb {
    /// Opens the environment in a directory.
    ///
    /// Errors: `not_a_store` where there is none, `unsupported_version` for one of LMDB 1.0, `truncated`, `malformed`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = DataFile::open(&path.join(DATA)).map_err(|error| match error.kind() {
            Kind::MissingFile => {
                let message = format!("`{}` is no LMDB environment: it has no `{DATA}`", path.display());
                Error::new(Kind::NotAStore, message)
            }
            _ => error,
        })?;
        Ok(Self { file })
    }

    /// Whether a directory has what may be an environment.
    pub fn is_at(path: &Path) -> bool {
        path.join(DATA).symlink_metadata().is_ok()
    }

    /// How many keys it has.
    pub fn len(&self) -> u64 {
        self.file.entries()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key, if it is there.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.file.get(None, key, usize::MAX);
        self.file.check_unwritten()?;
        value
    }

    /// Says whether what was read so far is as one commit left it.
    pub fn check_unwritten(&self) -> Result<()> {
        self.file.check_unwritten()
    }

    /// Keys from the first that is not less than `key`, with their values, in the memory of one page of each level.
    pub fn entries_from(&self, key: &[u8]) -> Result<ForeignEntries<'_>> {
        Ok(ForeignEntries { file: &self.file, cursor: Cursor::at(&self.file, key)? })
    }
}

/// Keys in ascending order.
pub struct ForeignEntries<'a> {
    file: &'a DataFile,
    cursor: Cursor<'a>,
}

impl ForeignEntries<'_> {
    /// The next key; none after the last one.
    pub fn advance(&mut self) -> Result<Option<&[u8]>> {
        self.cursor.advance()
    }

    /// The value of the key that `advance` gave last.
    pub fn value(&self) -> Result<Vec<u8>> {
        let value = self.cursor.value();
        self.file.check_unwritten()?;
        value
    }
}
