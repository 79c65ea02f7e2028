//! A writing session: a queue bounded in bytes, parallel encoding, one committer, group commits.
//!
//! The first failure is kept, raised by every later call and by closing. An entry that is refused (a conflict, an
//! overflow) costs only itself: entries complete before and after it in the queue are still committed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::encode::{Draft, encode, fit_models};
use crate::entry::{ContentId, check_key};
use crate::error::{Error, Kind, Result};
use crate::format::EntryHeader;
use crate::manifest::OnConflict;
use crate::store::{EncodedEntry, ModelKey, Operation, Store, lock};

/// A commit is written when it holds this much, or nothing more arrives for [`COMMIT_WAIT`].
const COMMIT_BYTES: u64 = 64 << 20;
const COMMIT_WAIT: Duration = Duration::from_millis(50);
/// An idle session syncs what its last commits did not, so that `interval` keeps its word when nothing follows them.
const IDLE_SYNC: Duration = Duration::from_secs(2);

/// What a session did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Entries committed.
    pub entries: u64,
    /// Entries that were there already: the same key with the same content, or skipped.
    pub duplicates: u64,
    /// Entries refused.
    pub rejected: u64,
    /// Token positions whose rows were committed.
    pub tokens: u64,
    /// Bytes of the committed activations before packing and compressing.
    pub raw_bytes: u64,
    /// Bytes of their frames.
    pub stored_bytes: u64,
    /// Commits.
    pub commits: u64,
    /// Syncs of file content.
    pub syncs: u64,
    /// Bytes of activations held now: drafts, queue, and the commit being written.
    pub queue_bytes: u64,
    /// The most they were.
    pub queue_peak_bytes: u64,
    /// Seconds that callers waited for room in the queue.
    pub wait_seconds: f64,
}

enum Job {
    Entry { encoded: Receiver<Result<EncodedEntry>>, bytes: u64 },
    Flush(Sender<()>),
}

/// Bytes held, and how many of them the committer will free by itself.
#[derive(Default)]
struct Held {
    all: u64,
    queued: u64,
    waiting: u64,
}

struct Shared {
    store: Arc<Store>,
    held: Mutex<Held>,
    room: Condvar,
    stats: Mutex<Stats>,
    failure: Mutex<Option<Error>>,
    hurry: AtomicBool,
}

/// A writing session on a store.
pub struct Writer {
    shared: Arc<Shared>,
    jobs: Mutex<Option<Sender<Job>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    opened_by: u32,
}

