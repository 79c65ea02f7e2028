//! Appending to one shard: records, commits, the seal.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::super::{EncodedEntry, Operation};
use super::scan::Scan;
use super::shard::Shard;
use super::{head_payload, shard_path};
use crate::codec::{Model, ModelId};
use crate::error::{Error, Kind, Result};
use crate::files::{Appender, Disk, create_or_empty};
use crate::format::{
    ALIGNMENT, Change, CommitRecord, EntryRecord, Extent, MAX_PAYLOAD_BYTES, ModelPlace, Place, RECORD_HEADER_BYTES,
    RecordHeader, RecordType, Sealed, aligned, chain, malformed, payload_checksum, size,
};
use crate::hook_point::HookPoint;
use crate::manifest::Manifest;

const PADDING: [u8; RECORD_HEADER_BYTES] = [0; RECORD_HEADER_BYTES];
const _: () = assert!(PADDING.len() as u64 >= ALIGNMENT);

/// The system copies so many bytes, or more, while another thread hashes them.
const HASHED_APART: u64 = 1 << 20;

fn padding(length: u64) -> &'static [u8] {
    let missing = usize::try_from(aligned(length) - length).unwrap_or(0);
    PADDING.get(..missing).unwrap_or(&PADDING)
}

/// A file of records that grows.
pub(super) struct RecordFile {
    file: Box<dyn Appender>,
    place: Place,
    sequence: u64,
    hasher: blake3::Hasher,
}

impl RecordFile {
    /// Starts a file, over what an interrupted attempt to start it left.
    pub(super) fn create(disk: &dyn Disk, path: &Path, place: Place, manifest: &Manifest) -> Result<Self> {
        let mut records =
            Self { file: create_or_empty(disk, path)?, place, sequence: 0, hasher: blake3::Hasher::new() };
        records.append(RecordType::Head, &[head_payload(manifest, place).as_bytes()])?;
        records.file.sync()?;
        disk.sync_dir(path.parent().unwrap_or(path))?;
        Ok(records)
    }

    pub(super) fn resume(disk: &dyn Disk, path: &Path, place: Place, end: u64, sequence: u64) -> Result<Self> {
        let mut file = disk.resume(path, end)?;
        // After a kill, what was read may be in memory only: it must be on disk before anyone is told it is there.
        file.sync()?;
        disk.sync_dir(path.parent().unwrap_or(path))?;
        Ok(Self { file, place, sequence, hasher: blake3::Hasher::new() })
    }

    /// Appends a record; returns its header and offset.
    pub(super) fn append(
        &mut self,
        record_type: RecordType,
        parts: &[&[u8]],
    ) -> Result<(u64, [u8; RECORD_HEADER_BYTES])> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        if record_type != RecordType::Data && length > MAX_PAYLOAD_BYTES {
            let message = format!("a record of `{length}` bytes is above the limit of 1 GiB");
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        let (offset, checksum) = (self.file.length(), payload_checksum(parts));
        let header =
            RecordHeader { record_type, length, sequence: self.sequence, checksum, place: self.place }.encode();
        let mut all = Vec::with_capacity(parts.len() + 2);
        all.push(header.as_slice());
        all.extend_from_slice(parts);
        all.push(padding(length));
        let Self { file, hasher, .. } = self;
        let mut hash = || {
            all.iter().for_each(|part| {
                hasher.update(part);
            });
        };
        let (appended, hashed) = std::thread::scope(|scope| {
            // Where there is no thread to be had, it is hashed here, later.
            let apart = Some(&mut hash).filter(|_| length >= HASHED_APART);
            let hashing = apart.and_then(|hash| std::thread::Builder::new().spawn_scoped(scope, hash).ok());
            (file.append(&all), hashing.map(|hashing| hashing.join().is_ok()))
        });
        appended?;
        match hashed {
            Some(true) => {}
            Some(false) => return Err(malformed("hashing failed beyond repair")),
            None => hash(),
        }
        self.sequence += 1;
        Ok((offset, header))
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        self.file.sync()
    }

    pub(super) fn length(&self) -> u64 {
        self.file.length()
    }
}

/// What to go back to when a commit cannot be written.
struct Mark {
    length: u64,
    sequence: u64,
    hasher: blake3::Hasher,
    headers: Vec<u8>,
    written_models: HashSet<ModelId>,
}

