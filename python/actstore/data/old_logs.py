"""Logs of document 000, read where they lie: one entry at a time, and of it the layers that are asked for."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from actstore import _core, arrays
from actstore.data.unreadable import UNREADABLE
from actstore.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.formats.record import Imported

__all__ = ["JsonLog", "LmdbLog", "OldEntry"]


class OldEntry:
    """An entry of an old log, read as `actstore.Entry` is."""

    def __init__(self, imported: Imported) -> None:
        self._imported = imported
        self.key = imported.key
        self.prompt = imported.prompt
        self.response = imported.response
        self.prompt_length = imported.prompt_length
        self.metadata: Mapping[str, Any] = imported.metadata
        self.points = list(imported.activations)

    def torch(self, point: str, positions: str | Sequence[int] = "all", /) -> Tensor:
        """The activation at `point`, [positions, d], in memory of its own: none of a larger array stays alive.

        `positions`: `all`, `prompt`, `response` or `last`. Errors: `point_not_stored`, and `unknown_position` where the
        log does not say which rows those are.
        """
        import numpy as np

        if point not in self._imported.activations:
            message = f"entry `{self.key}` has no `{point}`; it has {', '.join(f'`{name}`' for name in self.points)}"
            raise NotFoundError("point_not_stored", message)
        rows = cast("NDArray[Any]", self._imported.activations[point])
        dtype, shape, data = arrays.encode(point, rows if positions == "all" else rows[self._selected(positions)])
        return arrays.as_torch(np.array(data, np.uint8), dtype, shape)

    def _selected(self, positions: str | Sequence[int]) -> list[int]:
        """The numbers of the rows at `positions`."""
        stored = self._imported.positions
        if stored is None or self.prompt_length is None:
            message = (
                f"entry `{self.key}` of an old log does not say which of its rows are `{positions}`: its "
                "`logging_config` is not there, or contradicts it; read `all`"
            )
            raise InvalidInputError("unknown_position", message)
        held = list(chain.from_iterable(range(start, stop) for start, stop in stored))
        if positions == "last":
            return list(range(len(held)))[-1:]
        if positions not in ("prompt", "response"):
            message = f"`positions` is `{positions}`; of an old log `all`, `prompt`, `response` or `last`"
            raise InvalidInputError("unknown_position", message)
        return [row for row, at in enumerate(held) if (at >= self.prompt_length) == (positions == "response")]


def _rows(fields: Mapping[str, Any], positions: str) -> int | None:
    """0 where the log says that none of the rows are at `positions`."""
    config = fields.get("logging_config")
    mode = cast("dict[str, Any]", config).get("sequence_mode") if isinstance(config, dict) else None
    return 0 if (mode, positions) in (("prompt", "response"), ("response", "prompt")) else None


class LmdbLog:
    """An LMDB log, its values read as data and its lock file left alone."""

    kind = "lmdb"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = _core.ActlogLmdb(str(path))

    def __len__(self) -> int:
        return len(self._log)

    def __contains__(self, key: str, /) -> bool:
        try:
            return self._log.metadata(key) is not None or key in self._without_metadata
        except UNREADABLE:
            # It is there, and reading it says what is wrong with it.
            return True

    @cached_property
    def _without_metadata(self) -> frozenset[str]:
        """Keys of entries that only the first environment has, as in the oldest logs."""
        return frozenset(key for key in self.keys() if not self._has_metadata(key))

    def _has_metadata(self, key: str) -> bool:
        try:
            return self._log.metadata(key) is not None
        except UNREADABLE:
            return True

    def keys(self) -> list[str]:
        """As in `Log`."""
        return self._log.keys()

    def fields(self, key: str) -> dict[str, Any]:
        """As in `Log`."""
        said = self._log.metadata(key)
        return self._log.get(key).fields if said is None else said

    def rows(self, key: str, positions: str) -> int | None:
        """As in `Log`."""
        return _rows(self._log.metadata(key) or {}, positions)

    def entry(self, key: str) -> OldEntry:
        """As in `Log`. Errors: `point_not_stored` for the first eras, whose arrays are no layers."""
        from actstore.formats.actlog_lmdb import imported_entry

        entry = self._log.get(key)
        if isinstance(entry.layers, dict):
            message = (
                f"entry `{key}` of `{self.path}` is of era `{entry.era}`, whose arrays are not layers of the model"
            )
            raise NotFoundError("point_not_stored", message)
        return OldEntry(imported_entry(key, entry))

    def close(self) -> None:
        """Nothing stays open that would have to be closed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return LmdbLog, (self.path,)


class JsonLog:
    """A directory of JSON of any version; `.npy` files are mapped, so that only rows that are asked for are read."""

    kind = "json"

    def __init__(self, path: Path) -> None:
        from actstore.formats.actlog_json import Log

        self.path = path
        self._log = Log(path)
        self._keys = dict.fromkeys(self._log.keys())

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str, /) -> bool:
        return key in self._keys

    def keys(self) -> list[str]:
        """As in `Log`."""
        return list(self._keys)

    def fields(self, key: str) -> dict[str, Any]:
        """As in `Log`."""
        self._require(key)
        return self._log.logged(key).record

    def rows(self, key: str, positions: str) -> int | None:
        """As in `Log`."""
        return _rows(self.fields(key), positions)

    def entry(self, key: str) -> OldEntry:
        """As in `Log`."""
        self._require(key)
        return OldEntry(self._log.load(key))

    def _require(self, key: str) -> None:
        if key not in self._keys:
            raise NotFoundError("no_such_key", f"`{self.path}` has no entry `{key}`")

    def close(self) -> None:
        """Nothing stays open that would have to be closed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonLog, (self.path,)