impl Writer {
    /// Starts a session.
    pub fn new(store: Arc<Store>) -> Result<Self> {
        store.writing()?;
        adopt_models(&store)?;
        let shared = Arc::new(Shared {
            store,
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
        Ok(Self { shared, jobs, committer, opened_by: std::process::id() })
    }

    /// Queues an entry; waits while the queue is full.
    pub fn put(&self, draft: Draft) -> Result<()> {
        let bytes = draft.bytes();
        self.reserve(bytes)?;
        self.submit(draft, bytes)
    }

    /// Makes room for `bytes` of a draft. They count until the draft is committed or [`Writer::release`]d.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        self.check()?;
        let limit = self.shared.store.memory();
        let mut held = lock(&self.shared.held);
        let started = Instant::now();
        while held.all + bytes > limit && held.queued > 0 {
            held.waiting += 1;
            self.shared.hurry.store(true, Ordering::Release);
            held = self.shared.room.wait_timeout(held, COMMIT_WAIT).unwrap_or_else(PoisonError::into_inner).0;
            held.waiting -= 1;
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
        self.check().inspect_err(|_| self.release(reserved))?;
        let store = &self.shared.store;
        let settings = store.manifest().settings;
        let models = {
            let mut models = lock(store.models());
            fit_models(&settings, &draft, &mut models).inspect_err(|_| self.release(reserved))?;
            models_of(&draft, &models)
        };
        let (sender, encoded) = bounded(1);
        lock(&self.shared.held).queued += reserved;
        let job = Job::Entry { encoded, bytes: reserved };
        self.send(job)?;
        store.pool().spawn(move || {
            // The committer hangs up only when the session is gone, and with it whoever could be told.
            let _unwanted = sender.send(encode(&settings, draft, &models));
        })
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
        self.failure()?;
        self.shared.store.writing()?.sync()
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
        let Some(jobs) = lock(&self.jobs).take() else { return Ok(()) };
        if self.opened_by != std::process::id() {
            std::mem::forget((jobs, lock(&self.committer).take()));
            return Ok(());
        }
        drop(jobs);
        let committer = lock(&self.committer).take();
        let died = committer.is_some_and(|thread| thread.join().is_err());
        self.failure()?;
        if died {
            return Err(Error::new(Kind::WriterFailed, "the committing thread died; what was committed is intact"));
        }
        self.shared.store.writing()?.sync()
    }

    /// What the session did so far.
    pub fn stats(&self) -> Stats {
        let queue_bytes = lock(&self.shared.held).all;
        Stats { queue_bytes, ..*lock(&self.shared.stats) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Whoever needs to know whether closing went well calls `close`.
        let _what_close_would_have_said = self.close();
    }
}

type Models = HashMap<ModelKey, Arc<crate::codec::Model>>;

fn models_of(draft: &Draft, models: &Models) -> Models {
    let wanted = |key: &&ModelKey| draft.activations.iter().any(|(point, _)| *point == key.0);
    models.keys().filter(wanted).filter_map(|key| Some((key.clone(), models.get(key)?.clone()))).collect()
}

/// A store that already has entries goes on with the models of its last one.
fn adopt_models(store: &Store) -> Result<()> {
    let mut models = lock(store.models());
    let backend = store.writing()?;
    let Some(last) = models.is_empty().then(|| backend.keys().pop()).flatten() else { return Ok(()) };
    // A damaged last entry only means that models are fitted anew.
    let Ok(Some(entry)) = backend.entry(&last) else { return Ok(()) };
    for activation in &entry.header().activations {
        if let Some(Ok(model)) = activation.model.map(|id| entry.model(&id)) {
            let layout = &activation.layout;
            models.insert((activation.point.clone(), layout.dtype(), layout.row_values()), model);
        }
    }
    Ok(())
}

/// Entries taken from the queue, and whoever waits for their commit.
#[derive(Default)]
struct Batch {
    entries: Vec<EncodedEntry>,
    bytes: u64,
    flushes: Vec<Sender<()>>,
}

fn commit_loop(shared: &Shared, jobs: &Receiver<Job>) {
    while let Some(job) = shared.next(jobs) {
        let mut batch = Batch::default();
        shared.take(&mut batch, job);
        let deadline = Instant::now() + COMMIT_WAIT;
        let mut open = true;
        while open && batch.flushes.is_empty() && batch.bytes < shared.commit_bytes() {
            match jobs.recv_deadline(deadline.min(shared.deadline(deadline))) {
                Ok(job) => shared.take(&mut batch, job),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        }
        shared.commit(batch);
    }
}

impl Shared {
    fn commit_bytes(&self) -> u64 {
        COMMIT_BYTES.min(self.store.memory() / 4)
    }

    /// The next job, or nothing when the session ends. While none comes, what an interval left unsynced is synced.
    fn next(&self, jobs: &Receiver<Job>) -> Option<Job> {
        loop {
            match jobs.recv_timeout(IDLE_SYNC) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = self.store.writing().and_then(|backend| backend.sync()) {
                        lock(&self.failure).get_or_insert(error);
                    }
                }
            }
        }
    }

    /// Now, if somebody waits for room.
    fn deadline(&self, usual: Instant) -> Instant {
        if self.hurry.swap(false, Ordering::AcqRel) { Instant::now() } else { usual }
    }

    fn take(&self, batch: &mut Batch, job: Job) {
        match job {
            Job::Flush(sender) => batch.flushes.push(sender),
            Job::Entry { encoded, bytes } => {
                batch.bytes += bytes;
                match encoded.recv() {
                    Ok(Ok(entry)) => batch.entries.push(entry),
                    Ok(Err(error)) => self.refuse(error),
                    Err(_) => {
                        self.refuse(Error::new(Kind::WriterFailed, "an encoding thread died; the entry is not stored"))
                    }
                }
            }
        }
    }

    fn refuse(&self, error: Error) {
        lock(&self.stats).rejected += 1;
        lock(&self.failure).get_or_insert(error);
    }

    fn commit(&self, batch: Batch) {
        let entries = batch.entries;
        let mut sums = Stats::default();
        let committed = self.store.commit_resolved(|backend| {
            let mut resolver = Resolver { shared: self, backend, pending: HashMap::new(), sums: &mut sums };
            entries.into_iter().filter_map(|entry| resolver.resolve(entry)).collect()
        });
        match committed {
            Ok(committed) => {
                let mut stats = lock(&self.stats);
                stats.entries += sums.entries;
                stats.tokens += sums.tokens;
                stats.raw_bytes += sums.raw_bytes;
                stats.stored_bytes += sums.stored_bytes;
                stats.commits += u64::from(sums.entries > 0);
                stats.syncs += committed.syncs;
            }
            Err(error) => {
                lock(&self.failure).get_or_insert(error);
            }
        }
        lock(&self.stats).duplicates += sums.duplicates;
        let mut held = lock(&self.held);
        held.all -= batch.bytes;
        held.queued -= batch.bytes;
        drop(held);
        self.room.notify_all();
        drop(batch.flushes);
    }
}

/// Decides what becomes of each entry of a commit.
struct Resolver<'a> {
    shared: &'a Shared,
    backend: &'a dyn crate::store::Backend,
    pending: HashMap<String, ContentId>,
    sums: &'a mut Stats,
}

impl Resolver<'_> {
    fn content_id(&self, key: &str) -> Option<ContentId> {
        self.pending.get(key).copied().or_else(|| self.backend.content_id(key))
    }

