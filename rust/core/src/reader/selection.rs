//! What of an entry is wanted: an activation, some of its rows, and what these are.

use std::sync::Arc;

use super::source::Vectors;
use super::{Request, activation_of, read};
use crate::buffers::Buffer;
use crate::entry::Positions;
use crate::error::Result;
use crate::format::size;
use crate::store::{Store, Stored};
use crate::tensor::Layout;

/// Rows of a stored activation that a selection names.
#[derive(Debug)]
pub struct Selected {
    /// Index of the activation in its header.
    pub activation: usize,
    /// The rows, in order; `None` for all.
    pub rows: Option<Vec<u64>>,
    /// Dtype and shape of what was selected.
    pub layout: Layout,
}

/// Which rows of a stored activation a selection names.
pub fn select(entry: &dyn Stored, point: &str, positions: &Positions) -> Result<Selected> {
    let header = entry.header();
    let index = header.find(point)?;
    let activation = activation_of(entry, index)?;
    let rows = header.document.rows(&activation.point, &activation.layout, positions)?;
    let layout = match &rows {
        Some(rows) => activation.layout.with_rows(rows.len() as u64)?,
        None => activation.layout.clone(),
    };
    Ok(Selected { activation: index, rows, layout })
}

/// The selected rows of activations of an entry, each in memory of its own, and what they are.
pub fn read_selected(
    store: &Store,
    entry: &Arc<dyn Stored>,
    points: &[impl AsRef<str>],
    positions: &Positions,
) -> Result<Vec<(Layout, Buffer)>> {
    let wanted = points.iter().map(|point| {
        let selected = select(entry.as_ref(), point.as_ref(), positions)?;
        Ok((entry.clone(), selected))
    });
    read_into_own(store, wanted.collect::<Result<_>>()?)
}

/// What was selected of entries, each in memory of its own.
pub(super) fn read_into_own(store: &Store, wanted: Vec<(Arc<dyn Stored>, Selected)>) -> Result<Vec<(Layout, Buffer)>> {
    let (mut rest, mut found) = (Vec::with_capacity(wanted.len()), Vec::with_capacity(wanted.len()));
    for (entry, Selected { activation, rows, layout }) in wanted {
        let buffer = store.buffers().take(size(layout.bytes())?)?;
        rest.push((entry, activation, rows));
        found.push((layout, buffer));
    }
    let requests = rest.into_iter().zip(&mut found).map(|((entry, activation, rows), (_, out))| {
        let out = &mut **out;
        Request { entry, activation, rows, out }
    });
    read(store, requests.collect())?;
    Ok(found)
}

/// Which token vectors of an entry a selection names: the index of its activation, what they are, and the rows; `None` for
/// all.
pub(super) fn lookup(
    entry: &dyn Stored,
    point: &str,
    positions: &Positions,
) -> Result<(usize, Vectors, Option<Vec<u64>>)> {
    let header = entry.header();
    let index = header.find(point)?;
    let activation = activation_of(entry, index)?;
    let vectors = Vectors::of(entry, activation)?;
    Ok((index, vectors, header.document.rows(&activation.point, &activation.layout, positions)?))
}
