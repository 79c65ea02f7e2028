"""py-lmdb with pickled tensors, a value an entry: the system that actstore replaces."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import lmdb

from rivals.rival import Reader, Rival, Syncs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from entries import Entry

MAP_BYTES = 1 << 36


class LmdbPickle(Rival):
    name = "py-lmdb, pickled"
    package = "lmdb"

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        with lmdb.open(str(folder), map_size=MAP_BYTES) as environment:
            transaction = environment.begin(write=True)

            def commit() -> None:
                nonlocal transaction
                transaction.commit()
                transaction = environment.begin(write=True)

            syncs = Syncs(sync_every, commit)
            for entry in entries:
                value = entry.document() | {"activations": entry.activations}
                transaction.put(entry.key.encode(), pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
                syncs.wrote(entry)
            count = syncs.finish()
            transaction.abort()
        return count

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return PickleReader(folder, keys)


class PickleReader(Reader):
    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(keys)
        self._environment = lmdb.open(str(folder), readonly=True, map_size=MAP_BYTES)
        self._transaction = self._environment.begin(buffers=True)

    def _value(self, number: int) -> dict[str, Any]:
        return pickle.loads(self._transaction.get(self.keys[number].encode()))

    def activation(self, number: int, point: str) -> torch.Tensor:
        return self._value(number)["activations"][point]

    def entry(self, number: int) -> list[torch.Tensor]:
        return list(self._value(number)["activations"].values())

    def metadata(self, count: int) -> list[dict[str, Any]]:
        documents = (self._value(number) for number in range(count))
        return [{name: value for name, value in row.items() if name != "activations"} for row in documents]

    def close(self) -> None:
        self._transaction.abort()
        self._environment.close()
