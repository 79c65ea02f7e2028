//! Copying and encoding, a window of entries at a time.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Held, Plan, Progress, Summary, check_distinct, look_up};
use crate::encode::{Draft, encode};
use crate::error::{Error, Kind, Result};
use crate::fitting::Coding;
use crate::manifest::{OnConflict, Settings};
use crate::reader::{Request, read, stored_frames};
use crate::store::{EncodedEntry, Store, Stored};
use crate::tensor::Tensor;
use crate::writer::{Writer, codings_for};

/// A window holds about this share of the target's memory as it is read; encoded, it and the one before are held too.
const WINDOW_SHARE: u64 = 8;
/// Bytes of a window at most: enough to keep every core busy.
const WINDOW_BYTES: u64 = 32 << 20;
/// Entries of a window, at most.
const WINDOW_ENTRIES: usize = 1024;

/// Brings the entries of `plan` from `source` to `target`, in their order. `progress` counts entries and may stop with an
/// error. Whatever stops the migration, the entries before are in the target for good.
pub fn migrate(
    source: &Arc<Store>,
    target: &Arc<Store>,
    plan: &Plan,
    mut progress: impl FnMut(&Progress) -> Result<()>,
) -> Result<Summary> {
    check_distinct(source, target)?;
    let keys = plan.keys(source)?;
    let writer = Writer::with_conflicts(target.clone(), plan.on_conflict)?;
    let summary = Summary::default();
    let mut transfer = Transfer { source, target, plan, writer, summary, total: keys.len() as u64 };
    let moved = transfer.all(&keys, &mut progress);
    let closed = transfer.writer.close();
    moved.and(closed)?;
    Ok(transfer.summary)
}

struct Transfer<'a> {
    source: &'a Store,
    target: &'a Store,
    plan: &'a Plan,
    writer: Arc<Writer>,
    summary: Summary,
    total: u64,
}

/// An entry as it was read.
enum Taken {
    Frames(EncodedEntry),
    Draft(Draft, Vec<Coding>),
}

type Report<'a> = &'a mut dyn FnMut(&Progress) -> Result<()>;

