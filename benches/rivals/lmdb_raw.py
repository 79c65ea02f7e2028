"""py-lmdb with raw bytes, a value an activation: read as views of the map."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from rivals.rival import Reader, Rival, Syncs, bits, document

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from entries import Entry
    from rivals.rival import Array

MAP_BYTES = 1 << 36
LAYOUT = b"layout"


class LmdbRaw(Rival):
    name = "py-lmdb, raw"
    package = "lmdb"

    def encode(self, values: np.ndarray[Any, Any]) -> bytes | memoryview:
        return values.data.cast("B")

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        with lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=2) as environment:
            documents = environment.open_db(b"documents")
            activations = environment.open_db(b"activations")
            transaction = environment.begin(write=True)

            def commit() -> None:
                nonlocal transaction
                transaction.commit()
                transaction = environment.begin(write=True)

            syncs = Syncs(sync_every, commit)
            first = next(iter(entries[0].activations.values()))
            layout = {"dtype": bits(first).dtype.str, "width": first.shape[1], "points": list(entries[0].activations)}
            transaction.put(LAYOUT, json.dumps(layout).encode(), db=documents)
            for entry in entries:
                transaction.put(entry.key.encode(), document(entry).encode(), db=documents)
                for point, tensor in entry.activations.items():
                    transaction.put(f"{entry.key}/{point}".encode(), self.encode(bits(tensor)), db=activations)
                syncs.wrote(entry)
            count = syncs.finish()
            transaction.abort()
        return count

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return RawReader(folder, keys)


class RawReader(Reader):
    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(keys)
        self._environment = lmdb.open(str(folder), readonly=True, map_size=MAP_BYTES, max_dbs=2)
        self._documents = self._environment.open_db(b"documents", create=False)
        activations = self._environment.open_db(b"activations", create=False)
        self._text = self._environment.begin(db=self._documents)
        self._transaction = self._environment.begin(db=activations, buffers=True)
        layout = json.loads(self._text.get(LAYOUT))
        self._dtype, self._width = np.dtype(layout["dtype"]), layout["width"]
        self._points: list[str] = layout["points"]

    def decode(self, value: memoryview) -> bytes | memoryview:
        return value

    def activation(self, number: int, point: str) -> Array:
        value = self.decode(self._transaction.get(f"{self.keys[number]}/{point}".encode()))
        return np.frombuffer(value, self._dtype).reshape(-1, self._width)

    def entry(self, number: int) -> list[Array]:
        return [self.activation(number, point) for point in self._points]

    def metadata(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(self._text.get(key.encode())) for key in self.keys[:count]]

    def close(self) -> None:
        self._transaction.abort()
        self._text.abort()
        self._environment.close()
