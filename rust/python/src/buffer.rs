//! Memory that crosses the boundary: buffers of Python's seen as slices, slots and rows of ours seen as buffers.

use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use actstore::actlog::LoggedEntry;
use actstore::buffers::Buffer;
use actstore::error::{Error, Kind};
use actstore::pickle::Array;
use actstore::staging::Slot;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

use crate::errors::Outcome;

/// What the interpreter is told of memory.
const WRITABLE: c_int = 0;
const READ_ONLY: c_int = 1;

fn not_contiguous(what: &str) -> Error {
    Error::new(Kind::InvalidTensor, format!("{what} must be a contiguous buffer of bytes"))
}

/// A readable buffer of bytes, held for as long as its slice is used.
pub(crate) struct Bytes(PyBuffer<u8>);

impl Bytes {
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> Outcome<Self> {
        let buffer = PyBuffer::get(object)?;
        if buffer.is_c_contiguous() { Ok(Self(buffer)) } else { Err(not_contiguous("an activation").into()) }
    }

    #[allow(unsafe_code)]
    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.0.len_bytes() == 0 {
            return &[];
        }
        // SAFETY: the buffer is contiguous, `len_bytes` long, and kept alive by `self`. That nobody writes to it during
        // the call is the caller's part, as with every function that takes a buffer.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast(), self.0.len_bytes()) }
    }
}

/// One slot of a ring as a writable buffer.
#[pyclass(name = "Slot", module = "actstore._core", frozen)]
pub(crate) struct PySlot {
    pub(crate) index: usize,
    pub(crate) slot: Arc<Slot>,
}

#[pymethods]
impl PySlot {
    #[getter]
    fn index(&self) -> usize {
        self.index
    }

    fn __len__(&self) -> usize {
        self.slot.len()
    }

    #[allow(unsafe_code)]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut pyo3::ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let slot = &slf.get().slot;
        // SAFETY: `view` comes from the interpreter; the slot lives as long as `slf`.
        unsafe { fill(slf.as_any(), view, flags, (slot.as_ptr(), slot.len()), WRITABLE) }
    }
}

/// Rows that were read, as a writable buffer. Whoever has the last view of it gives the memory back.
#[pyclass(name = "Rows", module = "actstore._core", frozen)]
pub(crate) struct PyRows {
    /// Where the rows are, taken while nobody else could write to them.
    start: AtomicPtr<u8>,
    length: usize,
    _rows: Buffer,
}

impl PyRows {
    pub(crate) fn of(mut rows: Buffer) -> Self {
        Self { start: AtomicPtr::new(rows.as_mut_ptr()), length: rows.len(), _rows: rows }
    }
}

#[pymethods]
impl PyRows {
    fn __len__(&self) -> usize {
        self.length
    }

    #[allow(unsafe_code)]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut pyo3::ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let Self { start, length, .. } = slf.get();
        // SAFETY: `view` comes from the interpreter; the rows live as long as `slf`, and nothing here looks at them again.
        unsafe { fill(slf.as_any(), view, flags, (start.load(Ordering::Relaxed), *length), WRITABLE) }
    }
}

/// One layer of an entry of an old log, as a buffer of bytes that cannot be written.
#[pyclass(name = "LoggedLayer", module = "actstore._core", frozen)]
pub(crate) struct PyLoggedLayer {
    entry: Arc<LoggedEntry>,
    index: usize,
}

impl PyLoggedLayer {
    /// The layer of that number, if the entry has it.
    pub(crate) fn of(entry: &Arc<LoggedEntry>, index: usize) -> Option<Self> {
        let layer = Self { entry: entry.clone(), index };
        layer.array().is_some().then_some(layer)
    }

    fn array(&self) -> Option<&Array> {
        self.entry.layers.as_ref()?.arrays.get(self.index)?.as_ref()
    }
}

#[pymethods]
impl PyLoggedLayer {
    #[getter]
    fn dtype(&self) -> Option<&'static str> {
        self.array().map(|array| array.layout.dtype().name())
    }

    #[getter]
    fn shape(&self) -> Option<Vec<u64>> {
        self.array().map(|array| array.layout.shape().to_vec())
    }

    #[allow(unsafe_code)]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut pyo3::ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let layer = slf.get();
        let bytes = layer.array().map(|array| array.bytes.of(layer.entry.input())).unwrap_or_default();
        // SAFETY: `view` comes from the interpreter, which is told that the memory is not for writing; it lives as long as
        // `slf`.
        unsafe { fill(slf.as_any(), view, flags, (bytes.as_ptr().cast_mut(), bytes.len()), READ_ONLY) }
    }
}

/// Has `view` show memory, its start and length, and keep `owner` alive.
///
/// # Safety
///
/// `view` is one that the interpreter wants filled, and the memory lives as long as `owner`; it may be written to, unless
/// `read_only`.
#[allow(unsafe_code)]
unsafe fn fill(
    owner: &Bound<'_, PyAny>,
    view: *mut pyo3::ffi::Py_buffer,
    flags: c_int,
    (start, length): (*mut u8, usize),
    read_only: c_int,
) -> PyResult<()> {
    let length = isize::try_from(length).map_err(|_| PyBufferError::new_err("the memory is too large"))?;
    // SAFETY: as this function's own.
    let filled = unsafe { pyo3::ffi::PyBuffer_FillInfo(view, owner.as_ptr(), start.cast(), length, read_only, flags) };
    if filled == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
}
