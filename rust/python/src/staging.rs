//! The staging ring.

use std::sync::Arc;
use std::time::Duration;

use actstore::staging::Ring;
use pyo3::prelude::*;

use crate::buffer::PySlot;
use crate::errors::Outcome;

/// Longest wait before signals are looked at, so that Ctrl-C works.
const PATIENCE: Duration = Duration::from_millis(100);

#[pyclass(name = "Ring", module = "actstore._core", frozen)]
pub(crate) struct PyRing {
    pub(crate) ring: Arc<Ring>,
}

#[pymethods]
impl PyRing {
    #[new]
    fn new(py: Python<'_>, slot_bytes: usize, slots: usize) -> Outcome<Self> {
        let ring = py.detach(|| Ring::new(slot_bytes, slots))?;
        Ok(Self { ring: Arc::new(ring) })
    }

    #[getter]
    fn slot_bytes(&self) -> usize {
        self.ring.slots().first().map_or(0, |slot| slot.len())
    }

    fn slots(&self) -> Vec<PySlot> {
        let slots = self.ring.slots().iter().enumerate();
        slots.map(|(index, slot)| PySlot { index, slot: slot.clone() }).collect()
    }

    fn acquire(&self, py: Python<'_>) -> Outcome<usize> {
        if let Some(slot) = self.ring.acquire(Duration::ZERO)? {
            return Ok(slot);
        }
        loop {
            if let Some(slot) = py.detach(|| self.ring.acquire(PATIENCE))? {
                return Ok(slot);
            }
            py.check_signals()?;
        }
    }

    fn release(&self, index: usize) {
        self.ring.release(index);
    }

    fn close(&self) {
        self.ring.close();
    }

    #[getter]
    fn stall_seconds(&self) -> f64 {
        self.ring.stall_seconds()
    }
}
