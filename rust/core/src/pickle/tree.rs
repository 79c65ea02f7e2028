//! From values that share each other to a tree of them.

use super::machine::Machine;
use super::node::{Id, Node, Piece, Strided};
use super::numpy::c_strides;
use super::{Array, MAX_DEPTH, Span, Value};
use crate::error::Result;

impl Machine<'_> {
    /// The value with all that it refers to.
    pub(super) fn into_value(mut self, root: Id) -> Result<Value> {
        self.spend_values(1)?;
        self.value(root, MAX_DEPTH)
    }

    /// The tree below a value, at most `depth` levels of containers. A container within itself has no end, so it is too
    /// deep.
    fn value(&mut self, id: Id, depth: usize) -> Result<Value> {
        let parts = match self.node(id)? {
            Node::List(items) | Node::Tuple(items) => Some(items.len()),
            Node::Dict(items) => Some(2 * items.len()),
            _ => None,
        };
        if parts.is_some() && depth == 0 {
            return Err(self.beyond(format!("its containers lie more than `{MAX_DEPTH}` deep in each other")));
        }
        // Before they are copied: of a container within itself there is a copy at every level.
        self.spend_values(parts.unwrap_or_default())?;
        match self.node(id)?.clone() {
            Node::None => Ok(Value::None),
            Node::Bool(value) => Ok(Value::Bool(value)),
            Node::Int(value) => Ok(Value::Int(value)),
            Node::Float(value) => Ok(Value::Float(value)),
            Node::Text(piece) => {
                self.spend(piece.len())?;
                Ok(Value::Text(self.text(id)?.to_owned()))
            }
            Node::Bytes(piece) => Ok(Value::Bytes(self.span(piece)?)),
            Node::List(items) => Ok(Value::List(self.items(&items, depth)?)),
            Node::Tuple(items) => Ok(Value::Tuple(self.items(&items, depth)?)),
            Node::Dict(items) => self.dict(&items, depth),
            Node::Array(array) => self.array(&array),
            other => Err(self.wrong(format!("it has {} where a value is due", other.kind()))),
        }
    }

    fn items(&mut self, items: &[Id], depth: usize) -> Result<Vec<Value>> {
        let mut values = Vec::with_capacity(items.len());
        for &item in items {
            values.push(self.value(item, depth - 1)?);
        }
        Ok(values)
    }

    fn dict(&mut self, items: &[(Id, Id)], depth: usize) -> Result<Value> {
        let mut pairs = Vec::with_capacity(items.len());
        for &(key, value) in items {
            let key = self.value(key, depth - 1)?;
            if !is_key(&key) {
                return Err(self.wrong(format!("a key of a dict is `{}`", key.kind())));
            }
            pairs.push((key, self.value(value, depth - 1)?));
        }
        Ok(Value::Dict(pairs))
    }

    fn span(&mut self, piece: Piece) -> Result<Span> {
        self.spend(piece.len())?;
        Ok(match piece.in_input() {
            Some(range) => Span::Input(range),
            None => Span::Own(piece.bytes(self.input.all()).to_vec()),
        })
    }

    fn array(&mut self, array: &Strided) -> Result<Value> {
        let Strided { layout, offset, strides, data } = array;
        let (shape, size) = (layout.shape(), layout.dtype().size());
        // How many of the last axes lie in C order; an axis of one value may have any stride.
        let axes = shape.iter().zip(strides).zip(c_strides(shape)).rev();
        let dense = axes.take_while(|((extent, stride), own)| **extent == 1 || *stride == own).count();
        let (outer, inner) = shape.split_at(shape.len() - dense);
        let block = inner.iter().product::<u64>();
        let bytes = if layout.bytes() == 0 || outer.is_empty() {
            let start = data.range().start + if layout.bytes() == 0 { 0 } else { index(*offset) * size };
            self.span(data.with_range(start..start + index(layout.bytes())))?
        } else {
            self.spend(layout.bytes())?;
            let source = data.bytes(self.input.all());
            let mut gathered = Vec::with_capacity(index(layout.bytes()));
            let axes: Vec<_> = outer.iter().copied().zip(strides.iter().copied()).collect();
            gather(source, &axes, index(*offset), &mut gathered, [index(block), size]);
            Span::Own(gathered)
        };
        Ok(Value::Array(Array { layout: layout.clone(), bytes }))
    }
}

/// What NumPy and torch made fits the storage that is in memory.
fn index(values: u64) -> usize {
    usize::try_from(values).unwrap_or(usize::MAX)
}

/// Appends what a view takes, in C order: along some axes, blocks of so many values of some size.
fn gather(source: &[u8], axes: &[(u64, u64)], offset: usize, out: &mut Vec<u8>, block: [usize; 2]) {
    let Some((&(extent, stride), inner)) = axes.split_first() else {
        let [values, size] = block;
        out.extend_from_slice(source.get(offset * size..(offset + values) * size).unwrap_or_default());
        return;
    };
    for number in 0..index(extent) {
        gather(source, inner, offset + number * index(stride), out, block);
    }
}

fn is_key(value: &Value) -> bool {
    match value {
        Value::List(_) | Value::Dict(_) | Value::Array(_) => false,
        Value::Tuple(items) => items.iter().all(is_key),
        _ => true,
    }
}
