//! What is in a store, and whether all of it is sound.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Kind, Result};
use crate::format::Activation;
use crate::hook_point::HookPoint;
use crate::reader::{chains, decode_frames};
use crate::store::{Store, Stored};
use crate::tensor::Dtype;

/// One hook point over all entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PointInfo {
    /// Entries that have it.
    pub entries: u64,
    /// Their rows.
    pub rows: u64,
    /// Bytes of the activations.
    pub raw_bytes: u64,
    /// Bytes of their frames.
    pub stored_bytes: u64,
    /// NaN and infinities.
    pub nonfinite: u64,
    /// Finite values clamped when packing.
    pub saturated: u64,
    /// Frames by encoding.
    pub encodings: BTreeMap<&'static str, u64>,
}

/// What is in a store.
#[derive(Clone, Debug, Default)]
pub struct Info {
    /// Entries.
    pub entries: u64,
    /// Entries whose header is damaged, so that nothing else counts them.
    pub damaged: u64,
    /// Stored positions.
    pub tokens: u64,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// By hook point and dtype.
    pub points: BTreeMap<(HookPoint, DtypeOrder), PointInfo>,
}

/// A dtype, ordered by its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DtypeOrder(u8);

impl DtypeOrder {
    /// The dtype's name.
    pub fn name(self) -> &'static str {
        Dtype::from_code(self.0).map_or("unknown", Dtype::name)
    }
}

/// Sums over the headers of all entries; reads no activation.
pub fn info(store: &Store) -> Result<Info> {
    let backend = store.reading()?;
    let mut info = Info { file_bytes: backend.file_bytes()?, ..Info::default() };
    for key in backend.keys()? {
        match backend.entry(&key) {
            Ok(Some(entry)) => add(&mut info, entry.as_ref()),
            Ok(None) => {}
            Err(error) if error.kind().is_damage() => info.damaged += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(info)
}

fn add(info: &mut Info, entry: &dyn Stored) {
    let header = entry.header();
    info.entries += 1;
    info.tokens += header.document.stored_positions().unwrap_or(0);
    for activation in &header.activations {
        let dtype = DtypeOrder(activation.layout.dtype().code());
        let point = info.points.entry((activation.point.clone(), dtype)).or_default();
        point.entries += 1;
        point.rows += activation.layout.rows();
        point.raw_bytes += activation.layout.bytes();
        point.stored_bytes += activation.stored_bytes();
        point.nonfinite += activation.nonfinite;
        point.saturated += activation.saturated;
        for frame in &activation.frames {
            *point.encodings.entry(frame.encoding.name()).or_default() += 1;
        }
    }
}

/// Something that verification found.
#[derive(Clone, Debug)]
pub struct Damage {
    /// The entry it costs, if one.
    pub key: Option<Arc<str>>,
    /// What is wrong.
    pub error: Error,
}

/// What verification read, and what it found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Entries looked at.
    pub entries: u64,
    /// Frames decoded.
    pub frames: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Everything found wrong.
    pub damage: Vec<Damage>,
}

/// Entries verified between two reports of progress.
const STEP: usize = 64;

/// Reads every byte, checks every checksum and decodes every frame. `progress(done, total)` counts entries and may stop
/// the scan with an error.
pub fn verify(store: &Store, mut progress: impl FnMut(u64, u64) -> Result<()>) -> Result<Report> {
    let backend = store.reading()?;
    let keys = backend.keys()?;
    let mut report = Report::default();
    for some in keys.chunks(STEP) {
        let checked: Vec<_> =
            store.pool().install(|| some.par_iter().map(|key| (key, verify_entry(store, key))).collect())?;
        for (key, result) in checked {
            report.entries += 1;
            match result {
                Ok((frames, bytes)) => {
                    report.frames += frames;
                    report.bytes += bytes;
                }
                Err(error) if error.kind().is_damage() => report.damage.push(Damage { key: Some(key.clone()), error }),
                Err(error) => return Err(error),
            }
        }
        progress(report.entries, keys.len() as u64)?;
    }
    report.damage.extend(backend.verify().into_iter().map(|error| Damage { key: None, error }));
    Ok(report)
}

fn verify_entry(store: &Store, key: &str) -> Result<(u64, u64)> {
    loop {
        // Deleted while verifying: nothing is wrong with it. Replaced: the new entry is the one to look at.
        let Some(entry) = store.reading()?.entry(key)? else { return Ok((0, 0)) };
        match verify_activations(entry.as_ref()) {
            Err(error) if error.kind() == Kind::NoSuchKey => {}
            verified => return verified,
        }
    }
}

fn verify_activations(entry: &dyn Stored) -> Result<(u64, u64)> {
    let header = entry.header();
    chains(header).iter().try_for_each(|chain| decode_frames(entry, chain, |_, _| {}))?;
    let frames = header.activations.iter().map(|activation| activation.frames.len() as u64).sum();
    Ok((frames, header.activations.iter().map(Activation::stored_bytes).sum()))
}
