//! Old logs of activations and their entries.

use std::path::Path;
use std::sync::Arc;

use actstore::actlog::{Actlog, LoggedEntry};
use actstore::pickle::Value;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::buffer::{Bytes, PyLoggedLayer};
use crate::errors::Outcome;
use crate::pickle::object;

#[pyclass(name = "ActlogLmdb", module = "actstore._core", frozen)]
pub(crate) struct PyActlogLmdb {
    log: Actlog,
}

#[pymethods]
impl PyActlogLmdb {
    #[new]
    fn new(py: Python<'_>, path: &str) -> Outcome<Self> {
        let log = py.detach(|| Actlog::open(Path::new(path)))?;
        Ok(Self { log })
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.log.len()).unwrap_or(usize::MAX)
    }

    fn keys(&self, py: Python<'_>) -> Outcome<Vec<String>> {
        Ok(py.detach(|| self.log.keys())?)
    }

    fn keys_after(&self, py: Python<'_>, after: &str, most: usize) -> Outcome<Vec<String>> {
        Ok(py.detach(|| self.log.keys_after(after, most))?)
    }

    fn get(&self, py: Python<'_>, key: &str) -> Outcome<PyLoggedEntry> {
        let entry = py.detach(|| self.log.get(key))?;
        Ok(PyLoggedEntry { entry: Arc::new(entry) })
    }

    fn metadata(&self, py: Python<'_>, key: &str) -> Outcome<Py<PyAny>> {
        let metadata = py.detach(|| self.log.metadata(key))?;
        owned(py, metadata.as_ref())
    }
}

#[pyfunction]
pub(crate) fn put_exported(
    py: Python<'_>,
    path: &str,
    values: Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>,
) -> Outcome<()> {
    let values = values.iter().map(|(key, value)| Ok((Bytes::of(key)?, Bytes::of(value)?)));
    let values: Vec<_> = values.collect::<Outcome<_>>()?;
    let slices: Vec<_> = values.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
    Ok(py.detach(|| actstore::store::lmdb::put_exported(Path::new(path), &slices))?)
}

/// A value whose bytes are its own, or nothing.
fn owned(py: Python<'_>, value: Option<&Value>) -> Outcome<Py<PyAny>> {
    object(py, value.unwrap_or(&Value::None), &[])
}

#[pyclass(name = "LoggedEntry", module = "actstore._core", frozen)]
pub(crate) struct PyLoggedEntry {
    entry: Arc<LoggedEntry>,
}

#[pymethods]
impl PyLoggedEntry {
    #[getter]
    fn era(&self) -> &'static str {
        self.entry.era.as_str()
    }

    #[getter]
    fn fields(&self, py: Python<'_>) -> Outcome<Py<PyAny>> {
        object(py, &self.entry.fields, self.entry.input())
    }

    #[getter]
    fn compression(&self, py: Python<'_>) -> Outcome<Py<PyAny>> {
        owned(py, self.entry.compression.as_ref())
    }

    #[getter]
    fn metadata(&self, py: Python<'_>) -> Outcome<Py<PyAny>> {
        owned(py, self.entry.metadata.as_ref())
    }

    #[getter]
    fn layers(&self, py: Python<'_>) -> Outcome<Py<PyAny>> {
        let Some(layers) = &self.entry.layers else { return Ok(py.None()) };
        let all = (0..layers.arrays.len()).map(|index| PyLoggedLayer::of(&self.entry, index));
        let Some(names) = &layers.names else { return Ok(all.collect::<Vec<_>>().into_py_any(py)?) };
        let named = PyDict::new(py);
        for (name, layer) in names.iter().zip(all) {
            named.set_item(name, layer)?;
        }
        Ok(named.into_py_any(py)?)
    }
}
