//! Stores and their entries.

use std::path::Path;
use std::sync::Arc;

use actstore::entry::{Positions, hex};
use actstore::error::{Error, Kind};
use actstore::manifest::Settings;
use actstore::reader::{self, Gather, Request, Tokens};
use actstore::store::{BackendSpec, Store, Stored};
use actstore::writer::Writer;
use actstore::{columns, inspect};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyCapsule;

use crate::arrow;
use crate::buffer::BytesMut;
use crate::errors::{Failure, Outcome};
use crate::vectors::{PyGather, PyTokens};
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

type Wanted<'py> = (Bound<'py, PyStoredEntry>, String, Option<PositionsLike>, Bound<'py, PyAny>);

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
        Ok(PyStoredEntry { entry })
    }

    fn documents(&self, py: Python<'_>) -> Outcome<Vec<String>> {
        py.detach(|| {
            let keys = self.store.reading()?.keys()?;
            let document = |key: &Arc<str>| self.store.entry(key)?.header().document.to_public_json();
            Ok(keys.iter().map(document).collect::<actstore::error::Result<_>>()?)
        })
    }

    fn metadata_stream<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyCapsule>> {
        let columns = py.detach(|| columns::columns(&self.store))?;
        Ok(arrow::stream(py, self.store.clone(), columns)?)
    }

    fn read(&self, py: Python<'_>, requests: Vec<Wanted<'_>>) -> Outcome<()> {
        let mut parts = Vec::with_capacity(requests.len());
        for (entry, point, given, buffer) in requests {
            parts.push((entry.get().entry.clone(), point, positions(given)?, BytesMut::of(&buffer)?));
        }
        BytesMut::check_disjoint(parts.iter().map(|(_, _, _, buffer)| buffer))?;
        py.detach(|| {
            let requests = parts.iter_mut().map(|(entry, point, positions, buffer)| {
                let (activation, rows, _) = reader::select(entry.as_ref(), point, positions)?;
                Ok(Request { entry: entry.clone(), activation, rows, out: buffer.as_slice() })
            });
            let requests = requests.collect::<actstore::error::Result<Vec<_>>>()?;
            Ok(reader::read(&self.store, requests)?)
        })
    }

    fn gather(
        &self,
        py: Python<'_>,
        point: &str,
        keys: Vec<PyBackedStr>,
        positions: PyBuffer<i64>,
    ) -> Outcome<PyGather> {
        let positions = positions.to_vec(py)?;
        let gather = py.detach(|| Gather::new(&self.store, point, &keys, &positions))?;
        Ok(PyGather { gather })
    }

    #[pyo3(signature = (point, positions, seed))]
    fn tokens(
        &self,
        py: Python<'_>,
        point: &str,
        positions: Option<PositionsLike>,
        seed: Option<u64>,
    ) -> Outcome<PyTokens> {
        let positions = self::positions(positions)?;
        let tokens = py.detach(|| Tokens::new(&self.store, point, positions, seed))?;
        Ok(PyTokens { tokens })
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

    fn document(&self) -> Outcome<String> {
        Ok(self.entry.header().document.to_public_json()?)
    }

    fn token_ids(&self) -> Option<Vec<u32>> {
        self.entry.header().token_ids.clone()
    }

    fn points(&self) -> Vec<(String, &'static str, Vec<u64>)> {
        let activations = self.entry.header().activations.iter();
        activations.map(|a| (a.point.to_string(), a.layout.dtype().name(), a.layout.shape().to_vec())).collect()
    }

    #[pyo3(signature = (point, positions))]
    fn layout(&self, point: &str, positions: Option<PositionsLike>) -> Outcome<(&'static str, Vec<u64>, u64)> {
        let (index, rows, bytes) = reader::select(self.entry.as_ref(), point, &self::positions(positions)?)?;
        let activation = self.entry.header().activations.get(index);
        let layout = activation.map(|activation| match rows {
            Some(rows) => activation.layout.with_rows(rows.len() as u64),
            None => Ok(activation.layout.clone()),
        });
        let layout = layout.ok_or_else(|| Failure::from(Error::new(Kind::PointNotStored, "no such activation")))??;
        Ok((layout.dtype().name(), layout.shape().to_vec(), bytes))
    }
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
