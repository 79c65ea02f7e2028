//! The LMDB backend beyond the contract: maps that grow, processes that die, disks that fill, files that are damaged,
//! and several handles and processes on one file.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actstore::encode::Draft;
use actstore::entry::{Document, Positions};
use actstore::error::{Error, Kind};
use actstore::hook_point::HookPoint;
use actstore::inspect;
use actstore::store::Store;
use actstore::tensor::{Dtype, Layout, Tensor};
use actstore::writer::Writer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sample::{MEMORY, POINT, chance, draft, holds, keys, names, put, rows, settings, settings_of, version};

const ROLE: &str = "ACTSTORE_TEST_ROLE";
const ROOT: &str = "ACTSTORE_TEST_ROOT";
const BIG_ROWS: u64 = 256;
const BIG_ROW_BYTES: u64 = 4096;

fn create(root: &Path) -> Arc<Store> {
    Arc::new(Store::create(Some(root), "lmdb", settings_of("lmdb", "replace", "commit"), MEMORY).unwrap())
}

fn create_raw(root: &Path, memory: u64) -> Arc<Store> {
    Arc::new(Store::create(Some(root), "lmdb", settings("raw", "replace", "commit"), memory).unwrap())
}

fn open(root: &Path, writable: bool) -> Arc<Store> {
    Arc::new(Store::open(root, writable, MEMORY).unwrap())
}

fn length(store: &Store) -> usize {
    store.reading().unwrap().len().unwrap()
}

fn damage(store: &Store) -> Vec<Error> {
    inspect::verify(store, |_, _| Ok(())).unwrap().damage.into_iter().map(|damage| damage.error).collect()
}

