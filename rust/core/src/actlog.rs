//! Logs of activations as the program of document 000 kept them in LMDB (`actlog-lmdb`), read only.
//!
//! A log is a directory with an environment, by key the pickled entries, and a second environment, `<name>_metadata` beside
//! it, with what is known of each entry but its activations. Where the path was given with a slash at its end, the second
//! one is `_metadata` within it; the oldest logs have none. The pickles changed over time; see [`Era`] for what there is.

mod era;
mod layers;

use std::path::{Path, PathBuf};

pub use self::era::Era;
pub use self::layers::Layers;
use crate::error::{Error, Kind, Result};
use crate::format::malformed;
use crate::pickle::{Value, decode};
use crate::store::lmdb::ForeignLmdb;

/// A log open for reading. Its files are never changed, and no lock is taken.
#[derive(Debug)]
pub struct Actlog {
    entries: ForeignLmdb,
    metadata: Option<ForeignLmdb>,
}

/// One entry of a log.
#[derive(Debug)]
pub struct LoggedEntry {
    /// How it was written.
    pub era: Era,
    /// What it has but activations, in its order; a dict.
    pub fields: Value,
    /// What it says of its compression; a dict.
    pub compression: Option<Value>,
    /// What the second environment has under its key.
    pub metadata: Option<Value>,
    /// Its activations, if it has any.
    pub layers: Option<Layers>,
    /// What ranges in `fields` and `layers` count in.
    input: Vec<u8>,
}

impl LoggedEntry {
    /// What ranges in `fields` and `layers` count in; all else has its own bytes.
    pub fn input(&self) -> &[u8] {
        &self.input
    }
}

impl Actlog {
    /// Opens the log at `path`.
    ///
    /// Errors: those of [`ForeignLmdb::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let entries = ForeignLmdb::open(path)?;
        let place = metadata_places(path).into_iter().find(|place| ForeignLmdb::is_at(place));
        let metadata = place.map(|place| ForeignLmdb::open(&place)).transpose()?;
        Ok(Self { entries, metadata })
    }

    /// How many entries it has.
    pub fn len(&self) -> u64 {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every key, in ascending order of bytes.
    pub fn keys(&self) -> Result<Vec<String>> {
        let keys = self.keys_after("", usize::MAX)?;
        if keys.len() as u64 == self.len() {
            return Ok(keys);
        }
        Err(malformed(format!("an environment of `{}` keys has `{}`", self.len(), keys.len())))
    }

    /// The first `most` keys after a key, in ascending order of bytes; after the empty key come all.
    pub fn keys_after(&self, after: &str, most: usize) -> Result<Vec<String>> {
        let mut from = after.as_bytes().to_vec();
        if !from.is_empty() {
            // No key lies between this one and `after`.
            from.push(0);
        }
        let mut entries = self.entries.entries_from(&from)?;
        let mut keys = Vec::new();
        while keys.len() < most
            && let Some(key) = entries.advance()?
        {
            let key = std::str::from_utf8(key)
                .map_err(|_| malformed(format!("the key `{}` is no text", key.escape_ascii())))?;
            keys.push(key.to_owned());
        }
        self.entries.check_unwritten()?;
        Ok(keys)
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Result<LoggedEntry> {
        let missing = || Error::new(Kind::NoSuchKey, format!("the log has no entry `{}`", key.escape_debug()));
        let value = self.entries.get(key.as_bytes())?.ok_or_else(missing)?;
        let entry = era::read(value).map_err(|e| e.within(format!("entry `{}`", key.escape_debug())))?;
        Ok(LoggedEntry { metadata: self.metadata(key)?, ..entry })
    }

    /// What the second environment has under a key; nothing where either is missing.
    pub fn metadata(&self, key: &str) -> Result<Option<Value>> {
        let Some(metadata) = &self.metadata else { return Ok(None) };
        let Some(bytes) = metadata.get(key.as_bytes())? else { return Ok(None) };
        let read = match decode(&bytes) {
            Ok(value @ Value::Dict(_)) => Ok(Some(value.into_owned(&bytes))),
            Ok(other) => Err(malformed(format!("its value is `{}`, not a dict", other.kind()))),
            Err(error) => Err(error),
        };
        read.map_err(|error| error.within(format!("metadata of entry `{}`", key.escape_debug())))
    }
}

fn metadata_places(path: &Path) -> Vec<PathBuf> {
    let beside = path.file_name().map(|name| {
        let mut name = name.to_owned();
        name.push("_metadata");
        path.with_file_name(name)
    });
    beside.into_iter().chain([path.join("_metadata")]).collect()
}
