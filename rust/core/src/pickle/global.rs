//! The names that are understood.

use super::at_byte;
use crate::error::{Kind, Result};
use crate::tensor::Dtype;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    TorchTensor,
    TorchStorage,
    StorageType(Dtype),
    NumpyArray,
    NumpyArrayType,
    NumpyFromBuffer,
    NumpyScalar,
    NumpyDtype,
    OrderedDict,
    Encode,
    Bytes,
}

const GLOBALS: &[(&str, &str, Global)] = &[
    ("torch._utils", "_rebuild_tensor_v2", Global::TorchTensor),
    ("torch.storage", "_load_from_bytes", Global::TorchStorage),
    ("torch", "HalfStorage", Global::StorageType(Dtype::Float16)),
    ("torch", "BFloat16Storage", Global::StorageType(Dtype::BFloat16)),
    ("torch", "FloatStorage", Global::StorageType(Dtype::Float32)),
    ("torch", "DoubleStorage", Global::StorageType(Dtype::Float64)),
    ("torch", "CharStorage", Global::StorageType(Dtype::Int8)),
    ("torch", "ShortStorage", Global::StorageType(Dtype::Int16)),
    ("torch", "IntStorage", Global::StorageType(Dtype::Int32)),
    ("torch", "LongStorage", Global::StorageType(Dtype::Int64)),
    ("torch", "ByteStorage", Global::StorageType(Dtype::UInt8)),
    ("torch", "BoolStorage", Global::StorageType(Dtype::Bool)),
    ("numpy.core.multiarray", "_reconstruct", Global::NumpyArray),
    ("numpy._core.multiarray", "_reconstruct", Global::NumpyArray),
    ("numpy", "ndarray", Global::NumpyArrayType),
    ("numpy.core.numeric", "_frombuffer", Global::NumpyFromBuffer),
    ("numpy._core.numeric", "_frombuffer", Global::NumpyFromBuffer),
    ("numpy.core.multiarray", "scalar", Global::NumpyScalar),
    ("numpy._core.multiarray", "scalar", Global::NumpyScalar),
    ("numpy", "dtype", Global::NumpyDtype),
    ("collections", "OrderedDict", Global::OrderedDict),
    ("_codecs", "encode", Global::Encode),
    ("builtins", "bytes", Global::Bytes),
    ("__builtin__", "bytes", Global::Bytes),
];

/// Most characters of a name that a message shows.
const SHOWN: usize = 200;

/// What `module.name` stands for, named at byte `at`.
pub(super) fn find(module: &str, name: &str, at: usize) -> Result<Global> {
    let known = GLOBALS.iter().find(|known| (known.0, known.1) == (module, name));
    known.map(|&(_, _, global)| global).ok_or_else(|| {
        let full = format!("{module}.{name}");
        let shown: String = full.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        let message = format!("it names `{shown}`, which is no part of an array of torch or NumPy; nothing was run");
        at_byte(Kind::UntrustedInput, at, message)
    })
}

impl Global {
    /// Its first name, for messages.
    pub(super) fn name(self) -> String {
        let known = GLOBALS.iter().find(|known| known.2 == self);
        known.map(|(module, name, _)| format!("{module}.{name}")).unwrap_or_default()
    }
}
