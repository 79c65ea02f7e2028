//! Threads for encoding and decoding, made when first needed and made anew in a forked child, where the parent's
//! threads do not exist.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Kind, Result};

/// Running threads of this process.
pub struct Threads {
    process: u32,
    pool: Arc<ThreadPool>,
}

impl Threads {
    /// Runs `f` some time.
    pub fn spawn(&self, f: impl FnOnce() + Send + 'static) {
        self.pool.spawn(f);
    }
}

impl Drop for Threads {
    /// To end threads wakes them, by locks that the parent's may hold for ever in a forked child: there they are forgotten.
    fn drop(&mut self) {
        if self.process != std::process::id() {
            std::mem::forget(self.pool.clone());
        }
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
        if let Some(threads) = self.threads.load_full().filter(|threads| threads.process == process) {
            return Ok(threads);
        }
        let pool = ThreadPoolBuilder::new()
            .thread_name(|n| format!("actstore-{n}"))
            .build()
            .map_err(|e| Error::new(Kind::StorageIo, format!("cannot start threads: {e}")))?;
        let threads = Arc::new(Threads { process, pool: Arc::new(pool) });
        self.threads.store(Some(threads.clone()));
        Ok(threads)
    }
}
