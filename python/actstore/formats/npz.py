"""Arrays of `.npz` files, each read by its name alone; nothing is unpacked to a path that the archive names."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.errors import ActstoreError, CorruptError, LimitExceededError
from actstore.formats.reading import npy_layout, reading

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["array", "layout", "member", "most_bytes", "names"]

_MOST_FREELY = 1 << 30
_MOST_TIMES = 100


def most_bytes(packed: int) -> int:
    """To how many bytes `packed` ones may grow: compressed zeros would otherwise take any memory."""
    return max(_MOST_FREELY, _MOST_TIMES * packed)


def names(path: Path) -> list[str]:
    """The names of the members, as they are written in the archive less `.npy`. Errors: `malformed`, `missing_file`."""
    with _opened(path) as archive:
        return list(dict.fromkeys(name.removesuffix(".npy") for name in archive.namelist()))


@contextmanager
def member(path: Path, name: str) -> Generator[tuple[Any, int]]:
    """A member of an `.npz`, opened, and how many bytes it unpacks to. KeyError where it has none of that name.

    Errors: `malformed`, `missing_file`, and `limit_exceeded` for what would grow beyond 1 GiB and 100 times its size.
    """
    with _opened(path) as archive:
        info = archive.getinfo(name + ".npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CorruptError("malformed", f"`{name}` of `{path}` is compressed in a way that NumPy never does")
        if info.file_size > most_bytes(info.compress_size):
            message = f"`{name}` of `{path}` would grow from {info.compress_size:,} to {info.file_size:,} bytes"
            raise LimitExceededError("limit_exceeded", message)
        with archive.open(info) as file:
            yield file, info.file_size


@contextmanager
def _opened(path: Path) -> Generator[zipfile.ZipFile]:
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            yield archive
    except ActstoreError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CorruptError("malformed", f"`{path}` is no whole `.npz`: {reason}") from None


def layout(file: Any, path: Path, name: str, size: int) -> tuple[np.dtype[Any], tuple[int, ...], str]:
    """dtype, shape and order (`C` or `F`) of a member, whose bytes are as many as they promise; `file` is at them."""
    dtype, shape, fortran = npy_layout(file, f"`{name}` of `{path}`")
    there = size - file.tell()
    if there != math.prod(shape) * dtype.itemsize:
        message = f"`{name}` of `{path}` has {there:,} bytes of values, not those of {list(shape)} of `{dtype}`"
        raise CorruptError("truncated", message)
    return dtype, shape, "F" if fortran else "C"


def array(path: Path, name: str) -> NDArray[Any]:
    """The member `name`, in memory; see `member` and `layout`, and `invalid_tensor` for an array of objects."""
    with member(path, name) as (file, size):
        dtype, shape, order = layout(file, path, name, size)
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if order == "F" else "C")
