//! A `json` store through failing disks, damage, and other programs: what was acknowledged is exact or refused.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actstore::encode::Draft;
use actstore::entry::{Document, Positions, key_of_prompt};
use actstore::error::{Error, Kind, Result};
use actstore::files::Disk;
use actstore::format::EntryHeader;
use actstore::hook_point::HookPoint;
use actstore::inspect;
use actstore::manifest::Settings;
use actstore::store::{BackendSpec, Store};
use actstore::tensor::{Dtype, Layout, Tensor};
use actstore::writer::Writer;
use sample::failing::FailingDisk;
use sample::power::{CutDisk, Progress};
use sample::{MEMORY, chance, draft, holds, keys, names, put, rows, settings_of, version};
use serde_json::Value;

fn create(root: &Path, encoding: &str) -> Arc<Store> {
    let json =
        format!(r#"{{"encoding":"{encoding}","overflow":"error","on_conflict":"replace","durability":"commit"}}"#);
    let settings = Settings::parse(&json, BackendSpec::find("json").unwrap().codecs).unwrap();
    Arc::new(Store::create(Some(root), "json", settings, MEMORY).unwrap())
}

fn open(root: &Path, writable: bool) -> Result<Arc<Store>> {
    Store::open(root, writable, MEMORY).map(Arc::new)
}

fn file_of(root: &Path, key: &str) -> PathBuf {
    root.join("activations").join(format!("{}.json", key_of_prompt(key)))
}

fn listed(root: &Path) -> Vec<String> {
    let metadata: Value = serde_json::from_slice(&std::fs::read(root.join("metadata.json")).unwrap()).unwrap();
    metadata["entries"].as_object().unwrap().keys().cloned().collect()
}

fn assert_sound(store: &Arc<Store>, case: &str) {
    assert!(store.reading().unwrap().damage().is_empty(), "{case}");
    let report = inspect::verify(store, |_, _| Ok(())).unwrap();
    assert!(report.damage.is_empty(), "{case}: {:?}", report.damage);
}

/// Three sessions of three commits; later ones replace, the last deletes one and puts it again.
fn work(root: &Path, disk: &CutDisk) -> (Progress, bool) {
    let mut progress = Progress::default();
    let finished = (|| -> Result<()> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let settings = settings_of("json", "replace", "commit");
        let mut store = Arc::new(Store::create_on(Some(root), "json", settings, MEMORY, disk.clone())?);
        let commit = |store: &Arc<Store>, progress: &mut Progress, keys: &[u64], version: u64| -> Result<()> {
            progress.begin(keys.iter().map(|&n| (n, Some(version))));
            let writer = Writer::new(store.clone())?;
            keys.iter().try_for_each(|&n| writer.put(draft(n, version)))?;
            writer.close()?;
            progress.acknowledge();
            Ok(())
        };
        for session in 0..3u64 {
            for n in 0..3u64 {
                commit(&store, &mut progress, &[n * 2, n * 2 + 1 + session], session)?;
            }
            if session == 2 {
                progress.begin([(0, None)]);
                store.delete(&["k0".to_owned()])?;
                progress.acknowledge();
                commit(&store, &mut progress, &[0], 9)?;
            }
            store.close()?;
            store = Arc::new(Store::open_on(root, true, MEMORY, disk.clone())?);
        }
        store.close()
    })();
    (progress, finished.is_ok())
}

fn check_after_cut(root: &Path, progress: &Progress, case: &str) {
    let store = match open(root, true) {
        Ok(store) => store,
        Err(error) => {
            assert!(progress.acknowledged.is_empty(), "{case}: {error}");
            // What an interrupted creation left does not stand in the way of the next.
            create(root, "text");
            return;
        }
    };
    let present = keys(&store);
    for n in 0..9 {
        progress.allows(n, version(&store, n), case);
    }
    let place = |key: &String| match (key.as_str(), version(&store, 0)) {
        ("k0", Some(9)) => 99,
        _ => key[1..].parse::<u64>().unwrap(),
    };
    assert!(present.is_sorted_by_key(place), "{case}: {present:?}");
    for key in &present {
        let n = key[1..].parse().unwrap();
        holds(&store, n, version(&store, n).unwrap()).unwrap();
    }
    assert_eq!(listed(root), present, "{case}");
    assert!(names(&root.join("activations")).iter().all(|name| name.ends_with(".json")), "{case}");
    put(&store, [draft(99, 7)]).unwrap();
    store.close().unwrap();
    let again = open(root, false).unwrap();
    assert_sound(&again, case);
    holds(&again, 99, 7).unwrap();
    assert_eq!(keys(&again).len(), present.len() + 1);
    assert_eq!(listed(root), keys(&again), "{case}");
}

