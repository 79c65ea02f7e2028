//! Errors of the core as the exceptions of `actstore.errors`.

use std::error::Error as _;

use actstore::error::Error;
use pyo3::prelude::*;

/// Either language's error on its way to Python.
pub(crate) struct Failure(PyErr);

/// What binding functions return.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(Python::attach(|py| exception(py, &error).unwrap_or_else(|failed| failed)))
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let make = py.import("actstore.errors")?.getattr("error")?;
    let exception = PyErr::from_value(make.call1((error.kind().as_str(), error.to_string()))?);
    if let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<Error>()) {
        exception.set_cause(py, Some(self::exception(py, cause)?));
    }
    Ok(exception)
}
