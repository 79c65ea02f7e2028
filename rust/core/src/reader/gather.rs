//! Token vectors of one hook point by key and position, in any order.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::lookup;
use super::source::{Rows, Source, Vectors, read_rows};
use crate::entry::Positions;
use crate::error::{Error, Kind, Result};
use crate::format::malformed;
use crate::store::Store;

/// Fewer entries than this are looked up on the calling thread.
const PARALLEL_ENTRIES: usize = 8;

/// Token vectors of one hook point that were looked up, each by its key and position: one vector for each pair asked for, in
/// that order.
pub struct Gather {
    store: Arc<Store>,
    point: String,
    vectors: Vectors,
    /// Each entry once, by its key.
    entries: Vec<(String, Source)>,
    /// Entry and row of each vector.
    wanted: Vec<(usize, u64)>,
}

/// An entry, the positions wanted of it, and where their vectors go.
#[derive(Default)]
struct Wanted {
    positions: Vec<i64>,
    places: Vec<usize>,
}

struct Found {
    source: Source,
    vectors: Vectors,
    /// Of the positions, in their order.
    rows: Vec<u64>,
}

impl Gather {
    /// Looks up `positions[n]` of entry `keys[n]` for each n; positions count as in [`Positions::At`]. There must be as
    /// many of both, and at least one, for without there is neither dtype nor width.
    pub fn new(store: &Arc<Store>, point: &str, keys: &[impl AsRef<str> + Sync], positions: &[i64]) -> Result<Self> {
        store.reading()?;
        let wanted = by_key(keys, positions)?;
        let (keys, wanted): (Vec<&str>, Vec<Wanted>) = wanted.into_iter().unzip();
        let find_one = |(key, wanted): (&&str, &Wanted)| find(store, point, key, &wanted.positions);
        let found: Vec<Result<Found>> = if keys.len() < PARALLEL_ENTRIES {
            keys.iter().zip(&wanted).map(find_one).collect()
        } else {
            store.pool().install(|| keys.par_iter().zip(&wanted).map(find_one).collect())?
        };
        let found = found.into_iter().collect::<Result<Vec<_>>>()?;
        let first = keys.first().zip(found.first()).ok_or_else(nothing_wanted)?;
        let (first, vectors) = (*first.0, first.1.vectors);
        let mut this = Self {
            store: store.clone(),
            point: point.to_owned(),
            vectors,
            entries: Vec::with_capacity(keys.len()),
            wanted: vec![(0, 0); positions.len()],
        };
        for ((key, wanted), found) in keys.into_iter().zip(&wanted).zip(found) {
            vectors.check_same(first, found.vectors, key, point)?;
            for (&place, row) in wanted.places.iter().zip(found.rows) {
                *this.wanted.get_mut(place).ok_or_else(nothing_wanted)? = (this.entries.len(), row);
            }
            this.entries.push((key.to_owned(), found.source));
        }
        Ok(this)
    }

    /// What each vector is.
    pub fn vectors(&self) -> Vectors {
        self.vectors
    }

    /// Vectors that were asked for.
    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Reads the vectors into `out`, which has their bytes.
    pub fn read(&self, out: &mut [u8]) -> Result<()> {
        self.store.reading()?;
        let row_bytes = self.vectors.bytes()?;
        check_room(self.wanted.len(), row_bytes, out)?;
        let vectors = out.chunks_exact_mut(row_bytes.max(1));
        let rows = self.wanted.iter().zip(vectors).map(|(&(source, first), out)| Rows { source, first, out });
        read_rows(&self.store, &self.point, self.vectors, rows.collect(), |number| {
            self.entries.get(number).map(|(key, source)| (key.as_str(), source))
        })
    }
}

/// Refuses a buffer that `rows` rows do not fill.
pub(super) fn check_room(rows: usize, row_bytes: usize, out: &[u8]) -> Result<()> {
    if rows.checked_mul(row_bytes) == Some(out.len()) {
        return Ok(());
    }
    let message = format!("`{rows}` vectors of `{row_bytes}` bytes for a buffer of `{}`", out.len());
    Err(Error::new(Kind::InvalidTensor, message))
}

fn nothing_wanted() -> Error {
    Error::new(Kind::InvalidOption, "`keys` is empty; without an entry a vector has neither dtype nor width")
}

/// What is wanted of each entry, in the order in which the entries are first named.
fn by_key<'a>(keys: &'a [impl AsRef<str>], positions: &[i64]) -> Result<Vec<(&'a str, Wanted)>> {
    if keys.len() != positions.len() {
        let message = format!(
            "`{}` keys and `{}` positions; give one position for each key, or one for all",
            keys.len(),
            positions.len()
        );
        return Err(Error::new(Kind::InvalidOption, message));
    }
    let mut number_of: HashMap<&str, usize> = HashMap::with_capacity(keys.len());
    let mut wanted: Vec<(&str, Wanted)> = Vec::new();
    for (place, (key, &position)) in keys.iter().map(AsRef::as_ref).zip(positions).enumerate() {
        let number = *number_of.entry(key).or_insert(wanted.len());
        if number == wanted.len() {
            wanted.push((key, Wanted::default()));
        }
        let (_, wanted) = wanted.get_mut(number).ok_or_else(|| malformed("a key without a number"))?;
        wanted.positions.push(position);
        wanted.places.push(place);
    }
    Ok(wanted)
}

fn find(store: &Store, point: &str, key: &str, positions: &[i64]) -> Result<Found> {
    let entry = store.entry(key)?;
    let (activation, vectors, rows) = lookup(entry.as_ref(), point, &Positions::At(positions.to_vec()))?;
    Ok(Found { source: Source::of(&entry, activation)?, vectors, rows: rows.unwrap_or_default() })
}