#[test]
fn the_power_goes_at_every_sync() {
    for cut_at in 1.. {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let disk = CutDisk::cut_at(cut_at);
        let (progress, finished) = work(&root, &disk);
        if finished {
            assert!(cut_at > 40, "only {cut_at} syncs were cut");
            return;
        }
        for variant in 0..8 {
            let left = tempfile::tempdir().unwrap();
            disk.lay_out(directory.path(), left.path(), variant);
            let case = format!("sync {cut_at}, variant {variant}");
            check_after_cut(&left.path().join("store"), &progress, &case);
        }
    }
}

#[test]
fn what_a_killed_writer_named_is_durable_before_it_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let (root, other) = (directory.path().join("store"), tempfile::tempdir().unwrap());
    let disk = CutDisk::cut_at(usize::MAX);
    let on_disk = || -> Arc<dyn Disk> { Arc::new(disk.clone()) };
    let settings = settings_of("json", "error", "commit");
    Store::create_on(Some(&root), "json", settings, MEMORY, on_disk()).unwrap().close().unwrap();
    put(&create(&other.path().join("store"), "text"), [draft(1, 0)]).unwrap();
    let (path, unfinished) = (file_of(&root, "k1"), root.join("activations/unfinished"));
    let mut file = disk.create(&unfinished).unwrap();
    file.append(&[&std::fs::read(file_of(&other.path().join("store"), "k1")).unwrap()]).unwrap();
    file.sync().unwrap();
    disk.rename(&unfinished, &path).unwrap();

    let store = Arc::new(Store::open_on(&root, true, MEMORY, on_disk()).unwrap());
    put(&store, [draft(1, 0)]).unwrap();
    let left = tempfile::tempdir().unwrap();
    disk.lay_out(directory.path(), left.path(), 0);
    holds(&open(&left.path().join("store"), false).unwrap(), 1, 0).unwrap();
}

#[test]
fn a_full_disk_costs_only_what_did_not_fit() {
    let mut failures = 0;
    for space in (0..40_000).step_by(131) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let (disk, failing) = FailingDisk::new();
        let settings = settings_of("json", "error", "commit");
        let store = Arc::new(Store::create_on(Some(&root), "json", settings, MEMORY, disk).unwrap());
        put(&store, [draft(1, 0)]).unwrap();
        failing.space.store(space, Ordering::SeqCst);
        if let Err(error) = put(&store, [draft(2, 0), draft(3, 0)]) {
            failures += 1;
            assert_eq!(error.kind(), Kind::StorageFull, "{space}: {error}");
            assert!(names(&root.join("activations")).iter().all(|name| name.ends_with(".json")), "{space}");
            let there = keys(&store);
            assert!(["k1"].as_slice() == there || ["k1", "k2"].as_slice() == there, "{space}: {there:?}");
            there.iter().for_each(|key| holds(&store, key[1..].parse().unwrap(), 0).unwrap());
            failing.space.store(u64::MAX / 2, Ordering::SeqCst);
            put(&store, [draft(2, 0), draft(3, 0)])
                .unwrap_or_else(|e| panic!("{space}: no retry after space was freed: {e}"));
        }
        // The list of entries may not fit: the next writer makes it.
        failing.space.store(if space % 2 == 0 { 100 } else { u64::MAX / 2 }, Ordering::SeqCst);
        store.close().unwrap();
        assert!(!root.join("metadata.new").exists());
        let again = open(&root, true).unwrap();
        assert_eq!(keys(&again), ["k1", "k2", "k3"]);
        assert_eq!(listed(&root), ["k1", "k2", "k3"]);
        (1..4).for_each(|n| holds(&again, n, 0).unwrap());
    }
    assert!((50..250).contains(&failures), "{failures}");
}

#[test]
fn a_failed_sync_ends_writing_until_the_store_is_opened_again() {
    for of_directory in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let (disk, failing) = FailingDisk::new();
        let settings = settings_of("json", "error", "commit");
        let store = Arc::new(Store::create_on(Some(&root), "json", settings, MEMORY, disk).unwrap());
        put(&store, [draft(1, 0)]).unwrap();
        let fails = if of_directory { &failing.dir_sync_fails } else { &failing.sync_fails };
        fails.store(true, Ordering::SeqCst);
        assert_eq!(put(&store, [draft(2, 0)]).unwrap_err().kind(), Kind::StorageIo);
        fails.store(false, Ordering::SeqCst);
        let error = put(&store, [draft(3, 0)]).unwrap_err();
        assert_eq!(error.kind(), Kind::WriterFailed);
        assert!(error.to_string().contains("close the store and open it again: cannot sync"), "{error}");
        assert_eq!(store.delete(&["k1".to_owned()]).unwrap_err().kind(), Kind::WriterFailed);
        holds(&store, 1, 0).unwrap();
        // A name that may not be durable is there, and whole.
        assert_eq!(keys(&store).len(), if of_directory { 2 } else { 1 });
        store.close().unwrap();
        let again = open(&root, true).unwrap();
        holds(&again, 1, 0).unwrap();
        put(&again, [draft(3, 0)]).unwrap();
        holds(&again, 3, 0).unwrap();
        assert_sound(&again, "after a failed sync");
    }
}

