//! The activations, and how they are cut into pieces.

use std::ops::Range;
use std::path::Path;

use actstore::codec::Rows;
use actstore::tensor::Dtype;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Deserialize;

use crate::{Outcome, at};

/// The chain that `residual` means.
const RESIDUAL: &str = "residual";

#[derive(Deserialize)]
struct Index {
    streams: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    name: String,
    group: String,
    chain: Option<String>,
    layer: Option<u64>,
    dtype: String,
    row_values: u64,
    file: String,
    entries: Vec<usize>,
}

/// What of the index is worked on.
pub(crate) struct Choice<'a> {
    pub(crate) group: &'a str,
    pub(crate) dtype: &'a str,
    pub(crate) texts: bool,
    pub(crate) residual: bool,
}

impl Choice<'_> {
    fn has(&self, record: &Record) -> bool {
        let points = !self.residual || record.chain.as_deref() == Some(RESIDUAL);
        record.group == self.group && record.dtype == self.dtype && points
    }
}

/// One activation, and the rows of its pieces.
pub(crate) struct Stream {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) row_values: u64,
    pub(crate) row_bytes: usize,
    pub(crate) bytes: Vec<u8>,
    /// Whether the stream before this one is the layer below.
    pub(crate) follows: bool,
    pub(crate) cuts: Vec<Range<usize>>,
}

impl Stream {
    fn load(folder: &Path, record: &Record, whole: Option<usize>, follows: bool) -> Outcome<Self> {
        let bytes = std::fs::read(folder.join(&record.file))?;
        let dtype = Dtype::parse(&record.dtype)?;
        let row_bytes = usize::try_from(record.row_values)? * dtype.size();
        let rows = bytes.len() / row_bytes.max(1);
        let lengths = match whole {
            Some(threads) => vec![rows.div_ceil(threads.max(1)); threads],
            None => record.entries.clone(),
        };
        let mut start = 0;
        let next = |length| {
            let cut: Range<usize> = start..rows.min(start + length);
            start = cut.end;
            cut
        };
        let cuts = lengths.into_iter().map(next).collect();
        Ok(Self { name: record.name.clone(), dtype, row_values: record.row_values, row_bytes, bytes, follows, cuts })
    }

    pub(crate) fn count(&self) -> usize {
        self.bytes.len() / self.row_bytes.max(1)
    }

    pub(crate) fn rows(&self, rows: &Range<usize>) -> Outcome<&[u8]> {
        Ok(self.bytes.get(rows.start * self.row_bytes..rows.end * self.row_bytes).ok_or("rows beyond the data")?)
    }
}

/// Rows of one stream that are an entry, or part of one.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) stream: usize,
    pub(crate) rows: Range<usize>,
}

/// The activations, and which thread works on which pieces; those of a text stay together, bottom to top.
pub(crate) struct Job {
    pub(crate) streams: Vec<Stream>,
    pub(crate) parts: Vec<Vec<Piece>>,
    pub(crate) pool: ThreadPool,
    /// Layers of a chain that are decoded for its last one, at most.
    pub(crate) keys: u64,
}

impl Job {
    pub(crate) fn load(folder: &Path, choice: &Choice<'_>, threads: usize, keys: u64) -> Outcome<Self> {
        let index: Index = serde_json::from_slice(&std::fs::read(folder.join("index.json"))?)?;
        let records = chains(index.streams.into_iter().filter(|record| choice.has(record)).collect());
        let whole = (!choice.texts).then_some(threads);
        let mut streams: Vec<Stream> = Vec::new();
        let mut before: Option<&Record> = None;
        for record in &records {
            let follows = before.is_some_and(|before| record.chain.is_some() && before.chain == record.chain);
            streams.push(Stream::load(folder, record, whole, follows)?);
            before = Some(record);
        }
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        let parts = split(&streams, threads);
        Ok(Self { streams, parts, pool, keys })
    }

    pub(crate) fn stream(&self, index: usize) -> Outcome<&Stream> {
        at(&self.streams, index)
    }

    /// The rows, and those of the layer below if they are looked at.
    pub(crate) fn rows(&self, stream: usize, rows: &Range<usize>, looks_below: bool) -> Outcome<Rows<'_>> {
        let this = self.stream(stream)?;
        let below = if looks_below { Some(self.stream(stream.wrapping_sub(1))?.rows(rows)?) } else { None };
        Ok(Rows { dtype: this.dtype, row_values: this.row_values, bytes: this.rows(rows)?, below })
    }
}

/// The records, each chain together and bottom to top.
fn chains(records: Vec<Record>) -> Vec<Record> {
    let mut chains: Vec<Vec<Record>> = Vec::new();
    for record in records {
        let is_ours = |chain: &&mut Vec<Record>| {
            record.chain.is_some() && chain.first().is_some_and(|first| first.chain == record.chain)
        };
        match chains.iter_mut().find(is_ours) {
            Some(chain) => chain.push(record),
            None => chains.push(vec![record]),
        }
    }
    chains.iter_mut().for_each(|chain| chain.sort_by_key(|record| record.layer));
    chains.into_iter().flatten().collect()
}

/// Gives each text to the thread that has least to do.
fn split(streams: &[Stream], threads: usize) -> Vec<Vec<Piece>> {
    let texts = streams.iter().map(|stream| stream.cuts.len()).max().unwrap_or(0);
    let mut parts: Vec<(usize, Vec<Piece>)> = vec![(0, Vec::new()); threads];
    for text in 0..texts {
        let Some((rows, part)) = parts.iter_mut().min_by_key(|(rows, _)| *rows) else { break };
        for (index, stream) in streams.iter().enumerate() {
            if let Some(cut) = stream.cuts.get(text) {
                *rows += cut.len();
                part.push(Piece { stream: index, rows: cut.clone() });
            }
        }
    }
    parts.into_iter().map(|(_, part)| part).collect()
}
