//! The extension module `actstore._core`: conversion between Python and the core. A list; no logic.
#![allow(missing_docs, reason = "documented in _core.pyi, where its users read")]

mod actlog;
mod arrow;
mod buffer;
mod documents;
mod errors;
mod migrate;
mod pickle;
mod progress;
mod read_ahead;
mod report;
mod staging;
mod store;
mod vectors;
mod writer;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use crate::actlog::{PyActlogLmdb, PyLoggedEntry, put_exported};
    #[pymodule_export]
    use crate::buffer::{PyLoggedLayer, PyRows, PySlot};
    #[pymodule_export]
    use crate::documents::PyDocuments;
    #[pymodule_export]
    use crate::migrate::{compare, migrate};
    #[pymodule_export]
    use crate::pickle::unpickle;
    #[pymodule_export]
    use crate::staging::PyRing;
    #[pymodule_export]
    use crate::store::{PyStore, PyStoredEntry, select_positions};
    #[pymodule_export]
    use crate::vectors::{PyEntries, PyScan, PyTokens};
    #[pymodule_export]
    use crate::writer::{PyBatch, PyWriter};

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
    #[pymodule_export]
    const FORMAT_VERSION: u8 = actstore::format::FORMAT_VERSION;

    #[pyfunction]
    fn error_kinds() -> Vec<&'static str> {
        actstore::error::Kind::ALL.iter().map(|kind| kind.as_str()).collect()
    }

    #[pyfunction]
    fn codecs(backend: &str) -> Result<Vec<&'static str>, crate::errors::Failure> {
        let codecs = actstore::store::BackendSpec::find(backend)?.codecs;
        Ok(codecs.iter().map(|codec| codec.name()).collect())
    }

    #[pyfunction]
    fn backends() -> Vec<&'static str> {
        actstore::store::BACKENDS.iter().map(|backend| backend.name).collect()
    }

    #[pyfunction]
    fn dtypes() -> Vec<(&'static str, usize)> {
        actstore::tensor::Dtype::ALL.iter().map(|dtype| (dtype.name(), dtype.size())).collect()
    }

    #[pyfunction]
    fn key_of_prompt(prompt: &str) -> String {
        actstore::entry::key_of_prompt(prompt)
    }

    #[pyfunction]
    fn key_of_ids(token_ids: Vec<u32>) -> String {
        actstore::entry::key_of_ids(&token_ids)
    }
}
