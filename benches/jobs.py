"""What everybody is made to do, and how it is seen that they did it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rivals.rival import bits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from entries import Entry
    from rivals.rival import Array, Ints, Reader

__all__ = [
    "JOBS",
    "READS",
    "SYNC_BYTES",
    "TITLES",
    "WHOLE_STORE",
    "WRITES",
    "Case",
    "Job",
    "Workload",
    "Wrong",
    "single_latency",
]

RANDOM_ENTRIES = 1000
LAST_TOKENS = 5000
GATHERED_TOKENS = 20_480
SINGLE_ENTRIES = 200
BATCH_TOKENS = 4096
SYNC_BYTES = 64 << 20
WORDS = 2**64


class Wrong(AssertionError):  # noqa: N818 - says what the values are
    """A contestant gave other values than were written."""


@dataclass(frozen=True)
class Case:
    """The first `entries` of all, and the first `operations` of a job on them: what those compared have in common."""

    entries: int
    operations: int


class Workload:
    """The entries, what is picked of them, and the sums that reading must come to."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        points = list(entries[0].activations)
        self.point = points[len(points) // 2]
        """The hook point of the jobs on one of them."""
        self._drawn: dict[tuple[str, Case], Ints] = {}

    @cached_property
    def entry_sums(self) -> list[int]:
        return [sum(map(total, entry.activations.values())) % WORDS for entry in self.entries]

    @cached_property
    def row_sums(self) -> list[np.ndarray[Any, Any]]:
        """Of each entry, the sum of each row at `point`."""
        return [words(entry.activations[self.point]).sum(axis=1) for entry in self.entries]

    def keys(self, count: int) -> list[str]:
        return [entry.key for entry in self.entries[:count]]

    def numbers(self, case: Case) -> Ints:
        """Entries drawn at random, as many as there are operations."""
        return self._once("numbers", case, lambda chance: chance.integers(case.entries, size=case.operations))

    def picks(self, case: Case) -> tuple[Ints, Ints]:
        """Entries, and a position in each: tokens drawn at random, every token alike."""
        rows = self._once("rows", case, lambda chance: chance.integers(self.tokens(case.entries), size=case.operations))
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        return numbers, rows - self._starts[numbers]

    @cached_property
    def _starts(self) -> Ints:
        return np.cumsum([0, *(entry.tokens for entry in self.entries)])

    def _once(self, what: str, case: Case, draw: Callable[[np.random.Generator], Ints]) -> Ints:
        """Drawn when it is asked for first, before any time is taken: whoever checks needs it."""
        if (what, case) not in self._drawn:
            self._drawn[what, case] = draw(np.random.default_rng(case.entries))
        return self._drawn[what, case]

    def tokens(self, entries: int) -> int:
        return int(self._starts[entries])


def words(values: Array) -> np.ndarray[Any, Any]:
    """Rows as 64-bit words, whose sum does not depend on any order."""
    array = bits(values) if isinstance(values, torch.Tensor) else values
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.int64)


def total(values: Array) -> int:
    return int(words(values).sum())


@dataclass(frozen=True)
class Job:
    """One thing to do, timed from the first operation to the last, the sum of what was read included."""

    name: str
    title: str
    unit: str
    """What one operation is."""
    count: Callable[[Workload, int], int]
    """How many operations there are with so many entries."""
    run: Callable[[Reader, Workload, Case], int]
    """Does them; what was read, as a sum."""
    expected: Callable[[Workload, Case], int]
    cold: bool = False
    """Opened within the time, and with nothing of the store in memory."""
    opens: bool = False
    """Opened within the time."""
    single: bool = False
    """Each operation timed by itself: their median counts, as often as there are operations."""


def read_all(reader: Reader, _: Workload, case: Case) -> int:
    return sum(map(total, reader.everything(case.operations))) % WORDS


def read_random(reader: Reader, work: Workload, case: Case) -> int:
    return sum(total(values) for number in work.numbers(case).tolist() for values in reader.entry(number)) % WORDS


def entry_total(work: Workload, case: Case) -> int:
    return sum(work.entry_sums[: case.operations]) % WORDS


def random_total(work: Workload, case: Case) -> int:
    return sum(work.entry_sums[number] for number in work.numbers(case).tolist()) % WORDS


def read_last(reader: Reader, work: Workload, case: Case) -> int:
    numbers = work.numbers(case)
    return total(reader.gather(work.point, numbers, np.full_like(numbers, -1))) % WORDS


def last_total(work: Workload, case: Case) -> int:
    return sum(int(work.row_sums[number][-1]) for number in work.numbers(case).tolist()) % WORDS