/// Bytes that follow from `n`, and differ between neighbours.
fn big_bytes(n: u64, rows: u64) -> Vec<u8> {
    (0..rows * BIG_ROW_BYTES / 8).flat_map(|at| (at ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes()).collect()
}

/// Entry `k<n>` of so many rows of 4 KiB, which `raw` stores as they are.
fn tall(n: u64, rows: u64) -> Draft {
    let document = Document::parse(&format!(r#"{{"key":"k{n}","key_recipe":"user"}}"#)).unwrap();
    let layout = Layout::new(Dtype::UInt8, vec![rows, BIG_ROW_BYTES]).unwrap();
    let tensor = Tensor::new(layout, big_bytes(n, rows)).unwrap();
    Draft::new(document, None, vec![(HookPoint::new(POINT).unwrap(), tensor)]).unwrap()
}

/// Of 1 MiB.
fn big(n: u64) -> Draft {
    tall(n, BIG_ROWS)
}

fn assert_big(store: &Store, n: u64) {
    assert!(rows(store, &format!("k{n}"), POINT, &Positions::All).unwrap() == big_bytes(n, BIG_ROWS), "k{n}");
}

/// This test binary again, in a role of its own.
fn spawn(role: &str, root: &Path) -> Child {
    // The shell ignores the signal of the limit of file sizes, which the child cannot do for itself without `unsafe`.
    Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; exec "$0" --exact child --nocapture"#])
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .env(ROOT, root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    out.write_all(format!("\nchild: {text}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// What a child says, line by line.
fn said(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("child: ").map(str::to_owned))
}

fn tell(child: &mut Child, text: &str) {
    child.stdin.as_mut().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// Does nothing in the tests' own process.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let root = PathBuf::from(std::env::var(ROOT).unwrap());
    match role.as_str() {
        "reads" => child_reads(&root),
        "writes" => child_writes(&root),
        "fills" => child_fills(&root),
        "grows" => child_grows(&root),
        role => panic!("{role}"),
    }
}

/// Reads what there is until it is told how many entries there must be, and finds them all through the same handle.
fn child_reads(root: &Path) {
    let store = open(root, false);
    let told = Arc::new(AtomicBool::new(false));
    let (listener, heard) = (told.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        heard.0.send(hear()).unwrap();
        listener.store(true, Ordering::SeqCst);
    });
    say("ready");
    let mut reads = 0;
    while !told.load(Ordering::SeqCst) {
        let present = length(&store) as u64;
        if present > 0 {
            assert_big(&store, chance(reads, 5) % present);
            reads += 1;
        }
    }
    let entries: u64 = heard.1.recv().unwrap().parse().unwrap();
    assert_eq!(length(&store) as u64, entries);
    (0..entries).for_each(|n| assert_big(&store, n));
    say(&format!("read {reads}"));
}

#[test]
fn the_map_grows_under_readers_of_this_and_another_process() {
    const ENTRIES: u64 = 300;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create_raw(&root, MEMORY);
    let mut child = spawn("reads", &root);
    let mut said = said(&mut child);
    assert_eq!(said.next().unwrap(), "ready");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (store, mut reads) = (open(&root, false), 0u64);
            while !done.load(Ordering::SeqCst) {
                let present = length(&store) as u64;
                if present > 0 {
                    assert_big(&store, chance(reads, 3) % present);
                    reads += 1;
                }
            }
            reads
        });
        for first in (0..ENTRIES).step_by(3) {
            put(&store, (first..first + 3).map(big)).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        assert!(reader.join().unwrap() > 0);
    });
    tell(&mut child, &ENTRIES.to_string());
    assert_ne!(said.next().unwrap(), "read 0");
    assert!(child.wait().unwrap().success());
    assert!(store.reading().unwrap().file_bytes().unwrap() > 300 << 20);
    assert!(damage(&store).is_empty());
}

/// Writes through a map that this process found small.
fn child_grows(root: &Path) {
    let store = open(root, true);
    put(&store, (0..100).map(big)).unwrap();
    store.close().unwrap();
    say("grown");
    assert_eq!(hear(), "go");
}

#[test]
fn writing_goes_on_after_another_process_grew_the_map() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    create_raw(&root, MEMORY).close().unwrap();
    let reader = open(&root, false);
    assert_eq!(length(&reader), 0);
    let mut child = spawn("grows", &root);
    let mut said = said(&mut child);
    assert_eq!(said.next().unwrap(), "grown");
    // Shares the reader's environment, whose map is as small as the file was.
    let writer = open(&root, true);
    put(&writer, (100..110).map(big)).unwrap();
    (0..110).for_each(|n| assert_big(&reader, n));
    tell(&mut child, "go");
    assert_eq!(said.next(), None);
    assert!(child.wait().unwrap().success());
}

/// Group after group: a new entry, and a new version of one of five; says which group is durable.
fn child_writes(root: &Path) {
    let store = if root.join("data.mdb").exists() { open(root, true) } else { create(root) };
    let first = keys(&store).iter().filter(|key| key.len() > 4).count() as u64;
    for group in first.. {
        put(&store, [draft(1000 + group, 0), draft(group % 5, group)]).unwrap();
        say(&format!("{group}"));
    }
}

#[test]
fn what_was_acknowledged_survives_the_death_of_its_writer() {
    const ROUNDS: u64 = 24;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let mut last = 0;
    for round in 0..ROUNDS {
        let mut child = spawn("writes", &root);
        let mut said = said(&mut child);
        for _ in 0..1 + chance(round, 1) % 12 {
            last = said.next().unwrap().parse().unwrap();
        }
        std::thread::sleep(Duration::from_micros(chance(round, 2) % 9000));
        child.kill().unwrap();
        child.wait().unwrap();
        last = said.last().map_or(last, |line| line.parse().unwrap());
        let store = open(&root, round % 2 == 0);
        (0..=last).for_each(|group| holds(&store, 1000 + group, 0).unwrap());
        let groups = keys(&store).iter().filter(|key| key.len() > 4).count() as u64;
        for one in 0..5.min(last + 1) {
            let stored = version(&store, one).unwrap();
            assert!(stored + 5 > last && stored <= last + 1 && stored % 5 == one, "{round}: {stored} {last}");
            holds(&store, one, stored).unwrap();
        }
        assert!((last + 1..=last + 2).contains(&groups), "{round}: {groups} {last}");
        assert!(damage(&store).is_empty(), "{round}");
    }
    let store = open(&root, true);
    put(&store, [draft(7, 7)]).unwrap();
    holds(&store, 7, 7).unwrap();
}

fn limit_files(bytes: Option<u64>) {
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: getrlimit(Resource::Fsize).maximum }).unwrap();
}

