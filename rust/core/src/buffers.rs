//! Memory that was read into, kept to be read into again. To get fresh memory from the system costs several times what
//! filling it does: a page fault for every 4 KiB.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Kind, Result};

/// Smaller buffers are the allocator's own affair.
const POOLED_BYTES: usize = 4 << 10;
/// Of larger ones it is asked first whether there is as much.
const LARGE_BYTES: usize = 1 << 30;
/// By how many sizes memory doubles: a buffer is at most an eighth longer than what was asked for.
const SIZES: usize = 8;

/// Largest buffer that a thread keeps.
const LENT_BYTES: usize = 8 << 20;

thread_local! {
    /// Those that are not lent.
    static LENT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `length` bytes of any content, which the thread keeps for the next time. Many are fresh, and cost nothing until they
/// are written to: that there is so much to read into them may be a damaged file's word.
pub fn lend<T>(length: usize, f: impl FnOnce(&mut [u8]) -> Result<T>) -> Result<T> {
    if length > LENT_BYTES {
        return f(&mut fresh(length)?);
    }
    let mut bytes = LENT.with_borrow_mut(Vec::pop).unwrap_or_default();
    // Never made shorter: to lengthen it again would write zeros for nothing.
    if bytes.len() < length {
        bytes.resize(length, 0);
    }
    let result = f(bytes.get_mut(..length).unwrap_or_default());
    LENT.with_borrow_mut(|free| free.push(bytes));
    result
}

/// Buffers that are free, up to some bytes in all.
#[derive(Debug)]
pub struct Buffers {
    most: AtomicUsize,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    bytes: usize,
    by_size: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Buffers {
    /// Keeps at most `most` bytes that nobody uses.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: AtomicUsize::new(most), free: Mutex::default() })
    }

    /// A buffer of `length` bytes of any content; dropping it gives the memory back.
    ///
    /// Nobody is waited for: whoever finds the free ones in use, or locked for ever because the process was forked, goes to
    /// the allocator.
    pub fn take(self: &Arc<Self>, length: usize) -> Result<Buffer> {
        let size = size_of_buffer(length);
        let free = self.free.try_lock().ok().and_then(|mut free| free.take(size));
        let bytes = free.map_or_else(|| fresh(size), Ok)?;
        Ok(Buffer { bytes, length, home: self.clone() })
    }

    /// Keeps nothing from now on.
    pub fn close(&self) {
        self.most.store(0, Ordering::Relaxed);
        let free = self.free.try_lock().map(|mut free| std::mem::take(&mut *free));
        drop(free);
    }

    fn give_back(&self, bytes: Vec<u8>) {
        let (size, most) = (bytes.len(), self.most.load(Ordering::Relaxed));
        if !(POOLED_BYTES..=most).contains(&size) {
            return;
        }
        let Ok(mut free) = self.free.try_lock() else { return };
        // What is kept is of sizes that are not asked for any more.
        let outdated = if free.bytes + size > most { std::mem::take(&mut *free) } else { Free::default() };
        free.bytes += size;
        free.by_size.entry(size).or_default().push(bytes);
        drop(free);
        drop(outdated);
    }
}

impl Free {
    fn take(&mut self, size: usize) -> Option<Vec<u8>> {
        let found = self.by_size.get_mut(&size)?.pop()?;
        self.bytes -= size;
        Some(found)
    }
}

fn fresh(size: usize) -> Result<Vec<u8>> {
    if size >= LARGE_BYTES && Vec::<u8>::new().try_reserve_exact(size).is_err() {
        let message = format!("there is no memory for `{size}` bytes at once; read fewer positions at a time");
        return Err(Error::new(Kind::LimitExceeded, message));
    }
    Ok(vec![0; size])
}

fn size_of_buffer(length: usize) -> usize {
    if length < POOLED_BYTES {
        return length;
    }
    let step = (1_usize << length.ilog2()) / SIZES;
    length.checked_next_multiple_of(step).unwrap_or(length)
}

/// Bytes that go back to where they are from.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Arc<Buffers>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_given_back_is_used_again() {
        let buffers = Buffers::new(1 << 20);
        let first = buffers.take(100_000).unwrap();
        let place = first.as_ptr();
        drop(first);
        let again = buffers.take(99_000).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (place, 99_000));
        assert_ne!(buffers.take(100_000).unwrap().as_ptr(), place);
    }

    #[test]
    fn no_more_is_kept_than_was_said() {
        let buffers = Buffers::new(1 << 20);
        let many: Vec<_> = (1..40).map(|n| buffers.take(n * 10_000).unwrap()).collect();
        drop(many);
        drop(buffers.take(2 << 20).unwrap());
        let free = buffers.free.lock().unwrap();
        let kept: usize = free.by_size.iter().map(|(size, some)| size * some.len()).sum();
        assert_eq!(kept, free.bytes);
        assert!((1..=1 << 20).contains(&kept), "{kept}");
    }

    #[test]
    fn nothing_is_kept_once_they_are_closed() {
        let buffers = Buffers::new(1 << 20);
        let late = buffers.take(100_000).unwrap();
        drop(buffers.take(100_000).unwrap());
        assert!(buffers.free.lock().unwrap().bytes > 0);
        buffers.close();
        drop(late);
        let free = buffers.free.lock().unwrap();
        assert_eq!((free.bytes, free.by_size.len()), (0, 0));
    }

    #[test]
    fn lent_memory_is_lent_again_and_never_twice_at_once() {
        let place = |bytes: &mut [u8]| Ok(bytes.as_ptr());
        let first = lend(100_000, place).unwrap();
        let (outer, inner) = lend(90_000, |outer| Ok((outer.as_ptr(), lend(90_000, place)?))).unwrap();
        assert_eq!(first, outer);
        assert_ne!(inner, outer);
        assert_eq!(lend(LENT_BYTES + 1, |bytes| Ok(bytes.len())).unwrap(), LENT_BYTES + 1);
        assert_eq!(LENT.with_borrow(|free| free.iter().map(Vec::len).max()), Some(100_000));
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let error = Buffers::new(0).take(usize::MAX / 4).unwrap_err();
        assert_eq!(error.kind(), Kind::LimitExceeded);
        assert!(error.to_string().contains("fewer positions"), "{error}");
    }

    #[test]
    fn a_buffer_has_the_length_that_was_asked_for_and_wastes_little() {
        for length in [0, 1, 4095, 4096, 4097, 100_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1] {
            let buffer = Buffers::new(0).take(length).unwrap();
            assert_eq!(buffer.len(), length);
            assert!(buffer.bytes.len() <= length + length / 8, "{length}");
        }
    }
}
