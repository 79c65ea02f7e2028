"""Hugging Face datasets: Arrow, a row an entry and a column of flat values a hook point, read without a copy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Sequence as Values
from datasets.arrow_writer import ArrowWriter
from datasets.utils.logging import disable_progress_bar

from rivals.rival import Reader, Rival, Syncs, bits, document, sync_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from entries import Entry
    from rivals.rival import Array

FILE = "rows.arrow"
BATCH_ROWS = 64


class HfDatasets(Rival):
    name = "HF datasets (Arrow)"
    package = "datasets"

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        disable_progress_bar()
        path = folder / FILE
        first = entries[0].activations
        dtype = str(bits(next(iter(first.values()))).dtype)
        width = next(iter(first.values())).shape[1]
        columns = {point: Values(Value(dtype)) for point in first}
        features = Features({"document": Value("string"), "width": Value("int64"), **columns})
        with path.open("wb") as stream:
            writer = ArrowWriter(stream=stream, features=features, writer_batch_size=BATCH_ROWS)

            def sync() -> None:
                writer.write_examples_on_file()
                stream.flush()
                sync_file(path)

            syncs = Syncs(sync_every, sync)
            for entry in entries:
                flat = {point: bits(value).ravel() for point, value in entry.activations.items()}
                writer.write({"document": document(entry), "width": width, **flat})
                syncs.wrote(entry)
            writer.finalize(close_stream=False)
        sync_file(path)
        return syncs.count + 1

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return DatasetReader(folder, keys)


class DatasetReader(Reader):
    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(keys)
        dataset = Dataset.from_file(str(folder / FILE))
        self._width: int = dataset[0]["width"]
        self._documents = dataset.select_columns(["document"])
        points = [name for name in dataset.column_names if name not in ("document", "width")]
        self._points = {point: dataset.select_columns([point]).with_format("arrow") for point in points}
        self._all = dataset.select_columns(points).with_format("arrow")

    def activation(self, number: int, point: str) -> Array:
        return self._array(self._points[point][number], point)

    def _array(self, table: Any, point: str) -> np.ndarray[Any, Any]:
        return next(self._arrays(table, point))

    def _arrays(self, table: Any, point: str) -> Iterator[np.ndarray[Any, Any]]:
        return (rows.flatten().to_numpy().reshape(-1, self._width) for rows in table.column(point).chunks)

    def everything(self, count: int) -> Iterator[Array]:
        """Batch by batch, a column at a time."""
        for table in self._all.select(range(count)).iter(BATCH_ROWS):
            for point in self._points:
                yield from self._arrays(table, point)

    def entry(self, number: int) -> list[Array]:
        table = self._all[number]
        return [self._array(table, point) for point in self._points]

    def metadata(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self._documents[:count]["document"]]

    def close(self) -> None:
        del self._documents, self._points, self._all
