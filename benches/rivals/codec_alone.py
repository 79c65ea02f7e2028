"""What a codec alone implements: bytes in, bytes out, on one thread. One is a class of this folder, in the table of
`rivals/__init__.py`; whoever knows how to make it faster changes that class alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["ITEM_BYTES", "CodecAlone"]

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class CodecAlone(ABC):
    """Made once for each dtype, outside the time, with whatever may be used again."""

    name: ClassVar[str]
    package: ClassVar[str]
    """What must be installed, by its name of distribution."""

    @abstractmethod
    def __init__(self, dtype: str) -> None: ...

    @abstractmethod
    def compress(self, piece: bytearray) -> bytes:
        """May change what it is given, which nobody looks at again."""

    @abstractmethod
    def decompress(self, stored: bytes) -> bytes | memoryview: ...
