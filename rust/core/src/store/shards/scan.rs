//! Reading a file of records from its beginning, and telling a torn tail from damage.
//!
//! A commit states how many bytes of its file were synced before it was written, and so does the log when a writer ends.
//! Whatever fails its checks below the largest such number was durable once, so it is damage; whatever fails above it
//! was never promised, so it is a tail.

use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;
use crate::format::{
    ALIGNMENT, CommitRecord, MAGIC, MAX_PAYLOAD_BYTES, Place, RECORD_HEADER_BYTES, RecordHeader, RecordType, chain,
    malformed, size,
};

const BLOCK_BYTES: u64 = 1 << 20;

/// A record and where it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) offset: u64,
    pub(super) header: RecordHeader,
}

impl Found {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.header.span()
    }
}

/// A commit, the records it made visible before it.
pub(super) struct Group {
    pub(super) records: Vec<Found>,
    pub(super) commit: CommitRecord,
}

/// What a shard holds, as far as its own records tell.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) groups: Vec<Group>,
    /// End of the last commit that stands; a writer continues here.
    pub(super) end: u64,
    /// Records up to there.
    pub(super) records: u64,
    /// The seal, if the shard has one.
    pub(super) seal: Option<Found>,
    pub(super) damage: Vec<Error>,
}

impl Scan {
    /// Header of the last commit that stands: the first of the next link of the chain.
    pub(super) fn last_commit(&self) -> Vec<u8> {
        let last = self.groups.last().and_then(|group| group.records.last());
        last.map(|found| found.header.encode().to_vec()).unwrap_or_default()
    }
}

/// A file as long as it was at one moment: a writer may append to it meanwhile, and what it appends is not looked at.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) file: &'a ReadFile,
    place: Place,
    length: u64,
}

impl<'a> View<'a> {
    pub(super) fn of(file: &'a ReadFile, place: Place) -> Result<Self> {
        Ok(Self { file, place, length: file.length()? })
    }

    /// Reads and checks a record header and its place; `None` where nothing valid begins.
    pub(super) fn header_at(&self, offset: u64) -> Result<Option<Found>> {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        if offset + bytes.len() as u64 > self.length {
            return Ok(None);
        }
        self.file.read_at(offset, &mut bytes)?;
        self.found(offset, &bytes)
    }

