"""One file of raw bytes, mapped: no container, but the bound of what this machine writes and reads."""

from __future__ import annotations

import json
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from rivals.rival import Reader, Rival, Syncs, bits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from entries import Entry
    from rivals.rival import Array, Ints

FILE = "rows"
INDEX = "index.json"
DOCUMENTS = "documents.json"


class RawFile(Rival):
    name = "bound: one raw file"
    bound = True

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        first = entries[0].activations
        some = bits(next(iter(first.values())))
        index = {
            "points": list(first),
            "width": some.shape[1],
            "dtype": some.dtype.str,
            "rows": [entry.tokens for entry in entries],
        }
        (folder / INDEX).write_text(json.dumps(index))
        (folder / DOCUMENTS).write_text(json.dumps([entry.document() for entry in entries]))
        with (folder / FILE).open("wb", buffering=0) as file:
            syncs = Syncs(sync_every, lambda: os.fsync(file.fileno()))
            for entry in entries:
                for value in entry.activations.values():
                    file.write(bits(value).data.cast("B"))
                syncs.wrote(entry)
            return syncs.finish()

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return MapReader(folder, keys)


class MapReader(Reader):
    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(keys)
        index = json.loads((folder / INDEX).read_text())
        self._documents = folder / DOCUMENTS
        with (folder / FILE).open("rb") as file:
            map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(map, index["dtype"]).reshape(-1, index["width"])
        self._tokens = np.array(index["rows"])
        self._points = {point: number for number, point in enumerate(index["points"])}
        self._starts = np.cumsum([0, *self._tokens]) * len(self._points)

    def activation(self, number: int, point: str) -> Array:
        start = self._starts[number] + self._points[point] * self._tokens[number]
        return self._rows[start : start + self._tokens[number]]

    def entry(self, number: int) -> list[Array]:
        return [self.activation(number, point) for point in self._points]

    def gather(self, point: str, numbers: Ints, positions: Ints) -> Array:
        tokens = self._tokens[numbers]
        return self._rows[self._starts[numbers] + self._points[point] * tokens + positions % tokens]

    def metadata(self, count: int) -> list[dict[str, Any]]:
        return json.loads(self._documents.read_text())[:count]

    def close(self) -> None:
        del self._rows
