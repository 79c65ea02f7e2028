//! Bytes change, files go: what is read is right or is an error, the rest of the store stays readable, and nothing is
//! appended to what is damaged.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use actstore::codec::Encoding;
use actstore::entry::{Document, Positions};
use actstore::error::Kind;
use actstore::format::{Activation, EntryHeader, Frame, frame_checksum};
use actstore::hook_point::HookPoint;
use actstore::inspect;
use actstore::reader::read_selected;
use actstore::store::{EncodedEntry, Operation, Store};
use actstore::tensor::{Dtype, Layout};
use sample::{MEMORY, POINT, create, draft, holds, put, rows};

const ENTRIES: u64 = 6;

fn files(root: &Path) -> Vec<PathBuf> {
    let mut files = vec![root.join("actstore.manifest")];
    for directory in ["shards", "logs"] {
        let entries = std::fs::read_dir(root.join(directory)).unwrap();
        files.extend(
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e != "lock")),
        );
    }
    files.sort();
    files
}

/// Two commits in one shard, left open as small shards are.
fn small_store(root: &Path) {
    let store = create(root, "planes");
    put(&store, (0..3).map(|n| draft(n, 0))).unwrap();
    put(&store, (3..ENTRIES).map(|n| draft(n, 0))).unwrap();
    store.close().unwrap();
}

/// A shard that was sealed because of its many changes, and its six entries.
fn sealed_store(root: &Path) {
    let store = create(root, "planes");
    put(&store, (0..ENTRIES).map(|n| draft(n, 0))).unwrap();
    for _ in 0..700 {
        store.delete(&["k0".to_owned(), "k1".to_owned(), "k2".to_owned()]).unwrap();
        put(&store, (0..3).map(|n| draft(n, 0))).unwrap();
    }
    store.close().unwrap();
}

/// Entries that read exactly; every other one must raise, none may read differently.
fn readable(store: &Store) -> Vec<u64> {
    (0..ENTRIES).filter(|&n| holds(store, n, 0).is_ok()).collect()
}

fn verified(store: &Store) -> usize {
    inspect::verify(store, |_, _| Ok(())).unwrap().damage.len()
}

#[test]
fn one_changed_byte_is_found_and_costs_at_most_a_commit() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    small_store(&root);
    let (mut unnoticed, mut changed) = (0, 0);
    for path in files(&root) {
        let sound = std::fs::read(&path).unwrap();
        for at in (0..sound.len()).step_by(7) {
            let mut damaged = sound.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged).unwrap();
            changed += 1;
            let Ok(store) = Store::open(&root, false, MEMORY) else {
                assert!(
                    path.ends_with("actstore.manifest"),
                    "{} byte {at} keeps the store from opening",
                    path.display()
                );
                continue;
            };
            let readable = readable(&store);
            assert!(readable.len() >= 3, "{} byte {at}: only {readable:?} of {ENTRIES}", path.display());
            if verified(&store) == 0 {
                unnoticed += 1;
                assert_eq!(readable.len() as u64, ENTRIES, "{} byte {at} is lost without a word", path.display());
            }
        }
        std::fs::write(&path, &sound).unwrap();
    }
    assert!(unnoticed * 5 < changed, "{unnoticed} of {changed} changes, more than padding explains");
    assert_eq!(readable(&Store::open(&root, true, MEMORY).unwrap()).len() as u64, ENTRIES);
}

#[test]
fn nothing_is_appended_to_a_damaged_store() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    small_store(&root);
    let shard = root.join("shards/0-000001.shard");
    let mut bytes = std::fs::read(&shard).unwrap();
    // The length in the header of the second record.
    let second = 64 + 64 * usize::from(bytes[8]).div_ceil(64);
    bytes[second + 8] ^= 0xFF;
    std::fs::write(&shard, &bytes).unwrap();
    let error = Store::open(&root, true, MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::Checksum);
    assert!(error.to_string().contains("open it with mode `r` to read the rest"), "{error}");
    assert_eq!(std::fs::read(&shard).unwrap(), bytes, "opening must not change a damaged file");
    let store = Store::open(&root, false, MEMORY).unwrap();
    assert_eq!(store.reading().unwrap().damage().len(), 1);
    assert!(readable(&store).len() as u64 >= 3);
}

