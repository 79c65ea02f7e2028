"""One contestant does one job once: what that took."""

from __future__ import annotations

import gc
import os
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import page_cache
from jobs import WRITES, Wrong, single_latency

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jobs import Case, Job, Workload
    from rivals.rival import Reader, Rival

__all__ = ["read", "write"]

SHORT = 0.25
"""Seconds under which a warm job is done once before it counts."""


def write(rival: Rival, folder: Path, work: Workload, count: int, job: str) -> tuple[float, int]:
    """Seconds, and how often it synced. `folder` is made anew, and the disk is quiet before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    with undisturbed():
        start = time.perf_counter()
        syncs = rival.write(folder, work.entries[:count], WRITES[job])
        return time.perf_counter() - start, syncs


def read(rival: Rival, folder: Path, work: Workload, case: Case, job: Job) -> float:
    """Seconds; `Wrong` where the sum is not that of what was written."""
    keys, expected = work.keys(case.entries), job.expected(work, case)
    if job.cold or job.opens:
        with undisturbed():
            if job.cold:
                page_cache.drop(folder)  # after garbage was collected, which may hold a map that keeps pages in memory
            start = time.perf_counter()
            reader = rival.open(folder, keys)
            try:
                return checked(job, reader, work, case, expected, start)
            finally:
                reader.close()
    reader = rival.open(folder, keys)
    try:
        with undisturbed():
            seconds = checked(job, reader, work, case, expected, time.perf_counter())
            if seconds < SHORT:
                seconds = checked(job, reader, work, case, expected, time.perf_counter())
        return seconds
    finally:
        reader.close()


def checked(job: Job, reader: Reader, work: Workload, case: Case, expected: int, start: float) -> float:
    if job.single:
        seconds, found = single_latency(reader, work, case)
    else:
        found = job.run(reader, work, case)
        seconds = time.perf_counter() - start
    if found != expected:
        raise Wrong(f"{job.title}: read a sum of {found}, where {expected} was written")
    return seconds


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
