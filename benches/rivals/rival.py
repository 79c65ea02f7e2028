"""What a contestant of the harness implements, and what most of them share.

A rival is a module of this folder with one class, in the table of `rivals/__init__.py`. Whoever knows how to make one
faster changes that class alone. Rules for all: what was written must be durable when `write` returns, with a sync every
`sync_every` bytes or one at the end; readers give arrays or tensors of the stored bits (bfloat16 as uint16 where a
container has no such type).
"""

from __future__ import annotations

import ctypes
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from entries import Entry

    Array = np.ndarray[Any, Any] | torch.Tensor
    Ints = np.ndarray[Any, np.dtype[np.int64]]

__all__ = ["Reader", "Rival", "Syncs", "bits", "document", "sync_file", "sync_folder"]

MIXED_TOKENS = 32_768
"""Rows that a shuffle without an index mixes at a time."""


class Reader(ABC):
    """An open store. Entries go by their number in the order of writing; `keys` has the key of each."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    @abstractmethod
    def activation(self, number: int, point: str) -> Array:
        """[tokens, d] of one entry at one hook point."""

    @abstractmethod
    def entry(self, number: int) -> list[Array]:
        """Every activation of one entry."""

    @abstractmethod
    def metadata(self, count: int) -> list[dict[str, Any]]:
        """The documents of the first `count` entries."""

    def everything(self, count: int) -> Iterator[Array]:
        """Every activation of the first `count` entries, in the order that suits the store."""
        for number in range(count):
            yield from self.entry(number)

    def gather(self, point: str, numbers: Ints, positions: Ints) -> Array:
        """[n, d]: of each entry one token, -1 the last; an entry that comes often is read once."""
        order = np.argsort(numbers, kind="stable")
        entries, starts = np.unique(numbers[order], return_index=True)
        groups = np.split(positions[order], starts[1:])
        rows = [self.activation(number, point)[group] for number, group in zip(entries.tolist(), groups, strict=True)]
        return joined(rows)[np.argsort(order)]

    def batches(self, point: str, size: int, seed: int) -> Iterator[Array]:
        """Shuffled batches [size, d] of all tokens: entries in random order, mixed `MIXED_TOKENS` at a time."""
        random = np.random.default_rng(seed)
        order = random.permutation(len(self.keys))
        return mixed((self.activation(int(number), point) for number in order), size, random)

    @abstractmethod
    def close(self) -> None:
        """Let go of every file."""


class Rival(ABC):
    """A way to store entries."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    """What must be installed, by its name of distribution."""
    ours: ClassVar[bool] = False
    bound: ClassVar[bool] = False
    """Nothing that anyone would store in, but what the machine can do at best."""
    jobs: ClassVar[tuple[str, ...] | None] = None
    """The jobs it takes part in, where these are not all."""
    beside: ClassVar[str | None] = None
    """Of ours: the one rival that it is measured against, where these are not all."""

    @abstractmethod
    def write(self, folder: Path, entries: Sequence[Entry], sync_every: int | None) -> int:
        """Store the entries in the empty `folder`, durably; the number of syncs."""

    @abstractmethod
    def open(self, folder: Path, keys: Sequence[str]) -> Reader:
        """Open what `write` made of the entries with these `keys`."""


class Syncs:
    """When to sync, and how often it was done."""

    def __init__(self, every: int | None, sync: Callable[[], object]) -> None:
        self._every, self._sync = every, sync
        self._pending = 0
        self.count = 0

    def wrote(self, entry: Entry) -> None:
        """Sync where enough has been written since the last time."""
        self._pending += entry.raw_bytes
        if self._every is not None and self._pending >= self._every:
            self.sync()

    def sync(self) -> None:
        self._sync()
        self._pending = 0
        self.count += 1

    def finish(self) -> int:
        """Sync what was not yet; the count."""
        if self._pending:
            self.sync()
        return self.count


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """One sync of the whole file system, which is what suits many small files best."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs failed")
    finally:
        os.close(descriptor)


def bits(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The values as NumPy has them, bfloat16 as uint16; no copy."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def document(entry: Entry) -> str:
    return json.dumps(entry.document())


def joined(parts: Sequence[Array]) -> Array:
    return torch.cat(list(parts)) if isinstance(parts[0], torch.Tensor) else np.concatenate(parts)


def mixed(parts: Iterable[Array], size: int, random: np.random.Generator) -> Iterator[Array]:
    """Batches out of a buffer that is filled and permuted again and again."""
    held: list[Array] = []
    rows = 0
    for part in parts:
        held.append(part)
        rows += len(part)
        if rows >= MIXED_TOKENS:
            buffer = permuted(held, random)
            whole = rows - rows % size
            yield from (buffer[start : start + size] for start in range(0, whole, size))
            held, rows = [buffer[whole:]], rows - whole
    if rows:
        buffer = permuted(held, random)
        yield from (buffer[start : start + size] for start in range(0, rows, size))


def permuted(parts: Sequence[Array], random: np.random.Generator) -> Array:
    rows = joined(parts)
    return rows[random.permutation(len(rows))]
