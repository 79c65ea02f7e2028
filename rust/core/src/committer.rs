//! The far end of a session's queue: one thread that waits for encoded entries in their order, decides conflicts, and
//! commits them in groups.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::entry::{ContentId, check_key};
use crate::error::{Error, Kind, Result};
use crate::format::EntryHeader;
use crate::lock::lock;
use crate::manifest::OnConflict;
use crate::store::{Backend, EncodedEntry, Operation, Store};

/// A commit is written when it holds this much, or nothing more arrives for [`COMMIT_WAIT`].
const COMMIT_BYTES: u64 = 64 << 20;
pub(crate) const COMMIT_WAIT: Duration = Duration::from_millis(50);
/// Entries of a commit, at most.
const COMMIT_ENTRIES: usize = 16_384;
/// An idle session syncs what its last commits did not, so that `interval` keeps its word when nothing follows them.
const IDLE_SYNC: Duration = Duration::from_millis(900);

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

/// What a session sends.
pub(crate) enum Job {
    Entry { encoded: Receiver<Result<EncodedEntry>>, bytes: u64 },
    Flush(Sender<()>),
}

/// Bytes held, and how many of them the committer will free by itself.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) all: u64,
    pub(crate) queued: u64,
}

/// What a session and its committer have in common.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) on_conflict: OnConflict,
    pub(crate) held: Mutex<Held>,
    pub(crate) room: Condvar,
    pub(crate) stats: Mutex<Stats>,
    pub(crate) failure: Mutex<Option<Error>>,
    pub(crate) hurry: AtomicBool,
}

/// Entries taken from the queue, and whoever waits for their commit.
#[derive(Default)]
struct Batch {
    entries: Vec<EncodedEntry>,
    bytes: u64,
    flushes: Vec<Sender<()>>,
}

/// Takes jobs until the session hangs up.
pub(crate) fn commit_loop(shared: &Shared, jobs: &Receiver<Job>) {
    let _tells_if_it_dies = LastWords(shared);
    while let Some(job) = shared.next(jobs) {
        let mut batch = Batch::default();
        shared.take(&mut batch, job);
        let deadline = Instant::now() + COMMIT_WAIT;
        while batch.flushes.is_empty() && batch.bytes < shared.commit_bytes() {
            // Looked at before each job: jobs that keep arriving must not put the commit off.
            if Instant::now() >= deadline || batch.entries.len() >= COMMIT_ENTRIES {
                break;
            }
            match jobs.recv_deadline(deadline.min(shared.deadline(deadline))) {
                Ok(job) => shared.take(&mut batch, job),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        shared.commit(batch);
    }
}

/// What a committer that panics leaves behind: the session's failure, so that nobody waits for it.
struct LastWords<'a>(&'a Shared);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let message = "the committing thread died; what was committed is intact";
            lock(&self.0.failure).get_or_insert_with(|| Error::new(Kind::WriterFailed, message));
            self.0.room.notify_all();
        }
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
                    let synced = self.store.writing().and_then(|backend| backend.sync());
                    if let Some(error) = synced.err().filter(|error| error.kind() != Kind::Closed) {
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
            entries.into_iter().filter_map(|entry| resolver.resolve(entry).transpose()).collect()
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
    backend: &'a dyn Backend,
    pending: HashMap<String, ContentId>,
    sums: &'a mut Stats,
}

impl Resolver<'_> {
    fn content_id(&self, key: &str) -> Result<Option<ContentId>> {
        self.pending.get(key).map_or_else(|| self.backend.content_id(key), |pending| Ok(Some(*pending)))
    }

    /// What to do with an entry; an error is the store's, which could not be asked, and ends the commit.
    fn resolve(&mut self, mut entry: EncodedEntry) -> Result<Option<Operation>> {
        let key = entry.header.document.key().to_owned();
        match self.content_id(&key)? {
            None => {}
            Some(stored) if stored == entry.content_id => return Ok(self.duplicate()),
            Some(_) => match self.shared.on_conflict {
                OnConflict::Error => return Ok(self.conflict(&key)),
                OnConflict::Skip => return Ok(self.duplicate()),
                OnConflict::Replace => {}
                OnConflict::Number => match numbered(&key, entry.content_id, |key| self.content_id(key))? {
                    Numbered::Free(numbered) => {
                        entry.header.document.key = Some(numbered);
                        let document = &entry.header.document;
                        if let Err(error) = check_key(document.key()).and_then(|()| document.to_json().map(drop)) {
                            return Ok(self.refuse(error));
                        }
                    }
                    Numbered::Stored(_) => return Ok(self.duplicate()),
                },
            },
        }
        self.pending.insert(entry.header.document.key().to_owned(), entry.content_id);
        count(self.sums, &entry.header, entry.stored_bytes());
        Ok(Some(Operation::Put(Box::new(entry))))
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
}

/// Where numbering leads beside a key that has other content.
pub(crate) enum Numbered {
    /// The first `key#n` that is free.
    Free(String),
    /// The `key#n` before it that has the content already.
    Stored(String),
}

/// Looks for `content_id` at `key#1`, `key#2`, ... up to the first that is free; `stored` says what is there.
pub(crate) fn numbered(
    key: &str,
    content_id: ContentId,
    stored: impl Fn(&str) -> Result<Option<ContentId>>,
) -> Result<Numbered> {
    let mut n = 1_u64;
    loop {
        let numbered = format!("{key}#{n}");
        match stored(&numbered)? {
            None => return Ok(Numbered::Free(numbered)),
            Some(stored) if stored == content_id => return Ok(Numbered::Stored(numbered)),
            Some(_) => n += 1,
        }
    }
}

fn count(stats: &mut Stats, header: &EntryHeader, stored_bytes: u64) {
    stats.entries += 1;
    stats.tokens += header.document.stored_positions().unwrap_or(0);
    stats.raw_bytes += header.activations.iter().map(|activation| activation.layout.bytes()).sum::<u64>();
    stats.stored_bytes += stored_bytes;
}
