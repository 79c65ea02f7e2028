//! What every backend must do, written once. A new backend adds a line to `BACKENDS` of the store and one here.

use std::path::Path;
use std::sync::Arc;

use super::{BackendSpec, EncodedEntry, Store};
use crate::encode::Draft;
use crate::entry::{Document, Positions};
use crate::error::Kind;
use crate::format::EntryHeader;
use crate::hook_point::HookPoint;
use crate::inspect;
use crate::manifest::Settings;
use crate::reader::{Request, Selected, read, select};
use crate::tensor::{Dtype, Layout, Tensor};
use crate::writer::Writer;

pub(super) const MEMORY: u64 = 64 << 20;

/// With the backend's own codec.
pub(crate) fn settings(backend: &str, on_conflict: &str) -> Settings {
    let json = format!(r#"{{"overflow":"error","on_conflict":"{on_conflict}","durability":"commit"}}"#);
    Settings::parse(&json, BackendSpec::find(backend).unwrap().codecs).unwrap()
}

/// An entry of a document, given as JSON, and nothing else.
pub(crate) fn bare_entry(json: &str) -> EncodedEntry {
    let document = Document::parse(json).unwrap();
    let header = EntryHeader { document, token_ids: None, activations: Vec::new() };
    EncodedEntry { header, content_id: [0; 32], chunks: Vec::new(), models: Vec::new() }
}

/// An entry of two points whose bytes follow from `seed`.
pub(super) fn draft(key: &str, seed: u8) -> Draft {
    let json = format!(
        r#"{{"key":"{key}","key_recipe":"user","prompt_length":2,"positions":[[0,5]],"metadata":{{"seed":{seed}}}}}"#
    );
    let tensor = |dtype: Dtype, shape: Vec<u64>| {
        let layout = Layout::new(dtype, shape).unwrap();
        let bytes =
            (0..layout.bytes()).map(|n| u8::try_from(n % 251).unwrap().wrapping_mul(3).wrapping_add(seed)).collect();
        Tensor::new(layout, bytes).unwrap()
    };
    let activations = vec![
        (HookPoint::new("blocks.1.hook_resid_post").unwrap(), tensor(Dtype::BFloat16, vec![5, 300])),
        (HookPoint::new("blocks.0.hook_resid_post").unwrap(), tensor(Dtype::Int64, vec![5, 1])),
    ];
    Draft::new(Document::parse(&json).unwrap(), Some(vec![1, 2, 3, 4, u32::from(seed)]), activations).unwrap()
}

pub(super) fn put(store: &Arc<Store>, drafts: impl IntoIterator<Item = Draft>) -> crate::error::Result<()> {
    let writer = Writer::new(store.clone())?;
    drafts.into_iter().try_for_each(|draft| writer.put(draft))?;
    writer.close()
}

pub(super) fn rows(store: &Store, key: &str, point: &str, positions: &Positions) -> Vec<u8> {
    let entry = store.entry(key).unwrap();
    let Selected { activation, rows, layout } = select(entry.as_ref(), point, positions).unwrap();
    let mut out = vec![0xAA; usize::try_from(layout.bytes()).unwrap()];
    read(store, vec![Request { entry, activation, rows, out: &mut out }]).unwrap();
    out
}

/// Asserts that `key` holds exactly what [`draft`] made.
pub(super) fn assert_holds(store: &Store, key: &str, seed: u8) {
    let expected = draft(key, seed);
    let entry = store.entry(key).unwrap();
    assert_eq!(entry.header().document.metadata, expected.document.metadata);
    assert_eq!(entry.header().token_ids, expected.token_ids);
    assert_eq!(entry.header().activations.len(), expected.activations.len());
    for (point, tensor) in &expected.activations {
        assert_eq!(rows(store, key, point.as_str(), &Positions::All), tensor.bytes(), "{key} {point}");
    }
}

pub(super) fn keys(store: &Store) -> Vec<String> {
    store.reading().unwrap().keys().unwrap().iter().map(ToString::to_string).collect()
}

/// Makes a store of a backend, and opens it again where it outlives its handle.
struct Case {
    directory: tempfile::TempDir,
    backend: &'static str,
    on_disk: bool,
}

impl Case {
    fn path(&self) -> Option<std::path::PathBuf> {
        self.on_disk.then(|| self.directory.path().join("store"))
    }

    fn create(&self, on_conflict: &str) -> Arc<Store> {
        Arc::new(
            Store::create(self.path().as_deref(), self.backend, settings(self.backend, on_conflict), MEMORY).unwrap(),
        )
    }

    fn reopen(&self, store: Arc<Store>, writable: bool) -> Arc<Store> {
        match self.path() {
            None => store,
            Some(path) => {
                store.close().unwrap();
                Arc::new(Store::open(&path, writable, MEMORY).unwrap())
            }
        }
    }
}

fn entries_come_back(case: &Case) {
    let store = case.create("error");
    put(&store, [draft("b", 1), draft("a", 2), draft("c", 3)]).unwrap();
    let look = |store: &Store| {
        assert_eq!(keys(store), ["b", "a", "c"]);
        for (key, seed) in [("b", 1), ("a", 2), ("c", 3)] {
            assert_holds(store, key, seed);
        }
        let points: Vec<_> =
            store.entry("a").unwrap().header().activations.iter().map(|a| a.point.to_string()).collect();
        assert_eq!(points, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]);
    };
    look(&store);
    look(&case.reopen(store, false));
}

