"""Logs of document 000 opened where they lie: entries by key, one at a time; nothing of theirs is changed or run."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from actstore import _core, arrays
from actstore.formats.actlog_json import Log
from actstore.formats.actlog_lmdb import imported_entry
from actstore.formats.table import format_of, is_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from actstore.formats.record import Imported

__all__ = ["Actlog", "open_actlog"]

_DATA = "data.mdb"
_CONFIG = "logging_config"
_OF_LMDB_ALONE = "compression_metadata"
"""How the bytes of a value were made, which is no part of what was logged."""


class Actlog(Protocol):
    """A log of any version. Holds no file open, and pickles as its path. Errors are those of its format."""

    path: Path
    format: str
    kind: str
    """`lmdb` or `json`."""

    def __len__(self) -> int: ...
    def __contains__(self, key: str, /) -> bool: ...

    def keys(self) -> list[str]:
        """Every key, of JSON in the order of logging."""
        ...

    def fields(self, key: str) -> dict[str, Any]:
        """What was logged of an entry beside its activations, of which none is read unless an old LMDB log has no
        environment of metadata. `logging_config` is None where the log does not say it, so that nobody guesses.
        """
        ...

    def logged(self, key: str) -> tuple[dict[str, Any], Any]:
        """All fields of an entry, and its activations: a list of hidden states, each [1, tokens, d] or None; of the two
        oldest eras a dict of arrays by name; None for none at all. They are tensors where torch is installed, else
        NumPy arrays, in memory of their own.
        """
        ...

    def imported(self, key: str) -> Imported:
        """The entry as a store takes it; its activations are views, whose rows are read when they are looked at."""
        ...


def open_actlog(path: Path) -> Actlog | None:
    """The log at `path`, by its content; None where there is none, but nothing, a store of our own or something else.

    Errors: `not_a_store` for an LMDB environment that is neither a store nor a log, and what is damaged.
    """
    if is_store(path):
        return None
    if (path / _DATA).is_file():
        return _LmdbLog(path)
    format = format_of(path, "actlog-json-")
    return None if format is None else _JsonLog(path, format.name)


class _LmdbLog:
    """An LMDB log of any era, read without its lock file."""

    format = "actlog-lmdb"
    kind = "lmdb"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = _core.ActlogLmdb(str(path))

    def __len__(self) -> int:
        return len(self._log)

    def __contains__(self, key: str, /) -> bool:
        return key in self._keys

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self._log.keys())

    def keys(self) -> list[str]:
        """As in `Actlog`."""
        return self._log.keys()

    def fields(self, key: str) -> dict[str, Any]:
        """As in `Actlog`."""
        said = self._log.metadata(key)
        return _plain(self._log.get(key).fields if said is None else said)

    def logged(self, key: str) -> tuple[dict[str, Any], Any]:
        """As in `Actlog`."""
        entry = self._log.get(key)
        fields = _plain({**(entry.metadata or {}), **entry.fields})
        if isinstance(entry.layers, dict):
            return fields, {name: _layer(layer) for name, layer in entry.layers.items()}
        return fields, None if entry.layers is None else [_layer(layer) for layer in entry.layers]

    def imported(self, key: str) -> Imported:
        """As in `Actlog`."""
        return imported_entry(key, self._log.get(key))

    def __reduce__(self) -> tuple[Any, ...]:
        return _LmdbLog, (self.path,)


class _JsonLog:
    """A directory of JSON of any version; `.npy` files are mapped."""

    kind = "json"

    def __init__(self, path: Path, format: str) -> None:
        self.path = path
        self.format = format
        self._log = Log(path)
        self._keys = dict.fromkeys(self._log.keys())

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str, /) -> bool:
        return key in self._keys

    def keys(self) -> list[str]:
        """As in `Actlog`."""
        return list(self._keys)

    def fields(self, key: str) -> dict[str, Any]:
        """As in `Actlog`."""
        return self._with_config(self._log.logged(key).record)

    def logged(self, key: str) -> tuple[dict[str, Any], Any]:
        """As in `Actlog`."""
        logged = self._log.logged(key)
        states: Iterable[Any] | None = logged.states()
        listed = None if states is None else [None if state is None else _array(state) for state in states]
        return self._with_config(logged.record), listed

    def imported(self, key: str) -> Imported:
        """As in `Actlog`."""
        return self._log.load(key)

    def _with_config(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """`record`, which has what the whole log says where it does not say it itself."""
        names = ("target_layers", "sequence_mode")
        config = {name: self._log.config[name] for name in names if name in self._log.config}
        return {_CONFIG: config or None, **record}

    def __reduce__(self) -> tuple[Any, ...]:
        return _JsonLog, (self.path, self.format)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {_CONFIG: None, **{name: value for name, value in fields.items() if name != _OF_LMDB_ALONE}}


def _layer(layer: _core.LoggedLayer | None) -> Any:
    return None if layer is None else _owned(layer.dtype, layer.shape, memoryview(layer))


def _array(array: np.ndarray[Any, Any]) -> Any:
    return _owned(*arrays.encode("all_layers_activations", array))


def _owned(dtype: str, shape: list[int], data: memoryview) -> Any:
    return arrays.as_array(np.array(data, np.uint8), dtype, shape)