/// An entry of a few values, with everything that an entry may have.
fn small(key: &str, seed: u64) -> Draft {
    let json = format!(
        r#"{{"key":"{key}","key_recipe":"user","prompt":"a \"b\" \\ ü","response":"c","prompt_length":2,"positions":[[0,3]],"metadata":{{"model":"m","n":12345678901234567890,"x":[1.50,null]}},"created":17.25}}"#
    );
    let tensor = |dtype, shape, bytes: Vec<u8>| Tensor::new(Layout::new(dtype, shape).unwrap(), bytes).unwrap();
    let values = [1.5f32, f32::NAN, -0.0, 1e-40, f32::NEG_INFINITY, chance(seed, 1) as f32];
    let floats = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let activations = vec![
        (HookPoint::new("blocks.0.hook_resid_post").unwrap(), tensor(Dtype::Float32, vec![3, 2], floats)),
        (HookPoint::new("logits").unwrap(), tensor(Dtype::UInt8, vec![3, 1], vec![7, 8, 9])),
    ];
    Draft::new(Document::parse(&json).unwrap(), Some(vec![5, 6, 7]), activations).unwrap()
}

/// Header and rows of an entry, all that a reader can see of it.
fn all_of(store: &Store, key: &str) -> Result<(EntryHeader, Vec<Vec<u8>>)> {
    let header = store.entry(key)?.header().clone();
    let points: Vec<_> = header.activations.iter().map(|activation| activation.point.to_string()).collect();
    let rows = points.iter().map(|point| rows(store, key, point, &Positions::All)).collect::<Result<_>>()?;
    Ok((header, rows))
}

/// Opens the store with other bytes in the file of `b`: the entry is what it was, or refused; the others are there.
fn assert_exact_or_refused(root: &Path, whole: &[(EntryHeader, Vec<Vec<u8>>)], case: &str) -> bool {
    let store = open(root, false).unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(all_of(&store, "a").unwrap(), whole[0], "{case}");
    assert_eq!(all_of(&store, "c").unwrap(), whole[2], "{case}");
    let backend = store.reading().unwrap();
    match all_of(&store, "b") {
        Ok(found) => {
            assert_eq!(found, whole[1], "{case}");
            assert_eq!(keys(&store), ["a", "b", "c"], "{case}");
            assert!(backend.damage().is_empty(), "{case}");
            true
        }
        Err(error) => {
            assert!(error.kind().is_damage(), "{case}: {error}");
            assert!(error.to_string().contains(".json`"), "{case}: {error}");
            if keys(&store).len() == 2 {
                assert_eq!(open(root, true).unwrap_err().kind(), backend.damage()[0].kind(), "{case}");
            }
            false
        }
    }
}

#[test]
fn damage_costs_its_own_entry_and_never_passes_for_data() {
    for encoding in ["text", "base64"] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let store = create(&root, encoding);
        put(&store, [small("a", 1), small("b", 2), small("c", 3)]).unwrap();
        let whole: Vec<_> = ["a", "b", "c"].iter().map(|key| all_of(&store, key).unwrap()).collect();
        store.close().unwrap();
        let file = file_of(&root, "b");
        let bytes = std::fs::read(&file).unwrap();
        let mut exact = 0;
        for (at, flip) in (0..bytes.len()).flat_map(|at| [(at, 1), (at, 0x20), (at, 0x80)]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            std::fs::write(&file, damaged).unwrap();
            exact += usize::from(assert_exact_or_refused(&root, &whole, &format!("byte {at} ^ {flip}")));
        }
        // The index only repeats what the rest says.
        assert!(exact > 100 && exact < bytes.len() * 2, "{exact} of {}", bytes.len() * 3);
        for length in 0..bytes.len() {
            std::fs::write(&file, &bytes[..length]).unwrap();
            let exact = assert_exact_or_refused(&root, &whole, &format!("{length} bytes"));
            assert!(!exact || length + 1 == bytes.len(), "{length} bytes");
        }
    }
}