#[test]
fn a_tail_that_was_never_promised_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    small_store(&root);
    let shard = root.join("shards/0-000001.shard");
    let sound = std::fs::read(&shard).unwrap();
    for tail in [vec![0; 1], vec![0; 5000], vec![0xA5; 777], sound[..640].to_vec(), sound.clone()] {
        std::fs::write(&shard, [sound.clone(), tail].concat()).unwrap();
        assert_eq!(readable(&Store::open(&root, false, MEMORY).unwrap()).len() as u64, ENTRIES);
        let store = Store::open(&root, true, MEMORY).unwrap();
        assert_eq!(readable(&store).len() as u64, ENTRIES);
        assert_eq!(verified(&store), 0);
        store.close().unwrap();
        assert_eq!(std::fs::read(&shard).unwrap(), sound);
    }
}

#[test]
fn an_open_shard_that_is_short_or_gone_is_named_and_keeps_what_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    small_store(&root);
    let shard = root.join("shards/0-000001.shard");
    let sound = std::fs::read(&shard).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for length in (0..sound.len()).step_by(61) {
        std::fs::write(&shard, &sound[..length]).unwrap();
        let store = Store::open(&root, false, MEMORY).unwrap();
        assert_eq!(store.reading().unwrap().damage()[0].kind(), Kind::Truncated);
        assert_eq!(Store::open(&root, true, MEMORY).unwrap_err().kind(), Kind::Truncated);
        seen.insert(readable(&store));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [vec![], vec![0, 1, 2]]);
    std::fs::remove_file(&shard).unwrap();
    assert_eq!(Store::open(&root, true, MEMORY).unwrap_err().kind(), Kind::MissingFile);
    assert_eq!(Store::open(&root, false, MEMORY).unwrap().entry("k1").err().unwrap().kind(), Kind::MissingFile);
}

#[test]
fn a_sealed_shard_that_is_short_or_gone_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    sealed_store(&root);
    let shard = root.join("shards/0-000001.shard");
    let sound = std::fs::read(&shard).unwrap();
    let open = || Store::open(&root, false, MEMORY).unwrap();
    assert_eq!((readable(&open()).len() as u64, verified(&open())), (ENTRIES, 0));

    std::fs::write(&shard, &sound[..sound.len() / 2]).unwrap();
    assert_eq!(Store::open(&root, true, MEMORY).unwrap_err().kind(), Kind::Truncated);
    assert_eq!(open().reading().unwrap().damage()[0].kind(), Kind::Truncated);
    assert!(verified(&open()) > 0);

    std::fs::remove_file(&shard).unwrap();
    assert_eq!(Store::open(&root, true, MEMORY).unwrap_err().kind(), Kind::MissingFile);
    let error = open().entry("k1").err().unwrap();
    assert_eq!(error.kind(), Kind::MissingFile);
    assert!(error.to_string().starts_with("`k1` is not among the entries that the damaged store can read"), "{error}");

    std::fs::write(&shard, &sound).unwrap();
    assert_eq!((readable(&open()).len() as u64, verified(&open())), (ENTRIES, 0));
}