/// Meets a limit of the size of files at many lengths.
fn child_fills(root: &Path) {
    let store = create_raw(root, MEMORY);
    put(&store, (0..5).map(big)).unwrap();
    let data = root.join("data.mdb");
    let (mut entries, mut refused) = (5, 0);
    for space in (0..2 << 20).step_by(83_456) {
        limit_files(Some(std::fs::metadata(&data).unwrap().len() + space));
        let some: Vec<_> = (entries..entries + 3).collect();
        if let Err(error) = put(&store, some.iter().map(|&n| big(n))) {
            assert_eq!(error.kind(), Kind::StorageFull, "{space}: {error}");
            assert!(error.to_string().ends_with("free some space and try again: what was committed is intact"));
            assert_eq!(length(&store) as u64, entries);
            (0..entries).for_each(|n| assert_big(&store, n));
            refused += 1;
            limit_files(None);
            put(&store, some.iter().map(|&n| big(n))).unwrap();
        }
        limit_files(None);
        some.iter().for_each(|&n| assert_big(&store, n));
        entries += 3;
    }
    assert!(damage(&store).is_empty());
    say(&format!("refused {refused}"));
}

#[test]
fn a_full_disk_costs_only_what_did_not_fit() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = spawn("fills", &directory.path().join("store"));
    let refused = said(&mut child).last().unwrap_or_default();
    assert!(child.wait().unwrap().success());
    assert!(refused.strip_prefix("refused ").unwrap().parse::<u32>().unwrap() > 5, "{refused}");
}

const SMALL: u64 = 12;

/// A closed store: entries in two commits, one replaced, one deleted.
fn small_store(root: &Path) -> Vec<u8> {
    let store = create(root);
    put(&store, (0..8).map(|n| draft(n, 0))).unwrap();
    put(&store, (8..SMALL + 1).map(|n| draft(n, 0))).unwrap();
    put(&store, [draft(3, 1), draft(3, 0)]).unwrap();
    store.delete(&[format!("k{SMALL}")]).unwrap();
    store.close().unwrap();
    std::fs::read(root.join("data.mdb")).unwrap()
}

/// Opens a store of these bytes and reads all that it may still have; says how many entries were refused.
fn try_all(directory: &Path, bytes: &[u8], case: &str) -> u64 {
    let root = directory.join("damaged");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("data.mdb"), bytes).unwrap();
    let refused =
        |error: &Error| assert!(error.kind().is_damage() || error.kind() == Kind::NotAStore, "{case}: {error}");
    let mut lost = 0;
    match Store::open(&root, false, MEMORY) {
        Err(error) => {
            refused(&error);
            lost = SMALL;
        }
        Ok(store) => {
            for n in 0..SMALL {
                if let Err(error) = holds(&store, n, 0) {
                    assert!(error.kind().is_damage(), "{case}: {error}");
                    lost += 1;
                }
            }
            assert!(store.entry(&format!("k{SMALL}")).is_err());
            let listed = store.reading().unwrap().keys();
            match &listed {
                Ok(keys) => assert_eq!(keys.len() as u64, SMALL, "{case}"),
                Err(error) => refused(error),
            }
            let reported = inspect::verify(&store, |_, _| Ok(())).is_ok_and(|report| report.damage.is_empty());
            assert!(!reported || lost == 0, "{case}: {lost} lost, nothing reported");
        }
    }
    std::fs::remove_dir_all(&root).unwrap();
    lost
}

