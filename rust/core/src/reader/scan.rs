//! One hook point of many entries, one after the other, in bounded memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::vec;

use rayon::prelude::*;

use super::ahead::Parts;
use super::{Selected, read_into_own, select};
use crate::buffers::Buffer;
use crate::entry::Positions;
use crate::error::{Error, Kind, Result};
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
    keys: vec::IntoIter<Arc<str>>,
    /// Whether the keys are those of all entries, of which some may be deleted meanwhile.
    is_all: bool,
    found: bool,
    looked_up: VecDeque<Result<LookedUp>>,
}

/// The selected rows of an entry.
pub struct Scanned {
    /// The entry's key.
    pub key: Arc<str>,
    /// Dtype and shape.
    pub layout: Layout,
    /// The rows.
    pub rows: Buffer,
}

enum LookedUp {
    Chosen(Arc<str>, Chosen),
    /// The error of an entry that lacks the point, which says what it has.
    Without(Error),
    Deleted,
}

/// An entry, and what is wanted of it.
type Chosen = (Arc<dyn Stored>, Selected);

impl Scan {
    /// Of the entries of `keys`, or of all that there are now. Reads none of them yet.
    pub fn new(store: &Arc<Store>, point: String, positions: Positions, keys: Option<Vec<String>>) -> Result<Self> {
        let (is_all, backend) = (keys.is_none(), store.reading()?);
        let keys = keys.map_or_else(|| backend.keys(), |keys| Ok(keys.into_iter().map(Arc::from).collect()))?;
        let (store, keys, looked_up) = (store.clone(), keys.into_iter(), VecDeque::new());
        Ok(Self { store, point, positions, keys, is_all, found: false, looked_up })
    }

    fn window(&mut self) -> Result<Vec<Scanned>> {
        loop {
            let (keys, chosen) = self.next_chosen()?;
            match read_into_own(&self.store, chosen) {
                // Between look-up and reading.
                Err(error) if self.is_of_deleted(&error) => self.look_up_again(keys),
                read => {
                    let scanned = |(key, (layout, rows))| Scanned { key, layout, rows };
                    return Ok(keys.into_iter().zip(read?).map(scanned).collect());
                }
            }
        }
    }

    /// What a window is made of.
    fn next_chosen(&mut self) -> Result<(Vec<Arc<str>>, Vec<Chosen>)> {
        let (mut keys, mut chosen, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < WINDOW_BYTES && keys.len() < WINDOW_ENTRIES {
            let Some((key, next)) = self.next_one()? else { break };
            bytes += next.1.layout.bytes();
            keys.push(key);
            chosen.push(next);
        }
        Ok((keys, chosen))
    }

    /// The next entry that has the point.
    fn next_one(&mut self) -> Result<Option<(Arc<str>, Chosen)>> {
        let mut first_without = None;
        loop {
            match self.looked_up.pop_front().transpose()? {
                Some(LookedUp::Chosen(key, chosen)) => {
                    self.found = true;
                    return Ok(Some((key, chosen)));
                }
                Some(LookedUp::Without(error)) => _ = first_without.get_or_insert(error),
                Some(LookedUp::Deleted) => {}
                None if self.look_up()? => {}
                None => break,
            }
        }
        first_without.filter(|_| !self.found).map_or(Ok(None), Err)
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

    fn look_up_again(&mut self, keys: Vec<Arc<str>>) {
        for key in keys.into_iter().rev() {
            let found = self.look_up_one(key);
            self.looked_up.push_front(found);
        }
    }

    fn look_up_one(&self, key: Arc<str>) -> Result<LookedUp> {
        let entry = match self.store.entry(&key) {
            Err(error) if self.is_of_deleted(&error) => return Ok(LookedUp::Deleted),
            entry => entry?,
        };
        match select(entry.as_ref(), &self.point, &self.positions) {
            Err(error) if error.kind() == Kind::PointNotStored => Ok(LookedUp::Without(error)),
            selected => selected.map(|selected| LookedUp::Chosen(key, (entry, selected))),
        }
    }

    /// Whether that is no error, because the entry was not asked for by its key.
    fn is_of_deleted(&self, error: &Error) -> bool {
        self.is_all && error.kind() == Kind::NoSuchKey
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Draft;
    use crate::entry::Document;
    use crate::hook_point::HookPoint;
    use crate::store::contract::settings;
    use crate::tensor::{Dtype, Tensor};
    use crate::writer::Writer;

    const POINT: &str = "blocks.0.hook_resid_post";

    /// A store, which keeps nothing of what is deleted, of entries that are windows of their own.
    fn store(root: &std::path::Path, keys: &[&str]) -> Arc<Store> {
        let store = Arc::new(Store::create(Some(root), "lmdb", settings("lmdb", "error"), 1 << 30).unwrap());
        let writer = Writer::new(store.clone()).unwrap();
        for key in keys {
            let document = Document::parse(&format!(r#"{{"key":"{key}","key_recipe":"user"}}"#)).unwrap();
            let layout = Layout::new(Dtype::UInt8, vec![1, WINDOW_BYTES]).unwrap();
            let tensor = Tensor::new(layout, vec![7; 4 << 20]).unwrap();
            writer.put(Draft::new(document, None, vec![(HookPoint::new(POINT).unwrap(), tensor)]).unwrap()).unwrap();
        }
        writer.close().unwrap();
        store
    }

    fn next(scan: &mut Scan) -> Result<Vec<String>> {
        Ok(scan.next_part()?.into_iter().flatten().map(|scanned| scanned.key.to_string()).collect())
    }

    #[test]
    fn entries_deleted_meanwhile_are_left_out_unless_they_were_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let keys = ["a", "b", "c", "d"];
        let store = store(&directory.path().join("s"), &keys);
        let scan = |keys| Scan::new(&store, POINT.to_owned(), Positions::All, keys).unwrap();
        let mut all = scan(None);
        let mut some = scan(Some(keys.map(String::from).to_vec()));
        store.delete(&["a".to_owned()]).unwrap();
        assert_eq!(next(&mut some).unwrap_err().kind(), Kind::NoSuchKey);
        assert_eq!(next(&mut all).unwrap(), ["b"]);
        // It was looked up with the one before.
        assert_eq!(next(&mut some).unwrap(), ["b"]);
        store.delete(&["c".to_owned()]).unwrap();
        assert_eq!(next(&mut all).unwrap(), ["d"]);
        assert!(next(&mut all).unwrap().is_empty());
        assert_eq!(next(&mut some).unwrap_err().kind(), Kind::NoSuchKey);
    }
}
