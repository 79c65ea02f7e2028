"""actstore's own configurations, behind the interface of a rival."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import actstore
from rivals.rival import Reader, Rival

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from entries import Entry
    from rivals.rival import Array, Ints

__all__ = ["Planes", "load"]


class Planes(Rival):
    """The default."""

    name = "actstore"
    package = "actstore"
    ours = True
    options: ClassVar[dict[str, Any]] = {}
    memory: str = "1 GiB"

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        """A commit comes every 64 MiB at the latest and syncs; with `interval` the clock asks, and at last closing.

        Counted are syncs of entries; creating and closing also sync what says that there is a store.
        """
        durability = "interval" if sync_every is None else "commit"
        place = folder / "store"
        with actstore.create(place, durability=durability, memory=self.memory, **self.options) as store:
            with store.writer() as writer:
                for entry in entries:
                    writer.put(
                        activations=entry.activations,
                        prompt=entry.prompt,
                        token_ids=entry.token_ids,
                        metadata=entry.metadata,
                        key=entry.key,
                    )
            at_close = durability == "interval" and store.backend == "shards"
            return writer.stats["syncs"] + at_close

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return StoreReader(folder / "store", keys, self.memory)


class Raw(Planes):
    name = "actstore, raw"
    options: ClassVar[dict[str, Any]] = {"codec": "raw"}


class LmdbRawCodec(Planes):
    name = "actstore, lmdb, raw"
    options: ClassVar[dict[str, Any]] = {"backend": "lmdb", "codec": "raw"}
    beside: ClassVar[str | None] = "py-lmdb, pickled"


class Json(Planes):
    name = "actstore, json"
    options: ClassVar[dict[str, Any]] = {"backend": "json"}
    beside: ClassVar[str | None] = "json.dump of lists"
    jobs: ClassVar[tuple[str, ...] | None] = ("write_end", "write_64", "read")


def load() -> list[Rival]:
    """The two that every rival is compared with, then the two that are compared with one rival each."""
    return [Planes(), Raw(), LmdbRawCodec(), Json()]


class StoreReader(Reader):
    def __init__(self, path: Path, keys: Sequence[str], memory: str) -> None:
        super().__init__(keys)
        self._store = actstore.open(path, memory=memory)
        if len(self._store) < len(keys):
            raise ValueError(f"{len(self._store)} entries of {len(keys)}")

    def activation(self, number: int, point: str) -> Array:
        return self._store[self.keys[number]][point]

    def entry(self, number: int) -> list[Array]:
        return list(self._store[self.keys[number]].activations().values())

    def everything(self, count: int) -> Iterator[Array]:
        keys = self.keys[:count]
        for point in self._store[keys[0]]:
            yield from (values for _, values in self._store.scan(point, keys=keys))

    def gather(self, point: str, numbers: Ints, positions: Ints) -> Array:
        return self._store.gather(point, [self.keys[number] for number in numbers.tolist()], positions)

    def batches(self, point: str, size: int, seed: int) -> Iterator[Array]:
        for batch in self._store.tokens(point, batch_size=size, shuffle=True, seed=seed):
            yield batch.activations

    def metadata(self, count: int) -> list[dict[str, Any]]:
        return list(islice(self._store.metadata(), count))

    def close(self) -> None:
        self._store.close()