fn positions_reach_rows(case: &Case) {
    let store = case.create("error");
    put(&store, [draft("k", 9)]).unwrap();
    let expected = draft("k", 9);
    for (point, tensor) in &expected.activations {
        let row_bytes = usize::try_from(tensor.layout().row_bytes()).unwrap();
        let all: Vec<_> = tensor.bytes().chunks(row_bytes).collect();
        for (positions, wanted) in [
            (Positions::Prompt, vec![0, 1]),
            (Positions::Response, vec![2, 3, 4]),
            (Positions::Last, vec![4]),
            (Positions::At(vec![3, 0, 0, -1]), vec![3, 0, 0, 4]),
            (Positions::At(vec![]), vec![]),
        ] {
            let expected: Vec<u8> = wanted.iter().flat_map(|&row: &usize| all[row].to_vec()).collect();
            assert_eq!(rows(&store, "k", point.as_str(), &positions), expected, "{positions:?}");
        }
    }
    let entry = store.entry("k").unwrap();
    let error = select(entry.as_ref(), "logits", &Positions::All).unwrap_err();
    assert_eq!(error.kind(), Kind::PointNotStored);
    assert!(error.to_string().ends_with("stored: `blocks.0.hook_resid_post`, `blocks.1.hook_resid_post`"));
}

fn conflicts_are_decided(case_of: &dyn Fn() -> Case) {
    let case = case_of();
    let store = case.create("error");
    put(&store, [draft("k", 1), draft("k", 1), draft("other", 1)]).unwrap();
    let error = put(&store, [draft("before", 1), draft("k", 2), draft("after", 1)]).unwrap_err();
    assert_eq!(error.kind(), Kind::KeyConflict);
    assert!(error.to_string().starts_with("key `k` is stored with other content"));
    assert_holds(&store, "k", 1);
    assert_holds(&store, "before", 1);

    for (rule, seeds) in
        [("skip", vec![("k", 1)]), ("replace", vec![("k", 3)]), ("number", vec![("k", 1), ("k#1", 2), ("k#2", 3)])]
    {
        let case = case_of();
        let store = case.create(rule);
        put(&store, [draft("k", 1), draft("z", 7), draft("k", 2)]).unwrap();
        put(&store, [draft("k", 3), draft("k", 3)]).unwrap();
        let store = case.reopen(store, true);
        for (key, seed) in &seeds {
            let expected = draft(key, *seed);
            assert_eq!(
                rows(&store, key, "blocks.1.hook_resid_post", &Positions::All),
                expected.activations[1].1.bytes(),
                "{rule}"
            );
        }
        assert_eq!(keys(&store).len(), seeds.len() + 1);
        assert_eq!(keys(&store)[..2], ["k", "z"], "a replaced entry keeps its place");
    }
}

fn deleting_is_durable_and_spares_the_rest(case: &Case) {
    let store = case.create("error");
    put(&store, [draft("a", 1), draft("b", 2), draft("c", 3)]).unwrap();
    let held = store.entry("b").unwrap();
    assert_eq!(store.delete(&["b".into(), "b".into(), "no".into()]).unwrap(), 1);
    assert_eq!(held.header().document.key(), "b");
    let store = case.reopen(store, true);
    assert_eq!(keys(&store), ["a", "c"]);
    let error = store.entry("b").err().unwrap();
    assert_eq!(error.kind(), Kind::NoSuchKey);
    put(&store, [draft("b", 4)]).unwrap();
    assert_eq!(keys(&store), ["a", "c", "b"]);
    assert_holds(&store, "b", 4);
}

fn handles_refuse_what_they_cannot(case: &Case) {
    let store = case.create("error");
    put(&store, [draft("a", 1)]).unwrap();
    let store = case.reopen(store, false);
    if case.on_disk {
        assert_eq!(Writer::new(store.clone()).err().unwrap().kind(), Kind::ReadOnly);
        assert_eq!(store.delete(&["a".into()]).unwrap_err().kind(), Kind::ReadOnly);
    }
    store.close().unwrap();
    store.close().unwrap();
    assert_eq!(store.entry("a").err().unwrap().kind(), Kind::Closed);
    assert_eq!(Writer::new(store.clone()).err().unwrap().kind(), Kind::Closed);
}

fn everything_is_counted_and_sound(case: &Case) {
    let store = case.create("error");
    put(&store, (0..100u8).map(|n| draft(&format!("k{n}"), n))).unwrap();
    let info = inspect::info(&store).unwrap();
    assert_eq!((info.entries, info.tokens, info.points.len()), (100, 500, 2));
    assert!(info.points.values().all(|point| point.entries == 100 && point.stored_bytes <= point.raw_bytes));
    let report = inspect::verify(&store, |_, _| Ok(())).unwrap();
    assert_eq!((report.entries, report.damage.len()), (100, 0));
}

fn creating_never_overwrites(case: &Case) {
    let store = case.create("error");
    put(&store, [draft("a", 1)]).unwrap();
    let Some(path) = case.path() else { return };
    let error = Store::create(Some(&path), case.backend, settings(case.backend, "error"), MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::StoreExists);
    assert_holds(&store, "a", 1);
    let error = Store::open(&path, true, MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyOpen);
    let error = Store::open(Path::new("/nonexistent/store"), false, MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::NotAStore);
}

fn run(backend: &'static str, on_disk: bool) {
    let case = || Case { directory: tempfile::tempdir().unwrap(), backend, on_disk };
    entries_come_back(&case());
    positions_reach_rows(&case());
    conflicts_are_decided(&case);
    deleting_is_durable_and_spares_the_rest(&case());
    handles_refuse_what_they_cannot(&case());
    everything_is_counted_and_sound(&case());
    creating_never_overwrites(&case());
}

#[test]
fn memory() {
    run("memory", false);
}

#[test]
fn shards() {
    run("shards", true);
}

#[test]
fn lmdb() {
    run("lmdb", true);
}

#[test]
fn json() {
    run("json", true);
}
