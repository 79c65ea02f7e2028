//! The bytes of a pickle, taken from the front.

use std::ops::Range;

use super::{at_byte, malformed};
use crate::error::{Error, Kind, Result};

/// What is left of a pickle. Ranges and places count from the beginning of `bytes`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    /// The bytes from `at` on.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// All of the bytes, those taken among them.
    pub(super) fn all(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next `length` bytes, as a range.
    pub(super) fn take(&mut self, length: u64) -> Result<Range<usize>> {
        let left = self.bytes.len().saturating_sub(self.at);
        match usize::try_from(length) {
            Ok(length) if length <= left => {
                let range = self.at..self.at + length;
                self.at = range.end;
                Ok(range)
            }
            _ => Err(self.too_short(format!("`{length}` bytes are due, and `{left}` are left"))),
        }
    }

    /// Bytes after their length, a little-endian integer of `width` bytes.
    pub(super) fn sized(&mut self, width: usize) -> Result<Range<usize>> {
        let length = self.number(width)?;
        self.take(length)
    }

    /// A little-endian integer of at most 8 bytes.
    pub(super) fn number(&mut self, width: usize) -> Result<u64> {
        let range = self.take(width as u64)?;
        let bytes = self.bytes.get(range).unwrap_or_default();
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        let range = self.take(1)?;
        Ok(self.bytes.get(range.start).copied().unwrap_or_default())
    }

    /// What comes before the next line feed, as a range; the line feed is taken as well.
    pub(super) fn line(&mut self) -> Result<Range<usize>> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(self.too_short("a line has no end"));
        };
        let range = self.at..self.at + length;
        self.at = range.end + 1;
        Ok(range)
    }

    /// A line that is a number or a name.
    pub(super) fn line_text(&mut self) -> Result<&'a str> {
        let at = self.at;
        let range = self.line()?;
        let line = self.bytes.get(range).unwrap_or_default();
        std::str::from_utf8(line).map_err(|_| malformed(at, "a line is not UTF-8"))
    }

    fn too_short(&self, message: impl std::fmt::Display) -> Error {
        at_byte(Kind::Truncated, self.at, message)
    }
}
