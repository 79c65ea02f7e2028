//! One hook point of many entries: activation after activation, or vectors of tokens.

use std::sync::Arc;

use actstore::reader::{Batch, Batches, Entries, Scan, Scanned, Tokens, Vectors};
use actstore::store::Store;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::buffer::PyRows;
use crate::errors::Outcome;
use crate::read_ahead::ReadAhead;
use crate::store::{Read, described};

#[pyclass(name = "Scan", module = "actstore._core", frozen)]
pub(crate) struct PyScan {
    pub(crate) scan: ReadAhead<Scan>,
}

#[pymethods]
impl PyScan {
    fn window<'py>(&self, py: Python<'py>) -> Outcome<Vec<(Bound<'py, PyString>, Read)>> {
        let window = self.scan.next_part(py)?;
        let read = |Scanned { key, layout, rows }| (PyString::new(py, &key), described(&layout, rows));
        Ok(window.into_iter().flatten().map(read).collect())
    }
}

#[pyclass(name = "Tokens", module = "actstore._core", frozen)]
pub(crate) struct PyTokens {
    vectors: Option<Vectors>,
    entries: Arc<Entries>,
    batches: ReadAhead<Batches>,
}

impl PyTokens {
    pub(crate) fn of(store: &Arc<Store>, tokens: Tokens, size: u64) -> Self {
        let (vectors, entries) = (tokens.vectors(), tokens.entries().clone());
        Self { vectors, entries, batches: ReadAhead::new(store, Batches::new(tokens, size)) }
    }
}

#[pymethods]
impl PyTokens {
    /// Name of the dtype, and values of a vector.
    fn vectors(&self) -> Option<(&'static str, u64)> {
        self.vectors.map(|vectors| (vectors.dtype.name(), vectors.width))
    }

    fn entries(&self) -> PyEntries {
        PyEntries(self.entries.clone())
    }

    fn batch(&self, py: Python<'_>) -> Outcome<Option<(PyRows, PyRows, PyRows)>> {
        let batch = self.batches.next_part(py)?;
        let all = |Batch { rows, entries, positions }| (PyRows::of(rows), PyRows::of(entries), PyRows::of(positions));
        Ok(batch.map(all))
    }
}

#[pyclass(name = "Entries", module = "actstore._core", frozen)]
pub(crate) struct PyEntries(Arc<Entries>);

#[pymethods]
impl PyEntries {
    fn keys(&self, py: Python<'_>, entries: PyBuffer<u32>) -> Outcome<Vec<String>> {
        let keys = entries.to_vec(py)?.into_iter().filter_map(|entry| self.0.key(entry));
        Ok(keys.map(str::to_owned).collect())
    }
}
