"""Reading files that others wrote: nothing outside their directory, nothing unpickled, no size believed unchecked."""

from __future__ import annotations

import json
import math
import tokenize
import warnings
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.errors import ActstoreError, CorruptError, InvalidInputError, LimitExceededError, StorageIoError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import IO

    from numpy.typing import NDArray

__all__ = ["first_line", "inside", "map_npy", "npy_layout", "read_json", "reading"]

LARGEST_JSON = 4 << 30
_NUMBERS = "fiub"
_MOST_DIMENSIONS = 8
_MOST_BYTES = 1 << 60
"""An extent of zero makes any others take no bytes."""


def inside(root: Path, name: object, field: str) -> Path:
    """The file `name` of the directory `root`; `field` says where the name stands.

    Errors: `unsafe_path` for what leads out of `root`, by its name or by a link.
    """
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise InvalidInputError("unsafe_path", f"{field} is `{name!r}`, which names no file in `{root}`")
    path = root / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not _below(root, path):
        raise InvalidInputError("unsafe_path", f"{field} is `{name}`, which leads out of `{root}`")
    return path


def _below(root: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turn what goes wrong while `path` is read into an error of the package that names it.

    Errors: `missing_file`, `storage_io`, and `malformed` for what is neither a file nor a directory: a pipe, a device.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CorruptError("malformed", f"`{path}` is neither a file nor a directory")
        yield
    except ActstoreError:
        raise
    except FileNotFoundError:
        raise CorruptError("missing_file", f"`{path}` is not there") from None
    except OSError as error:
        raise StorageIoError("storage_io", f"cannot read `{path}`: {error.strerror or error}") from None


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The JSON document in `path`; bare `NaN`, `Infinity` and `-Infinity` are numbers, as Python writes them.

    Errors: `missing_file`, `malformed`, `limit_exceeded` beyond 4 GiB, `storage_io`.
    """
    with reading(path):
        size = path.stat().st_size
        if size > LARGEST_JSON:
            message = f"`{path}` has {size:,} bytes, more than the {LARGEST_JSON:,} that are read of a JSON file"
            raise LimitExceededError("limit_exceeded", message)
        try:
            return json.loads(path.read_bytes(), object_hook=object_hook)
        except ActstoreError:
            raise
        except RecursionError:
            raise CorruptError("malformed", f"`{path}` is nested too deeply") from None
        except ValueError as error:
            raise CorruptError("malformed", f"`{path}` is not JSON: {error}") from None


def first_line(error: BaseException) -> str:
    """What a library says of its failure, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def map_npy(path: Path) -> NDArray[Any]:
    """The array in the `.npy` file `path`, mapped read-only.

    Errors: `missing_file`; `truncated` where the file does not have the bytes its header promises; `malformed`;
    `invalid_tensor` for arrays of objects, which are pickles and are not opened.
    """
    with reading(path), path.open("rb") as file:
        dtype, shape, fortran = npy_layout(file, f"`{path}`")
        offset = file.tell()
        promised, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
        if there != promised:
            message = f"`{path}` has {there:,} bytes of values, but its header promises {list(shape)} of `{dtype}`"
            raise CorruptError("truncated", message)
        if not promised:
            return np.empty(shape, dtype)
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", offset=offset, shape=shape, order=order)


def npy_layout(file: IO[bytes], name: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """dtype, shape and whether in Fortran's order, of the `.npy` header that `file` begins with; see `map_npy`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in readers:
                raise CorruptError("malformed", f"{name} is an `.npy` of version `{version}`, which holds no numbers")
            shape, fortran, dtype = readers[version](file)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise CorruptError("malformed", f"{name} has no `.npy` header: {first_line(error)}") from None
    if dtype.hasobject:
        message = f"{name} is an array of objects, which are pickles; they are not opened"
        raise InvalidInputError("invalid_tensor", message)
    impossible = len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape)
    impossible = impossible or math.prod(size or 1 for size in shape) * dtype.itemsize > _MOST_BYTES
    if dtype.kind not in _NUMBERS or impossible:
        raise CorruptError("malformed", f"{name} is an array {list(shape)} of `{dtype}`, which is no activation")
    return dtype, shape, fortran
