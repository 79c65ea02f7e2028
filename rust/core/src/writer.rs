//! A writing session: a queue bounded in bytes, parallel encoding, one committer, group commits.
//!
//! The first failure is kept, raised by every later call and by closing. An entry that is refused (a conflict, an
//! overflow) costs only itself: entries complete before and after it in the queue are still committed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded, unbounded};

pub use crate::committer::Stats;
use crate::committer::{COMMIT_WAIT, Job, Shared, commit_loop};
use crate::encode::{Draft, encode_spawned};
use crate::error::{Error, Kind, Result};
use crate::fitting::Coding;
use crate::lock::lock;
use crate::manifest::OnConflict;
use crate::store::{EncodedEntry, Session, Store};

/// A writing session on a store.
pub struct Writer {
    shared: Arc<Shared>,
    jobs: Mutex<Option<Sender<Job>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    opened_by: u32,
}

impl Writer {
    /// Starts a session that treats conflicts as the store was created to.
    pub fn new(store: Arc<Store>) -> Result<Arc<Self>> {
        let on_conflict = store.manifest().settings.on_conflict;
        Self::with_conflicts(store, on_conflict)
    }

    /// Starts a session with its own way to treat conflicts.
    pub fn with_conflicts(store: Arc<Store>, on_conflict: OnConflict) -> Result<Arc<Self>> {
        store.writing()?;
        adopt_models(&store)?;
        let shared = Arc::new(Shared {
            store,
            on_conflict,
            held: Mutex::default(),
            room: Condvar::new(),
            stats: Mutex::default(),
            failure: Mutex::default(),
            hurry: AtomicBool::new(false),
        });
        let (sender, receiver) = unbounded();
        let theirs = shared.clone();
        let committer = std::thread::Builder::new()
            .name("actstore-committer".to_owned())
            .spawn(move || commit_loop(&theirs, &receiver))
            .map_err(|e| Error::new(Kind::StorageIo, format!("cannot start a thread: {e}")))?;
        let (jobs, committer) = (Mutex::new(Some(sender)), Mutex::new(Some(committer)));
        let writer = Arc::new(Self { shared, jobs, committer, opened_by: std::process::id() });
        let session: Weak<dyn Session> = Arc::downgrade(&writer) as Weak<dyn Session>;
        writer.shared.store.add_session(session);
        Ok(writer)
    }

    /// Queues an entry; waits while the queue is full.
    pub fn put(&self, draft: Draft) -> Result<()> {
        let bytes = draft.held_bytes();
        self.make_room(bytes, bytes)?;
        self.queue(draft, bytes)
    }

    /// Queues an entry that is encoded already; waits while the queue is full.
    pub fn put_encoded(&self, entry: EncodedEntry) -> Result<()> {
        let bytes = entry.held_bytes();
        self.make_room(bytes, bytes)?;
        let (sender, encoded) = bounded(1);
        // The receiver is here: the channel has room and is open.
        let _sent = sender.send(Ok(entry));
        self.send(Job::Entry { encoded, bytes }).inspect_err(|_| self.unqueue(bytes))
    }

