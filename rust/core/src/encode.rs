//! From activations in memory to an encoded entry: pack, split into frames, compress, checksum, identify.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::codec::pack::PackCounts;
use crate::codec::{Codec, Encoding, Model, Rows};
use crate::entry::{ContentPoint, Document, MAX_TOKENS, content_id};
use crate::error::{Error, Kind, Result};
use crate::fitting::Coding;
use crate::format::{Activation, EntryHeader, Frame, MAX_POINTS, frame_checksum, size};
use crate::hook_point::HookPoint;
use crate::manifest::Settings;
use crate::pool::Threads;
use crate::store::EncodedEntry;
use crate::tensor::{Layout, MAX_ACTIVATION_BYTES, Tensor};

/// An entry in memory, complete.
#[derive(Debug)]
pub struct Draft {
    /// The document, its key assigned.
    pub document: Document,
    /// Token ids of the whole sequence.
    pub token_ids: Option<Vec<u32>>,
    /// Activations in the order of their hook points, each once.
    pub activations: Vec<(HookPoint, Tensor)>,
}

impl Draft {
    /// Assigns the key, sorts the activations, and refuses what no store could hold.
    pub fn new(
        mut document: Document,
        token_ids: Option<Vec<u32>>,
        mut activations: Vec<(HookPoint, Tensor)>,
    ) -> Result<Self> {
        let key = document.assign_key(token_ids.as_deref())?.to_owned();
        let tokens = token_ids.as_ref().map_or(0, Vec::len) as u64;
        if tokens > MAX_TOKENS {
            let message = format!("`{tokens}` token ids of entry `{key}` are above the limit of {MAX_TOKENS}");
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        if token_ids.is_some() {
            document.check_within(tokens)?;
        }
        activations.sort_by(|left, right| left.0.cmp(&right.0));
        if let Some([twice, ..]) =
            activations.windows(2).find(|pair| matches!(pair, [left, right] if left.0 == right.0))
        {
            return Err(Error::new(Kind::InvalidTensor, format!("`{}` is given twice for entry `{key}`", twice.0)));
        }
        let draft = Self { document, token_ids, activations };
        draft.check()?;
        Ok(draft)
    }

    /// Bytes of all activations.
    pub fn bytes(&self) -> u64 {
        self.activations.iter().map(|(_, tensor)| tensor.layout().bytes()).sum()
    }

    /// Bytes held in memory, about: activations, token ids and text.
    pub fn held_bytes(&self) -> u64 {
        self.bytes() + self.document.held_bytes(self.token_ids.as_deref())
    }

    /// Refuses what the format has no room for, and rows that are not the positions they are said to be.
    fn check(&self) -> Result<()> {
        let (key, points, bytes) = (self.document.key(), self.activations.len(), self.bytes());
        if points > MAX_POINTS || bytes > MAX_ACTIVATION_BYTES {
            let limits = format!("the limits of {MAX_POINTS} activations and 16 GiB");
            let message = format!("entry `{key}` of `{points}` activations and `{bytes}` bytes is above {limits}");
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        let Some(positions) = self.document.stored_positions() else { return Ok(()) };
        for (point, layout) in self.activations.iter().map(|(point, tensor)| (point, tensor.layout())) {
            if layout.shape().len() == 2 && layout.rows() != positions {
                let rows = layout.rows();
                let message = format!("`{point}` of entry `{key}` has `{rows}` rows for `{positions}` positions");
                return Err(Error::new(Kind::RowsNotTokens, message));
            }
        }
        Ok(())
    }
}

/// Encodes an entry, its activations in parallel, each as `codings` says.
pub fn encode(settings: &Settings, draft: Draft, codings: &[Coding]) -> Result<EncodedEntry> {
    let (head, chains) = split(draft, codings);
    let encoded: Vec<_> = chains.into_par_iter().map(|chain| encode_chain(settings, chain)).collect();
    assemble(head, encoded)
}

/// Encodes an entry as [`encode`] does, in tasks of the pool, and gives it to `done`, which is dropped where that panics.
///
/// No task waits for another. A task that waits runs other tasks of the pool meanwhile, above itself on its stack:
/// with many entries queued, until the stack is full.
pub fn encode_spawned<F>(threads: &Threads, settings: Settings, draft: Draft, codings: &[Coding], done: F)
where
    F: FnOnce(Result<EncodedEntry>) + Send + Sync + 'static,
{
    let (head, chains) = split(draft, codings);
    let slots = chains.iter().map(|_| OnceLock::new()).collect();
    let spawned = Arc::new(Spawned { head, slots, done });
    for (index, chain) in chains.into_iter().enumerate() {
        let spawned = spawned.clone();
        threads.spawn(move || {
            let encoded = catch_unwind(AssertUnwindSafe(|| encode_chain(&settings, chain)));
            if let (Some(slot), Ok(encoded)) = (spawned.slots.get(index), encoded) {
                slot.get_or_init(|| encoded);
            }
            // A panic that left a task would end the process.
            let _told_by_dropping_it = catch_unwind(AssertUnwindSafe(|| finish(spawned)));
        });
    }
    finish(spawned);
}

/// An entry on its way through the pool: each task fills its slot, and the last one assembles.
struct Spawned<F> {
    head: Head,
    slots: Vec<OnceLock<Result<Vec<EncodedActivation>>>>,
    done: F,
}

fn finish<F: FnOnce(Result<EncodedEntry>)>(spawned: Arc<Spawned<F>>) {
    let Some(Spawned { head, slots, done }) = Arc::into_inner(spawned) else { return };
    let died = || Err(Error::new(Kind::WriterFailed, "encoding failed beyond repair; the entry is not stored"));
    done(assemble(head, slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(died))));
}

/// An entry without its activations.
struct Head {
    document: Document,
    token_ids: Option<Vec<u32>>,
}

/// An entry's parts: what is encoded together is one chain.
fn split(draft: Draft, codings: &[Coding]) -> (Head, Vec<Vec<Job>>) {
    let Draft { document, token_ids, activations } = draft;
    (Head { document, token_ids }, chains(activations, codings))
}

fn assemble(head: Head, chains: impl IntoIterator<Item = Result<Vec<EncodedActivation>>>) -> Result<EncodedEntry> {
    let Head { document, token_ids } = head;
    let encoded = chains.into_iter().collect::<Result<Vec<_>>>();
    let encoded = encoded.map_err(|e| e.within(format!("entry `{}`", document.key())))?;
    let mut encoded: Vec<_> = encoded.into_iter().flatten().collect();
    encoded.sort_unstable_by_key(|one| one.index);
    let points: Vec<_> = encoded
        .iter()
        .map(|e| ContentPoint { point: &e.activation.point, layout: &e.activation.layout, digest: e.digest })
        .collect();
    let content_id = content_id(&document, token_ids.as_deref(), &points);
    let mut entry = EncodedEntry {
        header: EntryHeader { document, token_ids, activations: Vec::with_capacity(encoded.len()) },
        content_id,
        chunks: Vec::with_capacity(encoded.len()),
        models: Vec::new(),
    };
    // Where it is refused, it must cost this entry alone, not the commit it would be part of.
    entry.header.document.to_json()?;
    for one in encoded {
        entry.header.activations.push(one.activation);
        entry.chunks.push(one.chunk);
        entry.models.extend(one.model);
    }
    Ok(entry)
}

/// An activation on its way, by its place in the entry.
struct Job {
    index: usize,
    point: HookPoint,
    tensor: Tensor,
    coding: Coding,
}

/// The activations of an entry, those together that are encoded one given the other, in their order.
fn chains(activations: Vec<(HookPoint, Tensor)>, codings: &[Coding]) -> Vec<Vec<Job>> {
    let mut chains: Vec<Vec<Job>> = Vec::new();
    let mut chain_of: Vec<usize> = Vec::with_capacity(activations.len());
    for (index, (point, tensor)) in activations.into_iter().enumerate() {
        let coding = codings.get(index).cloned().unwrap_or_default();
        let chain = coding.below.and_then(|below| chain_of.get(below).copied()).unwrap_or(chains.len());
        chain_of.push(chain);
        let job = Job { index, point, tensor, coding };
        match chains.get_mut(chain) {
            Some(chain) => chain.push(job),
            None => chains.push(vec![job]),
        }
    }
    chains
}

/// Encodes activations one after the other, each given the one before, of which no more are held than these two.
fn encode_chain(settings: &Settings, chain: Vec<Job>) -> Result<Vec<EncodedActivation>> {
    let mut below: Option<Tensor> = None;
    let mut encoded = Vec::with_capacity(chain.len());
    for Job { index, point, tensor, coding } in chain {
        let (tensor, counts) = settings.pack.apply(tensor).map_err(|e| e.within(format!("`{point}`")))?;
        let layout = tensor.layout();
        let given = below.as_ref().filter(|below| coding.below.is_some() && below.layout() == layout);
        // What packing left with another dtype has no model, nor has what would need a layer that is not alike.
        let model = coding.model.filter(|(dtype, _)| *dtype == layout.dtype()).map(|(_, model)| model);
        let model = model.filter(|model| given.is_some() || !model.is_given_below());
        let below_index = coding.below.filter(|_| given.is_some() && model.is_some());
        let packed = Packed { point, tensor: &tensor, counts, model, below: below_index };
        let mut one = encode_activation(settings.codec, packed, given.map(Tensor::bytes))?;
        one.index = index;
        if settings.codec.stores_rows() {
            // Rows that are stored as they are need no second copy of a large activation.
            one.chunk = tensor.into_parts().1;
        } else {
            below = Some(tensor);
        }
        encoded.push(one);
    }
    Ok(encoded)
}

/// An activation as it will be stored, how packing changed it, and how to encode it.
struct Packed<'a> {
    point: HookPoint,
    tensor: &'a Tensor,
    counts: PackCounts,
    model: Option<Arc<Model>>,
    below: Option<usize>,
}

