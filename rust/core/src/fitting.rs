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

/// Rows of a sample: as many as have these bytes, within limits.
const SAMPLE_BYTES: u64 = 256 << 10;
const MIN_SAMPLE_ROWS: u64 = 64;
const MAX_SAMPLE_ROWS: u64 = 256;
/// Fewest rows that anything is learned from.
const FEWEST_ROWS: usize = 32;
/// Longest row whose channels are learned. Of longer ones, and of activations that are not rows of channels, pieces count.
const MAX_ROW_BYTES: u64 = 128 << 10;
const PIECE_VALUES: u64 = 512;
/// Bytes of all samples, at most: above them they are dropped.
const ALL_SAMPLES_BYTES: usize = 64 << 20;
/// Hook points, at most: above them those without a model are dropped.
const MOST_POINTS: usize = 1 << 14;
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

/// What a model is fitted for: one hook point, as packed, with so many channels, and what it is given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    point: HookPoint,
    below: Option<HookPoint>,
    dtype: Dtype,
    /// `None` where channels are not learned.
    channels: Option<u64>,
}

/// The channels of a row, if they are alike in every entry, and their parameters are not too many.
fn channels(layout: &Layout) -> Option<u64> {
    let are_rows = layout.shape().len() == 2 && layout.row_bytes() <= MAX_ROW_BYTES;
    are_rows.then(|| layout.row_values())
}

/// The models of a store.
#[derive(Debug, Default)]
pub struct Models {
    points: HashMap<Key, Point>,
}

/// A hook point of an entry, and its rows.
type Seen<'a> = (&'a HookPoint, &'a Tensor);

impl Models {
    /// Whether none are known.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Goes on with a model of an entry that is stored.
    pub fn adopt(&mut self, point: &HookPoint, below: Option<&HookPoint>, layout: &Layout, model: Arc<Model>) {
        let (point, below) = (point.clone(), below.cloned());
        let key = Key { point, below, dtype: layout.dtype(), channels: channels(layout) };
        self.points.insert(key, Point { model: Some(model), ..Point::default() });
    }

    /// Looks at the rows of an entry, its activations in the order of their hook points, and says how to encode each.
    pub fn observe(&mut self, settings: &Settings, activations: &[(HookPoint, Tensor)]) -> Result<Vec<Coding>> {
        let mut codings: Vec<Coding> = Vec::with_capacity(activations.len());
        let mut depths: Vec<u32> = Vec::with_capacity(activations.len());
        let mut last_of_stream: HashMap<&str, usize> = HashMap::new();
        for (index, (point, tensor)) in activations.iter().enumerate() {
            let stream = point.stream().filter(|_| settings.codec == Codec::Archive);
            let candidate = stream.and_then(|stream| last_of_stream.insert(stream, index)).filter(|&below| {
                let layout = activations.get(below).map(|(_, below)| below.layout());
                layout == Some(tensor.layout()) && channels(tensor.layout()).is_some()
            });
            let depth = |below: usize| depths.get(below).copied().unwrap_or(0);
            let within = candidate.filter(|&below| depth(below) + 1 < settings.key_distance());
            let seen = |index: usize| activations.get(index).map(|(point, tensor)| (point, tensor));
            let (given, candidate) = (within.and_then(seen), candidate.and_then(seen));
            let model = self.observe_one(settings, (point, tensor), given, candidate)?;
            let is_given_below = model.as_ref().is_some_and(|(_, model)| model.is_given_below());
            let below = within.filter(|_| is_given_below);
            depths.push(below.map_or(0, |below| depth(below) + 1));
            codings.push(Coding { below, model });
        }
        self.bound();
        Ok(codings)
    }

    /// Keeps what is not known well from growing with what is seen.
    fn bound(&mut self) {
        let held = self.points.values().map(|point| point.sample.len() + point.below.len()).sum::<usize>();
        if held > ALL_SAMPLES_BYTES || self.points.len() > MOST_POINTS {
            self.points.values_mut().for_each(Point::forget);
            self.points.retain(|_, point| point.model.is_some());
        }
    }

    fn observe_one(
        &mut self,
        settings: &Settings,
        (point, tensor): Seen<'_>,
        below: Option<Seen<'_>>,
        candidate: Option<Seen<'_>>,
    ) -> Result<Option<(Dtype, Arc<Model>)>> {
        let layout = tensor.layout();
        let dtype = settings.pack.dtype.filter(|_| settings.pack.converts(layout.dtype())).unwrap_or(layout.dtype());
        if !settings.codec.has_models() || layout.bytes() == 0 {
            return Ok(None);
        }
        let (name, channels) = (point.clone(), channels(layout));
        let key = Key { point: name, below: below.map(|(point, _)| point.clone()), dtype, channels };
        let known = self.known(key, candidate.map(|(point, _)| point));
        let unit = Unit::of(layout);
        let wanted = known.wanted(unit, layout);
        // Rows that cannot be packed belong to an activation that will say so itself.
        let taken = |tensor: &Tensor| settings.pack.apply(unit.take(tensor, &wanted)?).map(|(packed, _)| packed);
        if let (Ok(sample), Ok(below)) = (taken(tensor), below.map(|(_, tensor)| taken(tensor)).transpose()) {
            let alike = |packed: &Tensor| packed.layout().dtype() == dtype;
            if alike(&sample) && below.as_ref().is_none_or(alike) {
                known.sample.extend_from_slice(sample.bytes());
                known.below.extend_from_slice(below.as_ref().map_or(&[], |below| below.bytes()));
            }
        }
        known.seen += unit.count(layout);
        let row_values = channels.unwrap_or(1);
        known.look(settings.codec, Sample { dtype, row_values, unit_values: unit.values, given: below.is_some() });
        Ok(known.model.clone().map(|model| (dtype, model)))
    }

