//! The models of a store's hook points: fitted to their first rows, and fitted anew when the data drifts away from them.
//!
//! Runs where entries are put, in their order, and looks at their rows alone: the same entries in the same order get the
//! same models, and so the same frames, whatever the threads do.

use std::collections::HashMap;
use std::sync::Arc;

use crate::codec::{Codec, Model, Rows, bits};
use crate::error::Result;
use crate::hook_point::HookPoint;
use crate::manifest::Settings;
use crate::tensor::{Dtype, Layout, Tensor};

/// Bytes of a sample, if its rows are as many as these.
const SAMPLE_BYTES: u64 = 256 << 10;
const MIN_SAMPLE_ROWS: u64 = 32;
const MAX_SAMPLE_ROWS: u64 = 256;
/// Rows after which a model is looked at for the first time, and from how many on it is no more often.
const FIRST_LOOK: u64 = 512;
const LAST_STRETCH: u64 = 1 << 17;
/// How much further the next look is than the one before.
const STRETCH: u64 = 4;
/// A model is replaced where a new one would save more than this part.
const DRIFT: f64 = 100.0;
/// A model is stored twice.
const COPIES: u64 = 2;

/// How one activation of an entry is encoded.
#[derive(Clone, Debug, Default)]
pub struct Coding {
    /// The activation that it is encoded given, by its index: that of the layer below.
    pub below: Option<usize>,
    /// The model, for values of this dtype.
    pub model: Option<(Dtype, Arc<Model>)>,
}

/// What a model is fitted for: one hook point, as packed, with so many values a row, and what it is given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    point: HookPoint,
    below: Option<HookPoint>,
    dtype: Dtype,
    row_values: u64,
}

/// The models of a store.
#[derive(Debug, Default)]
pub struct Models {
    points: HashMap<Key, Point>,
}

impl Models {
    /// Whether none are known.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Goes on with a model of an entry that is stored.
    pub fn adopt(&mut self, point: &HookPoint, below: Option<&HookPoint>, layout: &Layout, model: Arc<Model>) {
        let (dtype, row_values) = (layout.dtype(), layout.row_values());
        let key = Key { point: point.clone(), below: below.cloned(), dtype, row_values };
        self.points.insert(key, Point { model: Some(model), ..Point::default() });
    }

    /// Looks at the rows of an entry, its activations in the order of their hook points, and says how to encode each.
    pub fn observe(&mut self, settings: &Settings, activations: &[(HookPoint, Tensor)]) -> Result<Vec<Coding>> {
        let mut codings: Vec<Coding> = Vec::with_capacity(activations.len());
        let mut depths: Vec<u32> = Vec::with_capacity(activations.len());
        let mut last_of_stream: HashMap<&str, usize> = HashMap::new();
        for (index, (point, tensor)) in activations.iter().enumerate() {
            let below = match point.stream().filter(|_| settings.codec == Codec::Archive) {
                Some(stream) => last_of_stream.insert(stream, index),
                None => None,
            };
            let below = below.filter(|&below| {
                let alike =
                    activations.get(below).is_some_and(|(_, tensor_below)| tensor_below.layout() == tensor.layout());
                alike && depths.get(below).is_some_and(|depth| depth + 1 < settings.key_distance())
            });
            let given = below.and_then(|below| activations.get(below));
            let model = self.observe_one(settings, (point, tensor), given)?;
            let uses_below = model.as_ref().is_some_and(|(_, model)| model.is_given_below());
            let below = below.filter(|_| uses_below);
            depths.push(below.and_then(|below| depths.get(below)).map_or(0, |depth| depth + 1));
            codings.push(Coding { below, model });
        }
        Ok(codings)
    }

