"""HDF5 through h5py, a group an entry and a data set an activation: plain, and with gzip."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py

from rivals.rival import Reader, Rival, Syncs, bits, document, sync_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from entries import Entry
    from rivals.rival import Array

FILE = "entries.h5"


class Hdf5Plain(Rival):
    name = "HDF5, plain"
    package = "h5py"

    def store(self, group: h5py.Group, point: str, values: np.ndarray[Any, Any]) -> None:
        group.create_dataset(point, data=values)

    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        path = folder / FILE
        with h5py.File(path, "w", libver="latest") as file:

            def sync() -> None:
                file.flush()
                sync_file(path)

            syncs = Syncs(sync_every, sync)
            for entry in entries:
                group = file.create_group(entry.key)
                group.attrs["document"] = document(entry)
                for point, value in entry.activations.items():
                    self.store(group, point, bits(value))
                syncs.wrote(entry)
        # Closing writes too, so that the last sync comes after it.
        sync_file(path)
        return syncs.count + 1

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return Hdf5Reader(folder, keys)


class Hdf5Gzip(Hdf5Plain):
    name = "HDF5, gzip"

    def store(self, group: h5py.Group, point: str, values: np.ndarray[Any, Any]) -> None:
        """An activation is one chunk, of the size that h5py recommends."""
        group.create_dataset(point, data=values, chunks=values.shape, compression="gzip", shuffle=True)


class Hdf5Reader(Reader):
    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(keys)
        self._file = h5py.File(folder / FILE, "r")

    def activation(self, number: int, point: str) -> np.ndarray[Any, Any]:
        return self._file[self.keys[number]][point][...]

    def entry(self, number: int) -> list[Array]:
        return [values[...] for values in self._file[self.keys[number]].values()]

    def metadata(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(self._file[key].attrs["document"]) for key in self.keys[:count]]

    def close(self) -> None:
        self._file.close()
