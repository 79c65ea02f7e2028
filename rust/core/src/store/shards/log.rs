//! The log of a writer: how much of each of its shards is durable, and which are sealed.

use std::collections::BTreeMap;
use std::path::Path;

use super::append::RecordFile;
use super::log_path;
use super::scan::{View, named, payload_of};
use crate::error::{Error, Kind, Result};
use crate::files::{Disk, ReadFile};
use crate::format::{Extent, Place, RecordType};
use crate::manifest::Manifest;

/// What a log says.
#[derive(Default)]
pub(super) struct Log {
    /// By the number of the shard.
    pub(super) extents: BTreeMap<u32, Extent>,
    pub(super) damage: Vec<Error>,
    end: u64,
    records: u64,
}

/// Reads the log. A missing or damaged one is no loss of entries: the shards say the same, only less quickly.
pub(super) fn read(root: &Path, place: Place) -> Result<Log> {
    let path = log_path(root, place.writer);
    let file = match ReadFile::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == Kind::MissingFile => return Ok(Log { damage: vec![error], ..Log::default() }),
        Err(error) => return Err(error),
    };
    let view = View::of(&file, place)?;
    let (mut log, mut at) = (Log::default(), 0);
    while let Some(found) = view.header_at(at)?.filter(|found| found.header.sequence == log.records) {
        let Ok(payload) = payload_of(&file, &found) else { break };
        if (log.records == 0) != (found.header.record_type == RecordType::Head) {
            break;
        }
        if found.header.record_type == RecordType::Extent {
            let extent = Extent::decode(&payload)?;
            log.extents.insert(extent.shard, extent);
        }
        at = found.end();
        log.records += 1;
    }
    log.end = at;
    // The head was durable before the store was one.
    if log.records == 0 || view.next_record(at)?.is_some() {
        let message = format!("{}: a record of the log is damaged", named(&file, at));
        log.damage.push(Error::new(Kind::Checksum, message));
    }
    Ok(log)
}

/// Starts the log of a new store.
pub(super) fn create(disk: &dyn Disk, root: &Path, place: Place, manifest: &Manifest) -> Result<()> {
    RecordFile::create(disk, &log_path(root, place.writer), place, manifest).map(drop)
}

/// Appends an extent; durable on return.
pub(super) fn append(disk: &dyn Disk, root: &Path, place: Place, log: &mut Log, extent: Extent) -> Result<()> {
    let mut file = RecordFile::resume(disk, &log_path(root, place.writer), place, log.end, log.records)?;
    file.append(RecordType::Extent, &[&extent.encode()])?;
    file.sync()?;
    log.end = file.length();
    log.records += 1;
    log.extents.insert(extent.shard, extent);
    Ok(())
}
