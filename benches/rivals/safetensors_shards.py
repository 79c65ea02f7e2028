"""safetensors in shards of 64 MiB with an index, as Hugging Face stores a large model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file

from rivals.rival import Reader, Rival, document, sync_file, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch

    from entries import Entry

SHARD_BYTES = 64 << 20
INDEX = "index.json"


class SafetensorsShards(Rival):
    name = "safetensors, shards"
    package = "safetensors"

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        index: dict[str, str] = {}
        count = 0
        for number, shard in enumerate(shards(entries)):
            path = folder / f"{number:05}.safetensors"
            tensors = {f"{entry.key}/{point}": value for entry in shard for point, value in entry.activations.items()}
            save_file(tensors, path, metadata={entry.key: document(entry) for entry in shard})
            index.update({entry.key: path.name for entry in shard})
            if sync_every is not None:
                sync_file(path)
                count += 1
        (folder / INDEX).write_text(json.dumps(index))
        sync_folder(folder)
        return count + 1

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return ShardsReader(folder, keys)


def shards(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        shard.append(entry)
        size += entry.raw_bytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


class ShardsReader(Reader):
    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(keys)
        index = json.loads((folder / INDEX).read_text())
        self._shards = {name: safe_open(folder / name, "pt") for name in dict.fromkeys(index.values())}
        self._of = [self._shards[index[key]] for key in keys]
        names = next(iter(self._shards.values())).keys()
        self._points = list(dict.fromkeys(name.split("/", 1)[1] for name in names))

    def activation(self, number: int, point: str) -> torch.Tensor:
        return self._of[number].get_tensor(f"{self.keys[number]}/{point}")

    def entry(self, number: int) -> list[torch.Tensor]:
        return [self.activation(number, point) for point in self._points]

    def metadata(self, count: int) -> list[dict[str, Any]]:
        texts = {key: text for shard in dict.fromkeys(self._of[:count]) for key, text in shard.metadata().items()}
        return [json.loads(texts[key]) for key in self.keys[:count]]

    def close(self) -> None:
        self._of.clear()
        self._shards.clear()
