"""zarr 3 with one growing array a hook point and the default compressor, zstd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr

from rivals.flat import CHUNK_ROWS, Flat, FlatReader
from rivals.rival import sync_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from rivals.rival import Array, Ints, Reader

FOLDER = "rows.zarr"


class Zarr3(Flat):
    name = "zarr 3"
    package = "zarr"

    def create(self, folder: Path, points: Sequence[str], width: int, dtype: np.dtype[Any]) -> zarr.Group:
        group = zarr.create_group(folder / FOLDER)
        for point in points:
            group.create_array(point, shape=(0, width), chunks=(CHUNK_ROWS, width), dtype=dtype)
        return group

    def append(self, container: zarr.Group, point: str, rows: np.ndarray[Any, Any]) -> None:
        container[point].append(rows)

    def sync(self, container: zarr.Group, folder: Path) -> None:
        del container
        sync_folder(folder)

    def close(self, container: zarr.Group) -> None:
        del container

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return ZarrReader(folder, keys)


class ZarrReader(FlatReader):
    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(folder, keys, dict(zarr.open_group(folder / FOLDER, mode="r").arrays()))

    def rows(self, array: zarr.Array, rows: Ints) -> Array:
        return array.oindex[rows, :]

    def close(self) -> None:
        self._arrays.clear()