    /// Makes room for `bytes` of a draft. They count until the draft is committed or [`Writer::release`]d.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        self.make_room(bytes, 0)
    }

    /// Waits until `bytes` fit. `queued` of them will be freed by the committer without the caller's doing.
    fn make_room(&self, bytes: u64, queued: u64) -> Result<()> {
        self.check()?;
        let limit = self.shared.store.memory();
        let mut held = lock(&self.shared.held);
        let started = Instant::now();
        while held.all + bytes > limit && held.queued > 0 {
            self.shared.hurry.store(true, Ordering::Release);
            held = self.shared.room.wait_timeout(held, COMMIT_WAIT).unwrap_or_else(PoisonError::into_inner).0;
            // A committer that is gone frees nothing any more.
            self.failure()?;
        }
        let unfinished = held.all;
        if unfinished > 0 && unfinished + bytes > limit {
            drop(held);
            let message = format!(
                "unfinished entries hold `{unfinished}` bytes and `{bytes}` more do not fit `memory` of `{limit}` bytes; raise `memory`, or use smaller batches"
            );
            return Err(self.keep(Error::new(Kind::LimitExceeded, message)));
        }
        held.all += bytes;
        held.queued += queued;
        let mut stats = lock(&self.shared.stats);
        stats.queue_peak_bytes = stats.queue_peak_bytes.max(held.all);
        stats.wait_seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Gives back what [`Writer::reserve`] counted for a draft that will not be put.
    pub fn release(&self, bytes: u64) {
        lock(&self.shared.held).all -= bytes;
        self.shared.room.notify_all();
    }

    /// Queues a draft for which `reserved` bytes were counted.
    pub fn submit(&self, draft: Draft, reserved: u64) -> Result<()> {
        lock(&self.shared.held).queued += reserved;
        self.queue(draft, reserved)
    }

    /// Queues a draft of which `bytes` are counted as held and queued; on failure they are not any more.
    fn queue(&self, draft: Draft, bytes: u64) -> Result<()> {
        self.check().and_then(|()| self.send_draft(draft, bytes)).inspect_err(|_| self.unqueue(bytes))
    }

    fn unqueue(&self, bytes: u64) {
        lock(&self.shared.held).queued -= bytes;
        self.release(bytes);
    }

    /// Sends a draft on its way; `bytes` of it are counted as held and queued.
    fn send_draft(&self, draft: Draft, bytes: u64) -> Result<()> {
        let store = &self.shared.store;
        let settings = store.manifest().settings;
        let codings = codings_for(store, &draft)?;
        let (sender, encoded) = bounded(1);
        let threads = store.pool().threads()?;
        self.send(Job::Entry { encoded, bytes })?;
        encode_spawned(&threads, settings, draft, &codings, move |encoded| {
            // The committer hangs up only when the session is gone, and with it whoever could be told.
            let _unwanted = sender.send(encoded);
        });
        Ok(())
    }

    /// Counts an entry as refused and keeps why, as its caller is told too.
    pub fn reject(&self, error: Error) -> Error {
        lock(&self.shared.stats).rejected += 1;
        self.keep(error)
    }

    /// Counts a draft as refused.
    pub fn count_rejected(&self) {
        lock(&self.shared.stats).rejected += 1;
    }

    /// Keeps an error as the session's first failure, if it is the first.
    pub fn keep(&self, error: Error) -> Error {
        lock(&self.shared.failure).get_or_insert_with(|| error.clone());
        error
    }

    /// The first failure, if there was one; whether the session may go on.
    pub fn check(&self) -> Result<()> {
        self.shared.store.writing()?;
        if self.opened_by != std::process::id() {
            return Err(Error::new(
                Kind::ForkedHandle,
                "a writer cannot be used in a forked child; open the store again here",
            ));
        }
        if lock(&self.jobs).is_none() {
            return Err(Error::new(Kind::Closed, "the writer is closed; make another with `store.writer()`"));
        }
        self.failure()
    }

    fn failure(&self) -> Result<()> {
        lock(&self.shared.failure).clone().map_or(Ok(()), Err)
    }

    fn send(&self, job: Job) -> Result<()> {
        let closed = || Error::new(Kind::Closed, "the writer is closed; make another with `store.writer()`");
        lock(&self.jobs).as_ref().ok_or_else(closed)?.send(job).map_err(|_| closed())
    }

    /// Returns when everything put before is durable.
    pub fn flush(&self) -> Result<()> {
        self.check()?;
        self.drain()?;
        // Entries that were committed before one was refused are as much promised as any.
        let synced = self.shared.store.writing().and_then(|backend| backend.sync());
        self.failure().and(synced)
    }

    fn drain(&self) -> Result<()> {
        let (sender, receiver) = bounded(1);
        self.send(Job::Flush(sender))?;
        // The committer drops the sender only after it has answered, or died of a failure that is kept.
        let _answered = receiver.recv();
        Ok(())
    }

    /// Commits what is complete, ends the threads, raises the first failure. Closing again does nothing.
    pub fn close(&self) -> Result<()> {
        // In a forked child the locks may be held by threads that are not here, and the committer is none of ours.
        if self.opened_by != std::process::id() {
            return Ok(());
        }
        let Some(jobs) = lock(&self.jobs).take() else { return Ok(()) };
        drop(jobs);
        // A committer that died has said so as the session's failure.
        let _died = lock(&self.committer).take().map(JoinHandle::join);
        let synced = self.shared.store.writing().and_then(|backend| backend.sync());
        self.failure().and(synced)
    }

    /// What the session did so far.
    pub fn stats(&self) -> Stats {
        let queue_bytes = lock(&self.shared.held).all;
        Stats { queue_bytes, ..*lock(&self.shared.stats) }
    }
}

impl Session for Writer {
    fn finish(&self) -> Result<()> {
        self.close()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Whoever needs to know whether closing went well calls `close`.
        let _what_close_would_have_said = self.close();
    }
}

/// How the activations of a draft are to be encoded. Drafts in the same order get the same models.
pub(crate) fn codings_for(store: &Store, draft: &Draft) -> Result<Vec<Coding>> {
    lock(store.models()).observe(&store.manifest().settings, &draft.activations)
}

/// A store that already has entries goes on with the models of its last one.
fn adopt_models(store: &Store) -> Result<()> {
    let mut models = lock(store.models());
    let backend = store.writing()?;
    if !models.is_empty() {
        return Ok(());
    }
    let Some(last) = backend.last_key()? else { return Ok(()) };
    // A damaged last entry only means that models are fitted anew.
    let Ok(Some(entry)) = backend.entry(&last) else { return Ok(()) };
    let activations = &entry.header().activations;
    for activation in activations {
        if let Some(Ok(model)) = activation.model.map(|id| entry.model(&id)) {
            let below = activation.below.and_then(|below| activations.get(below)).map(|below| &below.point);
            models.adopt(&activation.point, below, &activation.layout, model);
        }
    }
    Ok(())
}
