//! Tensors and storages as torch pickles them.
//!
//! A tensor is the call of `_rebuild_tensor_v2` with storage, offset, shape, strides, whether it has a gradient, and
//! hooks. A view is pickled with its whole storage. A storage is the call of `_load_from_bytes` with a stream that
//! `torch.save` wrote in its older way: five pickles of protocol 2, one behind the other, then values.
//!
//! 1. the number `0x1950a86a20f9469cfc6c`
//! 2. the version, 1001
//! 3. a dict about the machine: `protocol_version`, `little_endian`, `type_sizes`
//! 4. the object, here a persistent id: `("storage", type, key, location, values, view)`. The type is one such as
//!    `torch.HalfStorage`; the location, `cpu` or `cuda:0`, where it was, which does not matter here; a view is never
//!    written by these programs
//! 5. the list of the keys of all storages, here of the one
//!
//! then for each key the number of values, a little-endian 64-bit integer, and the values.

use std::rc::Rc;

use super::global::Global;
use super::input::Input;
use super::machine::Machine;
use super::node::{Id, Node, Piece, Strided};
use crate::error::Result;
use crate::tensor::{Dtype, Layout};

/// The first pickle of a stream.
const MAGIC: [u8; 15] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const VERSION: i64 = 1001;

/// Values of one dtype.
#[derive(Debug)]
pub(super) struct Storage {
    dtype: Dtype,
    data: Piece,
}

impl Machine<'_> {
    pub(super) fn torch_tensor(&self, arguments: &[Id]) -> Result<Node> {
        let &[storage, offset, shape, strides, ref more @ ..] = arguments else {
            return Err(self.wrong("it needs a storage, an offset, a shape and strides"));
        };
        // Of a conjugated or negated tensor, the seventh says so.
        if !matches!(more.get(2).map(|&id| self.node(id)).transpose()?, None | Some(Node::None)) {
            return Err(self.wrong("a tensor has a state that values do not show"));
        }
        let (storage, offset) = (self.storage(storage)?, self.count(offset)?);
        let (layout, strides) = (self.layout(storage.dtype, self.counts(shape)?)?, self.counts(strides)?);
        let values = storage.data.len() / storage.dtype.size() as u64;
        let fits =
            strides.len() == layout.shape().len() && end(&layout, offset, &strides).is_some_and(|end| end <= values);
        if !fits {
            let shape = layout.shape();
            let message =
                format!("shape `{shape:?}`, strides `{strides:?}` and offset `{offset}` do not fit `{values}` values");
            return Err(self.wrong(message));
        }
        Ok(Node::Array(Rc::new(Strided { layout, offset, strides, data: storage.data.clone() })))
    }

    pub(super) fn torch_storage(&mut self, arguments: &[Id]) -> Result<Node> {
        let &[stream] = arguments else { return Err(self.wrong("it needs bytes")) };
        let (stream, all) = (self.piece(stream)?, self.input.all());
        let bytes = stream.source(all).get(..stream.range().end).unwrap_or_default();
        let mut input = Input::new(bytes, stream.range().start);
        let magic = input.take(MAGIC.len() as u64)?;
        if bytes.get(magic) != Some(&MAGIC[..]) {
            return Err(self.wrong("its bytes are no stream of `torch.save`"));
        }
        let mut inner = self.inner(input);
        let described = inner.described()?;
        // What comes before the values is read anew by every call.
        inner.spend((inner.place() - stream.range().start) as u64)?;
        let data = inner.values(described)?;
        self.settle(&inner);
        Ok(Node::Storage(Rc::new(Storage { dtype: described.0, data: stream.with_range(data) })))
    }

    /// Dtype and number of values that the pickles of a stream say.
    fn described(&mut self) -> Result<(Dtype, u64)> {
        let version = self.run()?;
        if !matches!(self.node(version)?, Node::Int(VERSION)) {
            return Err(self.wrong("a stream of `torch.save` has another version"));
        }
        let machine = self.run()?;
        if !self.is_little_endian(machine)? {
            return Err(self.wrong("a stream of `torch.save` is not little-endian"));
        }
        let id = self.run()?;
        let [kind, class, key, _location, count, view] = *self.short_tuple(id)? else {
            return Err(self.wrong("the id of a storage needs six values"));
        };
        let (&Node::Global(Global::StorageType(dtype)), "storage", Node::None) =
            (self.node(class)?, self.text(kind)?, self.node(view)?)
        else {
            return Err(self.wrong("the id of a storage names no storage, or a view of one"));
        };
        let (count, keys) = (self.count(count)?, self.run()?);
        match self.node(keys)? {
            Node::List(keys) if matches!(keys[..], [only] if self.text(only)? == self.text(key)?) => Ok((dtype, count)),
            _ => Err(self.wrong("the keys of a stream are not that of its storage")),
        }
    }

    fn is_little_endian(&self, machine: Id) -> Result<bool> {
        let Node::Dict(items) = self.node(machine)? else { return Ok(false) };
        for &(key, value) in items {
            if self.is_text(key, "little_endian")? {
                return Ok(matches!(self.node(value)?, Node::Bool(true)));
            }
        }
        Ok(false)
    }

    /// Where the values lie that end a stream.
    fn values(&mut self, (dtype, count): (Dtype, u64)) -> Result<std::ops::Range<usize>> {
        let stored = self.input.number(8)?;
        if stored != count {
            return Err(self.wrong(format!("a storage of `{count}` values is followed by `{stored}`")));
        }
        let data = self.input.take(count.saturating_mul(dtype.size() as u64))?;
        match self.input.all().len() - data.end {
            0 => Ok(data),
            more => Err(self.wrong(format!("`{more}` bytes follow the values of a storage"))),
        }
    }
}

/// One past the highest value that a view takes; none where that is no number.
fn end(layout: &Layout, offset: u64, strides: &[u64]) -> Option<u64> {
    if layout.bytes() == 0 {
        return Some(0);
    }
    let last =
        layout.shape().iter().zip(strides).try_fold(offset, |last, (&extent, &stride)| {
            last.checked_add(stride.checked_mul(extent.saturating_sub(1))?)
        });
    last?.checked_add(1)
}
