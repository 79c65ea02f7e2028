//! Arrays, numbers and dtypes as NumPy pickles them.
//!
//! Up to protocol 4 an array is the call of `_reconstruct`, which makes an empty one, and a state: version, shape, dtype,
//! whether the bytes are in Fortran order, and the bytes; or, of objects, a list of them. Protocol 5 calls `_frombuffer`
//! with bytes, dtype, shape and order; order `K` comes with the order in which the axes of the shape are to be taken.
//! A dtype is the call of `numpy.dtype` with a code such as `f2`, and a state that has its byte order.

use std::rc::Rc;

use half::f16;

use super::global::Global;
use super::machine::Machine;
use super::node::{Id, Node, Strided};
use crate::error::{Error, Kind, Result};
use crate::tensor::{Dtype, Layout, MAX_RANK};

/// What an array of NumPy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Plain(Dtype),
    /// Unsigned integers of so many bytes, of which numbers are read, and no arrays.
    Unsigned(u64),
    /// Any values.
    Object,
}

const CODES: [(&str, Element); 14] = [
    ("f2", Element::Plain(Dtype::Float16)),
    ("f4", Element::Plain(Dtype::Float32)),
    ("f8", Element::Plain(Dtype::Float64)),
    ("i1", Element::Plain(Dtype::Int8)),
    ("i2", Element::Plain(Dtype::Int16)),
    ("i4", Element::Plain(Dtype::Int32)),
    ("i8", Element::Plain(Dtype::Int64)),
    ("u1", Element::Plain(Dtype::UInt8)),
    ("b1", Element::Plain(Dtype::Bool)),
    ("u2", Element::Unsigned(2)),
    ("u4", Element::Unsigned(4)),
    ("u8", Element::Unsigned(8)),
    ("O8", Element::Object),
    ("O", Element::Object),
];

/// Strides, in values, of an array in C order.
pub(super) fn c_strides(shape: &[u64]) -> Vec<u64> {
    let mut strides: Vec<u64> = shape.iter().rev().scan(1, |next, &extent| stride(next, extent)).collect();
    strides.reverse();
    strides
}

fn fortran_strides(shape: &[u64]) -> Vec<u64> {
    shape.iter().scan(1, |next, &extent| stride(next, extent)).collect()
}

#[allow(clippy::unnecessary_wraps, reason = "what `scan` takes")]
fn stride(next: &mut u64, extent: u64) -> Option<u64> {
    let own = *next;
    *next = own.saturating_mul(extent.max(1));
    Some(own)
}

