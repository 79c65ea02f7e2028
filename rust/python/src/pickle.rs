//! Pickles, and what they say, as objects of Python.

use actstore::buffers::Buffers;
use actstore::pickle::{self, Array, Value};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::buffer::{Bytes, PyRows};
use crate::errors::Outcome;

#[pyfunction]
pub(crate) fn unpickle(py: Python<'_>, data: &Bound<'_, PyAny>) -> Outcome<Py<PyAny>> {
    let data = Bytes::of(data)?;
    let value = py.detach(|| pickle::decode(data.as_slice()))?;
    object(py, &value, data.as_slice())
}

/// A value that was read from `input`.
pub(crate) fn object(py: Python<'_>, value: &Value, input: &[u8]) -> Outcome<Py<PyAny>> {
    Ok(match value {
        Value::None => py.None(),
        Value::Bool(value) => value.into_py_any(py)?,
        Value::Int(value) => value.into_py_any(py)?,
        Value::Float(value) => value.into_py_any(py)?,
        Value::Text(text) => text.into_py_any(py)?,
        Value::Bytes(span) => PyBytes::new(py, span.of(input)).into_py_any(py)?,
        Value::List(items) => PyList::new(py, objects(py, items, input)?)?.into_py_any(py)?,
        Value::Tuple(items) => PyTuple::new(py, objects(py, items, input)?)?.into_py_any(py)?,
        Value::Dict(items) => dict(py, items, input)?.into_py_any(py)?,
        Value::Array(array) => numpy(py, array, input)?,
    })
}

fn objects(py: Python<'_>, items: &[Value], input: &[u8]) -> Outcome<Vec<Py<PyAny>>> {
    items.iter().map(|item| object(py, item, input)).collect()
}

fn dict<'py>(py: Python<'py>, items: &[(Value, Value)], input: &[u8]) -> Outcome<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, value) in items {
        dict.set_item(object(py, key, input)?, object(py, value, input)?)?;
    }
    Ok(dict)
}

/// A copy: bytes of a pickle lie at any address, and are not for writing.
fn numpy(py: Python<'_>, array: &Array, input: &[u8]) -> Outcome<Py<PyAny>> {
    let bytes = array.bytes.of(input);
    let mut copy = Buffers::new(0).take(bytes.len())?;
    py.detach(|| copy.copy_from_slice(bytes));
    let (dtype, shape) = (array.layout.dtype().name(), array.layout.shape().to_vec());
    let read = (PyRows::of(copy), dtype, shape);
    Ok(py.import("actstore.arrays")?.call_method1("as_numpy", read)?.unbind())
}
