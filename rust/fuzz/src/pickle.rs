//! What fuzzing checks of pickles.

use actstore::error::Kind;
use actstore::pickle::{Array, EXPANSION, EXPANSION_FREE, MAX_DEPTH, Span, VALUE_WEIGHT, Value, decode};

/// A pickle: an error of a few kinds, or a value that is not much larger than it.
pub fn pickle_decode(data: &[u8]) -> bool {
    match decode(data) {
        Ok(value) => {
            let most = (data.len() as u64).saturating_mul(EXPANSION).saturating_add(EXPANSION_FREE);
            assert!(bytes(&value, data, MAX_DEPTH) <= most, "a value outgrows its pickle");
            true
        }
        Err(error) => {
            let kinds = [
                Kind::Truncated,
                Kind::Malformed,
                Kind::LimitExceeded,
                Kind::UntrustedInput,
                Kind::UnsupportedVersion,
                Kind::InvalidTensor,
            ];
            assert!(kinds.contains(&error.kind()), "{error}");
            false
        }
    }
}

/// Bytes of everything in a value, with the weight of each; checks that arrays have what their layouts say, and how deep it is.
fn bytes(value: &Value, input: &[u8], depth: usize) -> u64 {
    let of = |span: &Span| span.of(input).len() as u64;
    let all = |items: &[Value]| items.iter().map(|item| bytes(item, input, depth.saturating_sub(1))).sum::<u64>();
    let inner = match value {
        Value::Text(text) => text.len() as u64,
        Value::Bytes(span) => of(span),
        Value::Array(Array { layout, bytes }) => {
            assert_eq!(layout.bytes(), of(bytes), "an array is not as large as it says");
            layout.bytes()
        }
        Value::List(items) | Value::Tuple(items) => all(items),
        Value::Dict(items) => {
            let each =
                items.iter().map(|(key, value)| [key, value].map(|part| bytes(part, input, depth.saturating_sub(1))));
            each.flatten().sum()
        }
        _ => 0,
    };
    assert!(depth > 0 || !matches!(value, Value::List(_) | Value::Tuple(_) | Value::Dict(_)), "a value is too deep");
    inner + VALUE_WEIGHT
}