#[test]
fn a_shard_without_its_seal_or_log_still_reads() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    sealed_store(&root);
    let (shard, log) = (root.join("shards/0-000001.shard"), root.join("logs/0.log"));
    let (sound_shard, sound_log) = (std::fs::read(&shard).unwrap(), std::fs::read(&log).unwrap());
    let mut damaged = sound_shard.clone();
    let last = damaged.len() - 200;
    damaged[last] ^= 1;
    std::fs::write(&shard, &damaged).unwrap();
    let store = Store::open(&root, false, MEMORY).unwrap();
    assert_eq!(readable(&store).len() as u64, ENTRIES);
    assert!(verified(&store) > 0, "verify must see the damaged seal");
    std::fs::write(&shard, &sound_shard).unwrap();

    std::fs::remove_file(&log).unwrap();
    assert_eq!(readable(&Store::open(&root, false, MEMORY).unwrap()).len() as u64, ENTRIES);
    assert_eq!(Store::open(&root, true, MEMORY).unwrap_err().kind(), Kind::MissingFile);
    // The crash between the seal and its line in the log.
    std::fs::write(&log, &sound_log[..320]).unwrap();
    let store = Store::open(&root, true, MEMORY).unwrap();
    assert_eq!((readable(&store).len() as u64, verified(&store)), (ENTRIES, 0));
    store.close().unwrap();
    assert_eq!(std::fs::read(&log).unwrap(), sound_log, "recovery writes the line that was missing");
}

#[test]
fn a_block_from_elsewhere_is_not_taken_for_ours() {
    let directory = tempfile::tempdir().unwrap();
    let (root, other) = (directory.path().join("store"), directory.path().join("other"));
    small_store(&root);
    small_store(&other);
    let name = "shards/0-000001.shard";
    std::fs::copy(other.join(name), root.join(name)).unwrap();
    assert!(readable(&Store::open(&root, false, MEMORY).unwrap()).is_empty());
}

/// Two writers continued copies of one store, each with an entry of the same size: their records fit each other in
/// place, number and length, and only the chain tells that a commit is not of these records.
#[test]
fn a_commit_of_another_history_does_not_stand() {
    let directory = tempfile::tempdir().unwrap();
    let continued = |name: &str, entry: u64, version: u64| {
        let root = directory.path().join(name);
        let store = Arc::new(Store::open(&root, true, MEMORY).unwrap());
        put(&store, [draft(entry, version)]).unwrap();
        let shard = root.join("shards/0-000001.shard");
        let before_closing = std::fs::read(&shard).unwrap();
        store.close().unwrap();
        before_closing
    };
    small_store(&directory.path().join("one"));
    std::fs::create_dir_all(directory.path().join("two/shards")).unwrap();
    std::fs::create_dir_all(directory.path().join("two/logs")).unwrap();
    for name in ["actstore.manifest", "shards/0-000001.shard", "logs/0.log"] {
        std::fs::copy(directory.path().join("one").join(name), directory.path().join("two").join(name)).unwrap();
    }
    let (one, two) = (continued("one", 10, 0), continued("two", 10, 1));
    assert_eq!(one.len(), two.len());
    let commit = one.windows(4).rposition(|four| four == b"ACTR").unwrap();
    assert_eq!(one[commit..commit + 5], *b"ACTR\x05", "the last record is the commit");
    let spliced = [&two[..commit], &one[commit..]].concat();
    std::fs::write(directory.path().join("two/shards/0-000001.shard"), spliced).unwrap();
    let store = Store::open(&directory.path().join("two"), false, MEMORY).unwrap();
    assert_eq!(readable(&store).len() as u64, ENTRIES);
    assert!(store.entry("k10").is_err());
}

#[test]
fn a_manifest_of_another_store_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (root, other) = (directory.path().join("store"), directory.path().join("other"));
    small_store(&root);
    small_store(&other);
    std::fs::copy(other.join("actstore.manifest"), root.join("actstore.manifest")).unwrap();
    assert_eq!(Store::open(&root, true, MEMORY).unwrap_err().kind(), Kind::Checksum);
    assert!(!Store::open(&root, false, MEMORY).unwrap().reading().unwrap().damage().is_empty());
}

