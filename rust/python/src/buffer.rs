//! Memory that crosses the boundary: buffers of Python's seen as slices, slots of ours seen as buffers.

use std::os::raw::c_int;
use std::sync::Arc;

use actstore::actlog::LoggedEntry;
use actstore::error::{Error, Kind};
use actstore::pickle::Array;
use actstore::staging::Slot;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

use crate::errors::Outcome;

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

/// A writable buffer of bytes, held for as long as its slice is used.
pub(crate) struct BytesMut(PyBuffer<u8>);

impl BytesMut {
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> Outcome<Self> {
        let buffer = PyBuffer::get(object)?;
        let writable = buffer.is_c_contiguous() && !buffer.readonly();
        if writable { Ok(Self(buffer)) } else { Err(not_contiguous("a buffer to read into").into()) }
    }

    /// Refuses buffers that share memory: they are filled at the same time.
    pub(crate) fn check_disjoint<'a>(buffers: impl Iterator<Item = &'a Self>) -> Outcome<()> {
        let range = |Self(buffer): &Self| (buffer.buf_ptr().addr(), buffer.len_bytes());
        let mut ranges: Vec<_> = buffers.map(range).filter(|(_, length)| *length > 0).collect();
        ranges.sort_unstable();
        let overlap = ranges.windows(2).any(|pair| matches!(pair, [left, right] if left.0 + left.1 > right.0));
        if overlap { Err(Error::new(Kind::InvalidTensor, "buffers to read into share memory").into()) } else { Ok(()) }
    }

    #[allow(unsafe_code)]
    pub(crate) fn as_slice(&mut self) -> &mut [u8] {
        if self.0.len_bytes() == 0 {
            return &mut [];
        }
        // SAFETY: contiguous, writable, `len_bytes` long, kept alive by `self`. That nobody else uses it during the call
        // is the caller's part, as with every function that fills a buffer.
        unsafe { std::slice::from_raw_parts_mut(self.0.buf_ptr().cast(), self.0.len_bytes()) }
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
        let length = isize::try_from(slot.len()).map_err(|_| PyBufferError::new_err("the slot is too large"))?;
        // SAFETY: `view` comes from the interpreter; the memory lives as long as `slf`, which the view keeps alive.
        let filled =
            unsafe { pyo3::ffi::PyBuffer_FillInfo(view, slf.as_ptr(), slot.as_ptr().cast(), length, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
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
        let length = isize::try_from(bytes.len()).map_err(|_| PyBufferError::new_err("the layer is too large"))?;
        let start = bytes.as_ptr().cast_mut().cast();
        // SAFETY: `view` comes from the interpreter, which is told that the memory is not for writing; the memory lives as
        // long as `slf`, which the view keeps alive.
        let filled = unsafe { pyo3::ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, length, 1, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
