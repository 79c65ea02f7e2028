"""zstd at levels 1 and 3, of the bytes as they are and of their planes one after the other; contexts are used again."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import zstandard

from rivals.codec_alone import ITEM_BYTES, CodecAlone


class Zstd1(CodecAlone):
    name = "zstd 1"
    package = "zstandard"
    level: ClassVar[int] = 1

    def __init__(self, dtype: str) -> None:
        self._planes = ITEM_BYTES[dtype]
        self._compressor = zstandard.ZstdCompressor(level=self.level)
        self._decompressor = zstandard.ZstdDecompressor()

    def compress(self, piece: bytearray) -> bytes:
        return self._compressor.compress(piece)

    def decompress(self, stored: bytes) -> bytes | memoryview:
        return self._decompressor.decompress(stored)


class Zstd3(Zstd1):
    name = "zstd 3"
    level: ClassVar[int] = 3


class Zstd1Shuffled(Zstd1):
    """Bytes of the same place in a value together, moved a plane at a time, the fastest way that was found in NumPy."""

    name = "zstd 1, shuffled"

    def compress(self, piece: bytearray) -> bytes:
        values = np.frombuffer(piece, np.uint8).reshape(-1, self._planes)
        planes = np.empty((self._planes, len(values)), np.uint8)
        for number in range(self._planes):
            planes[number] = values[:, number]
        return super().compress(planes.data.cast("B"))  # type: ignore[arg-type]

    def decompress(self, stored: bytes) -> memoryview:
        planes = np.frombuffer(super().decompress(stored), np.uint8).reshape(self._planes, -1)
        word = np.dtype(f"<u{self._planes}").type
        values = planes[0].astype(word)
        for number in range(1, self._planes):
            values |= planes[number].astype(word) << word(8 * number)
        return values.data.cast("B")


class Zstd3Shuffled(Zstd1Shuffled):
    name = "zstd 3, shuffled"
    level: ClassVar[int] = 3
