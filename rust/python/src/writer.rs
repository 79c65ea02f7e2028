//! Writing sessions.

use std::sync::Arc;

use actstore::batch::{Batch, Piece};
use actstore::encode::Draft;
use actstore::entry::Document;
use actstore::hook_point::HookPoint;
use actstore::tensor::{Dtype, Layout, Tensor};
use actstore::writer::Writer;
use pyo3::prelude::*;
use serde_json::json;

use crate::buffer::Bytes;
use crate::errors::{Failure, Outcome};
use crate::staging::PyRing;

type Given<'py> = (String, String, Vec<u64>, Bound<'py, PyAny>);

#[pyclass(name = "Writer", module = "actstore._core", frozen)]
pub(crate) struct PyWriter {
    pub(crate) writer: Arc<Writer>,
}

#[pymethods]
impl PyWriter {
    fn put(
        &self,
        py: Python<'_>,
        document: &str,
        token_ids: Option<Vec<u32>>,
        activations: Vec<Given<'_>>,
    ) -> Outcome<()> {
        let held = activations.iter().map(|(_, _, _, buffer)| Bytes::of(buffer)).collect::<Outcome<Vec<_>>>()?;
        let described: Vec<_> = activations.into_iter().map(|(name, dtype, shape, _)| (name, dtype, shape)).collect();
        py.detach(|| {
            let tensors = described.iter().zip(&held).map(|((name, dtype, shape), bytes)| {
                let layout = Layout::new(Dtype::parse(dtype)?, shape.clone())?;
                Ok((HookPoint::new(name)?, Tensor::new(layout, bytes.as_slice().to_vec())?))
            });
            self.writer.check()?;
            let draft =
                Draft::new(Document::parse(document)?, token_ids, tensors.collect::<actstore::error::Result<_>>()?)?;
            Ok(self.writer.put(draft)?)
        })
    }

    fn begin(&self, rows: usize) -> Outcome<PyBatch> {
        Ok(PyBatch { batch: Batch::new(self.writer.clone(), rows)? })
    }

    fn flush(&self, py: Python<'_>) -> Outcome<()> {
        py.detach(|| Ok(self.writer.flush()?))
    }

    fn close(&self, py: Python<'_>) -> Outcome<()> {
        py.detach(|| Ok(self.writer.close()?))
    }

    fn stats(&self) -> String {
        let s = self.writer.stats();
        json!({
            "entries": s.entries, "duplicates": s.duplicates, "rejected": s.rejected, "tokens": s.tokens,
            "raw_bytes": s.raw_bytes, "stored_bytes": s.stored_bytes, "commits": s.commits, "syncs": s.syncs,
            "queue_bytes": s.queue_bytes, "queue_peak_bytes": s.queue_peak_bytes, "wait_seconds": s.wait_seconds,
        })
        .to_string()
    }
}

#[pyclass(name = "Batch", module = "actstore._core", frozen)]
pub(crate) struct PyBatch {
    batch: Batch,
}

#[pymethods]
impl PyBatch {
    fn point(&self, name: &str, dtype: &str, row_shape: Vec<u64>) -> Outcome<usize> {
        Ok(self.batch.point(name, Dtype::parse(dtype)?, &row_shape)?)
    }

    fn rows(&self, counts: Vec<u64>) -> Outcome<usize> {
        Ok(self.batch.rows(&counts)?)
    }

    fn take(
        &self,
        py: Python<'_>,
        ring: &PyRing,
        slot: usize,
        pieces: Vec<(usize, usize, u64, u64, usize)>,
    ) -> Outcome<()> {
        let pieces: Vec<_> = pieces
            .into_iter()
            .map(|(point, layout, first, rows, offset)| Piece { point, layout, first, rows, offset })
            .collect();
        py.detach(|| self.batch.take(&ring.ring, slot, &pieces)).map_err(Failure::from)
    }

    #[pyo3(signature = (row, document, token_ids, captured, select))]
    fn finish(
        &self,
        py: Python<'_>,
        row: usize,
        document: &str,
        token_ids: Vec<u32>,
        captured: u64,
        select: Option<Vec<u64>>,
    ) -> Outcome<()> {
        py.detach(|| {
            let document = Document::parse(document)?;
            Ok(self.batch.finish(row, document, token_ids, captured, select.as_deref())?)
        })
    }

    fn reject(&self, row: usize) -> Outcome<()> {
        Ok(self.batch.reject(row)?)
    }
}