#[test]
fn a_seal_that_was_cut_off_is_a_tail() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    sealed_store(&root);
    let (shard, log) = (root.join("shards/0-000001.shard"), root.join("logs/0.log"));
    let (sound_shard, sound_log) = (std::fs::read(&shard).unwrap(), std::fs::read(&log).unwrap());
    // The log as it was before the seal; of the seal the header, and zeros where its payload should be.
    let seal = sound_shard.windows(5).rposition(|five| five == b"ACTR\x06").unwrap();
    let mut cut = sound_shard.clone();
    cut[seal + 64..].fill(0);
    for left in [cut.as_slice(), &sound_shard[..seal + 64], &sound_shard[..seal + 1000]] {
        std::fs::write(&shard, left).unwrap();
        std::fs::write(&log, &sound_log[..320]).unwrap();
        let store = Arc::new(Store::open(&root, true, MEMORY).unwrap());
        assert_eq!((readable(&store).len() as u64, verified(&store)), (ENTRIES, 0));
        put(&store, [draft(50, 0)]).unwrap();
        store.close().unwrap();
        let again = Store::open(&root, false, MEMORY).unwrap();
        assert_eq!((readable(&again).len() as u64, verified(&again)), (ENTRIES, 0));
        holds(&again, 50, 0).unwrap();
    }
}

#[test]
fn a_newer_version_is_refused_with_its_number() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    small_store(&root);
    let manifest = root.join("actstore.manifest");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[5] = 7;
    let checksum = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&manifest, &bytes).unwrap();
    let error = Store::open(&root, false, MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::UnsupportedVersion);
    assert!(
        error
            .to_string()
            .ends_with("written in format version `7`; this build reads versions up to 0: upgrade actstore"),
        "{error}"
    );
}

/// Adds entry `key` of one row of `bytes` values, which is stored as `stored` and said to be of the length and checksum of
/// `frame`.
fn put_row(store: &Store, key: &str, bytes: u64, frame: Frame, stored: Vec<u8>) {
    let activation = Activation {
        point: HookPoint::new(POINT).unwrap(),
        layout: Layout::new(Dtype::UInt8, vec![1, bytes]).unwrap(),
        frame_rows: 1,
        nonfinite: 0,
        saturated: 0,
        model: None,
        below: None,
        frames: vec![frame],
    };
    let document = Document::parse(&format!(r#"{{"key":"{key}","key_recipe":"user"}}"#)).unwrap();
    let header = EntryHeader { document, token_ids: None, activations: vec![activation] };
    let entry = EncodedEntry { header, content_id: [0; 32], chunks: vec![stored], models: Vec::new() };
    store.writing().unwrap().commit(vec![Operation::Put(Box::new(entry))]).unwrap();
}

/// 64 MiB of zeros in a few kilobytes, in a frame whose checksums are right and which says it holds 16 kB.
#[test]
fn a_zstd_bomb_costs_its_own_entry() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    small_store(&root);
    let store = Store::open(&root, true, MEMORY).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    let frame =
        Frame { checksum: frame_checksum(&bomb), length: u32::try_from(bomb.len()).unwrap(), encoding: Encoding::Zstd };
    put_row(&store, "bomb", 16_384, frame, bomb);
    let error = rows(&store, "bomb", POINT, &Positions::All).unwrap_err();
    assert_eq!(error.kind(), Kind::Malformed);
    assert!(error.to_string().starts_with("`blocks.0.hook_resid_post` of entry `bomb`: "), "{error}");
    assert_eq!((readable(&store).len() as u64, verified(&store)), (ENTRIES, 1));
}

/// Most memory that this process had so far, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn bytes_that_are_said_to_be_there_take_no_memory() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    small_store(&root);
    let store = Store::open(&root, true, MEMORY).unwrap();
    let before = peak();
    for (key, encoding) in [("zstd", Encoding::Zstd), ("stored", Encoding::Stored)] {
        put_row(&store, key, 3 << 30, Frame { checksum: 0, length: 3 << 30, encoding }, vec![0; 100]);
        let entry = store.entry(key).unwrap();
        let error = read_selected(&store, &entry, &[POINT], &Positions::All).unwrap_err();
        assert_eq!(error.kind(), Kind::Truncated);
    }
    assert!(peak() - before < 1 << 20, "{} KiB", peak() - before);
}
