//! From activations in memory to an encoded entry: pack, fit, split into frames, compress, checksum, identify.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use crate::codec::pack::PackCounts;
use crate::codec::{Encoding, Model, Rows};
use crate::entry::{ContentPoint, Document, MAX_TOKENS, content_id};
use crate::error::{Error, Kind, Result};
use crate::format::{Activation, EntryHeader, Frame, MAX_POINTS, frame_checksum, size};
use crate::hook_point::HookPoint;
use crate::manifest::Settings;
use crate::store::{EncodedEntry, ModelKey};
use crate::tensor::{Layout, MAX_ACTIVATION_BYTES, Tensor};

/// Rows of the sample a model is fitted on, at most.
const SAMPLE_BYTES: u64 = 1 << 20;

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

/// Fits models for hook points that have none yet, on the first rows of this entry. Runs where entries are put, in
/// their order, so that the same entries in the same order give the same frames whatever the threads do.
pub fn fit_models(settings: &Settings, draft: &Draft, models: &mut HashMap<ModelKey, Arc<Model>>) -> Result<()> {
    for (point, tensor) in &draft.activations {
        let layout = tensor.layout();
        let rows = (SAMPLE_BYTES / layout.row_bytes().max(1)).clamp(1, layout.rows().max(1)).min(layout.rows());
        let sample = tensor.bytes().get(..size(rows * layout.row_bytes())?).unwrap_or_default();
        let dtype = settings.pack.dtype.unwrap_or(layout.dtype());
        if models.contains_key(&(point.clone(), dtype, layout.row_values())) {
            continue;
        }
        // A sample that cannot be packed belongs to an activation that will say so itself.
        let Ok((sample, _)) = settings.pack.apply(Tensor::new(layout.with_rows(rows)?, sample.to_vec())?) else {
            continue;
        };
        if let Some(model) = settings.codec.fit(sample.layout(), sample.bytes()) {
            let key = (point.clone(), sample.layout().dtype(), sample.layout().row_values());
            models.entry(key).or_insert_with(|| Arc::new(model));
        }
    }
    Ok(())
}

/// Encodes an entry, its activations in parallel.
pub fn encode(settings: &Settings, draft: Draft, models: &HashMap<ModelKey, Arc<Model>>) -> Result<EncodedEntry> {
    let Draft { document, token_ids, activations } = draft;
    let key = document.key().to_owned();
    let encoded = activations
        .into_par_iter()
        .map(|(point, tensor)| encode_activation(settings, point, tensor, models))
        .collect::<Result<Vec<_>>>()
        .map_err(|e| e.within(format!("entry `{key}`")))?;
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

struct EncodedActivation {
    activation: Activation,
    chunk: Vec<u8>,
    digest: [u8; 32],
    model: Option<Arc<Model>>,
}

fn encode_activation(
    settings: &Settings,
    point: HookPoint,
    tensor: Tensor,
    models: &HashMap<ModelKey, Arc<Model>>,
) -> Result<EncodedActivation> {
    let (tensor, PackCounts { nonfinite, saturated }) =
        settings.pack.apply(tensor).map_err(|e| e.within(format!("`{point}`")))?;
    let (layout, bytes) = tensor.into_parts();
    let model = models.get(&(point.clone(), layout.dtype(), layout.row_values())).cloned();
    let frame_rows = settings.codec.frame_rows(layout.row_bytes()).max(1);
    let digest = *blake3::hash(&bytes).as_bytes();
    let mut chunk = Vec::with_capacity(if settings.codec.stores_rows() { 0 } else { bytes.len() / 2 });
    let mut frames = Vec::new();
    for bytes in rows_of_frames(&layout, frame_rows, &bytes)? {
        let start = chunk.len();
        let rows = Rows { dtype: layout.dtype(), row_values: layout.row_values(), bytes };
        let (encoding, stored) = if settings.codec.stores_rows() {
            (Encoding::Stored, bytes)
        } else {
            let encoding = settings.codec.encode(rows, model.as_deref(), &mut chunk);
            (encoding, chunk.get(start..).unwrap_or_default())
        };
        let length = u32::try_from(stored.len())
            .map_err(|_| Error::new(Kind::LimitExceeded, format!("a row of `{point}` is above the limit of 4 GiB")))?;
        frames.push(Frame { checksum: frame_checksum(stored), length, encoding });
    }
    // Rows stored as they are need no second copy of a large activation.
    let chunk = if settings.codec.stores_rows() { bytes } else { chunk };
    let activation = Activation {
        point,
        layout,
        frame_rows,
        nonfinite,
        saturated,
        model: model.as_ref().map(|model| model.id()),
        frames,
    };
    Ok(EncodedActivation { activation, chunk, digest, model })
}

/// The bytes of each frame; an activation without bytes has none.
fn rows_of_frames<'a>(layout: &Layout, frame_rows: u64, bytes: &'a [u8]) -> Result<impl Iterator<Item = &'a [u8]>> {
    let frame_bytes = size(frame_rows.min(layout.rows()) * layout.row_bytes())?;
    Ok(bytes.chunks(frame_bytes.max(1)))
}
