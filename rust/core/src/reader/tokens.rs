//! Token vectors of one hook point of a whole store, batch by batch, in the order of writing or shuffled.

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::ahead::Parts;
use super::entries::{Entries, Listed, Stretch, beyond_the_last, stretches};
use super::gather::room;
use super::source::{Rows, Source, Vectors, read_rows};
use super::{PARALLEL_BYTES, activation_of, lookup};
use crate::buffers::Buffer;
use crate::entry::{ContentId, Positions};
use crate::error::{Kind, Result};
use crate::format::{malformed, size};
use crate::shuffle::Shuffle;
use crate::store::{LoadedRoom, Store, Stored, gone};

/// Entries that are looked up together.
const LOOKED_UP: usize = 1024;
/// Bytes of entries that stay looked up. Of a shuffled batch, each of the others has to be looked up again.
const HELD_BYTES: usize = 8 << 20;
/// Vectors that one task copies.
const COPIED_TOGETHER: usize = 256;

/// The token vectors at one hook point of every entry that had some when this was made.
///
/// Takes about 128 bytes an entry besides its key, and 8 MiB at most for entries that stay looked up. Vectors that are read
/// in another order than they are stored in are all held where the store has room for loaded ones: a frame is then read
/// once and not for every row.
pub struct Tokens {
    store: Arc<Store>,
    point: String,
    positions: Positions,
    vectors: Option<Vectors>,
    entries: Arc<Entries>,
    /// Of the first of the entries, ready to be read.
    held: Vec<Source>,
    shuffle: Option<Shuffle>,
    /// All vectors, in the order of writing.
    loaded: OnceLock<Option<Loaded>>,
}

struct Loaded {
    all: Buffer,
    _room: LoadedRoom,
}

/// Vectors that are read together, and where they come from.
pub struct Batch {
    /// The vectors.
    pub rows: Buffer,
    /// The number of each one's entry, a native `u32`, for [`Entries::key`].
    pub entries: Buffer,
    /// The position of each, a native `i64`; its row, where the entry does not tie rows to positions.
    pub positions: Buffer,
}

/// Where the vectors of a [`Batch`], or of a piece of it, come from.
struct Origins<'a> {
    entries: &'a mut [u8],
    positions: &'a mut [u8],
}

impl Origins<'_> {
    /// Tells where `count` vectors from place `first` on come from, the first of them at `position`.
    fn tell(&mut self, first: usize, count: usize, entry: usize, position: u64) {
        let number = u32::try_from(entry).unwrap_or(u32::MAX).to_ne_bytes();
        let entries = self.entries.chunks_exact_mut(size_of::<u32>()).skip(first).take(count);
        let positions = self.positions.chunks_exact_mut(size_of::<i64>()).skip(first);
        for ((entry_at, position_at), position) in entries.zip(positions).zip(position..) {
            entry_at.copy_from_slice(&number);
            position_at.copy_from_slice(&position.to_ne_bytes());
        }
    }
}

/// The batches of [`Tokens`], `size` vectors each; the last one has what is left.
pub struct Batches {
    tokens: Tokens,
    size: u64,
    next: u64,
}

impl Batches {
    /// Reads nothing yet.
    pub fn new(tokens: Tokens, size: u64) -> Self {
        Self { tokens, size, next: 0 }
    }
}

impl Parts for Batches {
    type Part = Batch;