    fn observe_one(
        &mut self,
        settings: &Settings,
        (point, tensor): (&HookPoint, &Tensor),
        below: Option<&(HookPoint, Tensor)>,
    ) -> Result<Option<(Dtype, Arc<Model>)>> {
        let layout = tensor.layout();
        let dtype = settings.pack.dtype.filter(|_| settings.pack.converts(layout.dtype())).unwrap_or(layout.dtype());
        if !settings.codec.has_models() || layout.bytes() == 0 {
            return Ok(None);
        }
        let key = Key {
            point: point.clone(),
            below: below.map(|(point, _)| point.clone()),
            dtype,
            row_values: layout.row_values(),
        };
        let known = self.points.entry(key).or_default();
        let rows = known.rows_of_interest(layout);
        // Rows that cannot be packed belong to an activation that will say so itself.
        let taken = |tensor: &Tensor| settings.pack.apply(tensor.rows(&rows)?).map(|(packed, _)| packed);
        if let (Ok(sample), Ok(below)) = (taken(tensor), below.map(|(_, tensor)| taken(tensor)).transpose()) {
            let alike = |packed: &Tensor| packed.layout().dtype() == dtype;
            if alike(&sample) && below.as_ref().is_none_or(alike) {
                known.sample.extend_from_slice(sample.bytes());
                known.below.extend_from_slice(below.as_ref().map_or(&[], |below| below.bytes()));
            }
        }
        known.seen += layout.rows();
        let sample = Sample { dtype, row_values: layout.row_values(), given: below.is_some() };
        known.look(settings.codec, sample);
        Ok(known.model.clone().map(|model| (dtype, model)))
    }
}

/// What a sample is of.
#[derive(Clone, Copy)]
struct Sample {
    dtype: Dtype,
    row_values: u64,
    given: bool,
}

/// What is known of the rows of a hook point.
#[derive(Debug, Default)]
struct Point {
    model: Option<Arc<Model>>,
    /// Rows so far, and how many of them came before the model.
    seen: u64,
    before: u64,
    /// Rows at the last look, and how many are to be seen at the next.
    looked: u64,
    next: u64,
    /// Some rows since the last look, and those of the layer below.
    sample: Vec<u8>,
    below: Vec<u8>,
}

impl Point {
    /// Which of an activation's rows go into the sample.
    fn rows_of_interest(&self, layout: &Layout) -> Vec<u64> {
        let wanted = (SAMPLE_BYTES / layout.row_bytes().max(1)).clamp(MIN_SAMPLE_ROWS, MAX_SAMPLE_ROWS);
        // Before there is a model: those of this activation, as if there were no others.
        let stretch = if self.next == 0 { layout.rows() } else { self.next - self.looked };
        let stride = (stretch / wanted).max(1);
        (0..layout.rows()).filter(|row| (self.seen + row).is_multiple_of(stride)).collect()
    }

    /// Fits a model where there is none yet, or where the one there is has fallen behind.
    fn look(&mut self, codec: Codec, sample: Sample) {
        let row_bytes = sample.row_values * sample.dtype.size() as u64;
        let rows = self.sample.len() as u64 / row_bytes.max(1);
        if rows < MIN_SAMPLE_ROWS || self.seen < self.next {
            return;
        }
        let Sample { dtype, row_values, given } = sample;
        let below = given.then_some(self.below.as_slice());
        let rows_of_sample = Rows { dtype, row_values, bytes: &self.sample, below };
        if let Some(fitted) = codec.fit(rows_of_sample) {
            let now = self.model.as_ref().and_then(|model| bits(rows_of_sample, model));
            let saved = now.map(|now| now.saturating_sub(fitted.bits));
            let seen = (self.seen - self.looked) / rows.max(1);
            let cost = 8 * COPIES * fitted.model.bytes().len() as u64;
            let pays = |saved: u64| saved as f64 * DRIFT > fitted.bits as f64 && saved.saturating_mul(seen) > cost;
            if saved.is_none_or(pays) {
                self.model = Some(Arc::new(fitted.model));
                self.before = self.seen;
            }
        }
        self.looked = self.seen;
        // The older a model is, the less often it is looked at: what it was fitted to is what there is.
        let next = self.before + ((self.seen - self.before) * STRETCH).max(FIRST_LOOK);
        self.next = next.clamp(self.seen + 1, self.seen + LAST_STRETCH);
        self.sample = Vec::new();
        self.below = Vec::new();
    }
}
