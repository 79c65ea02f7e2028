"""The formats there are: a line each. A format's module, and the libraries it needs, are imported when it is used."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from actstore.errors import InvalidInputError, NotFoundError
from actstore.formats.tree import is_partial

if TYPE_CHECKING:
    import os

    from actstore.formats.record import Format

__all__ = ["AUTO", "FAMILIES", "find", "format_of", "is_store", "names", "source_path"]

AUTO = "auto"
_OWN_FILES = ("actstore.lock", "actstore.manifest")
"""A store of our own has one of them."""

_TABLE = {
    "actlog-json-v1": "actstore.formats.actlog_json:V1",
    "actlog-json-v2": "actstore.formats.actlog_json:V2",
    "actlog-json-v3": "actstore.formats.actlog_json:V3",
    "actlog-lmdb": "actstore.formats.actlog_lmdb:ACTLOG_LMDB",
    "capture-h5": "actstore.formats.capture_h5:CAPTURE_H5",
    "capture-npz": "actstore.formats.capture_npz:CAPTURE_NPZ",
    "capture-pickle": "actstore.formats.capture_pickle:CAPTURE_PICKLE",
    "npy-layers": "actstore.formats.npy_layers:NPY_LAYERS",
    "pt-shards": "actstore.formats.pt_shards:PT_SHARDS",
}
FAMILIES = {"json": "actlog-json-", "lmdb": "actlog-lmdb"}
"""Backends whose name, of a source, also stands for formats of older systems."""


def names() -> list[str]:
    """The names of the formats."""
    return list(_TABLE)


@cache
def find(name: str) -> Format:
    """The format of a name. Errors: `invalid_option`."""
    if name not in _TABLE:
        message = f"unknown format `{name}`; one of {', '.join(f'`{known}`' for known in _TABLE)}"
        raise InvalidInputError("invalid_option", message)
    module, _, attribute = _TABLE[name].partition(":")
    return cast("Format", getattr(import_module(module), attribute))


def format_of(path: str | os.PathLike[str], among: str = "") -> Format | None:
    """The format of what lies at `path`, by its content, of those whose name begins with `among`; None for none."""
    place = Path(path)
    # A store of our own may have too many files to look through.
    if is_partial(place) or is_store(place):
        return None
    candidates = (name for name in _TABLE if name.startswith(among))
    return next((format for format in map(find, candidates) if format.recognises(place)), None)


def is_store(path: Path) -> bool:
    """Whether a store of our own lies at `path`."""
    return any((path / name).exists() for name in _OWN_FILES)


def source_path(path: str | os.PathLike[str], name: str) -> tuple[Path, Format]:
    """Where to read, and by which format: the one named, one of a family (`json`), or with `auto` what is recognised.

    Errors: `not_a_store` where nothing is, or something else; `invalid_option` for a name that does not exist.
    """
    place = Path(path)
    if not place.exists():
        raise NotFoundError("not_a_store", f"`{place}` does not exist; give what to import")
    if name in _TABLE:
        # Versions of one system go on with each other's directories, so each of them reads them all.
        family = next((family for family in FAMILIES.values() if name.startswith(family)), name)
        found = format_of(place, family)
        if found is not None:
            return place, find(name)
        what = f"is not `{name}`"
    else:
        if name != AUTO and name not in FAMILIES:
            find(name)
        found = format_of(place, FAMILIES.get(name, ""))
        if found is not None:
            return place, found
        what = "is in none of the formats " + ", ".join(f"`{known}`" for known in _TABLE)
    other = format_of(place)
    also = f"; it looks like `{other.name}`" if other is not None else ""
    if is_store(place):
        also = "; it is a store of actstore already, which `migrate` brings to another"
    raise NotFoundError("not_a_store", f"`{place}` {what}{also}")
