//! Keys in the order of writing. A replaced entry keeps its place; a deleted one leaves none.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

/// An ordered map from key to where the entry is.
#[derive(Debug)]
pub(super) struct Index<T> {
    rows: Vec<Option<(Arc<str>, T)>>,
    /// Numbers of the rows that have an entry, by the hash of its key.
    by_key: HashTable<usize>,
    hashing: DefaultHashBuilder,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), by_key: HashTable::new(), hashing: DefaultHashBuilder::default() }
    }
}

impl<T> Index<T> {
    pub(super) fn put(&mut self, key: Arc<str>, value: T) {
        if let Some(row) = self.row(&key).and_then(|row| self.rows.get_mut(row)) {
            *row = Some((key, value));
            return;
        }
        let (row, hash) = (self.rows.len(), self.hashing.hash_one(&*key));
        self.rows.push(Some((key, value)));
        let hash_of = |&row: &usize| self.hashing.hash_one(key_of(&self.rows, row).unwrap_or_default());
        self.by_key.insert_unique(hash, row, hash_of);
    }

    pub(super) fn delete(&mut self, key: &str) {
        let Self { rows, by_key, hashing } = self;
        let is_of_key = |&row: &usize| key_of(rows, row) == Some(key);
        let Ok(found) = by_key.find_entry(hashing.hash_one(key), is_of_key) else { return };
        let (row, _) = found.remove();
        rows.get_mut(row).into_iter().for_each(|row| *row = None);
    }

    pub(super) fn get(&self, key: &str) -> Option<&T> {
        self.rows.get(self.row(key)?)?.as_ref().map(|(_, value)| value)
    }

    fn row(&self, key: &str) -> Option<usize> {
        self.by_key.find(self.hashing.hash_one(key), |&row| key_of(&self.rows, row) == Some(key)).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn last_key(&self) -> Option<Arc<str>> {
        self.rows.iter().rev().flatten().next().map(|(key, _)| key.clone())
    }

    pub(super) fn keys(&self) -> Vec<Arc<str>> {
        self.rows.iter().flatten().map(|(key, _)| key.clone()).collect()
    }
}

fn key_of<T>(rows: &[Option<(Arc<str>, T)>], row: usize) -> Option<&str> {
    rows.get(row)?.as_ref().map(|(key, _)| &**key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_in_the_order_of_first_writing(changes in prop::collection::vec((0..40u8, any::<bool>()), 0..300)) {
            let mut index = Index::default();
            let (mut values, mut order): (BTreeMap<u8, usize>, Vec<u8>) = Default::default();
            for (n, (key, put)) in changes.into_iter().enumerate() {
                if put {
                    index.put(key.to_string().into(), n);
                    if values.insert(key, n).is_none() {
                        order.push(key);
                    }
                } else {
                    index.delete(&key.to_string());
                    values.remove(&key);
                    order.retain(|&kept| kept != key);
                }
            }
            let keys: Vec<_> = index.keys().iter().map(ToString::to_string).collect();
            prop_assert_eq!(keys, order.iter().map(ToString::to_string).collect::<Vec<_>>());
            prop_assert_eq!(index.last_key(), index.keys().pop());
            prop_assert_eq!(index.len(), order.len());
            for key in 0..40 {
                prop_assert_eq!(index.get(&key.to_string()), values.get(&key));
            }
        }
    }
}