    /// What is known of a hook point; where nothing is, what was known of it as long as it was given another, or none.
    fn known(&mut self, key: Key, candidate: Option<&HookPoint>) -> &mut Point {
        if !self.points.contains_key(&key) {
            let others = [None, candidate.cloned()].map(|below| Key { below, ..key.clone() });
            let other = others.iter().find_map(|other| self.points.get(other));
            let point = other.map(|other| Point {
                model: other.model.clone().filter(|model| !model.is_given_below()),
                seen: other.seen,
                sample: if key.below.is_none() { other.sample.clone() } else { Vec::new() },
                ..Point::default()
            });
            self.points.insert(key.clone(), point.unwrap_or_default());
        }
        self.points.entry(key).or_default()
    }
}

/// What is sampled of an activation: its rows, or pieces.
#[derive(Clone, Copy)]
struct Unit {
    values: u64,
    bytes: u64,
}

impl Unit {
    fn of(layout: &Layout) -> Self {
        let values = channels(layout).unwrap_or(PIECE_VALUES);
        Self { values, bytes: values * layout.dtype().size() as u64 }
    }

    fn count(self, layout: &Layout) -> u64 {
        layout.bytes() / self.bytes.max(1)
    }

    /// Some units, one after the other.
    fn take(self, tensor: &Tensor, wanted: &[u64]) -> Result<Tensor> {
        let bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let unit = |&number: &u64| {
            let start = usize::try_from(number).ok()?.checked_mul(bytes)?;
            tensor.bytes().get(start..start.checked_add(bytes)?)
        };
        let units = wanted.iter().filter_map(unit).collect::<Vec<_>>().concat();
        let dtype = tensor.layout().dtype();
        Tensor::new(Layout::new(dtype, vec![(units.len() / dtype.size()) as u64])?, units)
    }
}

/// What a sample is of.
#[derive(Clone, Copy)]
struct Sample {
    dtype: Dtype,
    row_values: u64,
    unit_values: u64,
    given: bool,
}

/// What is known of the rows of a hook point.
#[derive(Debug, Default)]
struct Point {
    model: Option<Arc<Model>>,
    /// Units so far, and how many of them came before the model.
    seen: u64,
    before: u64,
    /// Units at the last look, and how many are to be seen at the next.
    looked: u64,
    next: u64,
    /// Some units since the last look, and those of the layer below.
    sample: Vec<u8>,
    below: Vec<u8>,
}

impl Point {
    fn forget(&mut self) {
        self.sample = Vec::new();
        self.below = Vec::new();
    }

    /// Which of an activation's units go into the sample: evenly spaced, none of them the first of all.
    fn wanted(&self, unit: Unit, layout: &Layout) -> Vec<u64> {
        let (count, most) =
            (unit.count(layout), (SAMPLE_BYTES / unit.bytes.max(1)).clamp(MIN_SAMPLE_ROWS, MAX_SAMPLE_ROWS));
        // Before there is a model: those of this activation, as if there were no others.
        let stretch = if self.next == 0 { count } else { (self.next - self.looked).max(count) };
        let stride = (stretch / most).max(1);
        let first = (stride / 2 + stride - self.seen % stride) % stride;
        (first..count).step_by(usize::try_from(stride).unwrap_or(usize::MAX)).collect()
    }

    /// Fits a model where there is none yet, or where the one there is has fallen behind.
    fn look(&mut self, codec: Codec, sample: Sample) {
        let bytes = usize::try_from(sample.unit_values).unwrap_or(usize::MAX).saturating_mul(sample.dtype.size());
        let units = self.sample.len() / bytes.max(1);
        if units < FEWEST_ROWS || self.seen < self.next {
            return;
        }
        let all = self.rows(sample);
        let is_behind = match &self.model {
            None => true,
            Some(model) => self.is_behind(codec, model, sample, units),
        };
        if is_behind && let Some(fitted) = codec.fit(all) {
            self.model = Some(Arc::new(fitted.model));
            self.before = self.seen;
        }
        self.looked = self.seen;
        // The older a model is, the less often it is looked at: what it was fitted to is what there is.
        let next = self.before + ((self.seen - self.before) * STRETCH).max(FIRST_LOOK);
        self.next = next.clamp(self.seen + 1, self.seen + LAST_STRETCH);
        self.forget();
    }

    fn rows(&self, sample: Sample) -> Rows<'_> {
        let Sample { dtype, row_values, given, .. } = sample;
        Rows { dtype, row_values, bytes: &self.sample, below: given.then_some(self.below.as_slice()) }
    }

    /// Whether a model that is fitted to one half of the sample saves enough on the other half, which neither has seen.
    fn is_behind(&self, codec: Codec, model: &Model, sample: Sample, units: usize) -> bool {
        let all = self.rows(sample);
        let middle = units / 2 * (self.sample.len() / units.max(1));
        let Some((to_fit, to_test)) = all.bytes.split_at_checked(middle) else { return false };
        let (below_to_fit, below_to_test) = all.below.and_then(|below| below.split_at_checked(middle)).unzip();
        let Some(fitted) = codec.fit(Rows { bytes: to_fit, below: below_to_fit, ..all }) else { return false };
        let test = Rows { bytes: to_test, below: below_to_test, ..all };
        let (Some(now), Some(then)) = (bits(test, model), bits(test, &fitted.model)) else { return false };
        let saved = now.saturating_sub(then);
        // As much in all that was seen since the last look.
        let seen = (self.seen - self.looked) / (units as u64 / 2).max(1);
        let cost = 8 * COPIES * fitted.model.stored().len() as u64;
        saved as f64 * DRIFT > then as f64 && saved.saturating_mul(seen) > cost
    }
}
