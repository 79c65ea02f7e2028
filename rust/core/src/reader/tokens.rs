//! Token vectors of one hook point of a whole store, batch by batch, in the order of writing or shuffled.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::gather::room;
use super::source::{Rows, Source, Vectors, read_rows};
use super::{activation_of, lookup};
use crate::buffers::Buffer;
use crate::entry::{ContentId, Document, Positions, StoredPositions};
use crate::error::{Kind, Result};
use crate::format::{malformed, size};
use crate::shuffle::Shuffle;
use crate::store::{Store, Stored, gone};

/// Entries that are looked up together.
const LOOKED_UP: usize = 4096;
/// Bytes of entries that stay looked up. Of a shuffled batch, each of the others has to be looked up again.
const HELD_BYTES: usize = 8 << 20;

/// Vectors that are read in another order than they are stored in are all held where they take no more than this part of
/// the store's memory: a frame is then read once and not for every row.
const LOADED_PART: u64 = 4;

/// The token vectors at one hook point of every entry that had some when this was made.
///
/// Takes about 64 bytes an entry besides its key, and 8 MiB at most for entries that stay looked up; for vectors nothing, or
/// where they are shuffled a quarter of the store's memory.
pub struct Tokens {
    store: Arc<Store>,
    point: String,
    positions: Positions,
    vectors: Option<Vectors>,
    entries: Vec<Listed>,
    /// The first of the entries, ready to be read.
    held: Vec<Ready>,
    shuffle: Option<Shuffle>,
    /// All vectors, in the order of writing.
    loaded: OnceLock<Option<Buffer>>,
}

/// An entry that has vectors.
struct Listed {
    key: Arc<str>,
    content_id: ContentId,
    /// Number of the vector after its last one.
    end: u64,
}

/// An entry whose vectors can be read.
struct Ready {
    source: Source,
    selected: Box<[Stretch]>,
}

/// Selected rows that are consecutive, as their positions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    /// Selected rows before it.
    before: u64,
    row: u64,
    position: u64,
    rows: u64,
}

/// Where the vectors of a batch come from.
pub struct Origins<'a> {
    /// Number of each one's entry, for [`Tokens::key`].
    pub entries: &'a mut [u32],
    /// Position of each; its row, where the entry does not tie rows to positions.
    pub positions: &'a mut [i64],
}

impl Tokens {
    /// Looks up every entry. The order is that of writing, or a shuffled one that follows from `seed`.
    pub fn new(store: &Arc<Store>, point: &str, positions: Positions, seed: Option<u64>) -> Result<Self> {
        let keys = store.reading()?.keys()?;
        let mut this = Self {
            store: store.clone(),
            point: point.to_owned(),
            positions,
            vectors: None,
            entries: Vec::new(),
            held: Vec::new(),
            shuffle: None,
            loaded: OnceLock::new(),
        };
        let (mut is_stored, mut room) = (false, HELD_BYTES);
        for some in keys.chunks(LOOKED_UP) {
            let found: Vec<_> = store.pool().install(|| some.par_iter().map(|key| this.look_up(key)).collect())?;
            for (key, found) in some.iter().zip(found) {
                let Some(found) = found? else { continue };
                is_stored = true;
                this.add(key, found, &mut room)?;
            }
        }
        if let Some(first) = keys.first().filter(|_| !is_stored) {
            store.entry(first)?.header().find(point)?;
        }
        this.shuffle = seed.map(|seed| Shuffle::new(this.len(), seed));
        Ok(this)
    }

    /// What each vector is; `None` where there are none.
    pub fn vectors(&self) -> Option<Vectors> {
        self.vectors
    }

