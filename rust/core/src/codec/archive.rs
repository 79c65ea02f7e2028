//! The `archive` encoding: a layer given the layer below, whose value at the same place says where to expect a value and
//! how closely. Layout: FORMAT.md, section 7.

mod coder;
mod context;
mod fit;
mod read;
mod write;

pub(super) use self::coder::Coder;
pub(super) use self::fit::{bits, fit};
pub(super) use self::read::decode;
pub(super) use self::write::encode;
use super::segments::Segments;
use super::{Coded, Model, malformed};
use crate::error::Result;

/// How a frame is cut, and for which rows it can be decoded.
#[derive(Clone, Copy)]
struct Shape {
    values: usize,
    row_values: usize,
    segments: Segments,
}

impl Shape {
    /// That of whole rows of values of two bytes, at least one.
    fn of(row_values: u64, bytes: usize) -> Result<Self> {
        let (row_values, values) = (usize::try_from(row_values).unwrap_or(0), bytes / 2);
        let whole = row_values > 0 && values.is_multiple_of(row_values) && bytes.is_multiple_of(2);
        if values == 0 || !whole {
            let message = format!("a frame of `{bytes}` bytes is not whole rows of `{row_values}` values");
            return Err(malformed(message));
        }
        Ok(Self { values, row_values, segments: Segments::new(values, row_values) })
    }

    /// Rows that are decoded together.
    fn step(self) -> usize {
        self.segments.period() / self.row_values
    }

    /// What a model says, if it is for such rows.
    fn coder(self, model: &Model) -> Result<&Coder> {
        let coder = model.archive()?;
        let (channels, row_values) = (coder.channels(), self.row_values);
        if channels == row_values {
            return Ok(coder);
        }
        Err(malformed(format!("a model of `{channels}` channels for rows of `{row_values}` values")))
    }
}

/// Rows of a frame that are decoded together: a range begins and ends at multiples of them, or at the frame's end.
pub(super) fn step(frame: &Coded<'_>) -> Result<usize> {
    Ok(Shape::of(frame.row_values, frame.bytes()?)?.step())
}

/// Room for what is known of values before they are coded, and for what does not stand among codes.
#[derive(Default)]
pub(super) struct Places {
    uppers: Vec<u16>,
    contexts: Vec<u16>,
    origins: Vec<u16>,
    steps: Vec<u8>,
    escapes: Vec<[u8; 2]>,
}

impl Places {
    /// Frees buffers if one has more than so many bytes.
    pub(super) fn give_back(&mut self, kept_bytes: usize) {
        let Self { uppers, contexts, origins, steps, escapes } = self;
        let of_two = [uppers, contexts, origins].map(|buffer| buffer.capacity()).into_iter();
        let longest = of_two.chain([escapes.capacity(), steps.capacity()]).max().unwrap_or(0);
        if 2 * longest > kept_bytes {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests;
