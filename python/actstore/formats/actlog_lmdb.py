"""`actlog-lmdb`: document 000's LMDB logs, every way in which entries were written.

A log is two LMDB environments, directories with a `data.mdb`: by key the pickled entries, and in `<name>_metadata`
beside it, or `_metadata` within where the path was given with a slash at its end, what is known of each entry but its
activations, with `logging_config` and `timestamp`, which entries do not have themselves. The oldest have no second one.
The core reads the pickles as data, and the files without LMDB, whose lock file is left alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actstore import _core, arrays
from actstore.errors import ActstoreError, CorruptError, InvalidInputError, NotFoundError
from actstore.formats.actlog import imported
from actstore.formats.actlog_lmdb_writing import beside, write
from actstore.formats.record import Format, Imported, Pending, Source
from actstore.formats.widening import numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore.formats.record import Export

    Layers = list[_core.LoggedLayer | None] | dict[str, _core.LoggedLayer | None]

__all__ = ["ACTLOG_LMDB", "imported_entry"]

_DATA = "data.mdb"
_FIRST_KEYS = 8
_KEYS_AT_ONCE = 4096
_STEP = "layer_"
"""With a number, what the second era called a step of generation."""


def _read(root: Path) -> Source:
    log = _core.ActlogLmdb(str(root))
    return Source(len(log), (Pending(key, partial(_load, log, root, key)) for key in _keys(log, root)))


def _keys(log: _core.ActlogLmdb, root: Path) -> Iterator[str]:
    found, last = 0, ""
    while batch := log.keys_after(last, _KEYS_AT_ONCE):
        yield from batch
        found, last = found + len(batch), batch[-1]
    if found != len(log):
        raise CorruptError("malformed", f"`{root / _DATA}` has {found:,} keys, and should have {len(log):,}")


def _load(log: _core.ActlogLmdb, root: Path, key: str) -> Imported:
    try:
        return imported_entry(key, log.get(key))
    except ActstoreError as error:
        if str(root) in error.message:
            raise
        raise type(error)(error.kind, f"`{root}`: {error.message}") from None


def imported_entry(key: str, entry: _core.LoggedEntry) -> Imported:
    """An entry of a log as a store takes it. Errors: `invalid_metadata`, and `invalid_tensor` as `numbers` has it."""
    said = entry.metadata or {}
    fields = {**said, **entry.fields}
    _check_plain(key, fields)
    more: dict[str, Any] = {"era": entry.era}
    if entry.compression not in (None, {}, {"compression": "none"}):
        more["compression"] = entry.compression
    # A program that died between its two writes left what it had said of an earlier entry of this key.
    other = {name: said[name] for name in entry.fields if name in said and repr(said[name]) != repr(entry.fields[name])}
    if other:
        more["other_metadata"] = other
    record = {name: fields[name] for name in (*entry.fields, *said) if name != "compression_metadata"}
    return imported(key, record, _states(entry.layers), "actlog-lmdb", **more)


def _check_plain(key: str, value: Any) -> None:
    """Refuse what JSON has not: the old program wrote nothing of it. Errors: `invalid_metadata`."""
    if isinstance(value, dict):
        for name, item in cast("dict[object, Any]", value).items():
            _check_plain(key, item if isinstance(name, str) else name)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            _check_plain(key, item)
    elif not (value is None or isinstance(value, str | int | float)):
        message = f"entry `{key}` has a `{type(value).__name__}` among its fields, which metadata cannot hold"
        raise InvalidInputError("invalid_metadata", message)


def _states(layers: Layers | None) -> list[NDArray[Any] | None] | dict[str, NDArray[Any] | None] | None:
    if isinstance(layers, dict):
        return {_point(name): _array(layer) for name, layer in layers.items()}
    return None if layers is None else [_array(layer) for layer in layers]


def _point(name: str) -> str:
    """The hook point of an array of the first two eras, which do not say where in the model it was seen."""
    number = name.removeprefix(_STEP)
    return f"logged.generation_step_{number}" if name.startswith(_STEP) and number.isdecimal() else f"logged.{name}"


def _array(layer: _core.LoggedLayer | None) -> NDArray[Any] | None:
    """A view of the layer, which may lie at any address."""
    if layer is None:
        return None
    numbers(layer.dtype)
    return arrays.as_numpy(layer, layer.dtype, layer.shape)


def _is_log(root: Path) -> bool:
    """Whether `root` has entries of a log, or an LMDB file that is damaged or too new, which reading then says."""
    return _begins_with(root, metadata=False)


def _is_metadata(root: Path) -> bool:
    return _begins_with(root, metadata=True)


def _begins_with(root: Path, *, metadata: bool) -> bool:
    """Whether one of the first values is of a log's entries, or of its metadata."""
    if not (root / _DATA).is_file():
        return False
    try:
        log = _core.ActlogLmdb(str(root))
        keys = log.keys_after("", _FIRST_KEYS)
    except NotFoundError:
        return False
    except ActstoreError:
        return not metadata
    if not keys:
        return metadata or any((place / _DATA).is_file() for place in (beside(root), root / "_metadata"))
    return any(_is_metadata_value(log, key) is metadata for key in keys)


def _is_metadata_value(log: _core.ActlogLmdb, key: str) -> bool | None:
    """Whether the value of `key` is a log's metadata rather than an entry of one; None for neither."""
    try:
        entry = log.get(key)
    except ActstoreError:
        return None
    return entry.era == "V0" and entry.layers is None and "has_activations" in entry.fields


def _write(export: Export) -> None:
    write(export, _is_log, _is_metadata)


ACTLOG_LMDB = Format("actlog-lmdb", _is_log, _read, _write)
