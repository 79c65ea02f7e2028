//! Documents as Python's dicts.

use actstore::error::{Error, Kind};
use actstore::reader::Documents;
use jiter::{PythonParse, StringCacheMode};
use pyo3::prelude::*;

use crate::errors::Outcome;
use crate::read_ahead::ReadAhead;

/// A document as a dict.
pub(crate) fn parse<'py>(py: Python<'py>, json: &str) -> Outcome<Bound<'py, PyAny>> {
    let parser = PythonParse { cache_mode: StringCacheMode::Keys, ..PythonParse::default() };
    let refused = |e: jiter::JsonError| Error::new(Kind::InvalidMetadata, format!("metadata cannot be shown: {e}"));
    Ok(parser.python_parse(py, json.as_bytes()).map_err(refused)?)
}

#[pyclass(name = "Documents", module = "actstore._core", frozen)]
pub(crate) struct PyDocuments {
    pub(crate) documents: ReadAhead<Documents>,
}

#[pymethods]
impl PyDocuments {
    fn window<'py>(&self, py: Python<'py>) -> Outcome<Vec<Bound<'py, PyAny>>> {
        let window = self.documents.next_part(py)?;
        window.iter().flatten().map(|json| parse(py, json)).collect()
    }
}
