//! The bytes of commits, seals and logs.

use std::sync::Arc;

use super::{Fields, count, malformed, small};
use crate::codec::ModelId;
use crate::entry::ContentId;
use crate::error::Result;

/// One change of the set of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An entry was written, or replaced one of the same key.
    Put {
        /// Its key.
        key: Arc<str>,
        /// Its content id.
        content_id: ContentId,
        /// File offset of its `entry` record.
        offset: u64,
        /// Bytes of that record's payload.
        length: u64,
    },
    /// An entry was deleted.
    Delete {
        /// Its key.
        key: Arc<str>,
    },
}

/// Where both copies of a model lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelPlace {
    /// The model's id.
    pub id: ModelId,
    /// File offsets of its two `model` records.
    pub offsets: [u64; 2],
}

/// Payload of a `commit` and of a `seal`: what became visible, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitRecord {
    /// Link of the chain, up to the records before this one.
    pub chain: u128,
    /// Bytes of the file known to be synced when this was written.
    pub durable: u64,
    /// Models written.
    pub models: Vec<ModelPlace>,
    /// Changes made.
    pub changes: Vec<Change>,
}

impl CommitRecord {
    /// The payload as stored.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(32 + self.changes.len() * 120);
        out.extend(self.chain.to_le_bytes());
        out.extend(self.durable.to_le_bytes());
        out.extend(count(self.models.len())?.to_le_bytes());
        out.extend(count(self.changes.len())?.to_le_bytes());
        for model in &self.models {
            out.extend(model.id);
            model.offsets.iter().for_each(|offset| out.extend(offset.to_le_bytes()));
        }
        for change in &self.changes {
            let (key, code) = match change {
                Change::Put { key, .. } => (key, 1u8),
                Change::Delete { key } => (key, 2),
            };
            out.push(code);
            out.extend(small(key.len())?.to_le_bytes());
            out.extend(key.as_bytes());
            if let Change::Put { content_id, offset, length, .. } = change {
                out.extend(content_id);
                out.extend(offset.to_le_bytes());
                out.extend(length.to_le_bytes());
            }
        }
        Ok(out)
    }

    /// Reads a payload that was checked.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(payload);
        let (chain, durable) = (fields.u128()?, fields.u64()?);
        let (models, changes) = (fields.u32()?, fields.u32()?);
        let models = (0..models)
            .map(|_| Ok(ModelPlace { id: fields.array()?, offsets: [fields.u64()?, fields.u64()?] }))
            .collect::<Result<Vec<_>>>()?;
        let changes = (0..changes).map(|_| Self::decode_change(&mut fields)).collect::<Result<Vec<_>>>()?;
        fields.end()?;
        Ok(Self { chain, durable, models, changes })
    }

    fn decode_change(fields: &mut Fields<'_>) -> Result<Change> {
        let (code, length) = (fields.u8()?, fields.u16()?);
        let key = Arc::from(fields.text(length.into())?);
        match code {
            1 => Ok(Change::Put { key, content_id: fields.array()?, offset: fields.u64()?, length: fields.u64()? }),
            2 => Ok(Change::Delete { key }),
            code => Err(malformed(format!("unknown change `{code}`"))),
        }
    }
}

/// Payload of an `extent` record of a log: how much of a shard is durable. The last one of a shard counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of the shard.
    pub shard: u32,
    /// Bytes of the file that are durable; of a sealed shard, all of them.
    pub length: u64,
    /// Of a sealed shard, its seal.
    pub seal: Option<Sealed>,
}

/// What a log says of a sealed shard beyond its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// File offset of the `seal` record, above 0.
    pub offset: u64,
    /// BLAKE3 of the file.
    pub blake3: [u8; 32],
}

impl Extent {
    /// The payload as stored.
    pub fn encode(&self) -> Vec<u8> {
        let Sealed { offset, blake3 } = self.seal.unwrap_or(Sealed { offset: 0, blake3: [0; 32] });
        let mut out = Vec::with_capacity(52);
        out.extend(self.shard.to_le_bytes());
        out.extend(self.length.to_le_bytes());
        out.extend(offset.to_le_bytes());
        out.extend(blake3);
        out
    }

    /// Reads a payload that was checked.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(payload);
        let (shard, length) = (fields.u32()?, fields.u64()?);
        let sealed = Sealed { offset: fields.u64()?, blake3: fields.array()? };
        fields.end()?;
        Ok(Self { shard, length, seal: (sealed.offset > 0).then_some(sealed) })
    }
}
