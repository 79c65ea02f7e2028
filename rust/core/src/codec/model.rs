//! Models: what a codec learned from a sample of a hook point, and all of its frames share.

use std::fmt;
use std::sync::OnceLock;

use super::zstd::{self, Scratch};
use super::{Encoding, archive, malformed, planes};
use crate::error::{Error, Result};

/// Names a model: the first 16 bytes of the BLAKE3 hash of its bytes.
pub type ModelId = [u8; 16];

/// Bytes of a model, at most. No larger one is fitted.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// How many times its sample a hook point is taken to hold, when what a model saves is held against its size.
pub(super) const SAMPLE_SHARE: f64 = 16.0;

/// What a codec learned. Its first byte is the code of the encoding that it is for.
pub struct Model {
    id: ModelId,
    bytes: Vec<u8>,
    /// As one zstd frame, where that is smaller; made when it is first asked for.
    packed: OnceLock<Option<Vec<u8>>>,
    /// Made when it is first used, or why it cannot be.
    prepared: OnceLock<Result<Prepared>>,
}

/// A model as its encoding uses it.
enum Prepared {
    Planes(Box<planes::Coder>),
    Archive(archive::Coder),
}

impl Model {
    /// The model of these bytes. Whether they fit the rows of a frame is checked when it is decoded.
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut id = ModelId::default();
        blake3::Hasher::new().update(&bytes).finalize_xof().fill(&mut id);
        Self { id, bytes, packed: OnceLock::new(), prepared: OnceLock::new() }
    }

    /// The model that is stored as `stored`, if that is the one of this name; ready to decode with.
    pub fn read(stored: &[u8], id: &ModelId) -> Result<Self> {
        if stored.len() > MOST_BYTES {
            return Err(malformed(format!("a model of `{}` bytes where `{MOST_BYTES}` are most", stored.len())));
        }
        let bytes = if zstd::is_frame(stored) { zstd::expand(stored, MOST_BYTES)? } else { stored.to_vec() };
        let model = Self::new(bytes);
        if model.id != *id {
            return Err(malformed("a model is not the one it is said to be"));
        }
        model.prepare();
        Ok(model)
    }

    /// Makes what decoding looks up, before anyone shares it: in a child that is forked while another thread makes it, who
    /// asks for it would wait for ever. Where the model is wrong, its use says so.
    fn prepare(&self) {
        match self.prepared() {
            Ok(Prepared::Planes(coder)) => _ = coder.table(),
            Ok(Prepared::Archive(coder)) => _ = coder.table(),
            Err(_) => {}
        }
    }

    /// The model that an encoding learned as `bytes`.
    pub(super) fn of(encoding: Encoding, learned: &[u8]) -> Self {
        Self::new([&[encoding.code()], learned].concat())
    }

    /// The name.
    pub fn id(&self) -> ModelId {
        self.id
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How they are stored: as one zstd frame where that is smaller. No model begins like one.
    pub fn stored(&self) -> &[u8] {
        let packed = self.packed.get_or_init(|| {
            let mut packed = Vec::new();
            let is_packed = Scratch::with(|scratch| zstd::compress(&mut scratch.general, &self.bytes, &mut packed));
            (is_packed && packed.len() < self.bytes.len()).then_some(packed)
        });
        packed.as_deref().unwrap_or(&self.bytes)
    }

    /// The encoding that it is for.
    pub fn encoding(&self) -> Option<Encoding> {
        self.bytes.first().and_then(|&code| Encoding::from_code(code))
    }

    /// Whether frames that use it need the layer below.
    pub fn is_given_below(&self) -> bool {
        self.encoding() == Some(Encoding::Archive)
    }

    /// As the model of [`Encoding::Planes`] that it must be.
    pub(super) fn planes(&self) -> Result<&planes::Coder> {
        match self.prepared()? {
            Prepared::Planes(coder) => Ok(coder),
            Prepared::Archive(_) => Err(malformed("a model of another encoding")),
        }
    }

    /// As the model of [`Encoding::Archive`] that it must be.
    pub(super) fn archive(&self) -> Result<&archive::Coder> {
        match self.prepared()? {
            Prepared::Archive(coder) => Ok(coder),
            Prepared::Planes(_) => Err(malformed("a model of another encoding")),
        }
    }

    fn prepared(&self) -> Result<&Prepared> {
        let learned = || self.bytes.get(1..).unwrap_or_default();
        let prepared = self.prepared.get_or_init(|| match self.encoding() {
            Some(Encoding::Planes) => planes::Coder::read(learned()).map(|coder| Prepared::Planes(Box::new(coder))),
            Some(Encoding::Archive) => archive::Coder::read(learned()).map(Prepared::Archive),
            _ => Err(malformed("a model of no encoding")),
        });
        prepared.as_ref().map_err(Error::clone)
    }
}

/// Less than this part is not worth reading another layer for.
const WORTH_READING: f64 = 50.0;

/// A model, and what the sample that it was fitted to costs with it.
#[derive(Debug)]
pub struct Fitted {
    /// The model.
    pub model: Model,
    /// Bits of the sample's values; those that stay as they are count too.
    pub bits: u64,
}

impl Fitted {
    /// Whether this saves its own size beside another that is smaller, and enough to be worth more work when it is read.
    pub(super) fn pays_beside(&self, other: &Self) -> bool {
        let saved = other.bits as f64 - self.bits as f64;
        let more = self.model.stored().len() as f64 - other.model.stored().len() as f64;
        saved * SAMPLE_SHARE > 8.0 * more && saved * WORTH_READING > other.bits as f64
    }
}

impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Model {}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({:032x}, {} bytes)", u128::from_be_bytes(self.id), self.bytes.len())
    }
}
