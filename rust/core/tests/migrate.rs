//! Between any two backends: what arrives, what is copied, what stops a migration, and how it goes on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::path::Path;
use std::sync::Arc;

use actstore::encode::encode;
use actstore::error::{Error, Kind, Result};
use actstore::hook_point::HookPoint;
use actstore::manifest::{OnConflict, Settings};
use actstore::migrate::{Plan, Progress, Summary, compare, migrate};
use actstore::store::{BACKENDS, BackendSpec, Store};
use actstore::writer::Writer;
use sample::{MEMORY, POINT, create, draft, holds, keys, put, settings, settings_of};

const ALL: Plan = Plan { keys: None, points: None, on_conflict: OnConflict::Error };

fn make(directory: &Path, spec: &BackendSpec, name: &str, settings: Settings, memory: u64) -> Arc<Store> {
    let path = directory.join(name);
    Arc::new(Store::create(spec.on_disk.then_some(path.as_path()), spec.name, settings, memory).unwrap())
}

fn run(source: &Arc<Store>, target: &Arc<Store>, plan: &Plan) -> Result<Summary> {
    migrate(source, target, plan, |_| Ok(()))
}

#[test]
fn every_pair_of_backends() {
    for from in BACKENDS {
        for to in BACKENDS {
            let directory = tempfile::tempdir().unwrap();
            let source = make(directory.path(), from, "a", settings_of(from.name, "error", "commit"), MEMORY);
            put(&source, (0..40).map(|n| draft(n, n))).unwrap();
            let target = make(directory.path(), to, "b", settings_of(to.name, "error", "commit"), MEMORY);
            let mut seen = Vec::new();
            let summary = migrate(&source, &target, &ALL, |progress| {
                seen.push(*progress);
                Ok(())
            })
            .unwrap();
            assert_eq!((summary.entries, summary.migrated, summary.skipped), (40, 40, 0));
            let same_codec = source.manifest().settings.codec == target.manifest().settings.codec;
            assert_eq!(summary.copied, if same_codec { 40 } else { 0 }, "{} to {}", from.name, to.name);
            assert_eq!(seen.iter().map(|p| p.entries).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
            let last =
                Progress { entries: 40, total: 40, raw_bytes: summary.raw_bytes, stored_bytes: summary.stored_bytes };
            assert_eq!(seen.last(), Some(&last));
            assert_eq!(keys(&target), keys(&source));
            (0..40).for_each(|n| holds(&target, n, n).unwrap());
            assert_eq!(compare(&source, &target, &ALL, |_| Ok(())).unwrap(), []);
            let again = run(&source, &target, &ALL).unwrap();
            assert_eq!((again.migrated, again.skipped, again.raw_bytes), (0, 40, 0));
        }
    }
}

#[test]
fn a_small_memory_is_enough() {
    let directory = tempfile::tempdir().unwrap();
    let source = create(&directory.path().join("a"), "planes");
    put(&source, (0..60).map(|n| draft(n, n))).unwrap();
    for codec in ["planes", "raw"] {
        let spec = BackendSpec::find("shards").unwrap();
        // Less than one entry.
        let target = make(directory.path(), spec, codec, settings(codec, "error", "commit"), 1000);
        assert_eq!(run(&source, &target, &ALL).unwrap().migrated, 60);
        assert_eq!(compare(&source, &target, &ALL, |_| Ok(())).unwrap(), []);
    }
}

#[test]
fn what_stops_a_migration_leaves_the_beginning() {
    let directory = tempfile::tempdir().unwrap();
    let source = create(&directory.path().join("a"), "zstd");
    put(&source, (0..30).map(|n| draft(n, n))).unwrap();
    for (codec, at) in [("zstd", 1), ("zstd", 17), ("raw", 1), ("raw", 29)] {
        let target = create(&directory.path().join(format!("{codec}{at}")), codec);
        let stop = |progress: &Progress| match progress.entries {
            n if n == at => Err(Error::new(Kind::Closed, "enough")),
            _ => Ok(()),
        };
        assert_eq!(migrate(&source, &target, &ALL, stop).unwrap_err().to_string(), "enough");
        assert_eq!(keys(&target), keys(&source)[..usize::try_from(at).unwrap()]);
        let rest = run(&source, &target, &ALL).unwrap();
        assert_eq!((rest.skipped, rest.migrated), (at, 30 - at));
        assert_eq!(keys(&target), keys(&source));
    }
}

#[test]
fn refusals() {
    let directory = tempfile::tempdir().unwrap();
    let source = create(&directory.path().join("a"), "raw");
    put(&source, [draft(0, 0), draft(1, 1)]).unwrap();
    let target = create(&directory.path().join("b"), "raw");
    let missing = Plan { keys: Some(vec!["k0".into(), "nowhere".into()]), ..ALL };
    assert_eq!(run(&source, &target, &missing).unwrap_err().kind(), Kind::NoSuchKey);
    assert!(keys(&target).is_empty());
    assert_eq!(run(&source, &source.clone(), &ALL).unwrap_err().kind(), Kind::InvalidOption);
    let reader = Arc::new(Store::open(&directory.path().join("a"), false, MEMORY).unwrap());
    let same = run(&reader, &source, &ALL).unwrap_err();
    assert!(same.to_string().starts_with("source and target are the same store, `/"), "{same}");
    assert_eq!(compare(&reader, &source, &ALL, |_| Ok(())).unwrap_err().kind(), Kind::InvalidOption);
    let readonly = Arc::new(Store::open(&directory.path().join("b"), false, MEMORY).unwrap());
    assert_eq!(run(&source, &readonly, &ALL).unwrap_err().kind(), Kind::ReadOnly);
}

#[test]
fn conflicts_follow_the_plan() {
    let directory = tempfile::tempdir().unwrap();
    let source = create(&directory.path().join("a"), "raw");
    put(&source, (0..3).map(|n| draft(n, n))).unwrap();
    let filled = |name: &str| {
        let target = create(&directory.path().join(name), "zstd");
        put(&target, [draft(1, 77)]).unwrap();
        target
    };
    let plan = |on_conflict| Plan { on_conflict, ..ALL };
    let target = filled("error");
    let error = run(&source, &target, &ALL).unwrap_err();
    assert_eq!(error.kind(), Kind::KeyConflict);
    assert!(error.to_string().starts_with("key `k1` is stored in the target with other content"));
    holds(&target, 0, 0).unwrap();
    holds(&target, 1, 77).unwrap();
    for (rule, versions, stored) in
        [(OnConflict::Skip, 77, 3), (OnConflict::Replace, 1, 3), (OnConflict::Number, 77, 4)]
    {
        let target = filled(rule.name());
        let skipped = u64::from(rule == OnConflict::Skip);
        for again in [0, 1] {
            let summary = run(&source, &target, &plan(rule)).unwrap();
            let migrated = if again == 0 { 3 - skipped } else { 0 };
            assert_eq!((summary.migrated, summary.skipped), (migrated, 3 - migrated), "{rule:?}");
            assert_eq!(summary.conflicts, u64::from(again == 0 || skipped == 1), "{rule:?}");
            holds(&target, 1, versions).unwrap();
            assert_eq!(keys(&target).len(), stored);
            assert_eq!(compare(&source, &target, &plan(rule), |_| Ok(())).unwrap(), []);
        }
    }
}

#[test]
fn what_did_not_arrive_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let source = create(&directory.path().join("a"), "raw");
    put(&source, (0..3).map(|n| draft(n, n))).unwrap();
    let target = create(&directory.path().join("b"), "raw");
    let mut other = draft(2, 2);
    other.document.created = 5.0;
    put(&target, [draft(0, 9), other]).unwrap();
    let found = compare(&source, &target, &ALL, |_| Ok(())).unwrap();
    let messages: Vec<_> = found.iter().map(|one| one.message.as_str()).collect();
    let expected = [
        "entry `k0` is in the target with other content",
        "entry `k1` is not in the target",
        "`created` of entry `k2` is another in the target",
    ];
    assert_eq!(messages, expected);
    let point = HookPoint::new(POINT).unwrap();
    let some = Plan { keys: Some(vec!["k2".into()]), points: Some(vec![point]), ..ALL };
    assert_eq!(compare(&source, &target, &some, |_| Ok(())).unwrap().len(), 1);
    let stopped = compare(&source, &target, &ALL, |_| Err(Error::new(Kind::Closed, "enough")));
    assert_eq!(stopped.unwrap_err().to_string(), "enough");
}

