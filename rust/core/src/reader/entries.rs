//! The entries whose token vectors are read, and where each vector comes from.

use std::sync::Arc;

use crate::entry::{ContentId, Document, StoredPositions};
use crate::error::{Error, Result};
use crate::format::malformed;

/// The entries that have vectors, in the order of writing.
#[derive(Default)]
pub struct Entries(pub(super) Vec<Listed>);

pub(super) struct Listed {
    pub(super) key: Arc<str>,
    pub(super) content_id: ContentId,
    /// Number of the vector after its last one.
    pub(super) end: u64,
    pub(super) selected: Box<[Stretch]>,
}

/// Selected rows that are consecutive, as their positions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Selected rows before it.
    pub(super) before: u64,
    pub(super) row: u64,
    pub(super) position: u64,
    pub(super) rows: u64,
}

impl Entries {
    /// The key of an entry by its number.
    pub fn key(&self, entry: u32) -> Option<&str> {
        self.0.get(entry as usize).map(|listed| &*listed.key)
    }

    /// Vectors of all of them.
    pub(super) fn len(&self) -> u64 {
        self.0.last().map_or(0, |listed| listed.end)
    }

    /// The entry that a vector is of, the stretch that it lies in, and which row of that it is.
    pub(super) fn place(&self, number: u64) -> Result<(usize, Stretch, u64)> {
        let entry = self.0.partition_point(|listed| listed.end <= number);
        let begin = entry.checked_sub(1).and_then(|before| self.0.get(before)).map_or(0, |before| before.end);
        let (stretch, inside) =
            self.0.get(entry).and_then(|listed| listed.stretch(number - begin)).ok_or_else(beyond_the_last)?;
        Ok((entry, stretch, inside))
    }
}

impl Listed {
    /// The stretch of a selected row, and which of its rows that is.
    fn stretch(&self, nth: u64) -> Option<(Stretch, u64)> {
        let after = self.selected.partition_point(|stretch| stretch.before <= nth);
        let stretch = *self.selected.get(after.checked_sub(1)?)?;
        Some((stretch, nth - stretch.before))
    }
}

pub(super) fn beyond_the_last() -> Error {
    malformed("vectors beyond the last one")
}

/// `selected` of the rows of an activation, or all.
pub(super) fn stretches(document: &Document, rows: u64, selected: Option<Vec<u64>>) -> Box<[Stretch]> {
    let stored = StoredPositions::of(document.positions.as_deref());
    let tied = document.positions.as_deref().filter(|_| stored.count == rows);
    let Some(selected) = selected else {
        return consecutive(tied.unwrap_or(&[[0, rows]]));
    };
    let mut stretches: Vec<Stretch> = Vec::new();
    for row in selected {
        let position = tied.and_then(|_| stored.position_of(row)).unwrap_or(row);
        let follows = |last: &&mut Stretch| (last.row + last.rows, last.position + last.rows) == (row, position);
        let before = stretches.last().map_or(0, |last| last.before + last.rows);
        match stretches.last_mut().filter(follows) {
            Some(last) => last.rows += 1,
            None => stretches.push(Stretch { before, row, position, rows: 1 }),
        }
    }
    stretches.into()
}

/// All rows, whose positions are these ranges, one after the other.
fn consecutive(ranges: &[[u64; 2]]) -> Box<[Stretch]> {
    let mut before = 0;
    let stretch = |&[start, stop]: &[u64; 2]| {
        let rows = stop - start;
        let row = before;
        before += rows;
        Stretch { before: row, row, position: start, rows }
    };
    ranges.iter().map(stretch).filter(|stretch| stretch.rows > 0).collect()
}
