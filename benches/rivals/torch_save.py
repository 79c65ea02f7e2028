"""`torch.save`, a file an entry; one activation is read through a map of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rivals.file_per_entry import FilePerEntry

if TYPE_CHECKING:
    from pathlib import Path

    from entries import Entry


class TorchSave(FilePerEntry):
    name = "torch.save, file an entry"
    package = "torch"
    suffix = ".pt"

    def save(self, path: Path, entry: Entry) -> None:
        torch.save({"document": entry.document(), "activations": entry.activations}, path)

    def load(self, path: Path) -> dict[str, torch.Tensor]:
        return torch.load(path, weights_only=True)["activations"]

    def load_one(self, path: Path, point: str) -> torch.Tensor:
        return torch.load(path, weights_only=True, mmap=True)["activations"][point]

    def load_document(self, path: Path) -> dict[str, Any]:
        return torch.load(path, weights_only=True, mmap=True)["document"]
