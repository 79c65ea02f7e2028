"""Logs that the older programs wrote, opened where they are; nothing of theirs is changed or run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore import _core, arrays
from actstore.errors import ReadOnlyError
from actstore.formats import format_of
from actstore.formats.actlog_json import Log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actstore.legacy.extraction import States

__all__ = ["OldJson", "OldLmdb", "open_old"]

_CONFIG = "logging_config"
_COMPRESSION = "compression_metadata"
"""How the bytes of an LMDB value were made, which is no part of what was logged."""


def open_old(path: Path) -> OldJson | OldLmdb | None:
    """The older program's log at `path`; None where there is none, but nothing or a store of our own.

    Errors: `not_a_store` for an LMDB environment that is neither, and what is damaged.
    """
    if (path / "actstore.lock").exists():
        return None
    if (path / "data.mdb").is_file():
        return OldLmdb(path)
    format = format_of(path, "actlog-json-")
    return None if format is None else OldJson(path, format.name)


class _Old:
    """What the logs have in common: they are only read."""

    def __init__(self, path: Path, source: str, target: str) -> None:
        self._path = path
        self._formats = (source, target)

    def put(self, key: str, record: Mapping[str, Any], states: States) -> None:
        """Refuse it. Errors: `read_only`, with what to do."""
        del record, states
        path = self._path
        places = ["--source", str(path), "--target", f"{path}.actstore", "--on-conflict", "replace"]
        command = shlex.join(["actstore-cli", "migrate", *self._formats, *places])
        message = f"`{key}` is not logged: `{path}` was written by an older program and is only read; run `{command}`"
        raise ReadOnlyError("read_only", f"{message}, then log to `{path}.actstore`")

    def close(self) -> None:
        """Nothing is held open."""


class OldLmdb(_Old):
    """An LMDB log of any era."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "actlog-lmdb", "lmdb")
        self._log = _core.ActlogLmdb(str(path))

    def keys(self) -> list[str]:
        """Every key, sorted."""
        return self._log.keys()

    def record(self, key: str) -> dict[str, Any]:
        """As in `OwnLog`. Without the environment of metadata, the whole entry is read for it."""
        said = self._log.metadata(key)
        return _plain(said if said is not None else self._log.get(key).fields)

    def entry(self, key: str) -> tuple[dict[str, Any], Any]:
        """As in `OwnLog`; of the two oldest eras, whose arrays had names, a dict of them."""
        entry = self._log.get(key)
        record = _plain({**(entry.metadata or {}), **entry.fields})
        if isinstance(entry.layers, dict):
            return record, {name: _layer(layer) for name, layer in entry.layers.items()}
        return record, None if entry.layers is None else [_layer(layer) for layer in entry.layers]


class OldJson(_Old):
    """A directory of JSON of any version."""

    def __init__(self, path: Path, format: str) -> None:
        super().__init__(path, format, "json")
        self._log = Log(path)

    def keys(self) -> list[str]:
        """Every key, in the order of logging."""
        return self._log.keys()

    def record(self, key: str) -> dict[str, Any]:
        """As in `OwnLog`."""
        return self._record(self._log.logged(key).record)

    def entry(self, key: str) -> tuple[dict[str, Any], States | None]:
        """As in `OwnLog`."""
        logged = self._log.logged(key)
        states = logged.states()
        listed = None if states is None else [None if state is None else _array(state) for state in states]
        return self._record(logged.record), listed

    def _record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        names = ("target_layers", "sequence_mode")
        config = {name: self._log.config[name] for name in names if name in self._log.config}
        return {_CONFIG: config or None, **record}


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record`, which says that the mode is not known where it is not, so that nobody takes it for another."""
    return {_CONFIG: None, **{name: value for name, value in record.items() if name != _COMPRESSION}}


def _layer(layer: _core.LoggedLayer | None) -> Any:
    return None if layer is None else _owned(layer.dtype, layer.shape, memoryview(layer))


def _array(array: np.ndarray[Any, Any]) -> Any:
    return _owned(*arrays.encode("all_layers_activations", array))


def _owned(dtype: str, shape: list[int], data: memoryview) -> Any:
    """A tensor, or an array without torch, in memory of its own."""
    return arrays.as_array(np.array(data, np.uint8), dtype, shape)
