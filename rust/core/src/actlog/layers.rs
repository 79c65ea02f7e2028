//! Activations of an entry: as they lie in its pickle, or unpacked.

use std::io::Read;

use zstd::stream::read::Decoder;

use crate::error::{Error, Kind, Result};
use crate::format::{malformed, size};
use crate::pickle::{Array, Span, Value, decode};
use crate::tensor::{Dtype, Layout};

/// What a frame says that it unpacks to may be so many times its length. Activations shrink by a few per cent, those of
/// padding by more.
const MAX_RATIO: u64 = 200;
/// What is never too much.
const FREE_BYTES: u64 = 1 << 22;
/// What is always too much: LMDB has no value above it, so no entry that was not compressed is larger.
const MAX_BYTES: u64 = 1 << 32;
/// Logarithm of the largest window that a frame may ask for.
const WINDOW_LOG: u32 = 27;

/// Arrays by number, or by name. None stands for a layer that was not kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Layers {
    /// The arrays.
    pub arrays: Vec<Option<Array>>,
    /// Their names, in the same order, where they have names.
    pub names: Option<Vec<String>>,
}

impl Layers {
    /// Layers as they were pickled; nothing for none.
    pub(super) fn of(value: Value) -> Result<Option<Self>> {
        match value {
            Value::None => Ok(None),
            Value::List(items) => {
                let arrays = items.into_iter().enumerate().map(|(number, item)| array(item, &number));
                Ok(Some(Self { arrays: arrays.collect::<Result<_>>()?, names: None }))
            }
            Value::Dict(items) => {
                let (mut arrays, mut names) = (Vec::new(), Vec::new());
                for (key, item) in items {
                    let Value::Text(name) = key else {
                        return Err(malformed(format!("the name of a layer is `{}`", key.kind())));
                    };
                    arrays.push(array(item, &name.escape_debug())?);
                    names.push(name);
                }
                Ok(Some(Self { arrays, names: Some(names) }))
            }
            other => Err(malformed(format!("its activations are `{}`, neither list nor dict", other.kind()))),
        }
    }

    /// The same with bytes of their own.
    fn into_owned(self, input: &[u8]) -> Self {
        let arrays = self.arrays.into_iter().map(|array| array.map(|array| array.into_owned(input)));
        Self { arrays: arrays.collect(), names: self.names }
    }
}

fn array(value: Value, name: &dyn std::fmt::Display) -> Result<Option<Array>> {
    match value {
        Value::None => Ok(None),
        Value::Array(array) => Ok(Some(array)),
        other => Err(malformed(format!("layer `{name}` is `{}`, not an array", other.kind()))),
    }
}

/// Layers whose pickle is a zstd frame.
pub(super) fn unpack_pickle(frame: &[u8], compression: &Value) -> Result<Option<Layers>> {
    let Some(length) = original_size(compression)? else {
        return Err(malformed("its activations are compressed, and nothing says to how many bytes they unpack"));
    };
    let mut frame = Frame::new(frame, length)?;
    let pickle = frame.take(length)?;
    frame.finish()?;
    let layers = Layers::of(decode(&pickle).map_err(|e| e.within("the pickle of its activations"))?)?;
    Ok(layers.map(|layers| layers.into_owned(&pickle)))
}

/// Layers whose bytes, one after the other, are a zstd frame.
pub(super) fn unpack_bytes(frame: &[u8], tensors: &Value, compression: &Value) -> Result<Layers> {
    let Value::List(tensors) = tensors else { return Err(malformed("`tensor_metadata` is no list")) };
    let layouts: Vec<_> = tensors.iter().map(layout).collect::<Result<_>>()?;
    let length = layouts.iter().fold(0_u64, |length, layout| length.saturating_add(layout.bytes()));
    if let Some(said) = original_size(compression)?.filter(|&said| said != length) {
        return Err(malformed(format!("its layers have `{length}` bytes, and `original_size` says `{said}`")));
    }
    let mut frame = Frame::new(frame, length)?;
    let mut arrays = Vec::new();
    for layout in layouts {
        let bytes = Span::Own(frame.take(layout.bytes())?);
        arrays.push(Some(Array { layout, bytes }));
    }
    frame.finish()?;
    Ok(Layers { arrays, names: None })
}

fn original_size(compression: &Value) -> Result<Option<u64>> {
    match compression.get("original_size") {
        None => Ok(None),
        Some(Value::Int(bytes)) if *bytes >= 0 => Ok(Some(bytes.unsigned_abs())),
        Some(_) => Err(malformed("`original_size` is no number of bytes")),
    }
}

fn layout(tensor: &Value) -> Result<Layout> {
    let (Some(Value::List(shape)), Some(Value::Text(dtype))) = (tensor.get("shape"), tensor.get("dtype")) else {
        return Err(malformed("`tensor_metadata` has a layer without shape or dtype"));
    };
    let extent = |extent: &Value| match extent {
        Value::Int(extent) => u64::try_from(*extent).ok(),
        _ => None,
    };
    let shape: Option<Vec<u64>> = shape.iter().map(extent).collect();
    let shape = shape.ok_or_else(|| malformed("`tensor_metadata` has a shape that is no list of extents"))?;
    Layout::new(Dtype::parse(dtype.strip_prefix("torch.").unwrap_or(dtype))?, shape)
}

/// A zstd frame that must unpack to so many bytes, taken from the front.
struct Frame<'a> {
    decoder: Decoder<'static, &'a [u8]>,
}

impl<'a> Frame<'a> {
    fn new(frame: &'a [u8], length: u64) -> Result<Self> {
        let most = (frame.len() as u64).saturating_mul(MAX_RATIO).clamp(FREE_BYTES, MAX_BYTES);
        if length > most {
            let message = format!("`{}` bytes should unpack to `{length}`, above the limit of `{most}`", frame.len());
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        let mut decoder = Decoder::with_buffer(frame).map_err(|e| undecodable(&e))?.single_frame();
        decoder.window_log_max(WINDOW_LOG).map_err(|e| undecodable(&e))?;
        Ok(Self { decoder })
    }

    fn take(&mut self, length: u64) -> Result<Vec<u8>> {
        // What is not there need have no room.
        let mut bytes = Vec::with_capacity(size(length.min(FREE_BYTES))?);
        self.decoder.by_ref().take(length).read_to_end(&mut bytes).map_err(|e| undecodable(&e))?;
        if bytes.len() as u64 == length {
            return Ok(bytes);
        }
        Err(malformed(format!("a zstd frame ends `{}` bytes too early", length - bytes.len() as u64)))
    }

    /// Checks that nothing is left, in the frame or behind it.
    fn finish(mut self) -> Result<()> {
        let more = self.decoder.read(&mut [0]).map_err(|e| undecodable(&e))?;
        if more == 0 && self.decoder.finish().is_empty() {
            return Ok(());
        }
        Err(malformed("a zstd frame has more than its layers"))
    }
}

fn undecodable(error: &std::io::Error) -> Error {
    malformed(format!("a zstd frame that cannot be decoded: {error}"))
}
