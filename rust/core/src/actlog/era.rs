//! The ways in which an entry was written.

use super::LoggedEntry;
use super::layers::{self, Layers};
use crate::error::{Error, Kind, Result};
use crate::format::malformed;
use crate::pickle::{Span, Value, decode};

const ALL_LAYERS: &str = "all_layers_activations";
const LAST_LAYER: &str = "activations";

macro_rules! eras {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// How an entry was written. From the second on, its activations are under `all_layers_activations`; from the
        /// third on, entries are wrapped: a dict of `data`, the entry, and `metadata`, what is said of its compression.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Era { $(#[doc = $doc] $variant,)* }

        impl Era {
            /// The name, as Python sees it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Era::$variant => $name,)* }
            }
        }
    };
}

eras! {
    V0 = "V0", "A dict; under `activations` one array.";
    V1 = "V1", "A dict; the activations are a dict, whose keys `layer_<i>` count steps of generation, not layers.";
    V2None = "V2-none", "The activations are a list, an array or none for each hidden state.";
    V2ZstdA = "V2-zstd-a", "A zstd frame of a pickle of the list.";
    V2ZstdB = "V2-zstd-b", "A zstd frame of the bytes of all arrays, whose shapes and dtypes are beside it.";
    V2Fallback = "V2-fallback", "Like `V2-none`; compression failed, and the reason is told.";
    Bytes = "BytesCompressor", "The entry is pickled once more.";
}

/// Reads the value of an entry.
pub(super) fn read(input: Vec<u8>) -> Result<LoggedEntry> {
    match decode(&input)? {
        Value::Dict(mut items) if is_wrapper(&items) => {
            let (data, compression) = (take(&mut items, "data"), take(&mut items, "metadata"));
            read_wrapped(input, data.unwrap_or(Value::None), compression.unwrap_or(Value::None))
        }
        Value::Dict(items) => read_flat(input, items),
        other => Err(malformed(format!("its value is `{}`, not a dict", other.kind()))),
    }
}

fn is_wrapper(items: &[(Value, Value)]) -> bool {
    let has = |name, is: fn(&Value) -> bool| items.iter().any(|(key, value)| key.is_text(name) && is(value));
    items.len() == 2 && has("data", |_| true) && has("metadata", |value| matches!(value, Value::Dict(_)))
}

/// Takes the item of that name out of a dict.
fn take(items: &mut Vec<(Value, Value)>, name: &str) -> Option<Value> {
    let place = items.iter().rposition(|(key, _)| key.is_text(name))?;
    Some(items.remove(place).1)
}

fn read_flat(input: Vec<u8>, mut items: Vec<(Value, Value)>) -> Result<LoggedEntry> {
    if !items.iter().any(|(key, _)| key.is_text("prompt")) {
        return Err(malformed("its value has no `prompt`, so it is no entry of an activation log"));
    }
    let (era, layers) = match take(&mut items, ALL_LAYERS) {
        Some(layers) => (Era::V1, Layers::of(layers)?),
        None => {
            let array = take(&mut items, LAST_LAYER).filter(|array| !matches!(array, Value::None));
            let named = array.map(|array| Layers::of(Value::Dict(vec![(Value::Text(LAST_LAYER.into()), array)])));
            (Era::V0, named.transpose()?.flatten())
        }
    };
    Ok(LoggedEntry { era, fields: Value::Dict(items), compression: None, metadata: None, layers, input })
}

fn read_wrapped(input: Vec<u8>, data: Value, compression: Value) -> Result<LoggedEntry> {
    let compression = compression.into_owned(&input);
    // The first wrappers said nothing where nothing was compressed.
    let method = match compression.get("compression") {
        None => "none",
        Some(Value::Text(method)) => method.as_str(),
        Some(other) => return Err(malformed(format!("its compression is `{}`", other.kind()))),
    };
    let (input, data) = match data {
        Value::Bytes(span) if method == "bytes" => {
            let input = span.of(&input).to_vec();
            let data = decode(&input).map_err(|e| e.within("the pickle within"))?;
            (input, data)
        }
        data => (input, data),
    };
    let Value::Dict(mut items) = data else {
        return Err(malformed(format!("its data is `{}`, not a dict", data.kind())));
    };
    let given = take(&mut items, ALL_LAYERS);
    let (era, layers) = match (method, given) {
        ("bytes", given) => (Era::Bytes, plain(given)?),
        ("none", given) if compression.get("error").is_some() => (Era::V2Fallback, plain(given)?),
        ("none", given) => (Era::V2None, plain(given)?),
        ("zstd", Some(Value::Bytes(span))) => unpack(&span, &input, &compression)?,
        ("zstd", _) => return Err(malformed("its activations are not compressed, though it says so")),
        (other, _) => return Err(unknown(other)),
    };
    Ok(LoggedEntry { era, fields: Value::Dict(items), compression: Some(compression), metadata: None, layers, input })
}

fn plain(given: Option<Value>) -> Result<Option<Layers>> {
    given.map_or(Ok(None), Layers::of)
}

fn unpack(span: &Span, input: &[u8], compression: &Value) -> Result<(Era, Option<Layers>)> {
    let frame = span.of(input);
    Ok(match compression.get("tensor_metadata") {
        Some(tensors) => (Era::V2ZstdB, Some(layers::unpack_bytes(frame, tensors, compression)?)),
        None => (Era::V2ZstdA, layers::unpack_pickle(frame, compression)?),
    })
}

fn unknown(method: &str) -> Error {
    let message = format!("its compression is `{}`; none, zstd and bytes are known", method.escape_debug());
    Error::new(Kind::UnsupportedVersion, message)
}
