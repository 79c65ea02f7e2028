//! Whether a migration arrived: every activation of the target decoded, hashed, and held against the source.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Held, Plan, Progress, check_distinct, look_up};
use crate::codec::Pack;
use crate::entry::{ContentId, ContentPoint, Document, content_id};
use crate::error::{Error, Kind, Result};
use crate::format::{Activation, malformed};
use crate::hook_point::HookPoint;
use crate::manifest::OnConflict;
use crate::reader::{chains, decode_frames};
use crate::store::{Store, Stored};
use crate::tensor::{Layout, Tensor};

/// Entries compared between two reports of progress.
const STEP: usize = 16;

/// An entry that is not in the target as it is in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its key in the source.
    pub key: Arc<str>,
    /// What differs.
    pub message: String,
}

/// What one entry was found to be.
#[derive(Default)]
struct Compared {
    raw_bytes: u64,
    stored_bytes: u64,
    difference: Option<String>,
}

/// Compares the entries of `plan` with what [`super::migrate`] makes of them: every field of the document, and the content
/// id, which is computed from the activations that the target decodes to. Where `plan` says to skip conflicts, an entry
/// of other content has only to be sound.
pub fn compare(
    source: &Arc<Store>,
    target: &Arc<Store>,
    plan: &Plan,
    mut progress: impl FnMut(&Progress) -> Result<()>,
) -> Result<Vec<Difference>> {
    check_distinct(source, target)?;
    let keys = plan.keys(source)?;
    let mut done = Progress { total: keys.len() as u64, ..Progress::default() };
    let mut differences = Vec::new();
    for some in keys.chunks(STEP) {
        let compared: Vec<_> =
            target.pool().install(|| some.par_iter().map(|key| compare_entry(source, target, plan, key)).collect())?;
        for (key, compared) in some.iter().zip(compared) {
            let compared = compared.or_else(|error| {
                let lost = error.kind().is_damage() || error.kind() == Kind::NoSuchKey;
                let difference = Some(error.to_string());
                if lost { Ok(Compared { difference, ..Compared::default() }) } else { Err(error) }
            })?;
            done.entries += 1;
            done.raw_bytes += compared.raw_bytes;
            done.stored_bytes += compared.stored_bytes;
            differences.extend(compared.difference.map(|message| Difference { key: key.clone(), message }));
        }
        progress(&done)?;
    }
    Ok(differences)
}

fn compare_entry(source: &Store, target: &Store, plan: &Plan, key: &str) -> Result<Compared> {
    let from = source.entry_anew(key)?;
    let mut due = due(target, plan, from.as_ref())?;
    let to = match look_up(target.reading()?, key, due, plan.on_conflict)? {
        Held::Same(key) => target.entry_anew(&key)?,
        Held::Other => target.entry_anew(key)?,
        Held::Nothing => return Err(Error::new(Kind::NoSuchKey, format!("entry `{key}` is not in the target"))),
    };
    let kept = to.content_id() != due && plan.on_conflict == OnConflict::Skip;
    if kept {
        due = to.content_id();
    }
    let header = to.header();
    let document = (!kept).then(|| field_that_differs(&from.header().document, &header.document, plan)).flatten();
    let difference = if to.content_id() != due {
        Some(format!("entry `{key}` is in the target with other content"))
    } else if decoded_content_id(to.as_ref())? != due {
        Some(format!("the activations of entry `{key}` are not what was migrated"))
    } else {
        document.map(|field| format!("`{field}` of entry `{key}` is another in the target"))
    };
    Ok(Compared {
        raw_bytes: header.activations.iter().map(|activation| activation.layout.bytes()).sum(),
        stored_bytes: header.activations.iter().map(Activation::stored_bytes).sum(),
        difference,
    })
}

/// The content id that an entry of the source has after packing and choosing.
fn due(target: &Store, plan: &Plan, entry: &dyn Stored) -> Result<ContentId> {
    let header = entry.header();
    let pack = target.manifest().settings.pack;
    let chosen = plan.chosen(header);
    let converts = header.activations.iter().any(|activation| pack.converts(activation.layout.dtype()));
    if chosen.len() == header.activations.len() && !converts {
        return Ok(entry.content_id());
    }
    content_id_of(entry, &chosen, Some(pack))
}

