"""ZipNN, told of which dtype the bytes are."""

from __future__ import annotations

import warnings

from rivals.codec_alone import CodecAlone

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from zipnn import ZipNN


class ZipNNAlone(CodecAlone):
    name = "zipnn"
    package = "zipnn"

    def __init__(self, dtype: str) -> None:
        self._zipnn = ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)

    def compress(self, piece: bytearray) -> bytes:
        return self._zipnn.compress(piece)

    def decompress(self, stored: bytes) -> bytes:
        return self._zipnn.decompress(stored)
