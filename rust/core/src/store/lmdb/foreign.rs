//! LMDB environments that other programs made: what the database without a name has, by key and in the order of keys.
//!
//! LMDB itself is not used: it would make or change a lock file, which a directory that cannot be written has no room for,
//! and trusts every number in a file that may have come from anywhere. The pages are read as the walk over our own stores
//! reads them, each checked before anything in it is followed.

use std::path::Path;

use super::DATA;
use super::walk::DataFile;
use super::walk::keys::Keys;
use crate::error::{Error, Kind, Result};
use crate::format::malformed;

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

    /// Every key, in ascending order of bytes.
    pub fn keys(&self) -> Result<Vec<Vec<u8>>> {
        let keys = Keys::new(&self.file).and_then(Iterator::collect::<Result<Vec<_>>>);
        self.file.check_unwritten()?;
        let keys = keys?;
        if keys.len() as u64 == self.len() {
            return Ok(keys);
        }
        Err(malformed(format!("an environment of `{}` keys has `{}`", self.len(), keys.len())))
    }
}