#[test]
fn verifying_finds_what_no_frame_covers() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "text");
    put(&store, [small("a", 1), small("b", 2)]).unwrap();
    let damage_with = |old: &str, new: &str| {
        let file = file_of(&root, "b");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(old));
        std::fs::write(&file, text.replacen(old, new, 1)).unwrap();
        let damage = inspect::verify(&store, |_, _| Ok(())).unwrap().damage;
        std::fs::write(&file, text).unwrap();
        damage.into_iter().map(|damage| (damage.key.is_some(), damage.error)).collect::<Vec<_>>()
    };
    let found = damage_with("\"shape\": [3, 2]", "\"shape\": [2, 3]");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].1.to_string().starts_with("entry `b` in `"), "{found:?}");
    let found = damage_with("\"index\"", "\"Index\"");
    assert!(found.is_empty(), "an index is not needed: {found:?}");
    let found = damage_with("[1.5,", "[2.5,");
    assert_eq!((found.len(), found[0].0, found[0].1.kind()), (1, true, Kind::Checksum), "{found:?}");
    std::fs::remove_file(file_of(&root, "b")).unwrap();
    let found = inspect::verify(&store, |_, _| Ok(())).unwrap().damage;
    assert_eq!((found.len(), found[0].error.kind()), (1, Kind::MissingFile));
    assert_eq!(store.entry("b").err().unwrap().kind(), Kind::MissingFile);
}

/// The same JSON with the members of every object in reverse order.
fn reversed(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.iter().rev().map(|(k, v)| (k.clone(), reversed(v))).collect()),
        Value::Array(items) => Value::Array(items.iter().map(reversed).collect()),
        other => other.clone(),
    }
}

/// The same values with every number of `data` as a program that knows doubles would write it.
fn through_doubles(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(through_doubles),
        Value::Number(number) => {
            *value = serde_json::from_str(&format!("{:e}", number.as_f64().unwrap())).unwrap();
        }
        _ => {}
    }
}

fn without(value: &Value, name: &str) -> Value {
    let mut value = value.clone();
    value.as_object_mut().unwrap().shift_remove(name);
    value["entry"].as_object_mut().unwrap().shift_remove(name);
    value
}

#[test]
fn files_that_other_programs_wrote_are_read() {
    for encoding in ["text", "base64"] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let store = create(&root, encoding);
        put(&store, [small("a", 1), small("b", 2), small("c", 3)]).unwrap();
        let whole: Vec<_> = ["a", "b", "c"].iter().map(|key| all_of(&store, key).unwrap()).collect();
        let content_id = store.entry("b").unwrap().content_id();
        store.close().unwrap();
        let file = file_of(&root, "b");
        let value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let mut doubles = value.clone();
        through_doubles(&mut doubles["activations"]["blocks.0.hook_resid_post"]["data"]);
        let mut more = value.clone();
        more["activations"]["logits"]["note"] = "see [\"data\"]".into();
        more["entry"]["reviewed"] = true.into();
        more["history"] = serde_json::json!([{"entry": 1}]);
        let plain = serde_json::to_string(&value).unwrap();
        let variants = [
            ("compact", plain.clone()),
            ("pretty", serde_json::to_string_pretty(&value).unwrap()),
            ("reversed", serde_json::to_string_pretty(&reversed(&value)).unwrap()),
            ("without an index", serde_json::to_string(&without(&value, "index")).unwrap()),
            ("without a content id", serde_json::to_string(&without(&value, "content_id")).unwrap()),
            ("as doubles", serde_json::to_string_pretty(&doubles).unwrap()),
            ("with more members", serde_json::to_string(&more).unwrap()),
            ("without the prefix", plain.replace("torch.float32", "float32")),
            ("with other ends of lines", std::fs::read_to_string(&file).unwrap().replace('\n', "\r\n")),
        ];
        for (name, text) in variants {
            std::fs::write(&file, text).unwrap();
            assert!(assert_exact_or_refused(&root, &whole, name), "{encoding}, {name} is refused");
            let store = open(&root, true).unwrap();
            assert_eq!(store.entry("b").unwrap().content_id(), content_id, "{name}");
            assert_sound(&store, name);
        }
        let taken = serde_json::to_string(&without(&value, "content_id")).unwrap();
        for (name, text, kind) in [
            ("another value", plain.replace("[7]", "[6]").replace("BwgJ", "BggJ"), Kind::Checksum),
            ("another document", plain.replace("\"response\":\"c\"", "\"response\":\"d\""), Kind::Checksum),
            (
                "without a checksum",
                plain.replace("\"_type\":\"torch.Tensor\",", "").replace("xxh3", "sum"),
                Kind::Malformed,
            ),
            ("a name twice", plain.replace("\"shape\":", "\"shape\":[3,2],\"shape\":"), Kind::Malformed),
            ("a member twice", plain.replacen("\"response\":", "\"response\":\"d\",\"response\":", 1), Kind::Malformed),
            ("another key", plain.replacen("\"key\":\"b\"", "\"key\":\"a\"", 1), Kind::Malformed),
            ("another shape", plain.replace("\"shape\":[3,1]", "\"shape\":[4,1]"), Kind::Malformed),
            ("another value, taken as it is", taken.replace("[7]", "[6]").replace("BwgJ", "BggJ"), Kind::Checksum),
            ("values of no shape", plain.replace("\"shape\":[3,1]", "\"shape\":[3,0]"), Kind::Malformed),
            ("rows that are no positions", taken.replace("[[0,3]]", "[[0,2]]"), Kind::Malformed),
            ("an unknown dtype", plain.replace("torch.uint8", "torch.uint9"), Kind::Malformed),
            ("something after it", format!("{plain}{{}}"), Kind::Malformed),
        ] {
            assert_ne!(text, plain, "{name}");
            std::fs::write(&file, text).unwrap();
            assert!(!assert_exact_or_refused(&root, &whole, name), "{encoding}, {name} is read");
            let error = open(&root, false).unwrap().entry("b").err().unwrap();
            assert_eq!(error.kind(), kind, "{encoding}, {name}: {error}");
        }
    }
}

