//! Writing sessions: several threads, a store closed under them, a queue that never runs dry, and what is refused.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::sync::Arc;

use actstore::encode::Draft;
use actstore::entry::Document;
use actstore::error::Kind;
use actstore::hook_point::HookPoint;
use actstore::store::Store;
use actstore::tensor::{Dtype, Layout, Tensor};
use actstore::writer::Writer;
use sample::{POINT, create, draft, holds, put, settings};

fn zeros(shape: &[u64]) -> Tensor {
    let layout = Layout::new(Dtype::UInt8, shape.to_vec()).unwrap();
    let bytes = vec![0; usize::try_from(layout.bytes()).unwrap()];
    Tensor::new(layout, bytes).unwrap()
}

fn document(json: &str) -> Document {
    Document::parse(json).unwrap()
}

#[test]
fn closing_a_store_commits_what_its_writers_hold() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "planes");
    let writer = Writer::new(store.clone()).unwrap();
    (0..40).for_each(|n| writer.put(draft(n, 0)).unwrap());
    store.close().unwrap();
    assert_eq!(writer.put(draft(99, 0)).unwrap_err().kind(), Kind::Closed);
    writer.close().unwrap();
    let store = Store::open(&root, false, sample::MEMORY).unwrap();
    (0..40).for_each(|n| holds(&store, n, 0).unwrap());
}

#[test]
fn threads_share_a_small_queue() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = Store::create(Some(&root), "shards", settings("raw", "error", "commit"), 8 << 10).unwrap();
    let store = Arc::new(store);
    let writer = Writer::new(store.clone()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let writer = &writer;
            scope.spawn(move || (0..50).for_each(|n| writer.put(draft(thread * 50 + n, 0)).unwrap()));
        }
    });
    writer.close().unwrap();
    assert_eq!(writer.stats().entries, 200);
    assert_eq!(writer.stats().queue_bytes, 0);
    (0..200).for_each(|n| holds(&store, n, 0).unwrap());
}

#[test]
fn a_commit_does_not_wait_for_the_queue_to_run_dry() {
    let store = Store::create(None, "memory", settings("raw", "replace", "commit"), 1 << 30).unwrap();
    let writer = Writer::new(Arc::new(store)).unwrap();
    let small = || Draft::new(document(r#"{"key":"k","key_recipe":"user"}"#), None, Vec::new()).unwrap();
    let puts = (0..5_000_000).take_while(|_| writer.put(small()).is_ok() && writer.stats().commits == 0).count();
    assert!(puts < 5_000_000, "nothing was committed while entries kept arriving");
}

#[test]
fn thousands_of_queued_entries_need_no_more_stack_than_one() {
    let store = Store::create(None, "memory", settings("zstd", "error", "commit"), 1 << 30).unwrap();
    let store = Arc::new(store);
    let points: Vec<_> = (0..7).map(|n| HookPoint::new(&format!("blocks.{n}.hook_resid_post")).unwrap()).collect();
    let one = |n| {
        let document = document(&format!(r#"{{"key":"k{n}","key_recipe":"user"}}"#));
        let activations = points.iter().map(|point| (point.clone(), zeros(&[24, 768])));
        Draft::new(document, None, activations.collect()).unwrap()
    };
    let drafts: Vec<_> = (0..4000).map(one).collect();
    put(&store, drafts).unwrap();
    assert_eq!(store.reading().unwrap().len().unwrap(), 4000);
}

#[test]
fn what_could_not_be_read_back_is_refused() {
    let many = (0..65_537).map(|n| (HookPoint::new(&format!("m.{n}")).unwrap(), zeros(&[1])));
    let error = Draft::new(document(r#"{"key":"k","key_recipe":"user"}"#), None, many.collect()).unwrap_err();
    assert_eq!(error.kind(), Kind::LimitExceeded);

    let rows = document(r#"{"key":"k","key_recipe":"user","positions":[[0,3]]}"#);
    let point = HookPoint::new(POINT).unwrap();
    let error = Draft::new(rows, None, vec![(point.clone(), zeros(&[5, 2]))]).unwrap_err();
    assert_eq!(error.kind(), Kind::RowsNotTokens);
    assert_eq!(error.to_string(), "`blocks.0.hook_resid_post` of entry `k` has `5` rows for `3` positions");

    let beyond = document(r#"{"key":"k","key_recipe":"user","prompt_length":4}"#);
    let error = Draft::new(beyond, Some(vec![1, 2]), vec![(point, zeros(&[2, 2]))]).unwrap_err();
    assert_eq!(error.to_string(), "`prompt_length` is `4` of `2` tokens");
}

#[test]
fn a_directory_that_only_looks_like_ours_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let theirs = directory.path().join("logs/0.log");
    std::fs::create_dir(directory.path().join("logs")).unwrap();
    std::fs::write(&theirs, "what the user logged").unwrap();
    let made = Store::create(Some(directory.path()), "shards", settings("raw", "error", "commit"), 1 << 20);
    assert_eq!(made.unwrap_err().kind(), Kind::StoreExists);
    assert_eq!(std::fs::read(&theirs).unwrap(), b"what the user logged");
}

#[test]
fn directories_above_a_new_store_are_made() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("runs/today/store");
    let store = create(&root, "raw");
    put(&store, [draft(1, 0)]).unwrap();
    holds(&store, 1, 0).unwrap();
}

#[test]
fn a_lost_manifest_is_missed_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "raw");
    put(&store, [draft(1, 0)]).unwrap();
    store.close().unwrap();
    std::fs::remove_file(root.join("actstore.manifest")).unwrap();
    let error = Store::open(&root, false, sample::MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::MissingFile);
    assert!(error.to_string().contains("actstore.manifest"), "{error}");
    let again = Store::create(Some(&root), "shards", settings("raw", "error", "commit"), sample::MEMORY);
    assert_eq!(again.unwrap_err().kind(), Kind::StoreExists);
}
