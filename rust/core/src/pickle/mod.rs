//! Pickles read as data: the programs that actstore replaces kept their entries and arrays as such. Nothing is run.
//!
//! A pickle is a program for a small stack machine. Most of its instructions push a value, collect values into a list, a
//! tuple or a dict, or remember and recall one by number (the *memo*). Three do the harm: `GLOBAL` (by a name of its
//! own, `STACK_GLOBAL`) looks up anything that any Python module has, `REDUCE` calls it, and `BUILD` sets the state of
//! what came of it. Here a name is only compared with a short list of what arrays are made of, and a call of one of these
//! is understood as the data that its arguments are:
//!
//! | name | stands for |
//! |---|---|
//! | `torch._utils._rebuild_tensor_v2` | a tensor: storage, offset, shape and strides |
//! | `torch.storage._load_from_bytes` | a storage, as a stream of its own that `torch.save` wrote (see the module `torch`) |
//! | `torch.HalfStorage` and its like | the dtype of a storage |
//! | `numpy.core.multiarray._reconstruct`, `numpy.ndarray` | an array, whose dtype, shape and bytes are its state |
//! | `numpy.core.numeric._frombuffer` | an array, as protocol 5 has it |
//! | `numpy.core.multiarray.scalar`, `numpy.dtype` | a number; a dtype |
//! | `collections.OrderedDict`, `_codecs.encode`, `bytes` | an empty dict; bytes, as protocols 0 to 2 have them |
//!
//! NumPy 2 says `numpy._core` where NumPy 1 said `numpy.core`. Every other name, and every instruction that makes an
//! object in another way, is refused with its place, as [`Kind::UntrustedInput`](crate::error::Kind::UntrustedInput).
//! Protocols 0 to 5 are read; sets, complex numbers, integers beyond 64 bits and texts of Python 2 are not.
//!
//! Bytes and arrays that lie in the pickle as they are wanted are given as ranges of it ([`Span`]); other views of a
//! storage are gathered. What a pickle says is bounded by its length, and its instructions by their number: see
//! [`EXPANSION`], [`MAX_STEPS`] and [`MAX_DEPTH`].

mod call;
mod global;
mod input;
mod machine;
mod node;
mod numpy;
mod opcode;
mod text;
mod torch;
mod tree;
mod value;

pub use self::value::{Array, Span, Value};
use crate::error::{Error, Kind, Result};

/// Most instructions of one pickle, those of the streams of its storages among them, and values given at the end,
/// together. Each takes constant time and at most about 150 bytes, beside those that [`EXPANSION`] bounds. The entries
/// read here have hundreds, and with a hundred layers some ten thousand.
pub const MAX_STEPS: usize = 1 << 19;

/// How deep lists, tuples and dicts may lie in each other. Who handles a value may recurse; metadata has at most four
/// levels, and actstore keeps none of more than 64.
pub const MAX_DEPTH: usize = 100;

/// What a pickle says may be so many times its length, and [`EXPANSION_FREE`] bytes, counting [`VALUE_WEIGHT`] a value and
/// the bytes of texts, bytes and arrays. Without the memo and views with overlapping rows it is always less; with them a
/// few bytes could stand for any amount.
pub const EXPANSION: u64 = 8;

/// What is never too much, so that small pickles may share as they please.
pub const EXPANSION_FREE: u64 = 1 << 16;

/// What a value counts. No value takes less than a byte of a pickle.
pub const VALUE_WEIGHT: u64 = EXPANSION;

/// Reads one pickle, which must be all of `bytes`.
///
/// Errors: `untrusted_input` where it names or makes what is no data of these kinds; `truncated` where it ends too
/// early; `limit_exceeded`; `unsupported_version` for a protocol after 5; `malformed` for all else.
pub fn decode(bytes: &[u8]) -> Result<Value> {
    let mut machine = machine::Machine::new(bytes);
    let root = machine.run()?;
    match bytes.len() - machine.place() {
        0 => machine.into_value(root),
        more => Err(malformed(machine.place(), format!("`{more}` bytes follow the end of the pickle"))),
    }
}

fn at_byte(kind: Kind, at: usize, message: impl std::fmt::Display) -> Error {
    Error::new(kind, format!("byte `{at}` of a pickle: {message}"))
}

fn malformed(at: usize, message: impl std::fmt::Display) -> Error {
    at_byte(Kind::Malformed, at, message)
}

#[cfg(test)]
mod tests;