    /// Vectors in all.
    pub fn len(&self) -> u64 {
        self.entries.last().map_or(0, |listed| listed.end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The key of an entry by its number.
    pub fn key(&self, entry: u32) -> Option<&str> {
        self.entries.get(entry as usize).map(|listed| &*listed.key)
    }

    /// Reads the vectors from place `start` of the order on: as many as there are origins to tell.
    pub fn read(&self, start: u64, mut origins: Origins<'_>) -> Result<Buffer> {
        self.store.reading()?;
        let count = origins.positions.len();
        let end = start.checked_add(count as u64).filter(|&end| end <= self.len());
        let end = end.ok_or_else(|| malformed(format!("`{count}` vectors from `{start}` on of `{}`", self.len())))?;
        let Some(vectors) = self.vectors else { return self.store.buffers().take(0) };
        let row_bytes = vectors.bytes()?;
        let mut out = self.store.buffers().take(room(count, row_bytes)?)?;
        let mut runs = self.runs(start..end, row_bytes, &mut out);
        let loaded = self.loaded.get_or_init(|| self.load(vectors)).as_deref();
        if let Some(all) = loaded {
            runs.iter_mut().try_for_each(|run| run.copy(all, row_bytes))?;
        }
        let looked_up = self.look_up_missing(&runs)?;
        let ready = |entry: usize| {
            let later = || looked_up.binary_search_by_key(&entry, |(entry, _)| *entry).ok();
            self.held.get(entry).or_else(|| Some(&looked_up.get(later()?)?.1))
        };
        let mut rows = Vec::with_capacity(runs.len());
        for run in runs {
            self.place(run, row_bytes, ready, &mut origins, &mut rows)?;
        }
        if loaded.is_none() {
            let source = |entry: usize| Some((&*self.entries.get(entry)?.key, &ready(entry)?.source));
            read_rows(&self.store, &self.point, vectors, rows, source)?;
        }
        Ok(out)
    }

    /// `None` where they are too many, or where one cannot be read: the batch that it is in will say so.
    fn load(&self, vectors: Vectors) -> Option<Buffer> {
        let bytes = room(usize::try_from(self.len()).ok()?, vectors.bytes().ok()?).ok()?;
        let is_small = bytes as u64 <= self.store.memory() / LOADED_PART && self.held.len() == self.entries.len();
        let mut all = self.shuffle.as_ref().filter(|_| is_small).and_then(|_| self.store.buffers().take(bytes).ok())?;
        let (mut rest, mut rows) = (&mut *all, Vec::with_capacity(self.held.len()));
        for (source, ready) in self.held.iter().enumerate() {
            for stretch in &ready.selected {
                let (out, others) = rest.split_at_mut_checked(size(stretch.rows).ok()? * vectors.bytes().ok()?)?;
                rows.push(Rows { source, first: stretch.row, out });
                rest = others;
            }
        }
        let source = |entry: usize| Some((&*self.entries.get(entry)?.key, &self.held.get(entry)?.source));
        read_rows(&self.store, &self.point, vectors, rows, source).ok()?;
        Some(all)
    }

    /// `None` for an entry without the hook point, or deleted since it was listed.
    fn look_up(&self, key: &str) -> Result<Option<Found>> {
        let Some(entry) = self.store.reading()?.entry(key)? else { return Ok(None) };
        match self.found(&entry) {
            Err(error) if error.kind() == Kind::PointNotStored => Ok(None),
            found => found.map(Some),
        }
    }

    fn look_up_again(&self, listed: &Listed) -> Result<Ready> {
        let entry = self.store.reading()?.entry(&listed.key)?;
        let entry = entry.filter(|entry| entry.content_id() == listed.content_id).ok_or_else(|| gone(&listed.key))?;
        self.found(&entry).map(|found| found.ready)
    }

    fn found(&self, entry: &Arc<dyn Stored>) -> Result<Found> {
        let (activation, vectors, selected) = lookup(entry.as_ref(), &self.point, &self.positions)?;
        let rows = activation_of(entry.as_ref(), activation)?.layout.rows();
        let selected = stretches(&entry.header().document, rows, selected);
        let ready = Ready { source: Source::of(entry, activation)?, selected };
        Ok(Found { content_id: entry.content_id(), vectors, ready })
    }

    fn add(&mut self, key: &Arc<str>, found: Found, room: &mut usize) -> Result<()> {
        let rows = found.ready.rows();
        if rows == 0 {
            return Ok(());
        }
        if let Some((first, vectors)) = self.entries.first().zip(self.vectors) {
            vectors.check_same(&first.key, found.vectors, key, &self.point)?;
        }
        self.vectors = Some(found.vectors);
        let bytes = found.ready.held_bytes().filter(|bytes| bytes <= room);
        *room = bytes.map_or(0, |bytes| *room - bytes);
        self.held.extend(bytes.map(|_| found.ready));
        let (key, content_id, end) = (key.clone(), found.content_id, self.len() + rows);
        self.entries.push(Listed { key, content_id, end });
        Ok(())
    }

    /// The vectors of a batch, those together that follow each other in the store and in `out`; ascending.
    fn runs<'a>(&self, places: Range<u64>, row_bytes: usize, mut out: &'a mut [u8]) -> Vec<Run<'a>> {
        let mut numbers: Vec<_> = places.collect();
        self.shuffle.iter().for_each(|shuffle| shuffle.apply(&mut numbers));
        let (mut runs, mut place) = (Vec::with_capacity(if self.shuffle.is_some() { numbers.len() } else { 1 }), 0);
        for numbers in numbers.chunk_by(|left, right| left + 1 == *right) {
            let (mine, rest) = out.split_at_mut(numbers.len() * row_bytes);
            let number = numbers.first().copied().unwrap_or_default();
            runs.push(Run { number, place, rows: numbers.len(), out: mine });
            (out, place) = (rest, place + numbers.len());
        }
        runs.sort_unstable_by_key(|run| run.number);
        runs
    }