#[test]
fn the_order_is_that_of_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "text");
    put(&store, ["a", "b", "c", "d"].map(|key| small(key, 1))).unwrap();
    store.close().unwrap();
    let edit = |key: &str, number: Option<u64>, created: f64| {
        let file = file_of(&root, key);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        value["entry"]["created"] = created.into();
        match number {
            Some(number) => value["entry"]["number"] = number.into(),
            None => drop(value["entry"].as_object_mut().unwrap().shift_remove("number")),
        }
        std::fs::write(&file, value.to_string()).unwrap();
    };
    edit("a", None, 5.0);
    edit("b", Some(7), 3.0);
    edit("c", None, 4.0);
    edit("d", Some(7), 2.0);
    let store = open(&root, true).unwrap();
    assert_eq!(keys(&store), ["d", "b", "c", "a"]);
    put(&store, [small("e", 1), small("b", 2)]).unwrap();
    assert_eq!(keys(&store), ["d", "b", "c", "a", "e"]);
    assert_eq!(store.reading().unwrap().last_key().unwrap().as_deref(), Some("e"));
    store.close().unwrap();
    assert_eq!(listed(&root), ["d", "b", "c", "a", "e"]);
    let first = std::fs::read_to_string(file_of(&root, "b")).unwrap();
    assert!(first.lines().next().unwrap().contains("\"number\":7,"), "a replaced entry keeps its number");
}

#[test]
fn the_list_of_entries_is_made_again_where_it_is_not_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "text");
    put(&store, [small("a", 1), draft(1, 0)]).unwrap();
    store.close().unwrap();
    let metadata = root.join("metadata.json");
    let whole = std::fs::read(&metadata).unwrap();
    let value: Value = serde_json::from_slice(&whole).unwrap();
    let config = &value["logger_config"];
    assert_eq!([&config["target_layers"], &config["sequence_mode"], &config["version"]], ["all", "all", "actstore-0"]);
    let (entry, file) = (&value["entries"]["a"], file_of(Path::new(""), "a"));
    assert_eq!([&entry["prompt"], &entry["response"], &entry["model"]], ["a \"b\" \\ ü", "c", "m"]);
    assert_eq!((&entry["input_length"], &entry["timestamp"]), (&Value::from(2), &Value::from(17.25)));
    assert_eq!((&entry["has_activations"], &entry["activation_file"]), (&true.into(), &file.to_str().unwrap().into()));
    assert_eq!(entry["logging_config"], serde_json::json!({"target_layers": "all", "sequence_mode": "all"}));
    assert_eq!(entry["metadata"].to_string(), r#"{"n":12345678901234567890,"x":[1.50,null]}"#);
    assert_eq!(value["entries"]["k1"]["model"], Value::Null);

    for length in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        std::fs::write(&metadata, &whole[..length]).unwrap();
        assert_eq!(open(&root, false).map(|store| keys(&store)).unwrap(), ["a", "k1"]);
        assert_eq!(std::fs::read(&metadata).unwrap().len(), length, "a reader writes nothing");
        open(&root, true).unwrap();
        assert_eq!(std::fs::read(&metadata).unwrap(), whole, "cut to {length} bytes");
    }
    std::fs::remove_file(&metadata).unwrap();
    open(&root, true).unwrap();
    assert_eq!(std::fs::read(&metadata).unwrap(), whole);
    let before = metadata.metadata().unwrap().modified().unwrap();
    open(&root, true).unwrap().close().unwrap();
    assert_eq!(metadata.metadata().unwrap().modified().unwrap(), before, "a list that is current is not written again");
    let store = open(&root, true).unwrap();
    store.delete(&["a".to_owned()]).unwrap();
    store.close().unwrap();
    let current = std::fs::read(&metadata).unwrap();
    std::fs::write(&metadata, &whole).unwrap();
    open(&root, true).unwrap();
    assert_eq!(std::fs::read(&metadata).unwrap(), current);
    assert_eq!(listed(&root), ["k1"]);
}

