//! The power goes at the n-th sync, for every n: what was acknowledged is there exactly, what was not is whole or absent.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that panics has failed")]

mod sample;

use std::path::Path;
use std::sync::Arc;

use actstore::error::Result;
use actstore::files::Disk;
use actstore::store::Store;
use actstore::writer::Writer;
use sample::power::{CutDisk, Progress};
use sample::{MEMORY, draft, holds, keys, put, settings, version};

/// Three sessions of three commits each; later ones replace, the last deletes. Whether all of it was done.
fn work(root: &Path, disk: &CutDisk, durability: &str) -> (Progress, bool) {
    let mut progress = Progress::default();
    let finished = (|| -> Result<()> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut store = Arc::new(Store::create_on(
            Some(root),
            "shards",
            settings("planes", "replace", durability),
            MEMORY,
            disk.clone(),
        )?);
        for session in 0..3u64 {
            let writer = Writer::new(store.clone())?;
            for commit in 0..3u64 {
                let keys = [commit * 2, commit * 2 + 1 + session];
                progress.begin(keys.map(|n| (n, Some(session))));
                for n in keys {
                    writer.put(draft(n, session))?;
                }
                writer.flush()?;
                progress.acknowledge();
            }
            writer.close()?;
            if session == 2 {
                progress.begin([(0, None)]);
                store.delete(&["k0".to_owned()])?;
                progress.acknowledge();
            }
            store.close()?;
            drop((writer, store));
            store = Arc::new(Store::open_on(root, true, MEMORY, disk.clone())?);
        }
        store.close()
    })();
    (progress, finished.is_ok())
}

fn check(root: &Path, progress: &Progress, case: &str) {
    let Progress { acknowledged, in_flight } = progress;
    let store = match Store::open(root, true, MEMORY) {
        Ok(store) => Arc::new(store),
        Err(error) => {
            assert!(acknowledged.is_empty(), "{case}: {error}");
            // What an interrupted creation left does not stand in the way of the next.
            Store::create(Some(root), "shards", settings("raw", "error", "commit"), MEMORY).unwrap();
            return;
        }
    };
    let present: Vec<_> = keys(&store);
    let found = |n: u64| version(&store, n);
    for n in 0..9 {
        progress.allows(n, found(n), case);
    }
    let landed: Vec<_> = in_flight
        .iter()
        .filter(|(n, _)| acknowledged.get(n) != in_flight.get(n))
        .map(|(n, version)| found(*n) == *version)
        .collect();
    assert!(landed.iter().all(|one| *one == landed[0]), "{case}: a commit is there in part: {in_flight:?}");
    for key in &present {
        let n = key[1..].parse().unwrap();
        holds(&store, n, found(n).unwrap()).unwrap();
    }
    put(&store, [draft(99, 7)]).unwrap();
    store.close().unwrap();
    let again = Store::open(root, false, MEMORY).unwrap();
    assert!(again.reading().unwrap().damage().is_empty(), "{case}");
    holds(&again, 99, 7).unwrap();
    assert_eq!(again.reading().unwrap().len().unwrap(), present.len() + 1);
}

fn cut_everywhere(durability: &str) {
    for cut_at in 1.. {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let disk = CutDisk::cut_at(cut_at);
        let (progress, finished) = work(&root, &disk, durability);
        if finished {
            assert!(cut_at > 20, "only {cut_at} syncs were cut");
            return;
        }
        for variant in 0..8 {
            let left = tempfile::tempdir().unwrap();
            disk.lay_out(directory.path(), left.path(), variant);
            check(&left.path().join("store"), &progress, &format!("{durability}, sync {cut_at}, variant {variant}"));
        }
    }
}

#[test]
fn the_power_goes_at_every_sync() {
    cut_everywhere("commit");
}

#[test]
fn the_power_goes_at_every_sync_of_intervals() {
    cut_everywhere("interval");
}
