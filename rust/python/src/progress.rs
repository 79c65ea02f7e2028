//! Work that takes long, tells how far it is, and can be stopped from Python.

use actstore::error::{Error, Kind, Result};
use pyo3::call::PyCallArgs;
use pyo3::prelude::*;

use crate::errors::Outcome;

/// Does `work` without the interpreter. `work` calls its argument once a step, which calls `progress`; what that raises,
/// Ctrl-C too, stops the work and is raised.
pub(crate) fn watched<T: Send, A: for<'py> PyCallArgs<'py>>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&mut dyn FnMut(A) -> Result<()>) -> Result<T> + Send,
) -> Outcome<T> {
    let mut raised = None;
    let done = py.detach(|| {
        work(&mut |arguments| {
            Python::attach(|py| step(py, progress.as_ref(), arguments)).map_err(|error| {
                raised = Some(error);
                Error::new(Kind::Closed, "stopped by its caller")
            })
        })
    });
    match raised {
        Some(error) => Err(error.into()),
        None => Ok(done?),
    }
}

fn step(py: Python<'_>, progress: Option<&Py<PyAny>>, arguments: impl for<'py> PyCallArgs<'py>) -> PyResult<()> {
    py.check_signals()?;
    progress.map_or(Ok(()), |progress| progress.call1(py, arguments).map(drop))
}
