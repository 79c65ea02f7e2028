"""Values in a dtype that NumPy has by itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore import _core, arrays
from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.entry import Entry

__all__ = ["beyond_numpy", "entry_bytes", "numbers", "widen"]


def entry_bytes(entry: Entry, point: str) -> int:
    """Bytes of the activation of `entry` at `point`; reads none of it."""
    return math.prod(entry.shape(point)) * dict(_core.dtypes())[entry.dtype(point)]


def beyond_numpy(dtype: str) -> bool:
    """Whether NumPy, and so a `.npy` file, has no such dtype."""
    return dtype == "bfloat16" or dtype.startswith("float8")


def widen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """`array`, whose stored dtype is `dtype`, as float32 where NumPy has no such dtype; every value is kept."""
    if not beyond_numpy(dtype):
        return array
    if dtype == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.view(numbers(dtype)).astype(np.float32)


def numbers(dtype: str) -> Any:
    """The NumPy dtype for values of a dtype by name; None where there is none.

    Errors: `invalid_option` where it needs `ml_dtypes`, which is not installed.
    """
    if dtype not in {name for name, _ in _core.dtypes()}:
        return None
    found = arrays.numpy_dtype(dtype)
    if found.name != dtype:
        message = f"values of `{dtype}` need the package `ml_dtypes`: pip install 'actstore[all]'"
        raise InvalidInputError("invalid_option", message)
    return found