    fn found(&self, offset: u64, bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<Option<Found>> {
        match RecordHeader::decode(bytes) {
            Ok(header) => {
                let found = Found { offset, header };
                let inside = header.length <= self.length && found.end() <= self.length;
                Ok((header.place == self.place && inside).then_some(found))
            }
            Err(error) if error.kind() == Kind::UnsupportedVersion => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Calls `f` with the records that begin behind `offset`, at any place where one can, until it says to stop.
    fn behind(&self, offset: u64, mut f: impl FnMut(Found) -> Result<bool>) -> Result<()> {
        let mut at = (offset / ALIGNMENT + 1) * ALIGNMENT;
        let mut block = Vec::new();
        while at + RECORD_HEADER_BYTES as u64 <= self.length {
            block.resize(size(BLOCK_BYTES.min(self.length - at))?, 0);
            self.file.read_at(at, &mut block)?;
            let places = (at..).step_by(RECORD_HEADER_BYTES);
            for (place, bytes) in places.zip(block.as_chunks::<RECORD_HEADER_BYTES>().0) {
                if !bytes.starts_with(&MAGIC) {
                    continue;
                }
                if let Some(found) = self.found(place, bytes)?
                    && !f(found)?
                {
                    return Ok(());
                }
            }
            at += BLOCK_BYTES;
        }
        Ok(())
    }

    /// The first record that begins behind `offset`, at or before which something is wrong.
    pub(super) fn next_record(&self, offset: u64) -> Result<Option<Found>> {
        let mut next = None;
        self.behind(offset, |found| {
            next = Some(found);
            Ok(false)
        })?;
        Ok(next)
    }

    /// Bytes of the file that the commits behind `offset` say were durable.
    fn durable_behind(&self, offset: u64) -> Result<u64> {
        let mut durable = 0;
        self.behind(offset, |found| {
            match found.header.record_type {
                RecordType::Seal => durable = durable.max(found.offset),
                RecordType::Commit => {
                    let commit = payload_of(self.file, &found).and_then(|payload| CommitRecord::decode(&payload));
                    durable = durable.max(commit.map_or(0, |commit| commit.durable));
                }
                _ => {}
            }
            Ok(true)
        })?;
        Ok(durable)
    }
}

/// Reads the payload of a record that is small enough to be read whole, and checks it.
pub(super) fn payload_of(file: &ReadFile, found: &Found) -> Result<Vec<u8>> {
    if found.header.length > MAX_PAYLOAD_BYTES {
        return Err(malformed(format!("a record of `{}` bytes is above the limit", found.header.length)));
    }
    let mut payload = vec![0; size(found.header.length)?];
    file.read_at(found.offset + RECORD_HEADER_BYTES as u64, &mut payload)?;
    found.header.check(&payload).map_err(|e| e.within(named(file, found.offset)))?;
    Ok(payload)
}

/// Checks the payload of a record of any size.
pub(super) fn check_payload(file: &ReadFile, found: &Found) -> Result<()> {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let mut block = vec![0; size(BLOCK_BYTES.min(found.header.length))?];
    let (mut at, end) =
        (found.offset + RECORD_HEADER_BYTES as u64, found.offset + RECORD_HEADER_BYTES as u64 + found.header.length);
    while at < end {
        block.truncate(size(end - at)?);
        file.read_at(at, &mut block)?;
        hasher.update(&block);
        at += block.len() as u64;
    }
    if hasher.digest128() == found.header.checksum {
        return Ok(());
    }
    Err(Error::new(Kind::Checksum, format!("{}: a record does not match its checksum", named(file, found.offset))))
}

/// How damage in a file is named.
pub(super) fn named(file: &ReadFile, offset: u64) -> String {
    format!("`{}` at byte {offset}", file.path().display())
}

/// Reads a shard without its seal. Its first `durable` bytes are known to be durable.
pub(super) fn scan(file: &ReadFile, place: Place, durable: u64) -> Result<Scan> {
    let scan = Scan::default();
    let view = View::of(file, place)?;
    let mut walk = Walk { view, durable, at: 0, sequence: 0, chain: Some(0), records: Vec::new(), scan };
    while walk.step()? {}
    let mut scan = walk.scan;
    drop_torn_commits(file, &mut scan, durable)?;
    let last = scan.groups.last().and_then(|group| group.records.last());
    scan.end = last.map_or(0, Found::end);
    scan.records = last.map_or(0, |found| found.header.sequence + 1);
    Ok(scan)
}

struct Walk<'a> {
    view: View<'a>,
    durable: u64,
    at: u64,
    sequence: u64,
    /// Unknown between damage and the next commit.
    chain: Option<u128>,
    records: Vec<Found>,
    scan: Scan,
}

impl Walk<'_> {
    fn step(&mut self) -> Result<bool> {
        let found = self.view.header_at(self.at)?.filter(|found| found.header.sequence == self.sequence);
        match found {
            Some(found) if self.accept(found)? => {
                self.at = found.end();
                self.sequence += 1;
                Ok(true)
            }
            _ => self.skip_damage(),
        }
    }

    /// Takes a record in; false if it is a commit or a seal that does not stand.
    fn accept(&mut self, found: Found) -> Result<bool> {
        let sealed = found.header.record_type == RecordType::Seal;
        if !sealed && found.header.record_type != RecordType::Commit {
            self.records.push(found);
            return Ok(true);
        }
        let Ok(commit) = payload_of(self.view.file, &found).and_then(|payload| CommitRecord::decode(&payload)) else {
            return Ok(false);
        };
        let headers: Vec<u8> = self.records.iter().flat_map(|found| found.header.encode()).collect();
        let headers = [self.scan.last_commit(), headers].concat();
        if self.chain.is_some_and(|previous| chain(previous, &headers) != commit.chain) {
            return Ok(false);
        }
        if sealed {
            self.scan.seal = Some(found);
            return Ok(true);
        }
        self.chain = Some(commit.chain);
        self.records.push(found);
        self.scan.groups.push(Group { records: std::mem::take(&mut self.records), commit });
        Ok(true)
    }

    /// Something is wrong at `at`: goes on behind it if it had been durable, else the shard ends before it.
    fn skip_damage(&mut self) -> Result<bool> {
        if self.at >= self.durable.max(self.view.durable_behind(self.at)?) {
            return Ok(false);
        }
        let message = format!(
            "{}: a committed record is damaged; entries may be missing, or be as they were before; `actstore-cli verify` says more",
            named(self.view.file, self.at)
        );
        self.scan.damage.push(Error::new(Kind::Checksum, message));
        let Some(next) = self.view.next_record(self.at)? else { return Ok(false) };
        (self.at, self.sequence, self.chain) = (next.offset, next.header.sequence, None);
        Ok(true)
    }
}

/// Commits that were not synced when the file was last written to may miss any of their bytes: they stand up to the
/// first that does.
fn drop_torn_commits(file: &ReadFile, scan: &mut Scan, durable: u64) -> Result<()> {
    if scan.seal.is_some() {
        return Ok(());
    }
    let durable = scan.groups.iter().map(|group| group.commit.durable).fold(durable, u64::max);
    for (n, group) in scan.groups.iter().enumerate() {
        let unsynced = group.records.iter().filter(|found| found.end() > durable);
        for found in unsynced {
            match check_payload(file, found) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), Kind::Checksum | Kind::Truncated) => {
                    scan.groups.truncate(n);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