/// Why a commit was not written, and whether the shard is still in order.
pub(super) struct Failed {
    pub(super) error: Error,
    /// The shard could not be cut back: nothing may be appended to it.
    pub(super) fatal: bool,
}

/// The shard that a writer appends to.
pub(super) struct ShardWriter {
    records: RecordFile,
    pub(super) shard: Arc<Shard>,
    /// Headers of the records since the last commit, its own first.
    headers: Vec<u8>,
    durable: u64,
    /// All commits so far in one: what the seal will say.
    summary: CommitRecord,
    written_models: HashSet<ModelId>,
}

impl ShardWriter {
    pub(super) fn create(disk: &dyn Disk, root: &Path, place: Place, manifest: &Manifest) -> Result<Self> {
        let path = shard_path(root, place);
        let records = RecordFile::create(disk, &path, place, manifest)?;
        let shard = Arc::new(Shard::open(root, place)?);
        let durable = records.length();
        let headers = first_header(&shard)?;
        Ok(Self { records, shard, headers, durable, summary: CommitRecord::default(), written_models: HashSet::new() })
    }

    /// Continues a shard after its last commit that stands.
    pub(super) fn resume(disk: &dyn Disk, root: &Path, shard: Arc<Shard>, scan: &Scan) -> Result<Self> {
        let mut records =
            RecordFile::resume(disk, &shard_path(root, shard.place), shard.place, scan.end, scan.records)?;
        hash_file(&shard, scan.end, &mut records.hasher)?;
        let mut summary = CommitRecord::default();
        for group in &scan.groups {
            summary.chain = group.commit.chain;
            summary.models.extend(&group.commit.models);
            summary.changes.extend(group.commit.changes.iter().cloned());
        }
        let written_models = summary.models.iter().map(|model| model.id).collect();
        Ok(Self { records, shard, headers: scan.last_commit(), durable: scan.end, summary, written_models })
    }

    pub(super) fn length(&self) -> u64 {
        self.records.length()
    }

    /// What of the shard is durable now.
    pub(super) fn extent(&self) -> Extent {
        Extent { shard: self.shard.place.shard, length: self.durable, seal: None }
    }

    pub(super) fn changes(&self) -> usize {
        self.summary.changes.len()
    }

    /// Writes a commit, not yet synced. On failure nothing of it remains, unless the failure is fatal.
    pub(super) fn commit(&mut self, operations: &[Operation]) -> Result<CommitRecord, Failed> {
        let mark = self.mark();
        self.write(operations).map_err(|error| Failed { error, fatal: self.roll_back(mark).is_err() })
    }

    fn mark(&self) -> Mark {
        Mark {
            length: self.records.length(),
            sequence: self.records.sequence,
            hasher: self.records.hasher.clone(),
            headers: self.headers.clone(),
            written_models: self.written_models.clone(),
        }
    }

    fn roll_back(&mut self, mark: Mark) -> Result<()> {
        self.records.sequence = mark.sequence;
        self.records.hasher = mark.hasher;
        self.headers = mark.headers;
        self.written_models = mark.written_models;
        self.records.file.truncate(mark.length)
    }

    fn write(&mut self, operations: &[Operation]) -> Result<CommitRecord> {
        let entries: Vec<&EncodedEntry> = operations.iter().filter_map(entry_of).collect();
        let models = self.write_models(&entries)?;
        let mut offsets = self.write_data(&entries)?.into_iter();
        let mut changes = Vec::with_capacity(operations.len());
        for operation in operations {
            changes.push(match operation {
                Operation::Put(entry) => self.write_entry(entry, &offsets.next().unwrap_or_default())?,
                Operation::Delete(key) => Change::Delete { key: key.as_str().into() },
            });
        }
        let commit =
            CommitRecord { chain: chain(self.summary.chain, &self.headers), durable: self.durable, models, changes };
        let (_, header) = self.records.append(RecordType::Commit, &[&commit.encode()?])?;
        self.headers = header.to_vec();
        self.summary.chain = commit.chain;
        self.summary.models.extend(&commit.models);
        self.summary.changes.extend(commit.changes.iter().cloned());
        Ok(commit)
    }

    fn append(&mut self, record_type: RecordType, parts: &[&[u8]]) -> Result<u64> {
        let (offset, header) = self.records.append(record_type, parts)?;
        self.headers.extend(header);
        Ok(offset)
    }