/// Values of every kind: all of two bytes, and all that single out a wider float.
fn values(dtype: Dtype, count: usize) -> Vec<u8> {
    let size = dtype.size();
    let special: &[u64] = match dtype {
        Dtype::Float32 => {
            &[0, 1 << 31, 1, 0x007F_FFFF, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0xFFC0_0001, 0x7F80_0001]
        }
        Dtype::Float64 => &[0, 1 << 63, 1, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, (0x7FF0 << 48) + 1, !0],
        Dtype::Bool => &[0, 1],
        _ => &[],
    };
    let value = |n: usize| match special.get(n) {
        Some(value) => *value,
        None if dtype == Dtype::Bool => n as u64 % 2,
        None if size <= 2 => n as u64,
        None => chance(n as u64, 5) ^ chance(n as u64, 6) << 30,
    };
    (0..count).flat_map(|n| value(n).to_le_bytes()[..size].to_vec()).collect()
}

#[test]
fn every_dtype_and_shape_comes_back_to_the_last_bit() {
    let shapes: [&[u64]; 9] = [&[], &[0], &[0, 3], &[3, 0], &[1], &[65_536], &[97, 31], &[3, 1, 2, 5], &[2, 3000]];
    for encoding in ["text", "base64"] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let store = create(&root, encoding);
        let mut activations = Vec::new();
        for dtype in Dtype::ALL {
            for (n, shape) in shapes.iter().enumerate() {
                let shape = if *shape == [65_536] && dtype.size() != 2 { &[300] } else { *shape };
                let layout = Layout::new(*dtype, shape.to_vec()).unwrap();
                let bytes = values(*dtype, usize::try_from(layout.bytes()).unwrap() / dtype.size());
                let point = HookPoint::new(&format!("{}.{n}", dtype.name())).unwrap();
                activations.push((point, Tensor::new(layout, bytes).unwrap()));
            }
        }
        let document = Document::parse(r#"{"key":"k","key_recipe":"user"}"#).unwrap();
        put(&store, [Draft::new(document, None, activations.clone()).unwrap()]).unwrap();
        put(
            &store,
            [Draft::new(Document::parse(r#"{"key":"e","key_recipe":"user"}"#).unwrap(), None, vec![]).unwrap()],
        )
        .unwrap();
        let look = |store: &Arc<Store>| {
            for (point, tensor) in &activations {
                assert_eq!(rows(store, "k", point.as_str(), &Positions::All).unwrap(), tensor.bytes(), "{point}");
            }
            assert!(store.entry("e").unwrap().header().activations.is_empty());
            assert_sound(store, encoding);
        };
        look(&store);
        assert_parts(&store, &activations);
        let file = file_of(&root, "k");
        let value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let header = store.entry("k").unwrap().header().clone();
        for (point, tensor) in activations.iter().filter(|_| encoding == "text") {
            let nonfinite = header.activations[header.find(point.as_str()).unwrap()].nonfinite;
            assert_numbers(&value["activations"][point.as_str()], tensor, nonfinite);
        }
        store.close().unwrap();
        assert!(!listed(&root).is_empty());
        let metadata: Value = serde_json::from_slice(&std::fs::read(root.join("metadata.json")).unwrap()).unwrap();
        assert_eq!(metadata["entries"]["e"]["has_activations"], false);
        std::fs::write(&file, serde_json::to_string_pretty(&without(&value, "index")).unwrap()).unwrap();
        let store = open(&root, false).unwrap();
        look(&store);
        assert_eq!(*store.entry("k").unwrap().header(), header);
        assert_parts(&store, &activations);
    }
}

/// Any bytes of a chunk can be asked for.
fn assert_parts(store: &Store, activations: &[(HookPoint, Tensor)]) {
    let entry = store.entry("k").unwrap();
    for (n, (point, tensor)) in activations.iter().enumerate() {
        let (index, length) = (entry.header().find(point.as_str()).unwrap(), tensor.bytes().len());
        for salt in 0..20 {
            let seed = n as u64 * 100 + salt;
            let start = usize::try_from(chance(seed, 1)).unwrap() % (length + 1);
            let some = usize::try_from(chance(seed, 2)).unwrap() % (length - start + 1).min(9000);
            let mut lent = None;
            entry
                .with_bytes(index, start as u64, some, &mut |raw| {
                    lent = Some(raw.to_vec());
                    Ok(())
                })
                .unwrap();
            assert_eq!(lent.unwrap(), tensor.bytes()[start..start + some], "{point} {start} {some}");
        }
        let beyond = entry.with_bytes(index, length as u64, 1, &mut |_| Ok(()));
        assert_eq!(beyond.unwrap_err().kind(), Kind::Malformed);
    }
}

/// A reader that knows JSON and nothing of ours gets every finite number exactly.
fn assert_numbers(activation: &Value, tensor: &Tensor, nonfinite: u64) {
    let dtype = tensor.layout().dtype();
    assert_eq!(activation["_type"], "torch.Tensor");
    assert_eq!(activation["dtype"], format!("torch.{}", dtype.name()));
    assert_eq!(activation["shape"], serde_json::to_value(tensor.layout().shape()).unwrap());
    let mut flat = Vec::new();
    fn flatten<'a>(value: &'a Value, flat: &mut Vec<&'a Value>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| flatten(item, flat)),
            other => flat.push(other),
        }
    }
    flatten(&activation["data"], &mut flat);
    let raw = tensor.bytes().chunks(dtype.size());
    assert_eq!(flat.len(), raw.len());
    let strings = flat.iter().filter(|found| found.is_string()).count() as u64;
    assert_eq!(strings, nonfinite, "what is no string is finite");
    for (found, raw) in flat.into_iter().zip(raw) {
        let Some(number) = found.as_f64() else { continue };
        // As a reader that wants this dtype rounds, if it must.
        #[allow(clippy::cast_possible_truncation, reason = "rounding to float32 is what such a reader does")]
        let single = number as f32;
        let rounded = match dtype {
            Dtype::Float64 => number.to_le_bytes().to_vec(),
            Dtype::Float32 => single.to_le_bytes().to_vec(),
            Dtype::BFloat16 => half::bf16::from_f32(single).to_le_bytes().to_vec(),
            Dtype::Float16 => half::f16::from_f32(single).to_le_bytes().to_vec(),
            Dtype::Float8E4M3 | Dtype::Float8E5M2 => continue,
            _ => match (found.as_i64(), dtype.size()) {
                (Some(number), size) => number.to_le_bytes()[..size].to_vec(),
                (None, _) => panic!("{found} is no integer"),
            },
        };
        assert_eq!(rounded, raw, "{found} as {}", dtype.name());
    }
}

#[test]
fn a_row_larger_than_memory_should_hold_as_text_is_read_by_its_parts() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "text");
    let shapes: [&[u64]; 2] = [&[2, 3, 700_000], &[1, 2_000_000]];
    let activations = shapes.iter().enumerate().map(|(n, shape)| {
        let layout = Layout::new(Dtype::BFloat16, shape.to_vec()).unwrap();
        let bytes =
            (0..layout.bytes() / 2).flat_map(|n| u16::try_from(n % 65_537 % 65_536).unwrap().to_le_bytes()).collect();
        (HookPoint::new(&format!("blocks.{n}.attn.hook_pattern")).unwrap(), Tensor::new(layout, bytes).unwrap())
    });
    let activations: Vec<_> = activations.collect();
    let document = Document::parse(r#"{"key":"k","key_recipe":"user"}"#).unwrap();
    put(&store, [Draft::new(document, None, activations.clone()).unwrap()]).unwrap();
    let look = |store: &Store| {
        for (point, tensor) in &activations {
            assert!(rows(store, "k", point.as_str(), &Positions::All).unwrap() == tensor.bytes(), "{point}");
        }
    };
    look(&store);
    assert_sound(&store, "large rows");
    let file = file_of(&root, "k");
    let text = std::fs::read_to_string(&file).unwrap();
    for (old, new) in [("[2, 3, 700000]", "[2, 4, 700000]"), ("[2, 3, 700000]", "[2, 2, 700000]")] {
        std::fs::write(&file, text.replace(old, new).replace("\"index\"", "\"Index\"")).unwrap();
        assert_eq!(store.entry("k").err().unwrap().kind(), Kind::Malformed);
    }
    std::fs::write(&file, text.replace("\"index\"", "\"Index\"")).unwrap();
    look(&store);
}

