//! One hook point of many entries, one after the other, in bounded memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::vec;

use rayon::prelude::*;

use super::ahead::Parts;
use super::{Selected, read_into_own, select};
use crate::buffers::Buffer;
use crate::entry::Positions;
use crate::error::{Kind, Result};
use crate::store::{Store, Stored};
use crate::tensor::Layout;

/// Bytes that are decoded together: work enough for every thread, and few enough to be in the cache when they are used.
const WINDOW_BYTES: u64 = 4 << 20;
/// Bounds the arrays of a window where activations are tiny.
const WINDOW_ENTRIES: usize = 256;
/// Entries that are looked up together.
const LOOKED_UP: usize = 64;

/// The activations at a hook point of the entries that have one, window by window.
pub struct Scan {
    store: Arc<Store>,
    point: String,
    positions: Positions,
    keys: vec::IntoIter<String>,
    found: bool,
    looked_up: VecDeque<Result<LookedUp>>,
}

/// The selected rows of an entry.
pub struct Scanned {
    /// The entry's key.
    pub key: String,
    /// Dtype and shape.
    pub layout: Layout,
    /// The rows.
    pub rows: Buffer,
}

enum LookedUp {
    Found(Found),
    /// The key of an entry that lacks the point.
    Without(String),
}

/// An entry, and what is wanted of it.
struct Found {
    key: String,
    entry: Arc<dyn Stored>,
    selected: Selected,
}

impl Scan {
    /// Reads nothing yet.
    pub fn new(store: &Arc<Store>, point: String, positions: Positions, keys: Vec<String>) -> Self {
        let (store, keys, looked_up) = (store.clone(), keys.into_iter(), VecDeque::new());
        Self { store, point, positions, keys, found: false, looked_up }
    }

    fn window(&mut self) -> Result<Vec<Scanned>> {
        let (mut keys, mut wanted, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < WINDOW_BYTES && keys.len() < WINDOW_ENTRIES {
            let Some(Found { key, entry, selected }) = self.next_found()? else { break };
            bytes += selected.layout.bytes();
            keys.push(key);
            wanted.push((entry, selected));
        }
        let read = read_into_own(&self.store, wanted)?;
        Ok(keys.into_iter().zip(read).map(|(key, (layout, rows))| Scanned { key, layout, rows }).collect())
    }

    /// The next entry that has the point.
    fn next_found(&mut self) -> Result<Option<Found>> {
        let mut first_without = None;
        loop {
            match self.looked_up.pop_front().transpose()? {
                Some(LookedUp::Found(found)) => {
                    self.found = true;
                    return Ok(Some(found));
                }
                Some(LookedUp::Without(key)) => {
                    first_without.get_or_insert(key);
                }
                None if self.look_up()? => {}
                None => break,
            }
        }
        match first_without.filter(|_| !self.found) {
            Some(key) => select(self.store.entry(&key)?.as_ref(), &self.point, &self.positions).map(|_| None),
            None => Ok(None),
        }
    }

    /// Looks up more entries, if there are any.
    fn look_up(&mut self) -> Result<bool> {
        let keys: Vec<_> = self.keys.by_ref().take(LOOKED_UP).collect();
        let some = !keys.is_empty();
        let this = &*self;
        let look_up = || keys.into_par_iter().map(|key| this.look_up_one(key)).collect::<Vec<_>>();
        let found = this.store.pool().install(look_up)?;
        self.looked_up.extend(found);
        Ok(some)
    }

    fn look_up_one(&self, key: String) -> Result<LookedUp> {
        let entry = self.store.entry(&key)?;
        match select(entry.as_ref(), &self.point, &self.positions) {
            Err(error) if error.kind() == Kind::PointNotStored => Ok(LookedUp::Without(key)),
            selected => selected.map(|selected| LookedUp::Found(Found { key, entry, selected })),
        }
    }
}

/// A window is the next entries that have the point, decoded. Where no entry has it, that is the error of the first one, which
/// says what it has.
impl Parts for Scan {
    type Part = Vec<Scanned>;

    fn next_part(&mut self) -> Result<Option<Vec<Scanned>>> {
        self.window().map(|window| Some(window).filter(|window| !window.is_empty()))
    }
}
