//! Keys in the order of writing. A replaced entry keeps its place; a deleted one leaves none.

use std::collections::HashMap;
use std::sync::Arc;

/// An ordered map from key to where the entry is.
#[derive(Debug)]
pub(super) struct Index<T> {
    rows: Vec<Option<(Arc<str>, T)>>,
    by_key: HashMap<Arc<str>, usize>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), by_key: HashMap::new() }
    }
}

impl<T> Index<T> {
    pub(super) fn put(&mut self, key: &str, value: T) {
        let key: Arc<str> = key.into();
        match self.by_key.get(&key).and_then(|&row| self.rows.get_mut(row)) {
            Some(row) => *row = Some((key, value)),
            None => {
                self.by_key.insert(key.clone(), self.rows.len());
                self.rows.push(Some((key, value)));
            }
        }
    }

    pub(super) fn delete(&mut self, key: &str) {
        if let Some(row) = self.by_key.remove(key).and_then(|row| self.rows.get_mut(row)) {
            *row = None;
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&T> {
        let row = self.rows.get(*self.by_key.get(key)?)?;
        row.as_ref().map(|(_, value)| value)
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
