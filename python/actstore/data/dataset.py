"""A torch dataset over entries that stay where they are, and how its items become a batch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import Dataset

from actstore.data.hidden import DEFAULT_LAYERS, wanted_points
from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from actstore.data.logs import Log, Recorded
    from actstore.hook_points import PointLike

    Item = dict[str, Any]

__all__ = ["ActivationDataset", "Window", "collate"]

_VIEWS = 2


@dataclass(frozen=True)
class Window:
    """What an item has of its entry: rows at `positions`, the first `pad_length` of them, of `layers`."""

    positions: str = "response"
    pad_length: int = 63
    pad_value: float = 0.0
    seed: int = 42
    layers: tuple[PointLike, ...] = DEFAULT_LAYERS

    def __post_init__(self) -> None:
        if isinstance(cast("object", self.pad_length), bool) or self.pad_length < 1:
            raise InvalidInputError("invalid_option", f"`pad_length` is `{self.pad_length}`; give a number of rows")
        if len(self.layers) < _VIEWS:
            message = (
                f"`relevant_layers` has {len(self.layers)} layers; an item shows {_VIEWS} of them, so give as many"
            )
            raise InvalidInputError("unknown_layer", message)


class ActivationDataset(Dataset["Item"]):
    """One item an entry: the same answer, seen at several layers. Nothing is read before it is asked for, or kept.

    An item is a dict:

        hashkey             key of the entry
        halu                float32 scalar, 1 where the answer was judged to be hallucinated
        all_activations     of each relevant layer [1, pad_length, d], the entry's own dtype, or None where it has none
        lengths             int64 [layers]: rows that are real; those after them are padding, 0 for a missing layer
        mask                bool [layers, pad_length]: True where a row is real
        pad_value           what the other rows are filled with
        layer1_activations, layer2_activations     two of the layers that are there, and differ
        layer1_idx, layer2_idx                     which, as places in the relevant layers
        input_length        tokens of the prompt, -1 where that is not known

    Longer activations are cut after `pad_length` rows. Which two layers are shown follows from the seed, the epoch
    (`set_epoch`) and the index alone, in whatever process. Works in the workers of a DataLoader, forked or spawned; a
    store in memory cannot go to spawned ones.

    Errors, of an item: `unknown_layer` (a ValueError) where fewer than two of the layers are there, `unknown_position`
    where the entry has no rows or does not say which, and `CorruptError`.
    """

    def __init__(self, log: Log, keys: Sequence[str], labels: Sequence[bool], window: Window) -> None:
        self._log = log
        self._keys = list(keys)
        self._labels = list(labels)
        self.window = window
        # Shared, so that workers that live on see the epoch change.
        self._epoch: Tensor = cast("Any", torch.zeros((), dtype=torch.int64)).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: other pairs of layers are shown than in the one before."""
        self._epoch.fill_(epoch)

    @property
    def keys(self) -> list[str]:
        """The key of each item's entry."""
        return list(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Item:
        place = range(len(self._keys))[index]
        entry = self._log.entry(self._keys[place])
        points = wanted_points(entry, self.window.layers)
        views = self._views(place, entry, [number for number, point in enumerate(points) if point is not None])
        states = [None if point is None else self._read(entry, point) for point in points]
        lengths = torch.tensor([0 if state is None else len(state) for state in states])
        padded = [None if state is None else _padded(state, self.window)[None] for state in states]
        shown = {
            name: value
            for view, number in enumerate(views, 1)
            for name, value in ((f"layer{view}_activations", padded[number]), (f"layer{view}_idx", number))
        }
        return {
            "hashkey": entry.key,
            "halu": torch.tensor(float(self._labels[place])),
            "all_activations": padded,
            **shown,
            "lengths": lengths,
            "mask": torch.arange(self.window.pad_length) < lengths[:, None],
            "pad_value": self.window.pad_value,
            "input_length": -1 if entry.prompt_length is None else entry.prompt_length,
        }

    def _read(self, entry: Recorded, point: str) -> Tensor:
        """The rows at `point`, at most `pad_length` of them."""
        rows = entry.torch(point, self.window.positions)
        if rows.ndim != 2 or not len(rows):
            message = (
                f"entry `{entry.key}` has activations {list(rows.shape)} at the positions `{self.window.positions}` of "
                f"`{point}`, not rows; choose other `positions`"
            )
            raise InvalidInputError("unknown_position", message)
        return rows[: self.window.pad_length]

    def _views(self, place: int, entry: Recorded, there: list[int]) -> list[int]:
        if len(there) < _VIEWS:
            message = (
                f"entry `{entry.key}` has {len(there)} of the relevant layers, and an item shows {_VIEWS}; "
                f"it has {', '.join(f'`{point}`' for point in entry.points[:20]) or 'none'}"
            )
            raise InvalidInputError("unknown_layer", message)
        # Text is hashed in the same way in every process.
        return random.Random(f"{self.window.seed}:{int(self._epoch)}:{place}").sample(there, _VIEWS)


def _padded(rows: Tensor, window: Window) -> Tensor:
    padded = rows.new_full((window.pad_length, rows.shape[1]), window.pad_value)
    padded[: len(rows)] = rows
    return padded


def collate(items: Sequence[Item]) -> Item:
    """A batch of items, tensors with one more dimension before the others; also where items lack some layers.

    `all_activations`: of each relevant layer [batch, 1, pad_length, d]; an item without that layer has padding there,
    length 0 and a mask without any True. None for a layer that no item has.
    """
    first = items[0]
    columns = list(zip(*(item["all_activations"] for item in items), strict=True))
    stacked = ("halu", "lengths", "mask", "layer1_activations", "layer2_activations")
    numbers = ("layer1_idx", "layer2_idx", "input_length")
    return {
        "hashkey": [item["hashkey"] for item in items],
        **{name: torch.stack([item[name] for item in items]) for name in stacked},
        **{name: torch.tensor([item[name] for item in items]) for name in numbers},
        "all_activations": [_column(column, first["pad_value"]) for column in columns],
        "pad_value": first["pad_value"],
    }


def _column(states: Sequence[Tensor | None], pad_value: float) -> Tensor | None:
    model = next((state for state in states if state is not None), None)
    if model is None:
        return None
    return torch.stack([torch.full_like(model, pad_value) if state is None else state for state in states])
