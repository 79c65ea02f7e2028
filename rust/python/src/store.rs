//! Stores and their entries.

use std::path::Path;
use std::sync::Arc;

use actstore::buffers::Buffer;
use actstore::entry::{Positions, hex};
use actstore::manifest::Settings;
use actstore::reader::{self, Documents, Scan, Tokens};
use actstore::store::{BackendSpec, Store, Stored};
use actstore::tensor::Layout;
use actstore::writer::Writer;
use actstore::{columns, inspect};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyCapsule;

use crate::arrow;
use crate::buffer::PyRows;
use crate::documents::{self, PyDocuments};
use crate::errors::Outcome;
use crate::read_ahead::ReadAhead;
use crate::vectors::{PyScan, PyTokens};
use crate::writer::PyWriter;

/// `all`, `prompt`, `response`, `last`, indices, or nothing for all.
#[derive(FromPyObject)]
pub(crate) enum PositionsLike {
    Named(String),
    At(Vec<i64>),
}

pub(crate) fn positions(given: Option<PositionsLike>) -> Outcome<Positions> {
    Ok(match given {
        None => Positions::All,
        Some(PositionsLike::Named(name)) => Positions::parse(&name)?,
        Some(PositionsLike::At(indices)) => Positions::At(indices),
    })
}

#[pyclass(name = "Store", module = "actstore._core", frozen)]
pub(crate) struct PyStore {
    pub(crate) store: Arc<Store>,
}

#[pymethods]
impl PyStore {
    #[staticmethod]
    fn create(py: Python<'_>, path: Option<&str>, backend: &str, settings: &str, memory: u64) -> Outcome<Self> {
        let settings = Settings::parse(settings, BackendSpec::find(backend)?.codecs)?;
        let store = py.detach(|| Store::create(path.map(Path::new), backend, settings, memory))?;
        Ok(Self { store: Arc::new(store) })
    }

    #[staticmethod]
    fn open(py: Python<'_>, path: &str, writable: bool, memory: u64) -> Outcome<Self> {
        let store = py.detach(|| Store::open(Path::new(path), writable, memory))?;
        Ok(Self { store: Arc::new(store) })
    }

    #[getter]
    fn path(&self) -> Option<String> {
        self.store.path().map(|path| path.display().to_string())
    }

    #[getter]
    fn backend(&self) -> &'static str {
        self.store.backend_name()
    }

    #[getter]
    fn writable(&self) -> bool {
        self.store.is_writable()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.store.is_closed()
    }

    /// The manifest, flattened for people.
    fn settings(&self) -> Outcome<String> {
        Ok(self.store.manifest().to_public_json()?)
    }

    /// Messages of what was found damaged when opening.
    fn damage(&self) -> Outcome<Vec<String>> {
        Ok(self.store.reading()?.damage().iter().map(ToString::to_string).collect())
    }

    fn __len__(&self, py: Python<'_>) -> Outcome<usize> {
        Ok(py.detach(|| self.store.reading().and_then(|backend| backend.len()))?)
    }

    fn __contains__(&self, py: Python<'_>, key: &str) -> Outcome<bool> {
        let found = py.detach(|| self.store.reading().and_then(|backend| backend.content_id(key)))?;
        Ok(found.is_some())
    }

    fn keys(&self, py: Python<'_>) -> Outcome<Vec<String>> {
        let keys = py.detach(|| self.store.reading().and_then(|backend| backend.keys()))?;
        Ok(keys.iter().map(ToString::to_string).collect())
    }

    fn entry(&self, py: Python<'_>, key: &str) -> Outcome<PyStoredEntry> {
        let entry = py.detach(|| self.store.entry(key))?;
        Ok(PyStoredEntry { store: self.store.clone(), entry })
    }

    fn documents(&self, py: Python<'_>) -> Outcome<PyDocuments> {
        let documents = py.detach(|| Documents::new(&self.store))?;
        Ok(PyDocuments { documents: ReadAhead::new(&self.store, documents) })
    }

    fn metadata_stream<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyCapsule>> {
        let columns = py.detach(|| columns::columns(&self.store))?;
        Ok(arrow::stream(py, self.store.clone(), columns)?)
    }

    /// Of all entries without `keys`.
    #[pyo3(signature = (point, positions, keys))]
    fn scan(
        &self,
        py: Python<'_>,
        point: String,
        positions: Option<PositionsLike>,
        keys: Option<Vec<String>>,
    ) -> Outcome<PyScan> {
        let positions = self::positions(positions)?;
        let scan = py.detach(|| Scan::new(&self.store, point, positions, keys))?;
        Ok(PyScan { scan: ReadAhead::new(&self.store, scan) })
    }

    fn gather(&self, py: Python<'_>, point: &str, keys: Vec<PyBackedStr>, positions: PyBuffer<i64>) -> Outcome<Read> {
        let positions = positions.to_vec(py)?;
        let (vectors, rows) = py.detach(|| reader::gather(&self.store, point, &keys, &positions))?;
        Ok((PyRows::of(rows), vectors.dtype.name(), vec![keys.len() as u64, vectors.width]))
    }

    #[pyo3(signature = (point, positions, seed, batch_size))]
    fn tokens(
        &self,
        py: Python<'_>,
        point: &str,
        positions: Option<PositionsLike>,
        seed: Option<u64>,
        batch_size: u64,
    ) -> Outcome<PyTokens> {
        let positions = self::positions(positions)?;
        let tokens = py.detach(|| Tokens::new(&self.store, point, positions, seed))?;
        Ok(PyTokens::of(&self.store, tokens, batch_size))
    }

    fn delete(&self, py: Python<'_>, keys: Vec<String>) -> Outcome<u64> {
        py.detach(|| Ok(self.store.delete(&keys)?))
    }

    fn writer(&self, py: Python<'_>) -> Outcome<PyWriter> {
        let writer = py.detach(|| Writer::new(self.store.clone()))?;
        Ok(PyWriter { writer })
    }

    fn info(&self, py: Python<'_>) -> Outcome<String> {
        let info = py.detach(|| inspect::info(&self.store))?;
        Ok(crate::report::info(&info))
    }

    #[pyo3(signature = (progress=None))]
    fn verify(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> Outcome<String> {
        let report = crate::progress::watched(py, progress, |step| {
            inspect::verify(&self.store, |done, total| step((done, total)))
        });
        Ok(crate::report::verification(&report?))
    }

    fn close(&self, py: Python<'_>) -> Outcome<()> {
        py.detach(|| Ok(self.store.close()?))
    }
}

