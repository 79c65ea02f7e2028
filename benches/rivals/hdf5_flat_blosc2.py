"""HDF5 with one growing data set a hook point, compressed by the blosc2 filter of hdf5plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import hdf5plugin

from rivals.flat import CHUNK_ROWS, Flat, FlatReader
from rivals.rival import sync_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from rivals.rival import Reader

FILE = "rows.h5"
CACHE_BYTES = 8 << 20
"""Of a data set, for several chunks: HDF5 itself has 1 MiB, less than one chunk of float32."""


class Hdf5FlatBlosc2(Flat):
    name = "HDF5, flat, blosc2"
    package = "hdf5plugin"

    def create(self, folder: Path, points: Sequence[str], width: int, dtype: np.dtype[Any]) -> h5py.File:
        file = h5py.File(folder / FILE, "w", libver="latest", rdcc_nbytes=CACHE_BYTES)
        filters = hdf5plugin.Blosc2(cname="zstd", clevel=1, filters=hdf5plugin.Blosc2.SHUFFLE)
        chunks = (CHUNK_ROWS, width)
        for point in points:
            file.create_dataset(point, (0, width), dtype, maxshape=(None, width), chunks=chunks, compression=filters)
        return file

    def append(self, container: h5py.File, point: str, rows: np.ndarray[Any, Any]) -> None:
        values = container[point]
        start = values.shape[0]
        values.resize(start + len(rows), axis=0)
        values[start:] = rows

    def sync(self, container: h5py.File, folder: Path) -> None:
        container.flush()
        sync_file(folder / FILE)

    def close(self, container: h5py.File) -> None:
        container.close()

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return FlatHdf5Reader(folder, keys)


class FlatHdf5Reader(FlatReader):
    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        self._file = h5py.File(folder / FILE, "r", rdcc_nbytes=CACHE_BYTES)
        super().__init__(folder, keys, {name: self._file[name] for name in self._file})

    def close(self) -> None:
        self._file.close()
