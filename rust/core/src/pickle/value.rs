//! What a pickle says.

use std::ops::Range;

use crate::tensor::Layout;

/// Bytes that lie in the pickle, or that were put together from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// Where they lie.
    Input(Range<usize>),
    /// Themselves.
    Own(Vec<u8>),
}

impl Span {
    /// The bytes; `input` is the pickle that they were read from.
    pub fn of<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Input(range) => input.get(range.clone()).unwrap_or_default(),
            Self::Own(bytes) => bytes,
        }
    }

    fn into_owned(self, input: &[u8]) -> Self {
        match self {
            Self::Input(range) => Self::Own(input.get(range).unwrap_or_default().to_vec()),
            own => own,
        }
    }
}

/// A tensor of torch or an array of NumPy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Dtype and shape.
    pub layout: Layout,
    /// As many bytes as the layout says, little-endian, in C order.
    pub bytes: Span,
}

impl Array {
    /// The same with bytes of its own; `input` is the pickle that it was read from.
    #[must_use]
    pub fn into_owned(self, input: &[u8]) -> Self {
        Self { layout: self.layout, bytes: self.bytes.into_owned(input) }
    }
}

/// A value; containers are nested at most [`super::MAX_DEPTH`] deep.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Span),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    /// In the order of insertion. Of equal keys, which no pickler writes, the last one counts.
    Dict(Vec<(Value, Value)>),
    Array(Array),
}

impl Value {
    /// What a dict has under a text.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Self::Dict(items) = self else { return None };
        items.iter().rev().find(|(known, _)| known.is_text(key)).map(|(_, value)| value)
    }

    /// The same with bytes of its own; `input` is the pickle that it was read from.
    #[must_use]
    pub fn into_owned(self, input: &[u8]) -> Self {
        let all = |items: Vec<Self>| items.into_iter().map(|item| item.into_owned(input)).collect();
        match self {
            Self::Bytes(span) => Self::Bytes(span.into_owned(input)),
            Self::Array(array) => Self::Array(array.into_owned(input)),
            Self::List(items) => Self::List(all(items)),
            Self::Tuple(items) => Self::Tuple(all(items)),
            Self::Dict(items) => {
                let items = items.into_iter().map(|(key, value)| (key.into_owned(input), value.into_owned(input)));
                Self::Dict(items.collect())
            }
            plain => plain,
        }
    }

    /// Whether it is this text.
    pub fn is_text(&self, text: &str) -> bool {
        matches!(self, Self::Text(own) if own == text)
    }

    /// What messages call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Array(_) => "array",
        }
    }
}