#[test]
fn a_changed_byte_costs_entries_but_never_lies_or_kills() {
    let directory = tempfile::tempdir().unwrap();
    let whole = small_store(&directory.path().join("store"));
    let used: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] != 0).collect();
    let (mut harmed, mut refused) = (0, 0);
    for n in 0..600u64 {
        // Half of them where something is written, half anywhere.
        let at = usize::try_from(chance(n, 7)).unwrap();
        let at = if n % 2 == 0 { used[at % used.len()] } else { at % whole.len() };
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (chance(n, 8) % 8);
        let lost = try_all(directory.path(), &bytes, &format!("byte {at}"));
        harmed += u64::from(lost > 0);
        refused += u64::from(lost == SMALL);
    }
    assert!(harmed > 50 && refused > 0 && refused < harmed, "{harmed} {refused}");
}

#[test]
fn a_shortened_file_is_refused_or_whole() {
    let directory = tempfile::tempdir().unwrap();
    let whole = small_store(&directory.path().join("store"));
    for n in 0..60 {
        let length = if n < 20 { whole.len() - 1 - n * 4096 } else { whole.len() * n / 60 };
        try_all(directory.path(), &whole[..length], &format!("{length} bytes"));
    }
}

#[test]
fn one_environment_through_every_path() {
    let directory = tempfile::tempdir().unwrap();
    let (root, link, twin) =
        (directory.path().join("store"), directory.path().join("link"), directory.path().join("twin"));
    let writer = create(&root);
    put(&writer, [draft(1, 0)]).unwrap();
    std::os::unix::fs::symlink(&root, &link).unwrap();
    std::fs::create_dir(&twin).unwrap();
    std::fs::hard_link(root.join("data.mdb"), twin.join("data.mdb")).unwrap();
    let readers = [&root, &link, &twin].map(|path| open(path, false));
    put(&writer, [draft(2, 0)]).unwrap();
    for reader in &readers {
        holds(reader, 1, 0).unwrap();
        holds(reader, 2, 0).unwrap();
    }
    for path in [&root, &link, &twin] {
        assert_eq!(Store::open(path, true, MEMORY).unwrap_err().kind(), Kind::AlreadyOpen, "{}", path.display());
    }
    writer.close().unwrap();
    let again = open(&link, true);
    put(&again, [draft(3, 0)]).unwrap();
    readers.iter().for_each(|reader| holds(reader, 3, 0).unwrap());
}

#[test]
fn a_held_entry_is_never_anothers() {
    let directory = tempfile::tempdir().unwrap();
    let writer = create(&directory.path().join("store"));
    put(&writer, [draft(1, 0), draft(2, 0)]).unwrap();
    let reader = open(&directory.path().join("store"), false);
    let held = [reader.entry("k1").unwrap(), reader.entry("k2").unwrap()];
    put(&writer, [draft(1, 1), draft(3, 0)]).unwrap();
    writer.delete(&["k2".to_owned()]).unwrap();
    put(&writer, [draft(2, 1)]).unwrap();
    for (entry, key) in held.iter().zip(["k1", "k2"]) {
        let error = entry.with_bytes(0, 0, 8, &mut |_| Ok(())).unwrap_err();
        let message = format!("entry `{key}` was replaced or deleted after it was looked up; look it up again");
        assert_eq!((error.kind(), error.to_string()), (Kind::NoSuchKey, message));
    }
    holds(&reader, 1, 1).unwrap();
    holds(&reader, 2, 1).unwrap();
    assert_eq!(keys(&reader), ["k1", "k3", "k2"]);
    assert!(damage(&writer).is_empty());
}

