//! Values while a pickle is read: they refer to each other by number, so that the memo may share them.

use std::ops::Range;
use std::rc::Rc;

use super::global::Global;
use super::numpy::Element;
use super::torch::Storage;
use crate::tensor::Layout;

/// The number of a value.
pub(super) type Id = u32;

/// Bytes in the pickle, or in a text of it that stood for them.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    made: Option<Rc<[u8]>>,
    range: Range<usize>,
}

impl Piece {
    pub(super) fn of_input(range: Range<usize>) -> Self {
        Self { made: None, range }
    }

    pub(super) fn made(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), made: Some(bytes.into()) }
    }

    pub(super) fn len(&self) -> u64 {
        self.range.len() as u64
    }

    /// Where its bytes lie in the pickle, if there.
    pub(super) fn in_input(&self) -> Option<Range<usize>> {
        self.made.is_none().then(|| self.range.clone())
    }

    /// What its range counts in.
    pub(super) fn source<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        self.made.as_deref().unwrap_or(input)
    }

    pub(super) fn bytes<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        self.source(input).get(self.range.clone()).unwrap_or_default()
    }

    pub(super) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Other bytes of what its range counts in.
    pub(super) fn with_range(&self, range: Range<usize>) -> Self {
        Self { made: self.made.clone(), range }
    }
}

/// Values of a storage, picked by strides that stay within it. Offset and strides count values.
#[derive(Clone, Debug)]
pub(super) struct Strided {
    pub(super) layout: Layout,
    pub(super) offset: u64,
    pub(super) strides: Vec<u64>,
    pub(super) data: Piece,
}

/// A value, or what values are made of.
#[derive(Clone, Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// UTF-8.
    Text(Piece),
    Bytes(Piece),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// A dtype of NumPy.
    Element(Element),
    Storage(Rc<Storage>),
    /// An array of NumPy before its state is set.
    Unbuilt,
    Array(Rc<Strided>),
}

impl Node {
    /// What messages call it.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::None => "none".into(),
            Self::Bool(_) => "a bool".into(),
            Self::Int(_) => "an int".into(),
            Self::Float(_) => "a float".into(),
            Self::Text(_) => "a text".into(),
            Self::Bytes(_) => "bytes".into(),
            Self::List(_) => "a list".into(),
            Self::Tuple(_) => "a tuple".into(),
            Self::Dict(_) => "a dict".into(),
            Self::Global(global) => format!("the name `{}`", global.name()),
            Self::Element(_) => "a dtype".into(),
            Self::Storage(_) => "a storage".into(),
            Self::Unbuilt => "an array without a state".into(),
            Self::Array(_) => "an array".into(),
        }
    }
}