    /// The entries of `runs` that are not held, by number.
    fn look_up_missing(&self, runs: &[Run<'_>]) -> Result<Vec<(usize, Ready)>> {
        if self.held.len() == self.entries.len() {
            return Ok(Vec::new());
        }
        let entries = |run: &Run<'_>| self.entry_of(run.number)..=self.entry_of(run.number + run.rows as u64 - 1);
        let mut missing: Vec<_> = runs.iter().flat_map(entries).filter(|&entry| entry >= self.held.len()).collect();
        missing.dedup();
        let look_up = |&entry: &usize| {
            let listed = self.entries.get(entry).ok_or_else(|| malformed("vectors beyond the last entry"))?;
            self.look_up_again(listed).map(|ready| (entry, ready))
        };
        let found: Vec<_> = self.store.pool().install(|| missing.par_iter().map(look_up).collect())?;
        found.into_iter().collect()
    }

    fn entry_of(&self, number: u64) -> usize {
        self.entries.partition_point(|listed| listed.end <= number)
    }

    /// Cuts a run where entries and their stretches end, and tells where its vectors come from.
    fn place<'a, 'r>(
        &self,
        mut run: Run<'a>,
        row_bytes: usize,
        ready: impl Fn(usize) -> Option<&'r Ready>,
        origins: &mut Origins<'_>,
        rows: &mut Vec<Rows<'a>>,
    ) -> Result<()> {
        while run.rows > 0 {
            let source = self.entry_of(run.number);
            let begin =
                source.checked_sub(1).and_then(|before| self.entries.get(before)).map_or(0, |before| before.end);
            let (stretch, inside) = ready(source)
                .and_then(|ready| ready.stretch(run.number - begin))
                .ok_or_else(|| malformed("vectors of an entry that was not looked up"))?;
            let count = size(stretch.rows - inside)?.min(run.rows);
            let (out, rest) = run.out.split_at_mut(count * row_bytes);
            rows.push(Rows { source, first: stretch.row + inside, out });
            let places = run.place..run.place + count;
            let number = u32::try_from(source).unwrap_or(u32::MAX);
            origins.entries.get_mut(places.clone()).into_iter().for_each(|entries| entries.fill(number));
            let positions = origins.positions.get_mut(places).into_iter().flatten();
            let from = (stretch.position + inside).cast_signed();
            positions.zip(from..).for_each(|(position, is)| *position = is);
            run =
                Run { number: run.number + count as u64, place: run.place + count, rows: run.rows - count, out: rest };
        }
        Ok(())
    }
}

/// Vectors that follow each other in the store, and in a batch.
struct Run<'a> {
    number: u64,
    /// Of the first one in the batch.
    place: usize,
    rows: usize,
    out: &'a mut [u8],
}

impl Run<'_> {
    /// Takes the vectors from all of them.
    fn copy(&mut self, all: &[u8], row_bytes: usize) -> Result<()> {
        let start = size(self.number)? * row_bytes;
        let vectors = all.get(start..start + self.out.len()).ok_or_else(|| malformed("vectors beyond the last one"))?;
        self.out.copy_from_slice(vectors);
        Ok(())
    }
}

/// An entry that was looked up.
struct Found {
    content_id: ContentId,
    vectors: Vectors,
    ready: Ready,
}

impl Ready {
    /// Selected rows.
    fn rows(&self) -> u64 {
        self.selected.last().map_or(0, |last| last.before + last.rows)
    }

    /// The stretch of a selected row, and which of its rows that is.
    fn stretch(&self, nth: u64) -> Option<(Stretch, u64)> {
        let after = self.selected.partition_point(|stretch| stretch.before <= nth);
        let stretch = *self.selected.get(after.checked_sub(1)?)?;
        Some((stretch, nth - stretch.before))
    }

    fn held_bytes(&self) -> Option<usize> {
        self.source.held_bytes().map(|bytes| bytes + size_of_val(self.selected.as_ref()))
    }
}

/// `selected` of the rows of an activation, or all.
fn stretches(document: &Document, rows: u64, selected: Option<Vec<u64>>) -> Box<[Stretch]> {
    let stored = StoredPositions::of(document.positions.as_deref());
    let is_tied = stored.count == rows;
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut add = |row: u64| {
        let position = stored.position_of(row).filter(|_| is_tied).unwrap_or(row);
        let follows = |last: &&mut Stretch| (last.row + last.rows, last.position + last.rows) == (row, position);
        let before = stretches.last().map_or(0, |last| last.before + last.rows);
        match stretches.last_mut().filter(follows) {
            Some(last) => last.rows += 1,
            None => stretches.push(Stretch { before, row, position, rows: 1 }),
        }
    };
    match selected {
        Some(selected) => selected.into_iter().for_each(add),
        None => (0..rows).for_each(&mut add),
    }
    stretches.into()
}
