//! Reading ahead, while the interpreter goes on.

use std::sync::Arc;

use actstore::error::Result;
use actstore::reader::{Ahead, Parts};
use actstore::store::Store;
use pyo3::prelude::*;

/// Parts that are read ahead. Whoever waits for one, or for the last to end, keeps no other thread of Python waiting.
pub(crate) struct ReadAhead<P: Parts>(Option<Ahead<P>>);

impl<P: Parts> ReadAhead<P> {
    pub(crate) fn new(store: &Arc<Store>, parts: P) -> Self {
        Self(Some(Ahead::new(store, parts)))
    }

    /// The next part; `None` at the end.
    pub(crate) fn next_part(&self, py: Python<'_>) -> Result<Option<P::Part>> {
        py.detach(|| self.0.as_ref().map_or(Ok(None), Ahead::next_part))
    }
}

impl<P: Parts> Drop for ReadAhead<P> {
    fn drop(&mut self) {
        let ahead = self.0.take();
        // As the interpreter ends there is none to go on: what was not run drops it here.
        let _run = Python::try_attach(|py| py.detach(|| drop(ahead)));
    }
}