#[test]
fn one_writer_many_readers_also_between_processes() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let mut child = spawn("writes", &root);
    let mut said = said(&mut child);
    said.next().unwrap();
    let error = Store::open(&root, true, MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::Locked, "{error}");
    let reader = open(&root, false);
    for _ in 0..20 {
        let group: u64 = said.next().unwrap().parse().unwrap();
        holds(&reader, 1000 + group, 0).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    put(&open(&root, true), [draft(8, 8)]).unwrap();
    holds(&reader, 8, 8).unwrap();
}

#[test]
fn a_chunk_beyond_a_value_is_stored_in_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create_raw(&root, 1 << 30);
    let rows_of_it = (65 << 20) / BIG_ROW_BYTES;
    put(&store, [tall(1, rows_of_it)]).unwrap();
    let bytes = big_bytes(1, rows_of_it);
    assert!(rows(&store, "k1", POINT, &Positions::All).unwrap() == bytes);
    // The first piece ends within this one.
    let row = usize::try_from((64 << 20) / BIG_ROW_BYTES - 1).unwrap();
    let found = rows(&store, "k1", POINT, &Positions::At(vec![i64::try_from(row).unwrap()]));
    if let Ok(found) = found {
        assert!(found == bytes[row * 4096..(row + 1) * 4096]);
    }
    let entry = store.entry("k1").unwrap();
    let start: u32 = (64 << 20) - 100;
    entry
        .with_bytes(0, start.into(), 1000, &mut |read| {
            assert!(read == &bytes[start as usize..][..1000]);
            Ok(())
        })
        .unwrap();
    assert_eq!(entry.with_bytes(0, bytes.len() as u64 - 4, 8, &mut |_| Ok(())).unwrap_err().kind(), Kind::Malformed);
    assert!(damage(&store).is_empty());
    store.delete(&["k1".to_owned()]).unwrap();
    assert!(damage(&store).is_empty());
}

/// Entry `m<n>`, of which `planes` learns the usual exponent of each channel.
fn learnable(n: u64) -> Draft {
    let document = Document::parse(&format!(r#"{{"key":"m{n}","key_recipe":"user"}}"#)).unwrap();
    let layout = Layout::new(Dtype::BFloat16, vec![64, 256]).unwrap();
    let value = |at: u64| 0x3F80u16 ^ u16::try_from(((at % 256 * 7 % 40) << 7) | (chance(n, at) % 128)).unwrap();
    let bytes = (0..64 * 256).flat_map(|at| value(at).to_le_bytes()).collect();
    let tensor = Tensor::new(layout, bytes).unwrap();
    Draft::new(document, None, vec![(HookPoint::new(POINT).unwrap(), tensor)]).unwrap()
}

/// A closed store of entries `m0` to `m3`: its bytes, and one of them in each copy of their model.
fn copies_of_a_model(root: &Path) -> (Vec<u8>, Vec<usize>) {
    let store = create(root);
    put(&store, (0..4).map(learnable)).unwrap();
    let entry = store.entry("m1").unwrap();
    let model = entry.model(&entry.header().activations[0].model.unwrap()).unwrap();
    store.close().unwrap();
    drop((entry, store));
    let bytes = std::fs::read(root.join("data.mdb")).unwrap();
    let stored = model.stored();
    let copies: Vec<_> =
        (0..bytes.len() - stored.len()).filter(|&at| bytes[at..].starts_with(stored)).map(|at| at + 5).collect();
    assert_eq!(copies.len(), 2);
    (bytes, copies)
}

#[test]
fn a_damaged_copy_of_a_model_costs_nothing_and_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let (whole, copies) = copies_of_a_model(&root);
    for at in copies {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(root.join("data.mdb"), &bytes).unwrap();
        let store = open(&root, false);
        for n in 0..4 {
            let stored = rows(&store, &format!("m{n}"), POINT, &Positions::All).unwrap();
            assert!(stored == learnable(n).activations[0].1.bytes());
        }
        let found = damage(&store);
        assert!(found.len() == 1 && found[0].to_string().starts_with("copy `"), "{found:?}");
    }
}

#[test]
fn damaged_copies_of_a_model_are_written_again_with_what_needs_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let (mut bytes, copies) = copies_of_a_model(&root);
    copies.into_iter().for_each(|at| bytes[at] ^= 1);
    std::fs::write(root.join("data.mdb"), &bytes).unwrap();
    let store = open(&root, true);
    assert!(rows(&store, "m1", POINT, &Positions::All).is_err());
    let fitted_anew =
        Draft { document: Document::parse(r#"{"key":"again","key_recipe":"user"}"#).unwrap(), ..learnable(1) };
    put(&store, [fitted_anew]).unwrap();
    for key in ["again", "m1"] {
        let stored = rows(&store, key, POINT, &Positions::All).unwrap();
        assert!(stored == learnable(1).activations[0].1.bytes(), "{key}");
    }
}

#[test]
fn verifying_beside_a_writer_finds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let writer = create(&root);
    put(&writer, (0..20).map(|n| draft(n, 0))).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let verifying = scope.spawn(|| {
            let (store, mut rounds) = (open(&root, false), 0);
            while !done.load(Ordering::SeqCst) {
                let found = damage(&store);
                assert!(found.is_empty(), "{found:?}");
                rounds += 1;
            }
            rounds
        });
        for version in 1..120 {
            put(&writer, (0..20).filter(|n| n % 3 == version % 3).map(|n| draft(n, version))).unwrap();
            writer.delete(&[format!("k{}", version % 20)]).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        assert!(verifying.join().unwrap() > 3);
    });
    assert!(damage(&writer).is_empty());
}

