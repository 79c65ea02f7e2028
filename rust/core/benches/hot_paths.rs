//! The paths that run for every frame, row and commit, by themselves: `cargo bench --package actstore`.
//!
//! Data are made up, like a residual stream; what real ones come to, beside others, is in `benches/`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a bench that panics has failed")]
#![allow(clippy::single_range_in_vec_init, reason = "ranges of rows, of which there is one")]
#![allow(missing_docs, reason = "criterion's macros")]

#[path = "../tests/sample/mod.rs"]
mod sample;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use actstore::codec::{Codec, Coded, Encoding, Kernel, Model, Rows, decode_with};
use actstore::encode::encode;
use actstore::entry::Positions;
use actstore::fitting::Models;
use actstore::format::{EntryHeader, Place, RecordHeader, RecordType, frame_checksum, payload_checksum};
use actstore::store::Store;
use actstore::tensor::Dtype;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sample::stream::{Stream, point};
use sample::{MEMORY, put, rows, settings, settings_of};

const STREAM: Stream = Stream { dtype: Dtype::BFloat16, width: 384, scale: 1.0 };
const ROWS: u64 = 84;
const CODECS: [Codec; 4] = [Codec::Raw, Codec::Zstd, Codec::Planes, Codec::Archive];

/// One frame of a codec, and what it is made of.
struct Frame {
    codec: Codec,
    rows: Vec<u8>,
    below: Vec<u8>,
    model: Option<Model>,
    encoding: Encoding,
    stored: Vec<u8>,
}

impl Frame {
    fn new(codec: Codec) -> Self {
        let [below, rows] = STREAM.layers(1, ROWS, 2).try_into().unwrap();
        let mut frame = Self { codec, rows, below, model: None, encoding: Encoding::Stored, stored: Vec::new() };
        frame.model = codec.fit(frame.input()).map(|fitted| fitted.model);
        let mut stored = Vec::new();
        frame.encoding = frame.encode(Kernel::detect(), &mut stored);
        Self { stored, ..frame }
    }

    fn input(&self) -> Rows<'_> {
        Rows { dtype: STREAM.dtype, row_values: STREAM.width, bytes: &self.rows, below: Some(&self.below) }
    }

    fn encode(&self, kernel: Kernel, out: &mut Vec<u8>) -> Encoding {
        out.clear();
        self.codec.encode_with(kernel, self.input(), self.model.as_ref(), out)
    }

    fn coded(&self) -> Coded<'_> {
        Coded {
            encoding: self.encoding,
            stored: &self.stored,
            dtype: STREAM.dtype,
            row_values: STREAM.width,
            rows: ROWS,
            model: self.model.as_ref(),
            below: Some(&self.below),
        }
    }
}

fn kernels() -> impl Iterator<Item = Kernel> {
    [Kernel::PORTABLE].into_iter().chain(Some(Kernel::detect()).filter(|kernel| kernel.is_avx2()))
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for frame in CODECS.map(Frame::new) {
        group.throughput(Throughput::Bytes(frame.rows.len() as u64));
        for kernel in kernels() {
            let id = |what| BenchmarkId::new(format!("{} {what}", frame.codec.name()), kernel.name());
            let mut out = Vec::with_capacity(frame.rows.len());
            group.bench_function(id("encode"), |bencher| bencher.iter(|| frame.encode(kernel, black_box(&mut out))));
            let mut out = vec![0; frame.rows.len()];
            let mut decode = || decode_with(kernel, &frame.coded(), &[0..ROWS], black_box(&mut out)).unwrap();
            group.bench_function(id("decode"), |bencher| bencher.iter(&mut decode));
        }
    }
    group.finish();
}

fn single_rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row");
    for frame in [Codec::Raw, Codec::Planes].map(Frame::new) {
        let row_bytes = frame.rows.len() / usize::try_from(ROWS).unwrap();
        for kernel in kernels() {
            let (mut out, mut row) = (vec![0; row_bytes], 0);
            group.bench_function(BenchmarkId::new(frame.codec.name(), kernel.name()), |bencher| {
                bencher.iter(|| {
                    row = (row + 31) % ROWS;
                    decode_with(kernel, &frame.coded(), &[row..row + 1], black_box(&mut out)).unwrap();
                });
            });
        }
    }
    group.finish();
}