def gather(reader: Reader, work: Workload, case: Case) -> int:
    """As a trainer does, a batch at a time."""
    numbers, positions = work.picks(case)
    calls = [slice(start, start + BATCH_TOKENS) for start in range(0, case.operations, BATCH_TOKENS)]
    return sum(total(reader.gather(work.point, numbers[call], positions[call])) for call in calls) % WORDS


def gather_total(work: Workload, case: Case) -> int:
    numbers, positions = (of.tolist() for of in work.picks(case))
    return sum(int(work.row_sums[entry][row]) for entry, row in zip(numbers, positions, strict=True)) % WORDS


def batches(reader: Reader, work: Workload, case: Case) -> int:
    """Where they do not come to all tokens, the sum says only that each row is one of them."""
    found, rows = 0, 0
    for number, batch in enumerate(reader.batches(work.point, BATCH_TOKENS, seed=0), 1):
        found += total(batch)
        rows += len(batch)
        if number == case.operations:
            break
    if case.operations == batch_count(work, case.entries):
        return found % WORDS
    sums = {int(value) for entry in work.row_sums for value in entry}
    if rows < case.operations * BATCH_TOKENS or not set(words(batch).sum(axis=1).tolist()) <= sums:
        raise Wrong("batches with rows that are no tokens")
    return 0


def batch_count(work: Workload, entries: int) -> int:
    return -(-work.tokens(entries) // BATCH_TOKENS)


def batches_total(work: Workload, case: Case) -> int:
    if case.operations < batch_count(work, case.entries):
        return 0
    return sum(int(rows.sum()) for rows in work.row_sums[: case.entries]) % WORDS


def metadata(reader: Reader, _: Workload, case: Case) -> int:
    return sum(row["metadata"]["row"] for row in reader.metadata(case.operations)) % WORDS


def rows_total(_: Workload, case: Case) -> int:
    return sum(range(case.operations))


def nothing(_reader: Reader, _work: Workload, _case: Case) -> int:
    return 0


def no_total(_work: Workload, _case: Case) -> int:
    return 0


def of_entries(_: Workload, entries: int) -> int:
    return entries


def scaled(count: int) -> Callable[[Workload, int], int]:
    """That many of 2,000 entries, fewer of fewer."""
    return lambda _, entries: max(1, min(count, count * entries // 2000))


def once(_work: Workload, _entries: int) -> int:
    return 1


WRITES = {"write_end": None, "write_64": SYNC_BYTES}
"""Durable writes, and the bytes after which they sync."""
WHOLE_STORE = ("batches", "open")
"""Jobs that go over all entries that a store has."""

READS = {
    job.name: job
    for job in (
        Job("read", "full read, warm", "entry", of_entries, read_all, entry_total),
        Job("random", "random entries, warm", "entry", scaled(RANDOM_ENTRIES), read_random, random_total),
        Job(
            "latency",
            "one random entry at a time",
            "entry",
            scaled(SINGLE_ENTRIES),
            read_random,
            random_total,
            single=True,
        ),
        Job("last", "last tokens of one layer", "token", scaled(LAST_TOKENS), read_last, last_total),
        Job("gather", "uniform token gather", "token", scaled(GATHERED_TOKENS), gather, gather_total),
        Job("batches", "shuffled token batches", f"batch of {BATCH_TOKENS:,}", batch_count, batches, batches_total),
        Job("metadata", "metadata of all entries", "entry", of_entries, metadata, rows_total),
        Job("open", "open", "store", once, nothing, no_total, opens=True),
        # Last, since they take the stores out of memory.
        Job("read_cold", "full read, cold", "entry", of_entries, read_all, entry_total, cold=True),
        Job(
            "random_cold", "random entries, cold", "entry", scaled(RANDOM_ENTRIES), read_random, random_total, cold=True
        ),
    )
}

TITLES = {
    "write_end": "durable write, one sync at the end",
    "write_64": "durable write, a sync every 64 MiB",
    **{name: job.title for name, job in READS.items()},
}
JOBS = tuple(TITLES)


def single_latency(reader: Reader, work: Workload, case: Case) -> tuple[float, int]:
    """Seconds, were each entry to take the median of them; the sum of what was read."""
    seconds: list[float] = []
    found = 0
    for number in work.numbers(case).tolist():
        start = time.perf_counter()
        found += sum(map(total, reader.entry(number)))
        seconds.append(time.perf_counter() - start)
    return median(seconds) * len(seconds), found % WORDS
