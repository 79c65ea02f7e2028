"""Arrays across the boundary: NumPy and torch to (dtype, shape, bytes) and back, without a copy where none is needed.

The core's dtypes have the names that NumPy and torch use. NumPy itself has no bfloat16 and no float8: with `ml_dtypes`
installed they are its types, without it the raw bits, `uint16` and `uint8`.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from actstore import _core
from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    Encoded = tuple[str, list[int], memoryview]
    Array = NDArray[Any] | np.generic | torch.Tensor
    Bytes = Buffer | NDArray[np.uint8]

_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


@cache
def has_torch() -> bool:
    """Whether torch is installed; does not import it."""
    return find_spec("torch") is not None


@cache
def _dtypes() -> frozenset[str]:
    return frozenset(name for name, _ in _core.dtypes())


def encode(name: str, array: object) -> Encoded:
    """(dtype, shape, C-order little-endian bytes) of a NumPy array or a torch tensor on any device.

    Views the memory of `array` where it is contiguous and in the host's memory. `name` is what errors call it: another
    type or dtype is an `InvalidInputError` of kind `invalid_tensor`.
    """
    import numpy as np

    # While another thread imports torch, there is no such type yet, and no tensor.
    tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
    if tensor_type is not None and isinstance(array, tensor_type):
        return _encode_torch(name, cast("torch.Tensor", array))
    # The mask of a masked array would be lost.
    if isinstance(array, (np.ndarray, np.generic)) and not isinstance(array, np.ma.MaskedArray):
        return _encode_numpy(name, np.asarray(cast("Any", array)))
    message = f"`{name}` is a `{type(cast('object', array)).__name__}`; give a NumPy array or a torch tensor"
    raise InvalidInputError("invalid_tensor", message)


def dtype_name(dtype: str | torch.dtype) -> str:
    """The core's name of a dtype of torch; a string is the name already."""
    return str(dtype).removeprefix("torch.")


def _encode_numpy(name: str, array: NDArray[Any]) -> Encoded:
    import numpy as np

    dtype = _require_dtype(name, array.dtype.name)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return dtype, list(array.shape), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _encode_torch(name: str, tensor: torch.Tensor) -> Encoded:
    import torch

    dtype = _require_dtype(name, dtype_name(tensor.dtype))
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        message = f"`{name}` is a {tensor.layout} tensor on `{tensor.device}`; give a dense one with data"
        raise InvalidInputError("invalid_tensor", message)
    flat = tensor.resolve_neg().cpu().contiguous().reshape(-1)
    return dtype, list(tensor.shape), flat.view(torch.uint8).numpy().data


def _require_dtype(name: str, dtype: str) -> str:
    if dtype in _dtypes():
        return dtype
    message = f"`{name}` has dtype `{dtype}`; one of {', '.join(sorted(_dtypes()))}"
    if dtype == "uint16":
        message += " (for the bits of bfloat16 use `view(ml_dtypes.bfloat16)` or a torch tensor)"
    raise InvalidInputError("invalid_tensor", message)


def as_numpy(rows: Bytes, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """A view of `rows` as an array of `dtype` and `shape`."""
    import numpy as np

    return np.ndarray(shape, numpy_dtype(dtype), cast("Any", rows))


def as_torch(rows: Bytes, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """A view of `rows` as a tensor of `dtype` and `shape`; ImportError without torch."""
    import torch

    kind = _torch_dtype(dtype)
    # torch makes no tensor of a buffer without bytes.
    if 0 in shape:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(cast("Any", rows), dtype=kind).view(shape)


def as_array(rows: Bytes, dtype: str, shape: Sequence[int]) -> Any:
    """A view of `rows` as a torch tensor where torch is installed, else as a NumPy array."""
    return as_torch(rows, dtype, shape) if has_torch() else as_numpy(rows, dtype, shape)


@cache
def _torch_dtype(dtype: str) -> torch.dtype:
    import torch

    return cast("torch.dtype", getattr(torch, dtype))


@cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype that shows values of `dtype`: of `ml_dtypes` where NumPy has none, raw bits without it."""
    import numpy as np

    if dtype not in _BITS:
        return np.dtype(dtype)
    if find_spec("ml_dtypes") is None:
        return np.dtype(_BITS[dtype])
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, dtype))