struct EncodedActivation {
    index: usize,
    activation: Activation,
    chunk: Vec<u8>,
    digest: [u8; 32],
    model: Option<Arc<Model>>,
}

/// Encodes the frames; where they are the rows as they are, the chunk stays empty.
fn encode_activation(codec: Codec, packed: Packed<'_>, below: Option<&[u8]>) -> Result<EncodedActivation> {
    let Packed { point, tensor, counts: PackCounts { nonfinite, saturated }, model, below: below_index } = packed;
    let (layout, bytes) = (tensor.layout(), tensor.bytes());
    let frame_rows = codec.frame_rows(layout.row_bytes()).max(1);
    let mut chunk = Vec::with_capacity(if codec.stores_rows() { 0 } else { bytes.len() / 2 });
    let mut frames = Vec::new();
    let mut frames_below = below.map(|below| rows_of_frames(layout, frame_rows, below)).transpose()?;
    for bytes in rows_of_frames(layout, frame_rows, bytes)? {
        let start = chunk.len();
        let below = frames_below.as_mut().and_then(Iterator::next);
        let rows = Rows { dtype: layout.dtype(), row_values: layout.row_values(), bytes, below };
        let (encoding, stored) = if codec.stores_rows() {
            (Encoding::Stored, bytes)
        } else {
            let encoding = codec.encode(rows, model.as_deref(), &mut chunk);
            (encoding, chunk.get(start..).unwrap_or_default())
        };
        let length = u32::try_from(stored.len())
            .map_err(|_| Error::new(Kind::LimitExceeded, format!("a row of `{point}` is above the limit of 4 GiB")))?;
        frames.push(Frame { checksum: frame_checksum(stored), length, encoding });
    }
    let (layout, below) = (layout.clone(), below_index);
    let model_id = model.as_ref().map(|model| model.id());
    let activation = Activation { point, layout, frame_rows, nonfinite, saturated, model: model_id, below, frames };
    Ok(EncodedActivation { index: 0, activation, chunk, digest: *blake3::hash(bytes).as_bytes(), model })
}

/// The bytes of each frame; an activation without bytes has none.
fn rows_of_frames<'a>(layout: &Layout, frame_rows: u64, bytes: &'a [u8]) -> Result<impl Iterator<Item = &'a [u8]>> {
    let frame_bytes = size(frame_rows.min(layout.rows()) * layout.row_bytes())?;
    Ok(bytes.chunks(frame_bytes.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;
    use crate::store::contract::settings;

    #[test]
    fn who_is_told_may_panic_and_the_process_goes_on() {
        let settings = settings("memory", "error");
        let document = Document::parse(r#"{"key":"k","key_recipe":"user"}"#).unwrap();
        let layout = Layout::new(crate::tensor::Dtype::UInt8, vec![4]).unwrap();
        let tensor = Tensor::new(layout, vec![0; 4]).unwrap();
        let draft = Draft::new(document, None, vec![(HookPoint::new("m.x").unwrap(), tensor)]).unwrap();
        let (told, ends) = std::sync::mpsc::channel::<()>();
        let threads = Pool::default().threads().unwrap();
        encode_spawned(&threads, settings, draft, &[], move |encoded| {
            assert!(encoded.is_err(), "{told:?} is dropped as this unwinds");
        });
        assert!(ends.recv().is_err());
    }
}
