"""py-lmdb with values that blosc2 compressed: byte shuffle, then zstd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import blosc2

from rivals.lmdb_raw import LmdbRaw, RawReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from rivals.rival import Reader


class LmdbBlosc2(LmdbRaw):
    name = "py-lmdb, blosc2"
    package = "blosc2"

    def encode(self, values: np.ndarray[Any, Any]) -> bytes:
        settings = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE]}
        return blosc2.compress2(values, typesize=values.itemsize, **settings)

    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        return Blosc2Reader(folder, keys)


class Blosc2Reader(RawReader):
    def decode(self, value: memoryview) -> bytes:
        return blosc2.decompress2(value)