/// An entry of four layers to what is written of it: samples, packing, frames, checksums, identity.
fn entries(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entry");
    for codec in CODECS {
        let settings = settings(codec.name(), "replace", "commit");
        let draft = || STREAM.draft(1, ROWS, &[0, 1, 2, 3]);
        group.throughput(Throughput::Bytes(draft().bytes()));
        let mut models = Models::default();
        let codings = models.observe(&settings, &draft().activations).unwrap();
        group.bench_function(BenchmarkId::new("encode", codec.name()), |bencher| {
            let encode = |draft| encode(&settings, draft, &codings).unwrap();
            bencher.iter_batched(draft, encode, BatchSize::LargeInput);
        });
        let store = Arc::new(Store::create(None, "memory", settings, MEMORY).unwrap());
        put(&store, [draft()]).unwrap();
        group.bench_function(BenchmarkId::new("read a layer", codec.name()), |bencher| {
            bencher.iter(|| rows(&store, "k1", point(3).as_str(), &Positions::All).unwrap());
        });
    }
    group.finish();
}

/// What surrounds stored bytes: a frame's checksum, a record's header, the table of an entry's frames.
fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    let settings = settings("planes", "replace", "commit");
    let draft = STREAM.draft(1, ROWS, &[0, 1, 2, 3]);
    let codings = Models::default().observe(&settings, &draft.activations).unwrap();
    let entry = encode(&settings, draft, &codings).unwrap();
    let stored = &entry.chunks[0];
    group.bench_function("checksum of a frame", |bencher| bencher.iter(|| frame_checksum(black_box(stored))));
    let record = RecordHeader {
        record_type: RecordType::Entry,
        length: stored.len() as u64,
        sequence: 1,
        checksum: payload_checksum(&[stored]),
        place: Place { store: 1, writer: 1, shard: 1 },
    };
    group.bench_function("header encode", |bencher| bencher.iter(|| black_box(&record).encode()));
    let bytes = record.encode();
    group.bench_function("header decode", |bencher| bencher.iter(|| RecordHeader::decode(black_box(&bytes)).unwrap()));
    group.bench_function("table encode", |bencher| bencher.iter(|| black_box(&entry.header).encode().unwrap()));
    let bytes = entry.header.encode().unwrap();
    group.bench_function("table decode", |bencher| bencher.iter(|| EntryHeader::decode(black_box(&bytes)).unwrap()));
    group.finish();
}

/// Where a sync costs nothing, so that what is ours can be seen beside a disk's noise.
const NO_DISK: &str = "/dev/shm";

/// An entry put and made durable by itself: where there is a disk, almost all of it is the disk's.
fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit");
    let places = [(None, "disk"), (Some(NO_DISK), "no disk")];
    let cells = places.iter().flat_map(|place| ["memory", "shards", "lmdb"].map(|backend| (backend, place)));
    for (backend, (folder, place)) in cells {
        let absent = folder.is_some_and(|folder| !Path::new(folder).exists());
        if absent || (backend == "memory" && *place == "disk") {
            continue;
        }
        let directory = folder.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
        let path = directory.path().join("store");
        let path = (backend != "memory").then_some(path.as_path());
        let settings = settings_of(backend, "replace", "commit");
        let store = Arc::new(Store::create(path, backend, settings, MEMORY).unwrap());
        group.bench_function(BenchmarkId::new(backend, place), |bencher| {
            // Another content each time, since the same again would be no commit; few rows, since shards only grow.
            let mut number = 0;
            let draft = || {
                number += 1;
                STREAM.draft(1, 8 + number % 2, &[0])
            };
            bencher.iter_batched(draft, |draft| put(&store, [draft]).unwrap(), BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(hot_paths, frames, single_rows, records, entries, commits);
criterion_main!(hot_paths);