    /// Each model twice: frames of many entries lean on it, and one damaged piece must not cost them all.
    fn write_models(&mut self, entries: &[&EncodedEntry]) -> Result<Vec<ModelPlace>> {
        let mut places = Vec::new();
        for model in entries.iter().flat_map(|entry| &entry.models) {
            if self.written_models.insert(model.id()) {
                let model: &Model = model;
                let offsets = [
                    self.append(RecordType::Model, &[model.stored()])?,
                    self.append(RecordType::Model, &[model.stored()])?,
                ];
                places.push(ModelPlace { id: model.id(), offsets });
            }
        }
        Ok(places)
    }

    /// One data record a hook point, so that scanning one layer reads few large stretches. Returns the offsets of each
    /// entry's chunks, in the order of its activations.
    fn write_data(&mut self, entries: &[&EncodedEntry]) -> Result<Vec<Vec<u64>>> {
        let mut offsets: Vec<Vec<u64>> = entries.iter().map(|entry| vec![0; entry.chunks.len()]).collect();
        let mut chunks: Vec<(&HookPoint, usize, usize, &[u8])> = Vec::new();
        for (e, entry) in entries.iter().enumerate() {
            for (a, (activation, chunk)) in entry.header.activations.iter().zip(&entry.chunks).enumerate() {
                chunks.push((&activation.point, e, a, chunk));
            }
        }
        chunks.sort_by(|left, right| left.0.cmp(right.0));
        for group in chunks.chunk_by(|left, right| left.0 == right.0) {
            let parts: Vec<&[u8]> =
                group.iter().flat_map(|(_, _, _, chunk)| [*chunk, padding(chunk.len() as u64)]).collect();
            let mut at = self.append(RecordType::Data, &parts)? + RECORD_HEADER_BYTES as u64;
            for &(_, e, a, chunk) in group {
                if let Some(offset) = offsets.get_mut(e).and_then(|row| row.get_mut(a)) {
                    *offset = at;
                }
                at += aligned(chunk.len() as u64);
            }
        }
        Ok(offsets)
    }

    fn write_entry(&mut self, entry: &EncodedEntry, offsets: &[u64]) -> Result<Change> {
        let header = entry.header.encode()?;
        let record = EntryRecord { content_id: entry.content_id, offsets: offsets.to_vec(), header: &header };
        let payload = record.encode();
        let offset = self.append(RecordType::Entry, &[&payload])?;
        let key = entry.header.document.key().into();
        Ok(Change::Put { key, content_id: entry.content_id, offset, length: payload.len() as u64 })
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        self.records.sync()?;
        self.durable = self.records.length();
        Ok(())
    }

    /// Finishes the shard; it is immutable from now on. On failure nothing of the seal remains, unless it is fatal.
    pub(super) fn seal(&mut self) -> Result<Extent, Failed> {
        let mark = self.mark();
        let mut seal = self.summary.clone();
        seal.durable = self.durable;
        seal.chain = chain(seal.chain, &self.headers);
        let appended = seal.encode().and_then(|payload| self.records.append(RecordType::Seal, &[&payload]));
        let (offset, _) = appended.map_err(|error| Failed { error, fatal: self.roll_back(mark).is_err() })?;
        self.records.sync().map_err(|error| Failed { error, fatal: true })?;
        let seal = Some(Sealed { offset, blake3: *self.records.hasher.finalize().as_bytes() });
        Ok(Extent { shard: self.shard.place.shard, length: self.records.length(), seal })
    }
}

fn entry_of(operation: &Operation) -> Option<&EncodedEntry> {
    match operation {
        Operation::Put(entry) => Some(entry),
        Operation::Delete(_) => None,
    }
}

fn first_header(shard: &Shard) -> Result<Vec<u8>> {
    let mut header = vec![0; RECORD_HEADER_BYTES];
    shard.file.read_at(0, &mut header)?;
    Ok(header)
}

pub(super) fn hash_file(shard: &Shard, end: u64, hasher: &mut blake3::Hasher) -> Result<()> {
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    while at < end {
        block.truncate(size(end - at)?);
        shard.file.read_at(at, &mut block)?;
        hasher.update(&block);
        at += block.len() as u64;
    }
    Ok(())
}
