"""What `isolated.py` starts as a process of its own: one task, whose figures are printed as a JSON document.

child.py write NAME JOB FOLDER DATA DTYPE ENTRIES
child.py write-peak NAME FOLDER DATA DTYPE ENTRIES
child.py read-peak NAME FOLDER DATA DTYPE ENTRIES
child.py create FOLDER ENTRIES
child.py open FOLDER ENTRIES
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from entries import Entry
    from rivals.rival import Rival

MEMORY = "32 MiB"
"""What ours is told that it may take."""


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    with Path("/proc/self/status").open() as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


class Peak:
    """The most anonymous memory while the block runs, looked at every two milliseconds."""

    def __enter__(self) -> Peak:
        self.before = self.most = anonymous_bytes()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stopped.wait(0.002):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def added(self) -> int:
        return self.most - self.before


class Endless(Sequence["Entry"]):
    """The entries of a data set over and over under other keys, one in memory at a time."""

    def __init__(self, data: str, dtype: str, count: int) -> None:
        self._data, self._dtype = data, dtype
        from entries import describe

        texts = describe(data)["texts"]
        self.keys = [f"{number}-{texts[number % len(texts)]['key']}" for number in range(count)]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Entry:  # type: ignore[override]
        return next(itertools.islice(iter(self), number, None))

    def __iter__(self) -> Iterator[Entry]:
        from entries import stream

        number = 0
        while number < len(self.keys):
            for entry in stream(self._data, self._dtype, len(self.keys) - number):
                yield replace(entry, key=self.keys[number])
                number += 1


def contestant(place: str) -> Rival:
    """From its module and class alone, so that nobody else's packages count."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)()


def bounded(place: str) -> Rival:
    """Where it is ours, told to take no more than `MEMORY`."""
    found = contestant(place)
    if found.ours:
        found.memory = MEMORY  # type: ignore[attr-defined]
    return found


def write(place: str, job: str, folder: str, data: str, dtype: str, count: str) -> dict[str, Any]:
    """For who counts its syncs: entries that are in memory, as in the rounds."""
    from entries import load
    from jobs import WRITES

    Path(folder).mkdir(parents=True)
    return {"syncs": contestant(place).write(Path(folder), load(data, dtype, int(count)), WRITES[job])}


def write_peak(place: str, folder: str, data: str, dtype: str, count: str) -> dict[str, Any]:
    """Over the interpreter with torch and the contestant's own packages."""
    from jobs import SYNC_BYTES

    rival, entries = bounded(place), Endless(data, dtype, int(count))
    Path(folder).mkdir(parents=True)
    with Peak() as peak:
        rival.write(Path(folder), entries, SYNC_BYTES)
    return {"peak": peak.added}


def read_peak(place: str, folder: str, data: str, dtype: str, count: str) -> dict[str, Any]:
    rival, keys = bounded(place), Endless(data, dtype, int(count)).keys
    with Peak() as peak:
        reader = rival.open(Path(folder), keys)
        rows = sum(len(values) for values in reader.everything(len(keys)))
        reader.close()
    return {"peak": peak.added, "rows": rows}


def create(folder: str, count: str) -> dict[str, Any]:
    """A store of tiny entries."""
    import numpy as np

    import actstore

    values = np.arange(4, dtype=np.float32).reshape(1, 4)
    with actstore.create(folder) as store, store.writer() as writer:
        for number in range(int(count)):
            writer.put(key=f"entry-{number}", prompt=f"prompt {number}", activations={0: values})
    return {}


def open_store(folder: str, count: str) -> dict[str, Any]:
    import actstore

    with Peak() as peak:
        start = time.perf_counter()
        store = actstore.open(folder)
        seconds = time.perf_counter() - start
    if len(store) != int(count):
        raise ValueError(f"{len(store)} entries of {count}")
    return {"seconds": seconds, "peak": peak.added}


TASKS = {"write": write, "write-peak": write_peak, "read-peak": read_peak, "create": create, "open": open_store}


def main() -> None:
    task, *words = sys.argv[1:]
    print(json.dumps(TASKS[task](*words)))


if __name__ == "__main__":
    main()