fn foreign(root: &Path) {
    std::fs::create_dir(root).unwrap();
    // Another program's environment, as bytes: its own library would leave its lock here.
    let source = root.with_extension("source");
    small_store(&source);
    let mut bytes = std::fs::read(source.join("data.mdb")).unwrap();
    let text = b"manifest";
    let found: Vec<_> = (0..bytes.len() - 8).filter(|&at| &bytes[at..at + 8] == text).collect();
    assert!(found.len() > 1);
    found.into_iter().for_each(|at| bytes[at..at + 8].copy_from_slice(b"manifesx"));
    std::fs::write(root.join("data.mdb"), bytes).unwrap();
}

#[test]
fn what_is_not_ours_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("theirs");
    foreign(&root);
    let before = std::fs::read(root.join("data.mdb")).unwrap();
    for writable in [false, true] {
        let error = Store::open(&root, writable, MEMORY).unwrap_err();
        let message = format!("`{}` is an LMDB environment, but holds no actstore store", root.display());
        assert_eq!((error.kind(), error.to_string()), (Kind::NotAStore, message));
    }
    let error = Store::create(Some(&root), "lmdb", settings_of("lmdb", "error", "commit"), MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::StoreExists);
    assert_eq!(names(&root), ["data.mdb"]);
    assert!(std::fs::read(root.join("data.mdb")).unwrap() == before);
}

#[test]
fn an_interrupted_creation_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    for (n, leftovers) in
        [&[][..], &["actstore.lock"], &["actstore.lock", "data.mdb"], &["data.mdb", "lock.mdb"]].iter().enumerate()
    {
        let root = directory.path().join(n.to_string());
        std::fs::create_dir(&root).unwrap();
        leftovers.iter().for_each(|name| std::fs::write(root.join(name), b"").unwrap());
        let store = create(&root);
        put(&store, [draft(1, 0)]).unwrap();
        holds(&store, 1, 0).unwrap();
    }
}

