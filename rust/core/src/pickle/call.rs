//! Names that are called, and states that are set: what the arguments say is the data.

use std::rc::Rc;

use super::global::Global;
use super::machine::Machine;
use super::node::{Id, Node, Piece};
use super::torch::Storage;
use crate::error::Result;
use crate::tensor::MAX_RANK;

impl Machine<'_> {
    /// What the call of a known name stands for.
    pub(super) fn call(&mut self, callable: Id, arguments: Id) -> Result<Node> {
        let &Node::Global(global) = self.node(callable)? else {
            let kind = self.node(callable)?.kind();
            return Err(self.untrusted(format!("it calls {kind}")));
        };
        let arguments = self.short_tuple(arguments).map_err(|e| e.within(format!("`{}`", global.name())))?;
        let called = match global {
            Global::TorchTensor => self.torch_tensor(&arguments),
            Global::TorchStorage => self.torch_storage(&arguments),
            Global::NumpyArray => self.numpy_unbuilt(&arguments),
            Global::NumpyFromBuffer => self.numpy_from_buffer(&arguments),
            Global::NumpyScalar => self.numpy_scalar(&arguments),
            Global::NumpyDtype => self.numpy_dtype(&arguments),
            Global::Encode => self.encode(&arguments),
            Global::OrderedDict if arguments.is_empty() => Ok(Node::Dict(Vec::new())),
            Global::Bytes if arguments.is_empty() => Ok(Node::Bytes(Piece::made(Vec::new()))),
            _ => Err(self.wrong("it is never called so")),
        };
        called.map_err(|e| e.within(format!("`{}`", global.name())))
    }

    /// Bytes as protocols 0 to 2 have them: a text, and `latin1`.
    fn encode(&mut self, arguments: &[Id]) -> Result<Node> {
        let &[text, encoding] = arguments else { return Err(self.wrong("it needs a text and an encoding")) };
        if !matches!(self.text(encoding)?, "latin1" | "latin-1") {
            return Err(self.wrong("the encoding is not `latin1`"));
        }
        let Node::Text(piece) = self.node(text)?.clone() else { return Err(self.wrong("it encodes no text")) };
        self.spend(piece.len())?;
        if piece.bytes(self.input.all()).is_ascii() {
            return Ok(Node::Bytes(piece));
        }
        Ok(Node::Bytes(Piece::made(super::text::latin1(self.text(text)?, self.at)?)))
    }

    pub(super) fn set_state(&mut self, target: Id, state: Id) -> Result<()> {
        let kind = match self.node(target)? {
            Node::Unbuilt => {
                let built = self.numpy_state(state)?;
                *self.node_mut(target)? = built;
                return Ok(());
            }
            Node::Element(_) => return self.check_dtype_state(state),
            other => other.kind(),
        };
        Err(self.untrusted(format!("it sets the state (BUILD) of {kind}")))
    }

    pub(super) fn text(&self, id: Id) -> Result<&str> {
        match self.node(id)? {
            Node::Text(piece) => {
                let bytes = piece.bytes(self.input.all());
                std::str::from_utf8(bytes).map_err(|_| self.wrong("a text is not UTF-8"))
            }
            other => Err(self.wrong(format!("it has {} where a text is due", other.kind()))),
        }
    }

    /// Whether a value is this text; takes no longer for a long one.
    pub(super) fn is_text(&self, id: Id, text: &str) -> Result<bool> {
        match self.node(id)? {
            Node::Text(piece) => Ok(piece.bytes(self.input.all()) == text.as_bytes()),
            _ => Ok(false),
        }
    }

    /// A tuple that is not longer than those that arrays are made of.
    pub(super) fn short_tuple(&self, id: Id) -> Result<Vec<Id>> {
        match self.node(id)? {
            Node::Tuple(items) if items.len() <= MAX_RANK => Ok(items.clone()),
            Node::Tuple(items) => Err(self.wrong(format!("a tuple has `{}` values, above `{MAX_RANK}`", items.len()))),
            other => Err(self.wrong(format!("it has {} where a tuple is due", other.kind()))),
        }
    }

    /// A tuple of extents, strides or such.
    pub(super) fn counts(&self, id: Id) -> Result<Vec<u64>> {
        self.short_tuple(id)?.iter().map(|&item| self.count(item)).collect()
    }

    pub(super) fn count(&self, id: Id) -> Result<u64> {
        match self.node(id)? {
            Node::Int(count) => u64::try_from(*count).map_err(|_| self.wrong(format!("`{count}` is negative"))),
            other => Err(self.wrong(format!("it has {} where an int is due", other.kind()))),
        }
    }

    pub(super) fn storage(&self, id: Id) -> Result<Rc<Storage>> {
        match self.node(id)? {
            Node::Storage(storage) => Ok(storage.clone()),
            other => Err(self.wrong(format!("it has {} where a storage is due", other.kind()))),
        }
    }

    pub(super) fn piece(&self, id: Id) -> Result<Piece> {
        match self.node(id)? {
            Node::Bytes(piece) => Ok(piece.clone()),
            other => Err(self.wrong(format!("it has {} where bytes are due", other.kind()))),
        }
    }
}
