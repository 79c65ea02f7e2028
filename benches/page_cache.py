"""Whether the files of a store are in memory: put there, or taken out of the guest's page cache."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["drop", "file_bytes", "warm"]

BLOCK = 1 << 22


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def warm(folder: Path) -> None:
    """Read every file once."""
    buffer = bytearray(BLOCK)
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(folder: Path) -> None:
    """Nobody may have them mapped. A host below may still have them in its own memory."""
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
