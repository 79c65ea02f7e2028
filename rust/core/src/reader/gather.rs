//! Token vectors of one hook point by key and position, in any order.

use std::collections::HashMap;

use rayon::prelude::*;

use super::lookup;
use super::source::{Rows, Source, Vectors, read_rows};
use crate::buffers::Buffer;
use crate::entry::Positions;
use crate::error::{Error, Kind, Result};
use crate::format::malformed;
use crate::store::Store;

/// Fewer entries than this are looked up on the calling thread.
const PARALLEL_ENTRIES: usize = 8;

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

/// The vectors at `point` of `positions[n]` of entry `keys[n]` for each n, in that order, and what they are; positions count
/// as in [`Positions::At`]. There must be as many of both, and at least one, for without there is neither dtype nor width.
pub fn gather(
    store: &Store,
    point: &str,
    keys: &[impl AsRef<str> + Sync],
    positions: &[i64],
) -> Result<(Vectors, Buffer)> {
    store.reading()?;
    let (keys, wanted): (Vec<&str>, Vec<Wanted>) = by_key(keys, positions)?.into_iter().unzip();
    let find_one = |(key, wanted): (&&str, &Wanted)| find(store, point, key, &wanted.positions);
    let found: Vec<Result<Found>> = if keys.len() < PARALLEL_ENTRIES {
        keys.iter().zip(&wanted).map(find_one).collect()
    } else {
        store.pool().install(|| keys.par_iter().zip(&wanted).map(find_one).collect())?
    };
    let found = found.into_iter().collect::<Result<Vec<_>>>()?;
    let (first, vectors) =
        keys.first().zip(found.first()).map(|(key, found)| (*key, found.vectors)).ok_or_else(nothing_wanted)?;
    let row_bytes = vectors.bytes()?;
    let mut out = store.buffers().take(room(positions.len(), row_bytes)?)?;
    let mut places: Vec<_> = vec![(0, 0); positions.len()];
    for (source, ((key, wanted), found)) in keys.iter().zip(&wanted).zip(&found).enumerate() {
        vectors.check_same(first, found.vectors, key, point)?;
        for (&place, &row) in wanted.places.iter().zip(&found.rows) {
            *places.get_mut(place).ok_or_else(nothing_wanted)? = (source, row);
        }
    }
    let rows = places.into_iter().zip(out.chunks_exact_mut(row_bytes.max(1)));
    let rows = rows.map(|((source, first), out)| Rows { source, first, out }).collect();
    read_rows(store, point, vectors, rows, |number| Some((*keys.get(number)?, &found.get(number)?.source)))?;
    Ok((vectors, out))
}

/// Bytes of so many vectors.
pub(super) fn room(vectors: usize, row_bytes: usize) -> Result<usize> {
    vectors.checked_mul(row_bytes).ok_or_else(|| malformed(format!("`{vectors}` vectors of `{row_bytes}` bytes")))
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
