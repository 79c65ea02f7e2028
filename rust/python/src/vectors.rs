//! One hook point of many entries: activation after activation, or vectors of tokens.

use actstore::error::{Error, Kind};
use actstore::reader::{Ahead, Origins, Scan, Scanned, Tokens};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::buffer::PyRows;
use crate::errors::Outcome;
use crate::store::{Read, described};

#[pyclass(name = "Scan", module = "actstore._core", frozen)]
pub(crate) struct PyScan {
    pub(crate) scan: Ahead<Scan>,
}

#[pymethods]
impl PyScan {
    fn window<'py>(&self, py: Python<'py>) -> Outcome<Vec<(Bound<'py, PyString>, Read)>> {
        let window = py.detach(|| self.scan.next_part())?;
        let read = |Scanned { key, layout, rows }| (PyString::new(py, &key), described(&layout, rows));
        Ok(window.into_iter().flatten().map(read).collect())
    }
}

#[pyclass(name = "Tokens", module = "actstore._core", frozen)]
pub(crate) struct PyTokens {
    pub(crate) tokens: Tokens,
}

#[pymethods]
impl PyTokens {
    fn __len__(&self) -> usize {
        usize::try_from(self.tokens.len()).unwrap_or(usize::MAX)
    }

    /// Name of the dtype, and values of a vector.
    fn vectors(&self) -> Option<(&'static str, u64)> {
        self.tokens.vectors().map(|vectors| (vectors.dtype.name(), vectors.width))
    }

    fn read(&self, py: Python<'_>, start: u64, entries: PyBuffer<u32>, positions: PyBuffer<i64>) -> Outcome<PyRows> {
        if entries.item_count() != positions.item_count() {
            return Err(Error::new(Kind::InvalidTensor, "as many entries as positions are told").into());
        }
        let (mut of_entries, mut at) = (vec![0; entries.item_count()], vec![0; positions.item_count()]);
        let origins = Origins { entries: &mut of_entries, positions: &mut at };
        let rows = py.detach(|| self.tokens.read(start, origins))?;
        entries.copy_from_slice(py, &of_entries)?;
        positions.copy_from_slice(py, &at)?;
        Ok(PyRows::of(rows))
    }

    fn keys(&self, py: Python<'_>, entries: PyBuffer<u32>) -> Outcome<Vec<String>> {
        let keys = entries.to_vec(py)?.into_iter().filter_map(|entry| self.tokens.key(entry));
        Ok(keys.map(str::to_owned).collect())
    }
}
