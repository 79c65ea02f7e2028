//! Entries that were looked up lately: finding one here costs a tenth of reading and decoding its record again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::Stored;

/// Where an entry's record is: its shard and offset, at which there is never another.
pub(super) type RecordPlace = (u32, u64);

/// Entries by the place of their record. Those that nobody asks for while half of the bytes come in are let go.
///
/// Nobody is waited for: whoever finds it in use, or locked for ever because the process was forked, reads the record.
pub struct Recent {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    new: HashMap<RecordPlace, Arc<dyn Stored>>,
    new_bytes: usize,
    old: HashMap<RecordPlace, Arc<dyn Stored>>,
}

impl Recent {
    /// Holds entries of about `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { most, held: Mutex::default() }
    }

    /// An entry that is held.
    pub(super) fn get(&self, place: RecordPlace) -> Option<Arc<dyn Stored>> {
        let mut held = self.held.try_lock().ok()?;
        if let Some(entry) = held.new.get(&place) {
            return Some(entry.clone());
        }
        let entry = held.old.remove(&place)?;
        held.add(place, &entry, self.most);
        Some(entry)
    }

    /// Holds an entry for a while.
    pub(super) fn add(&self, place: RecordPlace, entry: &Arc<dyn Stored>) {
        if let Ok(mut held) = self.held.try_lock() {
            held.add(place, entry, self.most);
        }
    }
}

impl Held {
    fn add(&mut self, place: RecordPlace, entry: &Arc<dyn Stored>, most: usize) {
        let bytes = entry.header().held_bytes();
        if self.new_bytes + bytes > most / 2 {
            self.old = std::mem::take(&mut self.new);
            self.new_bytes = 0;
        }
        self.new_bytes += bytes;
        self.new.insert(place, entry.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::super::EncodedEntry;
    use super::*;
    use crate::entry::Document;
    use crate::format::EntryHeader;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let document = Document::parse(r#"{"key":"k","key_recipe":"user"}"#).unwrap();
        let header = EntryHeader { document, token_ids: None, activations: Vec::new() };
        let entry = EncodedEntry { header, content_id: [0; 32], chunks: Vec::new(), models: Vec::new() };
        let entry: Arc<dyn Stored> = Arc::new(entry);
        let bytes = entry.header().held_bytes();
        let recent = Recent::new(8 * bytes);
        for n in 0..100 {
            recent.add((0, n), &entry);
            assert!(recent.get((0, 0)).is_some(), "{n}");
        }
        let held = (0..100).filter(|&n| recent.get((0, n)).is_some()).count();
        assert!((3..=9).contains(&held), "{held}");
        assert!(recent.get((1, 0)).is_none());
    }
}
