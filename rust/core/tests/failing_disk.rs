//! The disk is full, or refuses to sync: what was committed stays, the caller is told, and after a failed sync nothing
//! more is written through that handle.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actstore::error::Kind;
use actstore::store::Store;
use actstore::writer::Writer;
use sample::failing::{Failing, FailingDisk};
use sample::{MEMORY, draft, holds, put, settings};

fn store(root: &Path) -> (Arc<Store>, Arc<Failing>) {
    let (disk, failing) = FailingDisk::new();
    let store = Store::create_on(Some(root), "shards", settings("planes", "error", "commit"), MEMORY, disk).unwrap();
    (Arc::new(store), failing)
}

#[test]
fn a_full_disk_costs_only_what_did_not_fit() {
    for space in (0..6000).step_by(97) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let (store, failing) = store(&root);
        put(&store, [draft(1, 0)]).unwrap();
        failing.space.store(space, Ordering::SeqCst);
        let first = put(&store, [draft(2, 0), draft(3, 0)]);
        if let Err(error) = &first {
            assert_eq!(error.kind(), Kind::StorageFull, "{space}: {error}");
            assert!(store.entry("k2").is_err() && store.entry("k3").is_err());
            failing.space.store(u64::MAX / 2, Ordering::SeqCst);
            put(&store, [draft(2, 0), draft(3, 0)])
                .unwrap_or_else(|e| panic!("{space}: no retry after space was freed: {e}"));
        }
        failing.space.store(u64::MAX / 2, Ordering::SeqCst);
        store.close().unwrap();
        let again = Store::open(&root, true, MEMORY).unwrap();
        for n in 1..4 {
            holds(&again, n, 0).unwrap();
        }
    }
}

#[test]
fn a_failed_sync_ends_writing_until_the_store_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let (store, failing) = store(&root);
    put(&store, [draft(1, 0)]).unwrap();
    failing.sync_fails.store(true, Ordering::SeqCst);
    assert_eq!(put(&store, [draft(2, 0)]).unwrap_err().kind(), Kind::StorageIo);
    failing.sync_fails.store(false, Ordering::SeqCst);
    let error = put(&store, [draft(3, 0)]).unwrap_err();
    assert_eq!(error.kind(), Kind::WriterFailed);
    assert!(
        error.to_string().ends_with("close the store and open it again: cannot sync: input/output error"),
        "{error}"
    );
    assert_eq!(store.delete(&["k1".to_owned()]).unwrap_err().kind(), Kind::WriterFailed);
    holds(&store, 1, 0).unwrap();
    store.close().unwrap();
    let again = Arc::new(Store::open(&root, true, MEMORY).unwrap());
    holds(&again, 1, 0).unwrap();
    put(&again, [draft(3, 0)]).unwrap();
    holds(&again, 3, 0).unwrap();
}

#[test]
fn the_first_failure_of_a_session_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (store, failing) = store(&directory.path().join("store"));
    let writer = Writer::new(store.clone()).unwrap();
    failing.space.store(100, Ordering::SeqCst);
    writer.put(draft(1, 0)).unwrap();
    assert_eq!(writer.flush().unwrap_err().kind(), Kind::StorageFull);
    failing.space.store(u64::MAX / 2, Ordering::SeqCst);
    for _ in 0..2 {
        assert_eq!(writer.put(draft(2, 0)).unwrap_err().kind(), Kind::StorageFull);
    }
    assert_eq!(writer.close().unwrap_err().kind(), Kind::StorageFull);
    assert_eq!(store.reading().unwrap().len().unwrap(), 0);
    put(&store, [draft(2, 0)]).unwrap();
    holds(&store, 2, 0).unwrap();
}