impl Machine<'_> {
    pub(super) fn numpy_unbuilt(&self, arguments: &[Id]) -> Result<Node> {
        let &[class, _shape, _code] = arguments else { return Err(self.wrong("it needs three arguments")) };
        match self.node(class)? {
            Node::Global(Global::NumpyArrayType) => Ok(Node::Unbuilt),
            other => Err(self.wrong(format!("it makes {}", other.kind()))),
        }
    }

    pub(super) fn numpy_state(&mut self, state: Id) -> Result<Node> {
        let [_version, shape, element, fortran, data] = *self.short_tuple(state)? else {
            return Err(self.wrong("the state of an array needs five values"));
        };
        let (shape, element) = (self.counts(shape)?, self.element(element)?);
        if element == Element::Object {
            return self.objects(&shape, data);
        }
        let strides = match self.node(fortran)? {
            Node::Bool(true) | Node::Int(1) => fortran_strides(&shape),
            _ => c_strides(&shape),
        };
        self.dense(shape, strides, element, data)
    }

    pub(super) fn numpy_from_buffer(&mut self, arguments: &[Id]) -> Result<Node> {
        let (&[data, element, shape, order] | &[data, element, shape, order, _]) = arguments else {
            return Err(self.wrong("it needs bytes, a dtype, a shape and an order"));
        };
        let (element, shape) = (self.element(element)?, self.counts(shape)?);
        let strides = c_strides(&shape);
        match (self.text(order)?, arguments.get(4)) {
            ("C", None) => self.dense(shape, strides, element, data),
            ("F", None) => {
                let strides = fortran_strides(&shape);
                self.dense(shape, strides, element, data)
            }
            ("K", Some(&axes)) => {
                let axes = self.axes(axes, shape.len())?;
                let [shape, strides] =
                    [shape, strides].map(|of| axes.iter().filter_map(|&a| of.get(a).copied()).collect());
                self.dense(shape, strides, element, data)
            }
            (order, _) => Err(self.wrong(format!("`{order}` is no order of bytes"))),
        }
    }

    pub(super) fn numpy_scalar(&self, arguments: &[Id]) -> Result<Node> {
        let &[element, bytes] = arguments else { return Err(self.wrong("it needs a dtype and bytes")) };
        let (element, piece) = (self.element(element)?, self.piece(bytes)?);
        let bytes = piece.bytes(self.input.all());
        let size = match element {
            Element::Plain(dtype) => dtype.size() as u64,
            Element::Unsigned(size) => size,
            Element::Object => return Err(self.wrong("it makes a number of an object")),
        };
        if bytes.len() as u64 != size {
            return Err(self.wrong(format!("a number of `{size}` bytes has `{}`", bytes.len())));
        }
        let bits = bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
        number(element, bits).ok_or_else(|| self.beyond("an integer has more than 63 bits"))
    }

    pub(super) fn numpy_dtype(&self, arguments: &[Id]) -> Result<Node> {
        let (&[code] | &[code, _] | &[code, _, _]) = arguments else {
            return Err(self.wrong("it needs a code"));
        };
        let code = self.text(code)?;
        let known = CODES.iter().find(|known| known.0 == code.strip_prefix(['<', '|', '=']).unwrap_or(code));
        known.map(|known| Node::Element(known.1)).ok_or_else(|| self.unknown(code))
    }

    /// Checks the state of a dtype: its byte order, and that it has no parts.
    pub(super) fn check_dtype_state(&self, state: Id) -> Result<()> {
        let state = self.short_tuple(state)?;
        let [_version, order, parts @ ..] = &*state else { return Err(self.wrong("a dtype has no state")) };
        let order = self.text(*order)?;
        if !matches!(order, "<" | "|" | "=") {
            return Err(self.unknown(order));
        }
        for &part in parts.iter().take(3) {
            if !matches!(self.node(part)?, Node::None) {
                return Err(self.wrong("a dtype has parts"));
            }
        }
        Ok(())
    }

    fn unknown(&self, code: &str) -> Error {
        let shown: String = code.chars().take(40).flat_map(char::escape_debug).collect();
        super::at_byte(Kind::InvalidTensor, self.at, format!("`{shown}` is no dtype or byte order of an activation"))
    }

    fn element(&self, id: Id) -> Result<Element> {
        match self.node(id)? {
            Node::Element(element) => Ok(*element),
            other => Err(self.wrong(format!("it has {} where a dtype is due", other.kind()))),
        }
    }

    /// Which axis of the bytes each axis of the array is.
    fn axes(&self, id: Id, rank: usize) -> Result<Vec<usize>> {
        let axes = self.counts(id)?;
        let axes: Vec<usize> = axes.iter().filter_map(|&axis| usize::try_from(axis).ok()).collect();
        let mut sorted = axes.clone();
        sorted.sort_unstable();
        if sorted.into_iter().eq(0..rank) { Ok(axes) } else { Err(self.wrong(format!("`{axes:?}` orders no axes"))) }
    }

    fn dense(&self, shape: Vec<u64>, strides: Vec<u64>, element: Element, data: Id) -> Result<Node> {
        let Element::Plain(dtype) = element else { return Err(self.unknown("u")) };
        let data = self.piece(data)?;
        let layout = self.layout(dtype, shape)?;
        if layout.bytes() != data.len() {
            let (shape, bytes) = (layout.shape(), layout.bytes());
            return Err(self.wrong(format!("shape `{shape:?}` needs `{bytes}` bytes, not `{}`", data.len())));
        }
        Ok(Node::Array(Rc::new(Strided { layout, offset: 0, strides, data })))
    }

    pub(super) fn layout(&self, dtype: Dtype, shape: Vec<u64>) -> Result<Layout> {
        Layout::new(dtype, shape).map_err(|e| e.within(format!("byte `{}` of a pickle", self.at)))
    }

    /// Lists within lists, of an array of objects.
    fn objects(&mut self, shape: &[u64], data: Id) -> Result<Node> {
        let Node::List(items) = self.node(data)? else {
            return Err(self.wrong("an array of objects has no list of them"));
        };
        let count = shape.iter().try_fold(1_u64, |count, &extent| count.checked_mul(extent));
        if shape.is_empty() || shape.len() > MAX_RANK || count != Some(items.len() as u64) {
            return Err(self.wrong(format!("shape `{shape:?}` does not have `{}` objects", items.len())));
        }
        let mut items = items.clone();
        self.spend_values(items.len())?;
        // The innermost lists first. Without objects there is one list, however many extents there are.
        let inner = if items.is_empty() { &[] } else { shape.get(1..).unwrap_or_default() };
        for &extent in inner.iter().rev() {
            let extent = usize::try_from(extent).unwrap_or(usize::MAX);
            let lists = items.chunks(extent).map(<[Id]>::to_vec).collect::<Vec<_>>();
            self.spend_values(lists.len())?;
            items = lists.into_iter().map(|list| self.add(Node::List(list))).collect::<Result<_>>()?;
        }
        Ok(Node::List(items))
    }
}

/// The value of a number's bits; none where it does not fit.
#[allow(clippy::cast_possible_truncation, reason = "the bits are as many as the type has")]
fn number(element: Element, bits: u64) -> Option<Node> {
    Some(match element {
        Element::Plain(Dtype::Float16) => Node::Float(f16::from_bits(bits as u16).to_f64()),
        Element::Plain(Dtype::Float32) => Node::Float(f32::from_bits(bits as u32).into()),
        Element::Plain(Dtype::Float64) => Node::Float(f64::from_bits(bits)),
        Element::Plain(Dtype::Bool) => Node::Bool(bits != 0),
        Element::Plain(Dtype::Int8) => Node::Int((bits as u8).cast_signed().into()),
        Element::Plain(Dtype::Int16) => Node::Int((bits as u16).cast_signed().into()),
        Element::Plain(Dtype::Int32) => Node::Int((bits as u32).cast_signed().into()),
        Element::Plain(Dtype::Int64) => Node::Int(bits.cast_signed()),
        _ => Node::Int(i64::try_from(bits).ok()?),
    })
}
