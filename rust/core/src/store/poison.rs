//! What ends a writer for good.

use std::path::Path;

use crate::error::{Error, Kind, Result};

/// The failure after which nobody knows what is on the disk: nothing more is written through the handle.
#[derive(Default)]
pub(super) struct Poison(Option<Error>);

impl Poison {
    /// Ends writing because of `error`.
    pub(super) fn set(&mut self, error: &Error) {
        self.0.get_or_insert_with(|| error.clone());
    }

    /// Whether writing has ended.
    pub(super) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Refuses to write to the store at `root` once writing has ended.
    pub(super) fn check(&self, root: &Path) -> Result<()> {
        let Some(first) = &self.0 else { return Ok(()) };
        let message = format!(
            "an earlier failure ended writing to `{}`; close the store and open it again: {first}",
            root.display()
        );
        Err(Error::new(Kind::WriterFailed, message).because(first.clone()))
    }
}
