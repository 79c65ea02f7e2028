"""`json.dump` of lists of numbers, a file an entry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from rivals.file_per_entry import FilePerEntry

if TYPE_CHECKING:
    from pathlib import Path

    from entries import Entry


class JsonLists(FilePerEntry):
    name = "json.dump of lists"
    suffix = ".json"

    def save(self, path: Path, entry: Entry) -> None:
        dtype = str(next(iter(entry.activations.values())).dtype).removeprefix("torch.")
        lists = {point: value.tolist() for point, value in entry.activations.items()}
        with path.open("w", encoding="utf-8") as file:
            json.dump({"document": entry.document(), "dtype": dtype, "activations": lists}, file)

    def load(self, path: Path) -> dict[str, torch.Tensor]:
        with path.open(encoding="utf-8") as file:
            loaded = json.load(file)
        dtype = getattr(torch, loaded["dtype"])
        return {point: torch.tensor(rows, dtype=dtype) for point, rows in loaded["activations"].items()}

    def load_document(self, path: Path) -> dict[str, Any]:
        with path.open(encoding="utf-8") as file:
            return json.load(file)["document"]
