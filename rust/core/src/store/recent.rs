//! Entries that were looked up lately: finding one here costs a tenth of reading and decoding its record again.

use std::sync::{Arc, RwLock};

use hashbrown::HashMap;

use super::Stored;
use crate::entry::ContentId;

/// Where an entry's record is: its writer, shard and offset, at which there is never another.
pub(super) type RecordPlace = (u32, u32, u64);

/// Entries by the place of their record. Those that nobody asks for while half of the bytes come in are let go.
///
/// Many look at once, and nobody is waited for: whoever finds it being changed, or locked for ever because the process was
/// forked, reads the record.
pub struct Recent {
    most: usize,
    held: RwLock<Held>,
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
        Self { most, held: RwLock::default() }
    }

    /// An entry that is held. One of another key or content is not the one that is looked for: an index that was tampered with
    /// may say that several are at one place.
    pub(super) fn get(&self, place: RecordPlace, key: &str, content_id: &ContentId) -> Option<Arc<dyn Stored>> {
        let (entry, is_new) = self.held.try_read().ok()?.get(place)?;
        if !is_new {
            self.add(place, &entry);
        }
        (entry.header().document.key() == key && entry.content_id() == *content_id).then_some(entry)
    }

    /// Holds none of them any more.
    pub(super) fn clear(&self) {
        let held = self.held.try_write().map(|mut held| std::mem::take(&mut *held));
        drop(held);
    }

    /// Holds an entry for a while, unless it is so large that it would leave no room for others.
    pub(super) fn add(&self, place: RecordPlace, entry: &Arc<dyn Stored>) {
        if let Ok(mut held) = self.held.try_write() {
            held.add(place, entry, self.most);
        }
    }
}

impl Held {
    /// An entry, and whether it is among the new ones.
    fn get(&self, place: RecordPlace) -> Option<(Arc<dyn Stored>, bool)> {
        let found = |map: &HashMap<_, Arc<dyn Stored>>| map.get(&place).cloned();
        found(&self.new).map(|entry| (entry, true)).or_else(|| found(&self.old).map(|entry| (entry, false)))
    }

    fn add(&mut self, place: RecordPlace, entry: &Arc<dyn Stored>, most: usize) {
        let bytes = entry.header().held_bytes();
        if bytes > most / 2 {
            return;
        }
        if self.new_bytes + bytes > most / 2 {
            self.old = std::mem::take(&mut self.new);
            self.new_bytes = 0;
        }
        self.old.remove(&place);
        if self.new.insert(place, entry.clone()).is_none() {
            self.new_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::bare_entry;
    use super::*;

    fn entry(key: &str, prompt: &str) -> Arc<dyn Stored> {
        let json = format!(r#"{{"key":"{key}","key_recipe":"user","prompt":"{prompt}"}}"#);
        Arc::new(bare_entry(&json))
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let entry = entry("k", "");
        let bytes = entry.header().held_bytes();
        let recent = Recent::new(8 * bytes);
        let get = |place| recent.get(place, "k", &[0; 32]);
        for n in 0..100 {
            recent.add((0, 0, n), &entry);
            assert!(get((0, 0, 0)).is_some(), "{n}");
        }
        let held = (0..100).filter(|&n| get((0, 0, n)).is_some()).count();
        assert!((3..=9).contains(&held), "{held}");
        assert!(get((0, 1, 0)).is_none());
        assert!(get((1, 0, 0)).is_none());
    }

    #[test]
    fn an_entry_of_another_key_or_content_is_none_of_its_place() {
        let recent = Recent::new(1 << 20);
        recent.add((0, 0, 0), &entry("k", ""));
        assert!(recent.get((0, 0, 0), "k", &[0; 32]).is_some());
        assert!(recent.get((0, 0, 0), "other", &[0; 32]).is_none());
        assert!(recent.get((0, 0, 0), "k", &[1; 32]).is_none());
    }

    #[test]
    fn an_entry_that_would_need_all_of_the_room_is_not_held() {
        let (large, small) = (entry("large", &"x".repeat(10_000)), entry("small", ""));
        let recent = Recent::new(2 * large.header().held_bytes() - 2);
        recent.add((0, 0, 0), &small);
        recent.add((0, 0, 1), &large);
        assert!(recent.get((0, 0, 1), "large", &[0; 32]).is_none());
        assert!(recent.get((0, 0, 0), "small", &[0; 32]).is_some());
    }
}