    fn resolve(&mut self, mut entry: EncodedEntry) -> Option<Operation> {
        let key = entry.header.document.key().to_owned();
        match self.content_id(&key) {
            None => {}
            Some(stored) if stored == entry.content_id => return self.duplicate(),
            Some(_) => match self.shared.store.manifest().settings.on_conflict {
                OnConflict::Error => return self.conflict(&key),
                OnConflict::Skip => return self.duplicate(),
                OnConflict::Replace => {}
                OnConflict::Number => match self.number(&key, entry.content_id) {
                    Some(numbered) => match check_key(&numbered) {
                        Ok(()) => entry.header.document.key = Some(numbered),
                        Err(error) => return self.refuse(error),
                    },
                    None => return self.duplicate(),
                },
            },
        }
        self.pending.insert(entry.header.document.key().to_owned(), entry.content_id);
        count(self.sums, &entry.header, entry.stored_bytes());
        Some(Operation::Put(Box::new(entry)))
    }

    fn duplicate(&mut self) -> Option<Operation> {
        self.sums.duplicates += 1;
        None
    }

    fn conflict(&mut self, key: &str) -> Option<Operation> {
        let message = format!(
            "key `{key}` is stored with other content; give another key, or create the store with on_conflict `skip`, `replace` or `number`"
        );
        self.refuse(Error::new(Kind::KeyConflict, message))
    }

    fn refuse(&self, error: Error) -> Option<Operation> {
        self.shared.refuse(error);
        None
    }

    /// The first free `key#n`; `None` if one of them has this content already.
    fn number(&self, key: &str, content_id: ContentId) -> Option<String> {
        for n in 1u64.. {
            let numbered = format!("{key}#{n}");
            match self.content_id(&numbered) {
                None => return Some(numbered),
                Some(stored) if stored == content_id => return None,
                Some(_) => {}
            }
        }
        None
    }
}

fn count(stats: &mut Stats, header: &EntryHeader, stored_bytes: u64) {
    stats.entries += 1;
    stats.tokens += header.document.stored_positions().unwrap_or(0);
    stats.raw_bytes += header.activations.iter().map(|activation| activation.layout.bytes()).sum::<u64>();
    stats.stored_bytes += stored_bytes;
}
