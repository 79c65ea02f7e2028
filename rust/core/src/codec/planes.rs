//! The `planes` encoding: exponents entropy-coded, sign and mantissa as they are. Layout: FORMAT.md, section 7.

mod coder;
mod read;
mod write;

pub(super) use self::coder::{Coder, bits, fit};
pub(super) use self::read::decode;
pub(super) use self::write::encode;
use super::segments::Segments;
use super::words::Parts;
use super::{Model, malformed};
use crate::error::Result;
use crate::tensor::Dtype;

/// Of a frame's flags: it brings its own code.
const OWN: u8 = 1;
/// Instead of codes there is the plane of the highest bytes.
const PLANE: u8 = 4;
/// Flags, and which low planes are compressed.
const HEADER_BYTES: usize = 2;
/// Bytes of the length of a compressed low plane.
const LENGTH_BYTES: usize = 4;

/// How the values of a frame are laid out.
#[derive(Clone, Copy)]
struct Shape {
    parts: Parts,
    values: usize,
    row_values: usize,
    segments: Segments,
}

impl Shape {
    /// That of whole rows of a dtype of floats, at least one.
    fn of(dtype: Dtype, row_values: u64, bytes: usize) -> Result<Self> {
        let parts = Parts::of(dtype).ok_or_else(|| malformed(format!("a frame of planes of {}", dtype.name())))?;
        let (row_values, values) = (usize::try_from(row_values).unwrap_or(0), bytes / parts.width);
        let whole = row_values > 0 && values.is_multiple_of(row_values) && bytes.is_multiple_of(parts.width);
        if values == 0 || !whole {
            let message = format!("a frame of `{bytes}` bytes is not whole rows of `{row_values}` values");
            return Err(malformed(message));
        }
        Ok(Self { parts, values, row_values, segments: Segments::new(values, row_values) })
    }

    /// The same with nothing below the symbols in the highest byte.
    fn with_tops(self) -> Self {
        Self { parts: Parts { mid: 0, ..self.parts }, ..self }
    }

    /// What a model says, if it is for such rows.
    fn coder(self, model: &Model) -> Result<&Coder> {
        let coder = model.planes()?;
        if coder.fits(self.row_values) {
            return Ok(coder);
        }
        let (channels, row_values) = (coder.channels(), self.row_values);
        Err(malformed(format!("a model of `{channels}` channels for rows of `{row_values}` values")))
    }
}