#[test]
fn white_space_never_fills_memory() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "text");
    let of = |rows: u64, values: u64| {
        let layout = Layout::new(Dtype::UInt8, vec![rows, values]).unwrap();
        let bytes = (0..layout.bytes()).map(|n| n.to_le_bytes()[0]).collect();
        Tensor::new(layout, bytes).unwrap()
    };
    let activations = [("blocks.0.hook_mlp_out", of(3, 3000)), ("logits", of(3, 10))];
    let named = activations.clone().map(|(point, tensor)| (HookPoint::new(point).unwrap(), tensor)).to_vec();
    let document = Document::parse(r#"{"key":"k","key_recipe":"user"}"#).unwrap();
    put(&store, [Draft::new(document, None, named).unwrap()]).unwrap();
    let file = file_of(&root, "k");
    let text = std::fs::read_to_string(&file).unwrap().replace("\"index\"", "\"Index\"");
    let spaces = " ".repeat(24 << 20);
    let (first, second) = text.split_at(text.find("\"logits\"").unwrap());
    for first in [first.replace("],\n[", &format!("],{spaces}[")), first.replacen("[0,", &format!("[0,{spaces}"), 1)] {
        std::fs::write(&file, format!("{first}{second}")).unwrap();
        for (point, tensor) in &activations {
            assert_eq!(rows(&store, "k", point, &Positions::All).unwrap(), tensor.bytes());
        }
    }
    std::fs::write(&file, format!("{first}{}", second.replacen("],\n[", &format!("],{spaces}["), 1))).unwrap();
    let error = store.entry("k").err().unwrap();
    assert_eq!(error.kind(), Kind::LimitExceeded, "{error}");
}