    fn next_part(&mut self) -> Result<Option<Batch>> {
        let count = self.size.min(self.tokens.len() - self.next);
        if count == 0 {
            return Ok(None);
        }
        let batch = self.tokens.read(self.next, size(count)?)?;
        self.next += count;
        Ok(Some(batch))
    }
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
            entries: Arc::default(),
            held: Vec::new(),
            shuffle: None,
            loaded: OnceLock::new(),
        };
        let (mut entries, mut held_bytes) = (Entries::default(), 0);
        let (mut is_stored, mut first_without) = (false, None);
        for some in keys.chunks(LOOKED_UP) {
            let found: Vec<_> = store.pool().install(|| some.par_iter().map(|key| this.look_up(key)).collect())?;
            for (key, found) in some.iter().zip(found) {
                match found {
                    Ok(Some(found)) => {
                        is_stored = true;
                        this.add(&mut entries, key, found, &mut held_bytes)?;
                    }
                    Ok(None) => {}
                    Err(error) if error.kind() == Kind::PointNotStored => _ = first_without.get_or_insert(error),
                    Err(error) => return Err(error),
                }
            }
        }
        // It says what the entry has.
        first_without.filter(|_| !is_stored).map_or(Ok(()), Err)?;
        this.shuffle = seed.map(|seed| Shuffle::new(entries.len(), seed));
        this.entries = Arc::new(entries);
        Ok(this)
    }

    /// What each vector is; `None` where there are none.
    pub fn vectors(&self) -> Option<Vectors> {
        self.vectors
    }

    /// Vectors in all.
    pub fn len(&self) -> u64 {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries, which batches name by number. Holding them holds no vectors.
    pub fn entries(&self) -> &Arc<Entries> {
        &self.entries
    }

    /// Reads `count` vectors from place `start` of the order on.
    pub fn read(&self, start: u64, count: usize) -> Result<Batch> {
        self.store.reading()?;
        let end = start.checked_add(count as u64).filter(|&end| end <= self.len());
        let end = end.ok_or_else(|| malformed(format!("`{count}` vectors from `{start}` on of `{}`", self.len())))?;
        let row_bytes = self.vectors.map_or(Ok(0), Vectors::bytes)?;
        let take = |bytes| self.store.buffers().take(room(count, bytes)?);
        let (mut rows, mut entries) = (take(row_bytes)?, take(size_of::<u32>())?);
        let mut positions = take(size_of::<i64>())?;
        let origins = Origins { entries: &mut entries, positions: &mut positions };
        let mut numbers: Vec<_> = (start..end).collect();
        self.shuffle.iter().for_each(|shuffle| shuffle.apply(&mut numbers));
        match self.loaded.get_or_init(|| self.load()) {
            Some(loaded) => self.copy(&loaded.all, &numbers, &mut rows, origins)?,
            None => self.read_stored(&numbers, &mut rows, origins)?,
        }
        Ok(Batch { rows, entries, positions })
    }

    /// `None` where that is not needed, where there is no room, or where one cannot be read: the batch that it is in will
    /// say so.
    fn load(&self) -> Option<Loaded> {
        self.shuffle.as_ref()?;
        let row_bytes = self.vectors?.bytes().ok().filter(|&bytes| bytes > 0)?;
        let bytes = room(usize::try_from(self.len()).ok()?, row_bytes).ok()?;
        let room = self.store.room_to_load(bytes as u64)?;
        let mut all = self.store.buffers().take(bytes).ok()?;
        let mut rest = &mut *all;
        for first in (0..self.entries.0.len()).step_by(LOOKED_UP) {
            let mut rows = Vec::with_capacity(LOOKED_UP);
            for (number, listed) in self.entries.0.iter().enumerate().skip(first).take(LOOKED_UP) {
                for stretch in &listed.selected {
                    let (out, others) = rest.split_at_mut_checked(size(stretch.rows).ok()? * row_bytes)?;
                    rows.push(Rows { source: number, first: stretch.row, out });
                    rest = others;
                }
            }
            self.read_rows(rows).ok()?;
        }
        Some(Loaded { all, _room: room })
    }

    /// Takes vectors from all of them.
    fn copy(&self, all: &[u8], numbers: &[u64], rows: &mut [u8], origins: Origins<'_>) -> Result<()> {
        if rows.len() < PARALLEL_BYTES {
            return self.copy_some(all, numbers, rows, origins);
        }
        let row_bytes = rows.len() / numbers.len().max(1);
        let pieces = numbers
            .par_chunks(COPIED_TOGETHER)
            .zip(rows.par_chunks_mut(COPIED_TOGETHER * row_bytes))
            .zip(origins.entries.par_chunks_mut(COPIED_TOGETHER * size_of::<u32>()))
            .zip(origins.positions.par_chunks_mut(COPIED_TOGETHER * size_of::<i64>()));
        let copy = |(((numbers, rows), entries), positions)| {
            self.copy_some(all, numbers, rows, Origins { entries, positions })
        };
        self.store.pool().install(|| pieces.try_for_each(copy))?
    }

    fn copy_some(&self, all: &[u8], numbers: &[u64], rows: &mut [u8], mut origins: Origins<'_>) -> Result<()> {
        let row_bytes = rows.len() / numbers.len().max(1);
        let rows = rows.chunks_exact_mut(row_bytes.max(1));
        for (place, (&number, row)) in numbers.iter().zip(rows).enumerate() {
            let start = size(number)? * row_bytes;
            row.copy_from_slice(all.get(start..start + row_bytes).ok_or_else(beyond_the_last)?);
            let (entry, stretch, inside) = self.entries.place(number)?;
            origins.tell(place, 1, entry, stretch.position + inside);
        }
        Ok(())
    }

    /// Reads vectors where they are stored.
    fn read_stored(&self, numbers: &[u64], mut out: &mut [u8], mut origins: Origins<'_>) -> Result<()> {
        let row_bytes = out.len() / numbers.len().max(1);
        let (mut rows, mut place) = (Vec::new(), 0);
        for numbers in numbers.chunk_by(|left, right| left + 1 == *right) {
            let (mine, rest) = out.split_at_mut(numbers.len() * row_bytes);
            let number = numbers.first().copied().unwrap_or_default();
            self.cut(Run { number, place, rows: numbers.len(), out: mine }, row_bytes, &mut origins, &mut rows)?;
            (out, place) = (rest, place + numbers.len());
        }
        self.read_rows(rows)
    }

    /// Fills `rows`; their entries that are not held are looked up again.
    fn read_rows(&self, rows: Vec<Rows<'_>>) -> Result<()> {
        let Some(vectors) = self.vectors else { return Ok(()) };
        let mut missing: Vec<_> = rows.iter().map(|rows| rows.source).filter(|&n| n >= self.held.len()).collect();
        missing.sort_unstable();
        missing.dedup();
        let look_up = |&number: &usize| self.look_up_again(number);
        let found: Vec<_> = self.store.pool().install(|| missing.par_iter().map(look_up).collect())?;
        let found = found.into_iter().collect::<Result<Vec<_>>>()?;
        let again = |number: usize| found.get(missing.binary_search(&number).ok()?);
        let source = |number: usize| {
            let source = self.held.get(number).or_else(|| again(number))?;
            Some((&*self.entries.0.get(number)?.key, source))
        };
        read_rows(&self.store, &self.point, vectors, rows, source)
    }

    /// `None` for an entry that was deleted since it was listed.
    fn look_up(&self, key: &str) -> Result<Option<Found>> {
        let entry = self.store.reading()?.entry(key)?;
        entry.map(|entry| self.found(&entry)).transpose()
    }

    fn look_up_again(&self, number: usize) -> Result<Source> {
        let listed = self.entries.0.get(number).ok_or_else(beyond_the_last)?;
        let entry = self.store.reading()?.entry(&listed.key)?;
        let entry = entry.filter(|entry| entry.content_id() == listed.content_id).ok_or_else(|| gone(&listed.key))?;
        let (activation, _, _) = lookup(entry.as_ref(), &self.point, &self.positions)?;
        Source::of(&entry, activation)
    }

    fn found(&self, entry: &Arc<dyn Stored>) -> Result<Found> {
        let (activation, vectors, selected) = lookup(entry.as_ref(), &self.point, &self.positions)?;
        let rows = activation_of(entry.as_ref(), activation)?.layout.rows();
        let selected = stretches(&entry.header().document, rows, selected);
        let source = Source::of(entry, activation)?;
        // What holds its whole entry is let go here, before others are looked up.
        let held = source.held_bytes().map(|bytes| (source, bytes));
        Ok(Found { content_id: entry.content_id(), vectors, selected, held })
    }

    fn add(&mut self, entries: &mut Entries, key: &Arc<str>, found: Found, held_bytes: &mut usize) -> Result<()> {
        let Found { content_id, vectors, selected, held } = found;
        let Some(last) = selected.last() else { return Ok(()) };
        if let Some((first, known)) = entries.0.first().zip(self.vectors) {
            known.check_same(&first.key, vectors, key, &self.point)?;
        }
        self.vectors = Some(vectors);
        let end = entries.len() + last.before + last.rows;
        // Only the first ones are held, without a gap, so that the number of an entry says whether it is.
        let is_next = self.held.len() == entries.0.len();
        if let Some((source, bytes)) = held.filter(|(_, bytes)| is_next && *held_bytes + bytes <= HELD_BYTES) {
            *held_bytes += bytes;
            self.held.push(source);
        }
        entries.0.push(Listed { key: key.clone(), content_id, end, selected });
        Ok(())
    }

    /// Cuts a run where entries and their stretches end, and tells where its vectors come from.
    fn cut<'a>(
        &self,
        mut run: Run<'a>,
        row_bytes: usize,
        origins: &mut Origins<'_>,
        rows: &mut Vec<Rows<'a>>,
    ) -> Result<()> {
        while run.rows > 0 {
            let (source, stretch, inside) = self.entries.place(run.number)?;
            let count = size(stretch.rows - inside)?.min(run.rows);
            let (out, rest) = run.out.split_at_mut(count * row_bytes);
            rows.push(Rows { source, first: stretch.row + inside, out });
            origins.tell(run.place, count, source, stretch.position + inside);
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

/// An entry that was looked up.
struct Found {
    content_id: ContentId,
    vectors: Vectors,
    selected: Box<[Stretch]>,
    /// What it is read from, and the bytes that takes; `None` where it would hold all of its entry.
    held: Option<(Source, usize)>,
}
