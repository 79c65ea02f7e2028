"""safetensors, a file an entry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rivals.file_per_entry import FilePerEntry
from rivals.rival import document

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from entries import Entry


class SafetensorsEntries(FilePerEntry):
    name = "safetensors, file an entry"
    package = "safetensors"
    suffix = ".safetensors"

    def save(self, path: Path, entry: Entry) -> None:
        save_file(entry.activations, path, metadata={"document": document(entry)})

    def load(self, path: Path) -> dict[str, torch.Tensor]:
        return load_file(path)

    def load_one(self, path: Path, point: str) -> torch.Tensor:
        with safe_open(path, "pt") as file:
            return file.get_tensor(point)

    def load_document(self, path: Path) -> dict[str, Any]:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["document"])
