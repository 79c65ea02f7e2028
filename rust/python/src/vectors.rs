//! Token vectors: rows of many entries at once.

use actstore::error::{Error, Kind};
use actstore::reader::{Gather, Origins, Tokens, Vectors};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;

use crate::buffer::BytesMut;
use crate::errors::Outcome;

/// Name of the dtype, values and bytes of a vector.
type Described = (&'static str, u64, usize);

fn described(vectors: Vectors) -> Outcome<Described> {
    Ok((vectors.dtype.name(), vectors.width, vectors.bytes()?))
}

#[pyclass(name = "Gather", module = "actstore._core", frozen)]
pub(crate) struct PyGather {
    pub(crate) gather: Gather,
}

#[pymethods]
impl PyGather {
    fn __len__(&self) -> usize {
        self.gather.len()
    }

    fn vectors(&self) -> Outcome<Described> {
        described(self.gather.vectors())
    }

    fn read(&self, py: Python<'_>, out: &Bound<'_, PyAny>) -> Outcome<()> {
        let mut out = BytesMut::of(out)?;
        Ok(py.detach(|| self.gather.read(out.as_slice()))?)
    }
}

#[pyclass(name = "Tokens", module = "actstore._core", frozen)]
pub(crate) struct PyTokens {
    pub(crate) tokens: Tokens,
}

#[pymethods]
impl PyTokens {
    fn __len__(&self) -> usize {
        usize::try_from(self.tokens.len()).unwrap_or(usize::MAX)
    }

    fn vectors(&self) -> Outcome<Option<Described>> {
        self.tokens.vectors().map(described).transpose()
    }

    fn read(
        &self,
        py: Python<'_>,
        start: u64,
        out: &Bound<'_, PyAny>,
        entries: PyBuffer<u32>,
        positions: PyBuffer<i64>,
    ) -> Outcome<()> {
        let mut out = BytesMut::of(out)?;
        if entries.item_count() != positions.item_count() {
            return Err(Error::new(Kind::InvalidTensor, "as many entries as positions are told").into());
        }
        let (mut of_entries, mut at) = (vec![0; entries.item_count()], vec![0; positions.item_count()]);
        let origins = Origins { entries: &mut of_entries, positions: &mut at };
        py.detach(|| self.tokens.read(start, out.as_slice(), origins))?;
        entries.copy_from_slice(py, &of_entries)?;
        Ok(positions.copy_from_slice(py, &at)?)
    }

    fn keys(&self, py: Python<'_>, entries: PyBuffer<u32>) -> Outcome<Vec<String>> {
        let keys = entries.to_vec(py)?.into_iter().filter_map(|entry| self.tokens.key(entry));
        Ok(keys.map(str::to_owned).collect())
    }
}
