//! How often the paths above the codecs allocate, and how much: `cargo bench --package actstore --bench allocations`.
//!
//! Counted exactly, on the calling thread. What codecs may allocate is asserted in `tests/allocations.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench that panics has failed"
)]

#[path = "../tests/sample/mod.rs"]
mod sample;

use std::sync::Arc;

use actstore::encode::{Draft, encode};
use actstore::entry::Positions;
use actstore::fitting::Models;
use actstore::format::EntryHeader;
use actstore::store::Store;
use actstore::tensor::Dtype;
use allocation_counter::measure;
use sample::stream::{Stream, point};
use sample::{MEMORY, put, rows, settings};

const STREAM: Stream = Stream { dtype: Dtype::BFloat16, width: 384, scale: 1.0 };
const ROWS: u64 = 84;
const LAYERS: [u64; 4] = [0, 1, 2, 3];

/// The second time counts: what is made once, is made by the first.
fn say(what: &str, mut work: impl FnMut()) {
    work();
    let found = measure(work);
    println!(
        "{what:32} {:>6} allocations {:>10} bytes, {:>10} at most",
        found.count_total, found.bytes_total, found.bytes_max
    );
}

/// An entry whose rows are tied to positions.
fn draft(seed: u64) -> Draft {
    let mut draft = STREAM.draft(seed, ROWS, &LAYERS);
    draft.document.positions = Some(vec![[0, ROWS]]);
    draft
}

fn of_codec(codec: &str) {
    let settings = settings(codec, "replace", "commit");
    let draft = || draft(1);
    let codings = Models::default().observe(&settings, &draft().activations).unwrap();
    let mut drafts = vec![draft(), draft()];
    say(&format!("{codec}: encode an entry"), || _ = encode(&settings, drafts.pop().unwrap(), &codings).unwrap());
    let header = encode(&settings, draft(), &codings).unwrap().header;
    let bytes = header.encode().unwrap();
    say(&format!("{codec}: encode its table"), || _ = header.encode().unwrap());
    say(&format!("{codec}: decode its table"), || _ = EntryHeader::decode(&bytes).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Arc::new(Store::create(Some(&path), "shards", settings, MEMORY).unwrap());
    let mut drafts = vec![self::draft(2), draft()];
    say(&format!("{codec}: put and commit it"), || put(&store, drafts.pop()).unwrap());
    let read = |positions: &Positions| _ = rows(&store, "k1", point(3).as_str(), positions).unwrap();
    say(&format!("{codec}: read a layer"), || read(&Positions::All));
    say(&format!("{codec}: read a row"), || read(&Positions::Last));
}

fn main() {
    ["raw", "zstd", "planes", "archive"].into_iter().for_each(of_codec);
}
