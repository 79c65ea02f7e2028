//! The models that were read from a store.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::codec::{Model, ModelId};
use crate::error::Result;

/// Models by their names, read when they are first asked for. Replaced, never locked: a lock held at a fork would never be
/// released in the child.
#[derive(Default)]
pub(super) struct ReadModels(ArcSwap<HashMap<ModelId, Arc<Model>>>);

impl ReadModels {
    /// The model of this name, which `read` reads where that was not done yet.
    pub(super) fn get(&self, id: &ModelId, read: impl FnOnce() -> Result<Model>) -> Result<Arc<Model>> {
        if let Some(model) = self.0.load().get(id) {
            return Ok(model.clone());
        }
        let model = Arc::new(read()?);
        self.0.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.insert(*id, model.clone());
            known
        });
        Ok(model)
    }
}
