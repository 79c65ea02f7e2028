//! The ring of slots: page-aligned memory that a model's hooks fill and the writer empties, allocated once.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::lock::lock;

/// Largest ring, in bytes.
const MAX_RING_BYTES: usize = 1 << 36;
/// Alignment of a slot.
pub const PAGE_BYTES: usize = 4096;

/// One slot's memory. Whoever holds the slot's index, between [`Ring::acquire`] and [`Ring::release`], may write to it.
#[derive(Debug)]
pub struct Slot {
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a slot is plain memory. The ring hands an index to one holder at a time, and passes it on under a mutex.
#[allow(unsafe_code)]
unsafe impl Send for Slot {}
// SAFETY: as above; shared references give out a pointer only, and `Ring::with_bytes` reads while its caller holds the index.
#[allow(unsafe_code)]
unsafe impl Sync for Slot {}

impl Slot {
    #[allow(unsafe_code)]
    fn new(layout: Layout) -> Self {
        // SAFETY: the layout has a size above zero, which `Ring::new` checks.
        let memory = unsafe { alloc_zeroed(layout) };
        NonNull::new(memory).map_or_else(|| handle_alloc_error(layout), |memory| Self { memory, layout })
    }

    /// First byte, aligned to a page; valid as long as the slot.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Bytes of the slot.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never: a ring has no empty slots.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Slot {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed once.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

#[derive(Debug, Default)]
struct Free {
    slots: VecDeque<usize>,
    closed: bool,
}

/// Slots, recycled. A caller that finds none free waits; the time waited is counted.
#[derive(Debug)]
pub struct Ring {
    slots: Vec<std::sync::Arc<Slot>>,
    free: Mutex<Free>,
    released: Condvar,
    stall_nanoseconds: AtomicU64,
}

impl Ring {
    /// `slots` slots of `slot_bytes` each, both above zero.
    pub fn new(slot_bytes: usize, slots: usize) -> Result<Self> {
        let possible = |layout: &Layout| {
            let bytes = layout.size().saturating_mul(slots);
            (1..=MAX_RING_BYTES).contains(&bytes)
        };
        let layout = Layout::from_size_align(slot_bytes, PAGE_BYTES).ok().filter(possible);
        let layout = layout.ok_or_else(|| {
            Error::new(Kind::InvalidOption, format!("a ring of `{slots}` slots of `{slot_bytes}` bytes cannot be"))
        })?;
        Ok(Self {
            slots: (0..slots).map(|_| Slot::new(layout).into()).collect(),
            free: Mutex::new(Free { slots: (0..slots).collect(), closed: false }),
            released: Condvar::new(),
            stall_nanoseconds: AtomicU64::new(0),
        })
    }

    /// All slots.
    pub fn slots(&self) -> &[std::sync::Arc<Slot>] {
        &self.slots
    }

    /// A free slot, or `None` if none became free within `patience`.
    pub fn acquire(&self, patience: Duration) -> Result<Option<usize>> {
        let mut free = lock(&self.free);
        let started = Instant::now();
        let slot = loop {
            if free.closed {
                return Err(Error::new(Kind::Closed, "the staging ring is closed"));
            }
            if let Some(slot) = free.slots.pop_front() {
                break Some(slot);
            }
            let left = patience.saturating_sub(started.elapsed());
            if left.is_zero() {
                break None;
            }
            free = self.released.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        let waited = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stall_nanoseconds.fetch_add(waited, Ordering::Relaxed);
        Ok(slot)
    }

    /// Gives a slot back; one that is free already stays so.
    pub fn release(&self, slot: usize) {
        let mut free = lock(&self.free);
        if slot < self.slots.len() && !free.slots.contains(&slot) {
            free.slots.push_back(slot);
        }
        drop(free);
        self.released.notify_one();
    }

    /// Lends the bytes of a slot that the caller holds.
    pub fn with_bytes<R>(&self, slot: usize, f: impl FnOnce(&[u8]) -> Result<R>) -> Result<R> {
        let held = !lock(&self.free).slots.contains(&slot);
        let memory =
            self.slots.get(slot).filter(|_| held).ok_or_else(|| {
                Error::new(Kind::InvalidOption, format!("slot `{slot}` is not held; acquire it first"))
            })?;
        // SAFETY: the memory is initialised, lives as long as `self`, and its holder, the caller, does not write meanwhile.
        #[allow(unsafe_code)]
        let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr(), memory.len()) };
        f(bytes)
    }

    /// Wakes whoever waits; nothing can be acquired any more.
    pub fn close(&self) {
        lock(&self.free).closed = true;
        self.released.notify_all();
    }

    /// Seconds that callers waited for a slot, together.
    pub fn stall_seconds(&self) -> f64 {
        Duration::from_nanos(self.stall_nanoseconds.load(Ordering::Relaxed)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_and_recycled_in_order() {
        let ring = Ring::new(100, 2).unwrap();
        assert!(ring.slots().iter().all(|slot| slot.as_ptr().addr() % PAGE_BYTES == 0 && slot.len() == 100));
        let now = Duration::ZERO;
        assert_eq!(ring.acquire(now).unwrap(), Some(0));
        assert_eq!(ring.acquire(now).unwrap(), Some(1));
        assert_eq!(ring.acquire(now).unwrap(), None);
        ring.release(1);
        ring.release(1);
        assert_eq!(ring.acquire(now).unwrap(), Some(1));
        assert_eq!(ring.acquire(now).unwrap(), None);
    }

    #[test]
    fn only_a_held_slot_is_lent() {
        let ring = Ring::new(8, 1).unwrap();
        assert_eq!(ring.with_bytes(0, |_| Ok(())).unwrap_err().kind(), Kind::InvalidOption);
        ring.acquire(Duration::ZERO).unwrap();
        assert_eq!(ring.with_bytes(0, |bytes| Ok(bytes.len())).unwrap(), 8);
        assert_eq!(ring.with_bytes(7, |_| Ok(())).unwrap_err().kind(), Kind::InvalidOption);
    }

    #[test]
    fn waiting_is_counted_and_closing_wakes() {
        let ring = std::sync::Arc::new(Ring::new(8, 1).unwrap());
        ring.acquire(Duration::ZERO).unwrap();
        let waiter = std::thread::spawn({
            let ring = ring.clone();
            move || ring.acquire(Duration::from_secs(60))
        });
        std::thread::sleep(Duration::from_millis(20));
        ring.close();
        assert_eq!(waiter.join().unwrap().unwrap_err().kind(), Kind::Closed);
        assert!(Ring::new(0, 1).is_err() && Ring::new(1, 0).is_err());
    }
}
