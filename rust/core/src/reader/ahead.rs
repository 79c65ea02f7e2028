//! What is read in parts, each while the one before is used.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use crate::error::Result;
use crate::format::malformed;
use crate::lock::lock;
use crate::store::Store;

/// Reads one part after the other.
pub trait Parts: Send + 'static {
    /// What is read at once.
    type Part: Send + 'static;

    /// The next part; `None` at the end.
    fn next_part(&mut self) -> Result<Option<Self::Part>>;
}

/// Parts, one of which is read in the store's threads while nobody has asked for it yet.
pub struct Ahead<P: Parts> {
    store: Arc<Store>,
    parts: Arc<Mutex<P>>,
    upcoming: Option<Receiver<Result<Option<P::Part>>>>,
}

impl<P: Parts> Ahead<P> {
    /// Reads nothing yet.
    pub fn new(store: &Arc<Store>, parts: P) -> Self {
        Self { store: store.clone(), parts: Arc::new(Mutex::new(parts)), upcoming: None }
    }

    /// The next part; `None` at the end. What is found to be wrong is the error of the part it is in.
    pub fn next_part(&mut self) -> Result<Option<P::Part>> {
        self.store.reading()?;
        let part = match self.upcoming.take() {
            Some(upcoming) => upcoming.recv().map_err(|_| malformed("reading failed beyond repair"))??,
            None => lock(&self.parts).next_part()?,
        };
        if part.is_some() {
            self.upcoming = Some(self.read_on()?);
        }
        Ok(part)
    }

    fn read_on(&self) -> Result<Receiver<Result<Option<P::Part>>>> {
        let (sender, receiver) = sync_channel(1);
        let parts = self.parts.clone();
        self.store.pool().threads()?.spawn(move || {
            // A panic that left a task would end the process; who waits is told by dropping the sender.
            let part = catch_unwind(AssertUnwindSafe(|| lock(&parts).next_part()));
            let _nobody_waits_any_more = part.map(|part| sender.send(part));
        });
        Ok(receiver)
    }
}
