//! What is read in parts, each while the one before is used.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::format::malformed;
use crate::lock::lock;
use crate::pool::Threads;
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
    /// The process that asked for the first part; 0 before.
    process: AtomicU32,
    /// `None` once reading a part panicked.
    state: Mutex<Option<State<P>>>,
}

enum State<P: Parts> {
    Idle(P),
    Reading(Receiver<Answer<P>>),
}

/// Who reads, and the part that was read.
type Answer<P> = (P, Result<Option<<P as Parts>::Part>>);

impl<P: Parts> Ahead<P> {
    /// Reads nothing yet.
    pub fn new(store: &Arc<Store>, parts: P) -> Self {
        Self { store: store.clone(), process: AtomicU32::new(0), state: Mutex::new(Some(State::Idle(parts))) }
    }

    /// The next part; `None` at the end. What is found to be wrong is the error of the part it is in.
    pub fn next_part(&self) -> Result<Option<P::Part>> {
        self.check_process()?;
        let mut state = lock(&self.state);
        self.store.reading()?;
        let threads = self.store.pool().threads()?;
        let lost = || malformed("reading failed beyond repair");
        let (parts, part) = match state.take().ok_or_else(lost)? {
            State::Idle(parts) => read(parts),
            State::Reading(answer) => answer.recv().map_err(|_| lost())?,
        };
        *state = Some(if let Ok(Some(_)) = part { read_on(&threads, parts) } else { State::Idle(parts) });
        part
    }

    /// To be called before the lock, which in a forked child a thread that is not there may have.
    fn check_process(&self) -> Result<()> {
        let process = std::process::id();
        match self.process.compare_exchange(0, process, Ordering::AcqRel, Ordering::Acquire) {
            Err(other) if other != process => {
                let message = "reading in parts was begun before this process was forked; begin it anew here";
                Err(Error::new(Kind::ForkedHandle, message))
            }
            _ => Ok(()),
        }
    }
}

fn read_on<P: Parts>(threads: &Threads, parts: P) -> State<P> {
    let (sender, receiver) = sync_channel(1);
    threads.spawn(move || {
        // A panic that left a task would end the process; who waits is told by dropping the sender.
        let answer = catch_unwind(AssertUnwindSafe(|| read(parts)));
        let _somebody_waits = answer.map(|answer| sender.send(answer));
    });
    State::Reading(receiver)
}

fn read<P: Parts>(mut parts: P) -> Answer<P> {
    let part = parts.next_part();
    (parts, part)
}

impl<P: Parts> Drop for Ahead<P> {
    /// Waits for the part that is being read: what reads it has the store, which may be the last one to hold its writer's
    /// lock. In a forked child nobody reads.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(State::Reading(answer)) = state {
            match self.check_process() {
                Ok(()) => _ = answer.recv(),
                Err(_) => std::mem::forget(answer),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::contract::settings;

    struct Slow(Arc<Store>);

    impl Parts for Slow {
        type Part = ();

        fn next_part(&mut self) -> Result<Option<()>> {
            std::thread::sleep(Duration::from_millis(50));
            self.0.reading().map(|_| Some(()))
        }
    }

    struct Panicking(u32);

    impl Parts for Panicking {
        type Part = u32;

        fn next_part(&mut self) -> Result<Option<u32>> {
            self.0 += 1;
            assert!(self.0 < 3, "a part that cannot be read");
            Ok(Some(self.0))
        }
    }

    fn store() -> Arc<Store> {
        Arc::new(Store::create(None, "memory", settings("memory", "error"), 1 << 20).unwrap())
    }

    #[test]
    fn once_it_is_dropped_nobody_has_the_store() {
        let store = store();
        let ahead = Ahead::new(&store, Slow(store.clone()));
        ahead.next_part().unwrap();
        drop(ahead);
        assert_eq!(Arc::strong_count(&store), 1);
    }

    #[test]
    fn a_panic_is_an_error_of_who_waits() {
        let ahead = Ahead::new(&store(), Panicking(0));
        assert_eq!((ahead.next_part().unwrap(), ahead.next_part().unwrap()), (Some(1), Some(2)));
        for _ in 0..2 {
            assert!(ahead.next_part().unwrap_err().to_string().contains("beyond repair"));
        }
    }
}
