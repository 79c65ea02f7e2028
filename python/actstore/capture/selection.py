"""Which rows of a forward pass are kept: real tokens told from padding, positions turned into rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from actstore import _core
from actstore.errors import CaptureError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = [
    "Positions",
    "Tokens",
    "Window",
    "decoding_window",
    "lists",
    "parse_positions",
    "read_tokens",
    "select",
    "window",
]

Positions = str | list[int]
"""`all`, `prompt`, `response`, `last`, or positions, where negative ones count from the end."""

_NAMES = ("all", "prompt", "response", "last")


@dataclass(frozen=True)
class Tokens:
    """The real tokens of a padded batch: of each row the ids, and the columns they stand in."""

    width: int
    ids: list[list[int]]
    columns: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        """Number of real tokens of each row."""
        return [len(ids) for ids in self.ids]


class Window:
    """The rows that one forward keeps of each tensor: `counts[b]` of batch row b, one after the other.

    `shape`: leading extents [batch, tokens] of the tensors. `index`: kept rows of the flattened tensor; None for all of
    them. `tail`: tensors may be longer than `shape`, their last column is meant. `layout`: index in the core's batch.
    """

    __slots__ = ("_index", "_on_device", "counts", "kept", "layout", "shape", "tail")

    def __init__(self, shape: tuple[int, int], counts: list[int], index: list[int] | None, *, tail: bool) -> None:
        self.shape = shape
        self.counts = counts
        self.kept = sum(counts)
        self.tail = tail
        self.layout = -1
        self._index = index
        self._on_device: dict[torch.device, Tensor] = {}

    def index(self, device: torch.device) -> Tensor | None:
        """The kept rows on `device`, None where all are kept; the copy does not wait for the device."""
        if self._index is None:
            return None
        if device not in self._on_device:
            rows = torch.tensor(self._index, dtype=torch.long)
            rows = rows.pin_memory() if device.type == "cuda" else rows
            self._on_device[device] = rows.to(device, non_blocking=True)
        return self._on_device[device]


def parse_positions(positions: object) -> Positions:
    """`positions` of `capture` as a name or a list of ints; `unknown_position` for anything else."""
    if isinstance(positions, str):
        if positions in _NAMES:
            return positions
    elif not isinstance(positions, bool):
        items = cast("Iterable[object]", positions) if isinstance(positions, Iterable) else [positions]
        indices = [getattr(item, "__index__", None) for item in items]
        if indices and all(index is not None for index in indices):
            return [int(index()) for index in indices if index is not None]
    names = ", ".join(f"`{name}`" for name in _NAMES)
    raise InvalidInputError("unknown_position", f"`positions` is `{positions!r}`; one of {names}, an int or ints")


def read_tokens(ids: Tensor, mask: Tensor | None, pad_id: int | None) -> Tokens:
    """The real tokens of a batch, read from the device once. Errors: `missing_attention_mask`."""
    if mask is not None and mask.shape != ids.shape:
        shapes = f"has shape `{list(mask.shape)}` where the token ids have `{list(ids.shape)}`"
        raise CaptureError("missing_attention_mask", f"`attention_mask` {shapes}; give one of 1 and 0 for each id")
    rows: list[list[int]] = lists(ids)
    if mask is None:
        if pad_id is not None and any(pad_id in (row[0], row[-1]) for row in rows if row):
            reason = f"there is no `attention_mask`, but token `{pad_id}`, the padding, at the edge of the batch"
            raise CaptureError("missing_attention_mask", f"{reason}; pass `attention_mask`, so that rows match tokens")
        return Tokens(ids.shape[1], rows, [list(range(len(row))) for row in rows])
    real: list[list[bool]] = lists(mask.bool())
    columns = [[column for column, is_real in enumerate(row) if is_real] for row in real]
    if not all(columns):
        row = columns.index([])
        raise CaptureError("rows_not_tokens", f"row `{row}` of the batch has `0` tokens: its mask is 0 throughout")
    picked = [[row[column] for column in row_columns] for row, row_columns in zip(rows, columns, strict=True)]
    return Tokens(ids.shape[1], picked, columns)


def lists(tensor: Tensor) -> Any:
    """`tensor.tolist()`, whose type torch leaves open. Waits for the device."""
    return cast("Any", tensor).tolist()


def window(tokens: Tokens, selected: Sequence[Sequence[int]]) -> Window:
    """The window of a forward over `tokens` that keeps the positions `selected[b]` of each row."""
    batch = len(tokens.ids)
    counts = [len(positions) for positions in selected]
    rows = [
        row * tokens.width + tokens.columns[row][position]
        for row, positions in enumerate(selected)
        for position in positions
    ]
    everything = len(rows) == batch * tokens.width
    return Window((batch, tokens.width), counts, None if everything else rows, tail=False)


def decoding_window(batch: int, *, kept: bool, cached: bool) -> Window:
    """The window of a decoding step, which computes one new column; without a cache, behind all earlier ones."""
    return Window((batch, 1), [int(kept)] * batch, None, tail=not cached)


def select(positions: Positions, tokens: int, prompt_length: int | None) -> list[int]:
    """Ascending positions that `positions` names in a sequence of `tokens`. Errors: `unknown_position`."""
    return _core.select_positions(positions, tokens, prompt_length)