#[test]
fn damage_to_entries_that_were_read_before_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let source = create(&directory.path().join("a"), "raw");
    put(&source, (0..3).map(|n| draft(n, n))).unwrap();
    let target = create(&directory.path().join("b"), "raw");
    run(&source, &target, &ALL).unwrap();
    (0..3).for_each(|n| holds(&target, n, n).unwrap());
    let shard = directory.path().join("b/shards/0-000001.shard");
    let mut bytes = std::fs::read(&shard).unwrap();
    let field = br#""key":"k1""#;
    let at = bytes.windows(field.len()).position(|window| window == field).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let found = compare(&source, &target, &ALL, |_| Ok(())).unwrap();
    assert_eq!(found.iter().map(|one| &*one.key).collect::<Vec<_>>(), ["k1"]);
}

#[test]
fn an_entry_that_is_not_what_it_says_goes_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let source = create(&directory.path().join("a"), "raw");
    let writer = Writer::new(source.clone()).unwrap();
    for n in 0..3 {
        let settings = source.manifest().settings;
        let mut entry = encode(&settings, draft(n, n), &[]).unwrap();
        entry.content_id[0] ^= u8::from(n == 1);
        writer.put_encoded(entry).unwrap();
    }
    writer.close().unwrap();
    let target = create(&directory.path().join("b"), "zstd");
    let error = run(&source, &target, &ALL).unwrap_err();
    assert_eq!(error.kind(), Kind::Checksum);
    let expected = "migrating stopped at entry `k1`: its activations are not those of its content id; what was migrated \
                    before it stays; `keys` without it migrate the rest";
    assert_eq!(error.to_string(), expected);
    assert_eq!(keys(&target).len(), 1);
    let copy = create(&directory.path().join("c"), "raw");
    assert_eq!(run(&source, &copy, &ALL).unwrap().copied, 3);
    let found = compare(&source, &copy, &ALL, |_| Ok(())).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].message, "the activations of entry `k1` are not what was migrated");
}