#[test]
fn an_entry_that_was_looked_up_is_never_another() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "text");
    put(&store, [draft(1, 0), draft(2, 0)]).unwrap();
    let (replaced, deleted) = (store.entry("k1").unwrap(), store.entry("k2").unwrap());
    put(&store, [draft(1, 1)]).unwrap();
    store.delete(&["k2".to_owned()]).unwrap();
    for (held, key) in [(replaced, "k1"), (deleted, "k2")] {
        let error: Error = held.with_bytes(0, 0, 10, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSuchKey);
        let message = format!("entry `{key}` was replaced or deleted after it was looked up; look it up again");
        assert_eq!(error.to_string(), message);
    }
    holds(&store, 1, 1).unwrap();
}

#[test]
fn a_directory_holds_more_than_entries() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root, "text");
    let digest = key_of_prompt("the prompt");
    put(&store, [small(&digest, 1), small("x", 2)]).unwrap();
    // As a key, the prompt itself would have the same file.
    let error = put(&store, [small("the prompt", 3)]).unwrap_err();
    assert_eq!(error.kind(), Kind::KeyConflict);
    assert!(error.to_string().ends_with(&format!("which holds entry `{digest}`; give another key")), "{error}");
    store.close().unwrap();
    let activations = root.join("activations");
    assert!(activations.join(format!("{digest}.json")).exists());
    assert!(file_of(&root, "x").exists());
    let unfinished = format!("{digest}.json.3.new");
    for name in ["notes.txt", "a.json", &unfinished] {
        std::fs::write(activations.join(name), "{").unwrap();
    }
    assert_eq!(keys(&open(&root, false).unwrap()), [digest.as_str(), "x"]);
    assert!(activations.join(&unfinished).exists());
    assert_eq!(keys(&open(&root, true).unwrap()), [digest.as_str(), "x"]);
    assert!(!activations.join(&unfinished).exists() && activations.join("notes.txt").exists());

    let link = activations.join(format!("{}.json", key_of_prompt("link")));
    std::os::unix::fs::symlink(file_of(&root, "x"), &link).unwrap();
    let store = open(&root, false).unwrap();
    assert_eq!(store.reading().unwrap().damage()[0].kind(), Kind::UnsafePath);
    assert_eq!(keys(&store), [digest.as_str(), "x"]);
    let error = open(&root, true).unwrap_err();
    assert!(error.to_string().starts_with("nothing can be appended to the damaged store"), "{error}");
    std::fs::remove_file(link).unwrap();

    let copy = activations.join(format!("{}.json", key_of_prompt("copy")));
    std::fs::copy(file_of(&root, "x"), &copy).unwrap();
    let store = open(&root, false).unwrap();
    assert!(store.reading().unwrap().damage()[0].to_string().contains("holds the entry `x`, whose file is"));
    std::fs::remove_file(copy).unwrap();

    let elsewhere = directory.path().join("elsewhere");
    std::fs::rename(&activations, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &activations).unwrap();
    assert_eq!(open(&root, false).unwrap_err().kind(), Kind::UnsafePath);
    std::fs::remove_file(&activations).unwrap();
    std::fs::rename(&elsewhere, &activations).unwrap();

    let store = open(&root, true).unwrap();
    std::fs::copy(file_of(&root, "x"), file_of(&root, "y")).unwrap();
    let error = put(&store, [small("y", 3)]).unwrap_err();
    assert_eq!(error.kind(), Kind::KeyConflict);
    assert!(error.to_string().contains("is there already and holds no entry of this store"), "{error}");
    put(&store, [small("z", 3)]).unwrap();
}

#[test]
fn creating_never_takes_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in
        [("actstore.lock", "mine"), ("actstore.new", "{\"mine\":1}"), ("activations", ""), ("metadata.json", "{}")]
    {
        let root = directory.path().join(name.replace('.', "-"));
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join(name), content).unwrap();
        let settings = settings_of("json", "error", "commit");
        let error = Store::create(Some(&root), "json", settings, MEMORY).unwrap_err();
        assert_eq!(error.kind(), Kind::StoreExists, "{name}");
        assert_eq!(std::fs::read_to_string(root.join(name)).unwrap(), content);
    }
}

#[test]
fn a_manifest_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    create(&root, "base64").close().unwrap();
    let path = root.join("actstore.json");
    let manifest = std::fs::read_to_string(&path).unwrap();
    for (old, new, kind) in [
        ("base64", "base65", Kind::Malformed),
        ("\"version\":0", "\"version\":7", Kind::UnsupportedVersion),
        ("{", "", Kind::Malformed),
    ] {
        std::fs::write(&path, manifest.replacen(old, new, 1)).unwrap();
        let error = open(&root, false).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with("the manifest `"), "{error}");
    }
}
