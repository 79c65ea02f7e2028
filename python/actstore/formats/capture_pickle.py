"""`capture-pickle`: document 001's trees with a pickle an entry, plain or in gzip; they are read as data alone."""

from __future__ import annotations

import gzip
import pickle
import zlib
from typing import TYPE_CHECKING

from actstore import _core
from actstore.errors import ActstoreError, CorruptError, LimitExceededError
from actstore.formats.capture_files import Captured, Kind, checked
from actstore.formats.capture_tree import capture_format
from actstore.formats.npz import most_bytes
from actstore.formats.reading import reading

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CAPTURE_PICKLE", "PICKLE"]

_GZIP = b"\x1f\x8b"


def _load(path: Path) -> Captured:
    with reading(path):
        with path.open("rb") as file:
            packed = file.read(len(_GZIP)) == _GZIP
        content = _unpacked(path) if packed else path.read_bytes()
    try:
        data = _core.unpickle(content)
    except ActstoreError as error:
        raise type(error)(error.kind, f"`{path}`: {error.message}") from None
    return checked(data, f"`{path}`")


def _unpacked(path: Path) -> bytes:
    """What gzip packed. Errors: `malformed`, `limit_exceeded`."""
    most = most_bytes(path.stat().st_size)
    try:
        with gzip.open(path) as file:
            content = file.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise CorruptError("malformed", f"`{path}` is no whole gzip file") from None
    if len(content) > most:
        raise LimitExceededError("limit_exceeded", f"`{path}` would grow to more than {most:,} bytes")
    return content


def _save(path: Path, data: Captured, compression: bool) -> None:
    content = pickle.dumps(data, pickle.HIGHEST_PROTOCOL)
    path.write_bytes(gzip.compress(content, mtime=0) if compression else content)


PICKLE = Kind("capture-pickle", (".pkl", ".pkl.gz"), (b"\x80", _GZIP), _load, _save)
CAPTURE_PICKLE = capture_format(PICKLE)