#[pyclass(name = "StoredEntry", module = "actstore._core", frozen)]
pub(crate) struct PyStoredEntry {
    store: Arc<Store>,
    entry: Arc<dyn Stored>,
}

#[pymethods]
impl PyStoredEntry {
    #[getter]
    fn key(&self) -> &str {
        self.entry.header().document.key()
    }

    #[getter]
    fn content_id(&self) -> String {
        hex(&self.entry.content_id())
    }

    fn document<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyAny>> {
        documents::parse(py, &self.entry.header().document.to_public_json()?)
    }

    fn token_ids(&self) -> Option<Vec<u32>> {
        self.entry.header().token_ids.clone()
    }

    fn points(&self) -> Vec<(String, &'static str, Vec<u64>)> {
        let activations = self.entry.header().activations.iter();
        activations.map(|a| (a.point.to_string(), a.layout.dtype().name(), a.layout.shape().to_vec())).collect()
    }

    #[pyo3(signature = (point, positions))]
    fn layout(&self, point: &str, positions: Option<PositionsLike>) -> Outcome<(&'static str, Vec<u64>)> {
        let layout = reader::select(self.entry.as_ref(), point, &self::positions(positions)?)?.layout;
        Ok((layout.dtype().name(), layout.shape().to_vec()))
    }

    #[pyo3(signature = (points, positions))]
    fn read(&self, py: Python<'_>, points: Vec<PyBackedStr>, positions: Option<PositionsLike>) -> Outcome<Vec<Read>> {
        let positions = self::positions(positions)?;
        let found = py.detach(|| reader::read_selected(&self.store, &self.entry, &points, &positions))?;
        Ok(found.into_iter().map(|(layout, rows)| described(&layout, rows)).collect())
    }
}

/// Rows, the name of their dtype, and their shape.
pub(crate) type Read = (PyRows, &'static str, Vec<u64>);

pub(crate) fn described(layout: &Layout, rows: Buffer) -> Read {
    (PyRows::of(rows), layout.dtype().name(), layout.shape().to_vec())
}

/// Ascending positions that a selection names in a sequence of `tokens`.
#[pyfunction]
#[pyo3(signature = (positions, tokens, prompt_length))]
pub(crate) fn select_positions(
    positions: Option<PositionsLike>,
    tokens: u64,
    prompt_length: Option<u64>,
) -> Outcome<Vec<u64>> {
    Ok(self::positions(positions)?.select(tokens, prompt_length)?)
}
