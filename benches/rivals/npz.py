"""`numpy.savez_compressed`, a file an entry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from rivals.file_per_entry import FilePerEntry
from rivals.rival import bits, document

if TYPE_CHECKING:
    from pathlib import Path

    from entries import Entry

DOCUMENT = "document"


class Npz(FilePerEntry):
    name = "npz, compressed"
    package = "numpy"
    suffix = ".npz"

    def save(self, path: Path, entry: Entry) -> None:
        arrays = {point: bits(value) for point, value in entry.activations.items()}
        np.savez_compressed(path, **arrays, **{DOCUMENT: np.array(document(entry))})

    def load(self, path: Path) -> dict[str, np.ndarray[Any, Any]]:
        with np.load(path) as file:
            return {name: file[name] for name in file.files if name != DOCUMENT}

    def load_one(self, path: Path, point: str) -> np.ndarray[Any, Any]:
        with np.load(path) as file:
            return file[point]

    def load_document(self, path: Path) -> dict[str, Any]:
        with np.load(path) as file:
            return json.loads(str(file[DOCUMENT]))
