"""Logs of document 000 as a data set's log: of an entry, the layers and rows that are asked for are read."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from actstore import arrays
from actstore.errors import InvalidInputError, NotFoundError
from actstore.formats.record import conventions_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.formats.actlog_by_key import Actlog
    from actstore.formats.record import Imported

__all__ = ["ActlogEntry", "ActlogLog"]


class ActlogEntry:
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


class ActlogLog:
    """A log of document 000 as a `Log`."""

    def __init__(self, log: Actlog) -> None:
        self._log = log

    @property
    def path(self) -> Path:
        """As in `Log`."""
        return self._log.path

    @property
    def kind(self) -> str:
        """As in `Log`."""
        return self._log.kind

    def __len__(self) -> int:
        return len(self._log)

    def __contains__(self, key: str, /) -> bool:
        return key in self._log

    def keys(self) -> list[str]:
        """As in `Log`."""
        return self._log.keys()

    def fields(self, key: str) -> dict[str, Any]:
        """As in `Log`."""
        return self._log.fields(key)

    def rows(self, key: str, positions: str) -> int | None:
        """0 where the log says that none of the rows are at `positions`."""
        config = self._log.fields(key)["logging_config"]
        mode = cast("dict[str, Any]", config).get("sequence_mode") if isinstance(config, dict) else None
        return 0 if (mode, positions) in (("prompt", "response"), ("response", "prompt")) else None

    def entry(self, key: str) -> ActlogEntry:
        """As in `Log`. Errors: `point_not_stored` for the first eras, whose arrays are no layers."""
        imported = self._log.imported(key)
        known = conventions_of(imported.metadata)
        if known["layer_counting"] is None:
            message = (
                f"entry `{key}` of `{self.path}` is of era `{known['era']}`, whose arrays are not layers of the model"
            )
            raise NotFoundError("point_not_stored", message)
        return ActlogEntry(imported)

    def close(self) -> None:
        """Nothing stays open that would have to be closed."""
