//! From one store to another, whole or in part, and without loss: what stays as it is is copied as it is stored, all else
//! is decoded and encoded anew, and no entry arrives with other content than it must have.
//!
//! An entry that the target has already costs a look-up, so a migration that was interrupted goes on when it is repeated.

mod compare;
mod transfer;

use std::collections::HashSet;
use std::sync::Arc;

use crate::committer::{Numbered, numbered};
use crate::entry::ContentId;
use crate::error::{Error, Kind, Result};
use crate::format::EntryHeader;
use crate::hook_point::HookPoint;
use crate::manifest::OnConflict;
use crate::store::{Backend, Store};

pub use compare::{Difference, compare};
pub use transfer::migrate;

/// What to migrate.
#[derive(Clone, Debug)]
pub struct Plan {
    /// These entries, in this order; `None` for all, in the order of the source.
    pub keys: Option<Vec<String>>,
    /// These activations of each entry, where it has them; `None` for all.
    pub points: Option<Vec<HookPoint>>,
    /// What happens to a key that the target has with other content.
    pub on_conflict: OnConflict,
}

/// How far a migration or a comparison is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries done, those that were there already included.
    pub entries: u64,
    /// Entries in all.
    pub total: u64,
    /// Bytes of their activations as the target has them, before compressing; of those already there, none.
    pub raw_bytes: u64,
    /// Bytes of their frames in the target.
    pub stored_bytes: u64,
}

/// What a migration did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries that were to be in the target: those migrated and those skipped.
    pub entries: u64,
    /// Entries written.
    pub migrated: u64,
    /// Entries left out because the target has them, or has others that a rule says to keep.
    pub skipped: u64,
    /// Keys that the target had with other content.
    pub conflicts: u64,
    /// Of the entries written, those whose frames were copied without decoding them.
    pub copied: u64,
    /// Bytes of the activations written, before compressing.
    pub raw_bytes: u64,
    /// Bytes of their frames.
    pub stored_bytes: u64,
}

impl Plan {
    /// The keys to migrate, each once; refused where one is not there, or where it is unknown which there are.
    fn keys(&self, source: &Store) -> Result<Vec<Arc<str>>> {
        let backend = source.reading()?;
        let Some(keys) = &self.keys else {
            return match backend.damage().into_iter().next() {
                None => backend.keys(),
                Some(damage) => {
                    let message = format!(
                        "the source is damaged, so that entries may be missing: {damage}; pass `keys` to migrate those it has"
                    );
                    Err(Error::new(damage.kind(), message))
                }
            };
        };
        let mut seen = HashSet::new();
        let mut chosen = Vec::with_capacity(keys.len());
        for key in keys.iter().filter(|key| seen.insert(key.as_str())) {
            if backend.content_id(key)?.is_none() {
                source.entry(key)?;
            }
            chosen.push(Arc::from(key.as_str()));
        }
        Ok(chosen)
    }

    /// Indices of the activations of an entry that are wanted.
    fn chosen(&self, header: &EntryHeader) -> Vec<usize> {
        let wanted = |point: &HookPoint| self.points.as_ref().is_none_or(|points| points.contains(point));
        let activations = header.activations.iter().enumerate();
        activations.filter(|(_, activation)| wanted(&activation.point)).map(|(index, _)| index).collect()
    }
}

/// What the target has under a key.
#[derive(Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    /// This content, under this key.
    Same(String),
    Other,
}

/// Looks for `content_id` where an entry of `key` is, or where numbering would have put it.
fn look_up(target: &dyn Backend, key: &str, content_id: ContentId, on_conflict: OnConflict) -> Result<Held> {
    match target.content_id(key)? {
        None => return Ok(Held::Nothing),
        Some(stored) if stored == content_id => return Ok(Held::Same(key.to_owned())),
        Some(_) => {}
    }
    if on_conflict == OnConflict::Number
        && let Numbered::Stored(key) = numbered(key, content_id, |key| target.content_id(key))?
    {
        return Ok(Held::Same(key));
    }
    Ok(Held::Other)
}

/// Refuses two handles of one store: a migration would read what it writes.
fn check_distinct(source: &Arc<Store>, target: &Arc<Store>) -> Result<()> {
    let place = |store: &Store| store.path().and_then(|path| path.canonicalize().ok());
    let same = Arc::ptr_eq(source, target) || place(source).is_some_and(|path| place(target) == Some(path));
    if !same {
        return Ok(());
    }
    let path = source.path().map_or_else(|| "in memory".to_owned(), |path| format!("`{}`", path.display()));
    Err(Error::new(Kind::InvalidOption, format!("source and target are the same store, {path}; give another target")))
}
