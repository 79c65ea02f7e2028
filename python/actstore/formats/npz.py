"""Arrays of `.npz` files, each read by its name alone; nothing is unpacked to a path that the archive names."""

from __future__ import annotations

import io
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from actstore import _core
from actstore.errors import ActstoreError, CorruptError, InvalidInputError, LimitExceededError
from actstore.formats.reading import first_line, npy_layout, reading

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["array", "layout", "member", "most_bytes", "names", "texts", "unpacked"]

_MOST_FREELY = 1 << 30
_MOST_TIMES = 100
_PIECE = 1 << 20


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
        raise CorruptError("malformed", f"`{path}` is no whole `.npz`: {first_line(error)}") from None


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


@contextmanager
def unpacked(path: Path, name: str) -> Generator[NDArray[Any]]:
    """The member `name`, mapped from a temporary file; errors as of `array`."""
    with tempfile.TemporaryFile(prefix="actstore-") as content:
        with member(path, name) as (file, size):
            dtype, shape, order = layout(file, path, name, size)
            shutil.copyfileobj(file, content, _PIECE)
        content.flush()
        empty = not math.prod(shape)
        yield np.empty(shape, dtype) if empty else np.memmap(content, dtype, "r", shape=shape, order=cast("Any", order))


def texts(path: Path, name: str) -> list[str]:
    """The texts of the member `name`, of NumPy's text or of objects, which are a pickle and read as data alone.

    Errors: those of `member` and of `_core.unpickle`; `malformed` where it holds anything else.
    """
    with member(path, name) as (file, _):
        content = io.BytesIO(file.read())
    try:
        npy_layout(content, f"`{name}` of `{path}`")
        listed: list[Any] = []
    except InvalidInputError:
        listed = _objects(content.read(), f"`{name}` of `{path}`")
    except CorruptError:
        content.seek(0)
        listed = _strings(content)
    if not listed or not all(isinstance(item, str) for item in listed):
        raise CorruptError("malformed", f"`{name}` of `{path}` is no text")
    return [str(item) for item in listed]


def _objects(content: bytes, what: str) -> list[Any]:
    try:
        objects: Any = _core.unpickle(content)
    except ActstoreError as error:
        raise type(error)(error.kind, f"{what}: {error.message}") from None
    return cast("list[Any]", objects) if isinstance(objects, list) else [objects]


def _strings(content: io.BytesIO) -> list[Any]:
    try:
        array = np.load(content, allow_pickle=False)
    except (ValueError, MemoryError, EOFError):
        return []
    return list(array.reshape(-1)) if array.dtype.kind == "U" else []