/// The content id that the stored bytes of an entry decode to.
fn decoded_content_id(entry: &dyn Stored) -> Result<ContentId> {
    let all: Vec<_> = (0..entry.header().activations.len()).collect();
    content_id_of(entry, &all, None)
}

/// The content id of some of an entry's activations after packing, several at once.
fn content_id_of(entry: &dyn Stored, chosen: &[usize], pack: Option<Pack>) -> Result<ContentId> {
    let header = entry.header();
    let mut chains = chains(header);
    // What is above the last of a chain that is wanted need not be decoded.
    for chain in &mut chains {
        chain.truncate(chain.iter().rposition(|index| chosen.contains(index)).map_or(0, |last| last + 1));
    }
    let digests = chains.par_iter().map(|chain| {
        let mut digests = Vec::with_capacity(chain.len());
        for index in chain {
            let activation = header.activations.get(*index);
            let activation = activation.ok_or_else(|| malformed("an entry has no such activation"))?;
            digests.push(chosen.contains(index).then(|| Digest::new(activation, pack)));
        }
        decode_frames(entry, chain, |position, rows| {
            if let Some(Some(digest)) = digests.get_mut(position) {
                digest.add(rows);
            }
        })?;
        let wanted = chain.iter().zip(digests).filter_map(|(index, digest)| Some((*index, digest?)));
        wanted.map(|(index, digest)| Ok((index, digest.finish()?))).collect::<Result<Vec<_>>>()
    });
    let mut digests = digests.collect::<Result<Vec<_>>>()?.concat();
    digests.sort_by_key(|(index, _)| *index);
    let points: Vec<_> =
        digests.iter().map(|(_, (point, layout, digest))| ContentPoint { point, layout, digest: *digest }).collect();
    Ok(content_id(&header.document, header.token_ids.as_deref(), &points))
}

/// The digest of an activation in the making: of its rows as they come, or of all of them once they are packed.
struct Digest<'a> {
    activation: &'a Activation,
    pack: Option<Pack>,
    hasher: blake3::Hasher,
    unpacked: Vec<u8>,
}

impl<'a> Digest<'a> {
    fn new(activation: &'a Activation, pack: Option<Pack>) -> Self {
        let pack = pack.filter(|pack| pack.converts(activation.layout.dtype()));
        Self { activation, pack, hasher: blake3::Hasher::new(), unpacked: Vec::new() }
    }

    fn add(&mut self, rows: &[u8]) {
        if self.pack.is_some() {
            self.unpacked.extend_from_slice(rows);
        } else {
            self.hasher.update(rows);
        }
    }

    fn finish(self) -> Result<(&'a HookPoint, Layout, [u8; 32])> {
        let Self { activation: Activation { point, layout, .. }, pack, hasher, unpacked } = self;
        let Some(pack) = pack else { return Ok((point, layout.clone(), *hasher.finalize().as_bytes())) };
        let (packed, _) = pack.apply(Tensor::new(layout.clone(), unpacked)?)?;
        Ok((point, packed.layout().clone(), *blake3::hash(packed.bytes()).as_bytes()))
    }
}

/// The first field that two documents do not agree on; a key may get a number.
fn field_that_differs(from: &Document, to: &Document, plan: &Plan) -> Option<&'static str> {
    let fields = [
        ("key", from.key == to.key || plan.on_conflict == OnConflict::Number),
        ("key_recipe", from.key_recipe == to.key_recipe),
        ("prompt", from.prompt == to.prompt),
        ("response", from.response == to.response),
        ("prompt_length", from.prompt_length == to.prompt_length),
        ("positions", from.positions == to.positions),
        ("metadata", from.metadata == to.metadata),
        ("created", from.created.to_bits() == to.created.to_bits()),
    ];
    fields.into_iter().find(|(_, same)| !same).map(|(name, _)| name)
}
