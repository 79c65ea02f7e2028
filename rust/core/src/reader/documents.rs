//! The documents of all entries, without their activations.

use std::sync::Arc;
use std::vec;

use rayon::prelude::*;

use super::ahead::Parts;
use crate::error::Result;
use crate::store::Store;

/// Documents that are read together.
const WINDOW: usize = 512;

/// The documents of the entries that there were when this was made, as [`Document::to_public_json`] shows them.
///
/// [`Document::to_public_json`]: crate::entry::Document::to_public_json
pub struct Documents {
    store: Arc<Store>,
    keys: vec::IntoIter<Arc<str>>,
}

impl Documents {
    /// Reads nothing but the keys.
    pub fn new(store: &Arc<Store>) -> Result<Self> {
        let keys = store.reading()?.keys()?.into_iter();
        Ok(Self { store: store.clone(), keys })
    }
}

/// Entries deleted meanwhile are left out.
impl Parts for Documents {
    type Part = Vec<String>;

    fn next_part(&mut self) -> Result<Option<Vec<String>>> {
        let backend = self.store.reading()?;
        loop {
            let keys: Vec<_> = self.keys.by_ref().take(WINDOW).collect();
            if keys.is_empty() {
                return Ok(None);
            }
            let read = |key: Arc<str>| backend.public_document(&key).transpose();
            let found: Vec<_> = self.store.pool().install(|| keys.into_par_iter().filter_map(read).collect())?;
            let found = found.into_iter().collect::<Result<Vec<_>>>()?;
            if !found.is_empty() {
                return Ok(Some(found));
            }
        }
    }
}
