"""What lies where a store was looked for, or is to be made, and is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.errors import AlreadyExistsError
from actstore.formats import format_of, names

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["found_instead_of_a_store", "refuse_taken"]

_LMDB_MAGIC = (0xBEEFC0DE).to_bytes(4, "little")
_LMDB_MAGIC_OFFSETS = (16, 24)
"""In the formats 0.9 and 1.0."""
_LMDB_DATA = "data.mdb"
_OWN_FILES_AND = ("shards", "logs", "activations")
"""With names that begin with `actstore`, all that the top of a store may have when its creation was interrupted."""
_NO_LOG = "and that is no log of `actlog-lmdb` either"


def found_instead_of_a_store(path: Path) -> str:
    """What is at `path`, which is no store, and what to give instead."""
    if not path.exists():
        return "does not exist; give the store to migrate"
    if path.is_file() and (path.parent / "actstore.lock").is_file():
        return f"is a file of a store; give its directory, `{path.parent}`"
    if (format := format_of(path)) is not None:
        return f"is no store, but in the format `{format.name}`; give that, or `auto`, as its format"
    if _is_lmdb(path) or _is_lmdb(path / _LMDB_DATA):
        return f"is an LMDB environment that actstore did not write, {_NO_LOG}"
    return f"holds no actstore store and is in none of the formats {', '.join(f'`{name}`' for name in names())}"


def _is_lmdb(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(32)
    return any(begin[offset : offset + 4] == _LMDB_MAGIC for offset in _LMDB_MAGIC_OFFSETS)


def refuse_taken(path: Path) -> None:
    """Refuse what creating a store at `path` would refuse, without trying: a file, a directory with other files."""
    if path.is_dir():
        taken = any(not _may_be_left(child) for child in path.iterdir())
    else:
        taken = path.is_symlink() or path.exists()
    if taken:
        what = "a directory with files" if path.is_dir() else "something"
        raise AlreadyExistsError("store_exists", f"`{path}` is already {what}; choose another path")


def _may_be_left(path: Path) -> bool:
    return path.name.startswith("actstore") or (path.name in _OWN_FILES_AND and path.is_dir())
