//! Positions of tokens: those that are selected, and those whose rows are stored.

use super::MAX_TOKENS;
use crate::error::{Error, Kind, Result};

/// A selection of positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Every one.
    All,
    /// Those of the prompt.
    Prompt,
    /// Those after the prompt.
    Response,
    /// The last one fed to the model.
    Last,
    /// These, in this order; negative ones count from the end.
    At(Vec<i64>),
}

impl Positions {
    /// The selection called `name`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "all" => Ok(Self::All),
            "prompt" => Ok(Self::Prompt),
            "response" => Ok(Self::Response),
            "last" => Ok(Self::Last),
            _ => {
                let message = format!("unknown positions `{name}`: `all`, `prompt`, `response`, `last` or indices");
                Err(Error::new(Kind::UnknownPosition, message))
            }
        }
    }

    /// Ascending positions that the selection names in a sequence of `tokens`.
    pub fn select(&self, tokens: u64, prompt_length: Option<u64>) -> Result<Vec<u64>> {
        if tokens > MAX_TOKENS {
            let message = format!("a sequence of `{tokens}` tokens is above the limit of {MAX_TOKENS}");
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        let boundary = || prompt_length.map(|n| n.min(tokens)).ok_or_else(|| no_prompt_length("the sequence"));
        Ok(match self {
            Self::All => (0..tokens).collect(),
            Self::Prompt => (0..boundary()?).collect(),
            Self::Response => (boundary()?..tokens).collect(),
            Self::Last => (tokens.saturating_sub(1)..tokens).collect(),
            Self::At(indices) => {
                let mut positions = indices.iter().map(|&i| absolute(i, tokens)).collect::<Result<Vec<_>>>()?;
                positions.sort_unstable();
                positions.dedup();
                positions
            }
        })
    }
}

fn absolute(index: i64, tokens: u64) -> Result<u64> {
    let position = match u64::try_from(index) {
        Ok(position) => Some(position).filter(|&position| position < tokens),
        Err(_) => tokens.checked_sub(index.unsigned_abs()),
    };
    position.ok_or_else(|| {
        let message = format!("position `{index}` does not exist in a sequence of `{tokens}` tokens");
        Error::new(Kind::UnknownPosition, message)
    })
}

/// The positions whose rows are stored: ranges, and how many rows come before each.
pub(crate) struct StoredPositions<'a> {
    pub(super) ranges: &'a [[u64; 2]],
    before: Vec<u64>,
    pub(crate) count: u64,
}

impl<'a> StoredPositions<'a> {
    /// Of a document's ranges: none where rows are not tied to tokens.
    pub(crate) fn of(ranges: Option<&'a [[u64; 2]]>) -> Self {
        let ranges = ranges.unwrap_or_default();
        let lengths = || ranges.iter().map(|[start, stop]| stop - start);
        let before = lengths().scan(0, |rows, length| Some(std::mem::replace(rows, *rows + length))).collect();
        Self { ranges, before, count: lengths().sum() }
    }

    /// Rows of positions below this one.
    pub(super) fn rows_before(&self, position: u64) -> u64 {
        let range = self.ranges.partition_point(|[_, stop]| *stop <= position);
        let found = self.ranges.get(range).zip(self.before.get(range));
        found.map_or(self.count, |([start, _], before)| before + position.saturating_sub(*start))
    }

    pub(super) fn row_of(&self, position: u64) -> Option<u64> {
        let range = self.ranges.partition_point(|[_, stop]| *stop <= position);
        self.ranges.get(range).filter(|[start, _]| *start <= position).map(|_| self.rows_before(position))
    }

    /// The position of a row.
    pub(crate) fn position_of(&self, row: u64) -> Option<u64> {
        let range = self.before.partition_point(|&before| before <= row).checked_sub(1)?;
        let ([start, _], before) = self.ranges.get(range).zip(self.before.get(range))?;
        Some(start + row - before).filter(|_| row < self.count)
    }
}

pub(super) fn show_ranges(ranges: &[[u64; 2]]) -> String {
    let shown: Vec<_> = ranges.iter().map(|[start, stop]| format!("{start} to {}", stop - 1)).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

pub(super) fn no_prompt_length(what: &str) -> Error {
    let message = format!(
        "{what} does not say where its prompt ends; label it with a prompt length, or select `all`, `last` or indices"
    );
    Error::new(Kind::UnknownPosition, message)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test data")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stored_position_is_found_where_counting_finds_it(
            gaps in prop::collection::vec((0..4_u64, 1..4_u64), 0..6), position in 0..48_u64,
        ) {
            let mut end = 0;
            let range = |(gap, length)| {
                let start = end + gap;
                end = start + length;
                [start, end]
            };
            let ranges: Vec<[u64; 2]> = gaps.into_iter().map(range).collect();
            let all: Vec<u64> = ranges.iter().flat_map(|&[start, stop]| start..stop).collect();
            let stored = StoredPositions::of(Some(&ranges));
            prop_assert_eq!(stored.count, all.len() as u64);
            for row in 0..=stored.count {
                prop_assert_eq!(stored.position_of(row), all.get(row as usize).copied());
            }
            prop_assert_eq!(stored.rows_before(position), all.iter().filter(|&&one| one < position).count() as u64);
            prop_assert_eq!(stored.row_of(position), all.iter().position(|&one| one == position).map(|row| row as u64));
        }
    }
}