impl Transfer<'_> {
    fn all(&mut self, keys: &[Arc<str>], progress: Report<'_>) -> Result<()> {
        let limit = WINDOW_BYTES.min(self.target.memory() / WINDOW_SHARE);
        let mut window: Vec<Arc<dyn Stored>> = Vec::new();
        let mut bytes = 0;
        for key in keys {
            if self.is_there(key)? {
                self.skip(progress)?;
                continue;
            }
            match self.source.entry(key).map_err(|e| stopped(key, e)) {
                Ok(entry) => {
                    bytes += self.window_bytes(entry.as_ref());
                    window.push(entry);
                }
                Err(error) => return self.transfer(&window, progress).and(Err(error)),
            }
            if bytes >= limit || window.len() == WINDOW_ENTRIES {
                self.transfer(&window, progress)?;
                window.clear();
                bytes = 0;
            }
        }
        self.transfer(&window, progress)
    }

    /// Whether an entry needs no reading: the target has it, or a rule says that it keeps what it has. What is in a store
    /// has passed its packing, and packing what is packed changes nothing: equal contents are so with any dtype.
    fn is_there(&mut self, key: &str) -> Result<bool> {
        let Some(content_id) = self.source.reading()?.content_id(key)? else { return Ok(false) };
        let on_conflict = self.plan.on_conflict;
        let whole = self.plan.points.is_none();
        Ok(match look_up(self.target.reading()?, key, content_id, on_conflict)? {
            Held::Same(_) => whole,
            // Of content that changes on its way it is not known yet whether the target has it.
            Held::Other if on_conflict == OnConflict::Skip => {
                self.summary.conflicts += u64::from(whole && self.settings().pack.dtype.is_none());
                true
            }
            Held::Other | Held::Nothing => false,
        })
    }

    fn settings(&self) -> Settings {
        self.target.manifest().settings
    }

    fn window_bytes(&self, entry: &dyn Stored) -> u64 {
        let header = entry.header();
        let copied = self.is_copied(entry);
        let held = |index: usize| {
            let activation = header.activations.get(index);
            activation.map_or(0, |a| if copied { a.stored_bytes() } else { a.layout.bytes() })
        };
        let activations: u64 = self.plan.chosen(header).into_iter().map(held).sum();
        activations + header.document.held_bytes(header.token_ids.as_deref())
    }

    /// Whether the frames of an entry can go to the target as they are.
    fn is_copied(&self, entry: &dyn Stored) -> bool {
        let header = entry.header();
        let settings = self.settings();
        let had = self.source.manifest().settings;
        had.codec == settings.codec
            && had.key_distance() <= settings.key_distance()
            && self.plan.chosen(header).len() == header.activations.len()
            && header.activations.iter().all(|activation| !settings.pack.converts(activation.layout.dtype()))
    }

    fn transfer(&mut self, entries: &[Arc<dyn Stored>], progress: Report<'_>) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let pool = self.source.pool();
        let this = &*self;
        let read: Vec<_> = pool.install(|| entries.par_iter().map(|entry| this.read(entry)).collect())?;
        // One after the other, so that the same entries get the same models whatever the threads do.
        let taken: Vec<_> = read.into_iter().map(|taken| taken.and_then(|taken| this.fit(taken))).collect();
        let encoded: Vec<_> = pool.install(|| {
            let pairs = taken.into_par_iter().zip(entries);
            pairs.map(|(taken, entry)| taken.and_then(|taken| this.encode(taken, entry.as_ref()))).collect()
        })?;
        // The window before was written meanwhile. Whoever watches is never more than one ahead of the disk.
        self.writer.flush()?;
        for (encoded, entry) in encoded.into_iter().zip(entries) {
            let (encoded, copied) = encoded.map_err(|e| stopped(entry.header().document.key(), e))?;
            self.put(encoded, copied)?;
            self.report(progress)?;
        }
        Ok(())
    }

    fn read(&self, entry: &Arc<dyn Stored>) -> Result<Taken> {
        let header = entry.header();
        if !self.is_copied(entry.as_ref()) {
            return Ok(Taken::Draft(self.draft(entry)?, Vec::new()));
        }
        let frames = (0..header.activations.len()).into_par_iter();
        let chunks = frames.map(|index| stored_frames(entry.as_ref(), index)).collect::<Result<Vec<_>>>()?;
        let mut ids: Vec<_> = header.activations.iter().filter_map(|activation| activation.model).collect();
        ids.sort_unstable();
        ids.dedup();
        let models = ids.iter().map(|id| entry.model(id)).collect::<Result<_>>()?;
        Ok(Taken::Frames(EncodedEntry { header: header.clone(), content_id: entry.content_id(), chunks, models }))
    }

    fn draft(&self, entry: &Arc<dyn Stored>) -> Result<Draft> {
        let header = entry.header();
        let chosen: Vec<_> =
            self.plan.chosen(header).into_iter().filter_map(|i| Some((i, header.activations.get(i)?))).collect();
        let mut buffers = Vec::with_capacity(chosen.len());
        for (_, activation) in &chosen {
            buffers.push(vec![0; crate::format::size(activation.layout.bytes())?]);
        }
        let requests = chosen.iter().zip(&mut buffers);
        let requests = requests.map(|((activation, _), out)| Request {
            entry: entry.clone(),
            activation: *activation,
            rows: None,
            out,
        });
        read(self.source, requests.collect())?;
        let tensors = chosen.iter().zip(buffers).map(|((_, activation), bytes)| {
            Ok((activation.point.clone(), Tensor::new(activation.layout.clone(), bytes)?))
        });
        Draft::new(header.document.clone(), header.token_ids.clone(), tensors.collect::<Result<_>>()?)
    }

    fn fit(&self, taken: Taken) -> Result<Taken> {
        Ok(match taken {
            Taken::Draft(draft, _) => {
                let codings = codings_for(self.target, &draft)?;
                Taken::Draft(draft, codings)
            }
            frames @ Taken::Frames(_) => frames,
        })
    }

    /// The entry for the target, and whether its frames are those of the source.
    fn encode(&self, taken: Taken, entry: &dyn Stored) -> Result<(EncodedEntry, bool)> {
        let (draft, codings) = match taken {
            Taken::Frames(copied) => return Ok((copied, true)),
            Taken::Draft(draft, codings) => (draft, codings),
        };
        let mut encoded = encode(&self.settings(), draft, &codings)?;
        let stored = &entry.header().activations;
        let mut changed = encoded.header.activations.len() != stored.len();
        for activation in &mut encoded.header.activations {
            let Some(before) = stored.iter().find(|before| before.point == activation.point) else { continue };
            // Values that were clamped when they were first packed do not look it any more.
            activation.saturated += before.saturated;
            changed |= activation.layout != before.layout;
        }
        if !changed && encoded.content_id != entry.content_id() {
            return Err(Error::new(Kind::Checksum, "its activations are not those of its content id"));
        }
        Ok((encoded, false))
    }

    fn put(&mut self, encoded: EncodedEntry, copied: bool) -> Result<()> {
        let key = encoded.header.document.key();
        let held = look_up(self.target.reading()?, key, encoded.content_id, self.plan.on_conflict)?;
        match (held, self.plan.on_conflict) {
            (Held::Same(_), _) => {
                self.summary.skipped += 1;
                return Ok(());
            }
            (Held::Other, OnConflict::Error) => return Err(conflict(key)),
            (Held::Other, OnConflict::Skip) => {
                self.summary.conflicts += 1;
                self.summary.skipped += 1;
                return Ok(());
            }
            (Held::Other, OnConflict::Replace | OnConflict::Number) => self.summary.conflicts += 1,
            (Held::Nothing, _) => {}
        }
        let raw_bytes: u64 = encoded.header.activations.iter().map(|activation| activation.layout.bytes()).sum();
        let stored_bytes = encoded.stored_bytes();
        self.writer.put_encoded(encoded)?;
        self.summary.migrated += 1;
        self.summary.copied += u64::from(copied);
        self.summary.raw_bytes += raw_bytes;
        self.summary.stored_bytes += stored_bytes;
        Ok(())
    }

    fn skip(&mut self, progress: Report<'_>) -> Result<()> {
        self.summary.skipped += 1;
        self.report(progress)
    }

    /// Tells of one more entry done.
    fn report(&mut self, progress: Report<'_>) -> Result<()> {
        let Summary { raw_bytes, stored_bytes, .. } = self.summary;
        self.summary.entries += 1;
        progress(&Progress { entries: self.summary.entries, total: self.total, raw_bytes, stored_bytes })
    }
}

fn stopped(key: &str, error: Error) -> Error {
    let advice = if error.kind().is_damage() { "; `keys` without it migrate the rest" } else { "" };
    let message = format!("migrating stopped at entry `{key}`: {error}; what was migrated before it stays{advice}");
    Error::new(error.kind(), message).because(error)
}

fn conflict(key: &str) -> Error {
    let message = format!(
        "key `{key}` is stored in the target with other content; give on_conflict `skip`, `replace` or `number`"
    );
    Error::new(Kind::KeyConflict, message)
}