#[test]
fn links_and_other_libraries_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (root, linked) = (directory.path().join("store"), directory.path().join("linked"));
    small_store(&root);
    std::fs::create_dir(&linked).unwrap();
    std::os::unix::fs::symlink(root.join("data.mdb"), linked.join("data.mdb")).unwrap();
    assert_eq!(Store::open(&linked, false, MEMORY).unwrap_err().kind(), Kind::UnsafePath);
    let lock = std::fs::File::open(root.join("lock.mdb")).unwrap();
    let error = Store::open(&root, false, MEMORY).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyOpen);
    assert!(error.to_string().starts_with("another LMDB library in this process has"));
    drop(lock);
    // What the form that takes the file for the environment would have.
    let lock = std::fs::File::create(root.join("data.mdb-lock")).unwrap();
    assert_eq!(Store::open(&root, false, MEMORY).unwrap_err().kind(), Kind::AlreadyOpen);
    drop(lock);
    open(&root, false);
}

#[test]
fn a_session_that_is_cut_off_leaves_the_writer_free() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root);
    let writer = Writer::new(store.clone()).unwrap();
    (0..20).for_each(|n| writer.put(draft(n, 0)).unwrap());
    store.close().unwrap();
    let again = open(&root, true);
    (0..20).for_each(|n| holds(&again, n, 0).unwrap());
    assert_eq!(writer.stats().syncs, writer.stats().commits);
}

/// Changes the number of pages that the header of the first large value says it has.
fn damage_a_large_value(root: &Path) {
    const PAGE: usize = 4096;
    let data = root.join("data.mdb");
    let mut bytes = std::fs::read(&data).unwrap();
    let is_large = |(n, page): &(usize, &[u8])| page[..8] == (*n as u64).to_le_bytes() && page[10..12] == [4, 0];
    let (number, _) = bytes.chunks(PAGE).enumerate().find(is_large).unwrap();
    bytes[number * PAGE + 12] ^= 1;
    std::fs::write(data, bytes).unwrap();
}

#[test]
fn a_writer_looks_at_all_it_relies_on_though_a_reader_has_the_store_open() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create_raw(&root, MEMORY);
    put(&store, [big(0)]).unwrap();
    store.close().unwrap();
    drop(store);
    damage_a_large_value(&root);
    let reader = open(&root, false);
    assert_big(&reader, 0);
    assert_eq!(Store::open(&root, true, MEMORY).unwrap_err().kind(), Kind::Malformed);
    assert_big(&reader, 0);
}

#[test]
fn a_store_that_moves_is_followed_and_one_that_is_gone_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let (root, moved) = (directory.path().join("store"), directory.path().join("moved"));
    let writer = create(&root);
    put(&writer, [draft(1, 0)]).unwrap();
    std::fs::rename(&root, &moved).unwrap();
    let error = put(&writer, [draft(2, 0)]).unwrap_err();
    assert_eq!(error.kind(), Kind::MissingFile);
    assert!(error.to_string().contains("was moved, deleted or replaced while it was open"), "{error}");
    holds(&writer, 1, 0).unwrap();
    let reader = open(&moved, false);
    assert!(damage(&reader).is_empty());
    assert!(inspect::info(&reader).is_ok());
    put(&writer, [draft(2, 0)]).unwrap();
    holds(&reader, 2, 0).unwrap();
    std::fs::remove_dir_all(&moved).unwrap();
    assert_eq!(put(&writer, [draft(3, 0)]).unwrap_err().kind(), Kind::MissingFile);
    holds(&reader, 2, 0).unwrap();
}

#[test]
fn a_lock_file_that_another_library_made_anew_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = create(&root);
    put(&store, [draft(1, 0)]).unwrap();
    let other = std::fs::OpenOptions::new().read(true).write(true).open(root.join("lock.mdb")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&other, b"another form", 0).unwrap();
    for error in [holds(&store, 1, 0).unwrap_err(), put(&store, [draft(2, 0)]).unwrap_err()] {
        assert_eq!(error.kind(), Kind::AlreadyOpen);
        assert!(error.to_string().contains("another LMDB library in this process has"), "{error}");
    }
    drop(other);
    put(&store, [draft(2, 0)]).unwrap();
    (1..3).for_each(|n| holds(&store, n, 0).unwrap());
}
