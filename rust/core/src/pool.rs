//! Threads for encoding and decoding, made when first needed and made anew in a forked child, where the parent's
//! threads do not exist.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Kind, Result};

/// Running threads of this process.
pub struct Threads {
    process: u32,
    pool: ThreadPool,
}

impl Threads {
    /// Runs `f` some time.
    pub fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        self.pool.spawn(f);
    }
}

/// A thread pool that survives forks. Without a lock: one held at the moment of a fork would never be released.
#[derive(Default)]
pub struct Pool {
    threads: ArcSwapOption<Threads>,
}

impl Pool {
    /// Runs `f` in the pool.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        Ok(self.threads()?.pool.install(f))
    }

    /// The threads, started.
    pub fn threads(&self) -> Result<Arc<Threads>> {
        let process = std::process::id();
        if let Some(threads) = self.threads.load_full() {
            if threads.process == process {
                return Ok(threads);
            }
            // Dropping the parent's pool would wait for threads that are not here.
            std::mem::forget(threads);
        }
        let pool = ThreadPoolBuilder::new()
            .thread_name(|n| format!("actstore-{n}"))
            .build()
            .map_err(|e| Error::new(Kind::StorageIo, format!("cannot start threads: {e}")))?;
        let threads = Arc::new(Threads { process, pool });
        self.threads.store(Some(threads.clone()));
        Ok(threads)
    }
}
