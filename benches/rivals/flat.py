"""What the chunked containers share: one array [all tokens, d] a hook point, and where each entry's rows begin."""

from __future__ import annotations

import json
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from rivals.rival import MIXED_TOKENS, Reader, Rival, Syncs, bits, mixed, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from entries import Entry
    from rivals.rival import Array, Ints

CHUNK_ROWS = 1024
BUFFERED_BYTES = 64 << 20
"""Rows are appended in runs of about this size, so that a chunk is rarely written twice."""
STARTS = "starts.npy"
DOCUMENTS = "documents.json"


class Flat(Rival):
    """Appends rows in long runs; where entries begin and their documents are written at the end."""

    @abstractmethod
    def create(self, folder: Path, points: Sequence[str], width: int, dtype: np.dtype[Any]) -> Any:
        """The container, with empty arrays that grow."""

    @abstractmethod
    def append(self, container: Any, point: str, rows: np.ndarray[Any, Any]) -> None: ...

    @abstractmethod
    def sync(self, container: Any, folder: Path) -> None:
        """What was appended, before all is."""

    @abstractmethod
    def close(self, container: Any) -> None: ...

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        first = entries[0].activations
        some = bits(next(iter(first.values())))
        container = self.create(folder, list(first), some.shape[1], some.dtype)
        held: list[Entry] = []

        def append_held() -> None:
            for point in first if held else ():
                self.append(container, point, np.concatenate([bits(entry.activations[point]) for entry in held]))
            held.clear()

        def sync() -> None:
            append_held()
            self.sync(container, folder)

        syncs = Syncs(sync_every, sync)
        for entry in entries:
            held.append(entry)
            if sum(one.raw_bytes for one in held) >= BUFFERED_BYTES:
                append_held()
            syncs.wrote(entry)
        append_held()
        starts = np.cumsum([0, *(entry.tokens for entry in entries)])
        np.save(folder / STARTS, starts)
        (folder / DOCUMENTS).write_text(json.dumps([entry.document() for entry in entries]), encoding="utf-8")
        self.close(container)
        # Closing writes too, and there are more files now.
        sync_folder(folder)
        return syncs.count + 1


class FlatReader(Reader):
    def __init__(self, folder: Path, keys: Sequence[str], arrays: dict[str, Any]) -> None:
        super().__init__(keys)
        self._arrays = arrays
        self._starts: list[int] = np.load(folder / STARTS).tolist()
        self._documents = folder / DOCUMENTS

    def activation(self, number: int, point: str) -> Array:
        return self._arrays[point][self._starts[number] : self._starts[number + 1]]

    def entry(self, number: int) -> list[Array]:
        return [self.activation(number, point) for point in self._arrays]

    def everything(self, count: int) -> Iterator[Array]:
        for array in self._arrays.values():
            for start in range(0, self._starts[count], MIXED_TOKENS):
                yield array[start : min(start + MIXED_TOKENS, self._starts[count])]

    def gather(self, point: str, numbers: Ints, positions: Ints) -> Array:
        starts = np.array(self._starts)
        once, back = np.unique(starts[numbers + (positions < 0)] + positions, return_inverse=True)
        return self.rows(self._arrays[point], once)[back]

    def rows(self, array: Any, rows: Ints) -> Array:
        """Ascending rows, each chunk read once."""
        chunks, starts = np.unique(rows // CHUNK_ROWS, return_index=True)
        first = (chunks * CHUNK_ROWS).tolist()
        parts = zip(first, np.split(rows, starts[1:]), strict=True)
        return np.concatenate([array[start : start + CHUNK_ROWS][inside - start] for start, inside in parts])

    def batches(self, point: str, size: int, seed: int) -> Iterator[Array]:
        """Runs of chunks in random order, mixed."""
        random = np.random.default_rng(seed)
        array = self._arrays[point]
        starts = random.permutation(np.arange(0, self._starts[-1], CHUNK_ROWS)).tolist()
        return mixed((array[start : start + CHUNK_ROWS] for start in starts), size, random)

    def metadata(self, count: int) -> list[dict[str, Any]]:
        return json.loads(self._documents.read_text(encoding="utf-8"))[:count]
