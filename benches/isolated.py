"""What needs a process of its own: peak memory, syncs, import, and opening a store of very many entries.

    isolated.py memory NAME write|read FOLDER DATA DTYPE ENTRIES
    isolated.py write NAME JOB FOLDER DATA DTYPE ENTRIES
    isolated.py open FOLDER ENTRIES

Prints one JSON document. The functions below start such children.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from entries import Entry
    from rivals.rival import Rival

__all__ = ["imports", "many_entries", "memory", "syncs"]

SYNCS = ("fsync", "fdatasync", "syncfs", "sync", "msync")
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


class Endless:
    """The entries of a data set over and over under other keys, one in memory at a time."""

    def __init__(self, data: str, dtype: str, count: int) -> None:
        self._data, self._dtype, self._count = data, dtype, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Entry:
        return next(itertools.islice(iter(self), number, None))

    def __iter__(self) -> Iterator[Entry]:
        from dataclasses import replace

        from entries import stream

        number = 0
        while number < self._count:
            for entry in stream(self._data, self._dtype, self._count - number):
                yield replace(entry, key=f"{number}-{entry.key}")
                number += 1


def contestant(name: str) -> Rival:
    import ours
    import rivals

    for one in ours.OURS:
        if one.name == name:
            return one()
    return next(rival for rival in rivals.load()[0] if rival.name == name)


def measure_memory(name: str, task: str, folder: str, data: str, dtype: str, count: str) -> dict[str, Any]:
    """Over the interpreter with torch and the contestant's own packages."""
    import entries as data_sets

    rival, entries = contestant(name), Endless(data, dtype, int(count))
    data_sets.describe(data)
    if rival.ours:
        rival.memory = MEMORY  # type: ignore[attr-defined]
    place = Path(folder)
    if task == "write":
        place.mkdir(parents=True)
        with Peak() as peak:
            rival.write(place, entries, 64 << 20)  # type: ignore[arg-type]
        return {"peak": peak.added}
    keys = [entry.key for entry in entries]
    with Peak() as peak:
        reader = rival.open(place, keys)
        rows = sum(len(values) for values in reader.everything(len(keys)))
        reader.close()
    return {"peak": peak.added, "rows": rows}


def write(name: str, job: str, folder: str, data: str, dtype: str, count: str) -> dict[str, Any]:
    from jobs import WRITES

    place = Path(folder)
    place.mkdir(parents=True)
    syncs = contestant(name).write(place, Endless(data, dtype, int(count)), WRITES[job])  # type: ignore[arg-type]
    return {"syncs": syncs}


def measure_open(folder: str, count: str) -> dict[str, Any]:
    import actstore

    with Peak() as peak:
        start = time.perf_counter()
        store = actstore.open(folder)
        seconds = time.perf_counter() - start
    if len(store) != int(count):
        raise ValueError(f"{len(store)} entries of {count}")
    return {"seconds": seconds, "peak": peak.added}


def child(*words: object, within: Sequence[object] = ()) -> dict[str, Any]:
    command = [*map(str, within), sys.executable, __file__, *map(str, words)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def memory(rival: Rival, folder: Path, data: str, dtype: str, counts: Sequence[int]) -> dict[str, Any]:
    """Peak bytes of writing and reading, by number of entries."""
    found: dict[str, Any] = {}
    for count in counts:
        place = folder / "memory"
        try:
            words = (place, data, dtype, count)
            found[str(count)] = {task: child("memory", rival.name, task, *words)["peak"] for task in ("write", "read")}
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return found


def syncs(rival: Rival, folder: Path, data: str, dtype: str, count: int) -> dict[str, int] | None:
    """System calls that sync, from creating to closing, in each regime; None without strace."""
    tracer = shutil.which("strace")
    if tracer is None:
        return None
    from jobs import WRITES

    found: dict[str, int] = {}
    place, log = folder / "syncs", folder / "syncs.txt"
    within = (tracer, "-f", "-qq", "-e", f"trace={','.join(SYNCS)}", "-e", "signal=none", "-o", log)
    for job in WRITES:
        try:
            child("write", rival.name, job, place, data, dtype, count, within=within)
            lines = log.read_text(encoding="utf-8").splitlines()
            found[job] = sum("(" in line and "resumed" not in line for line in lines)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return found


def many_entries(folder: Path, count: int, repeats: int = 3) -> dict[str, Any]:
    """Seconds and bytes to open a store of `count` tiny entries, with its files in memory."""
    import numpy as np

    import actstore

    place = folder / "many"
    shutil.rmtree(place, ignore_errors=True)
    try:
        values = np.arange(4, dtype=np.float32).reshape(1, 4)
        with actstore.create(place) as store, store.writer() as writer:
            for number in range(count):
                writer.put(key=f"entry-{number}", prompt=f"prompt {number}", activations={0: values})
        runs = [child("open", place, count) for _ in range(repeats)]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {"entries": count, **{name: median(run[name] for run in runs) for name in ("seconds", "peak")}}


def imports(rounds: int) -> dict[str, Any]:
    """Seconds of a child each, taking turns: `import numpy`, `import actstore` after it, and the help of the CLI."""
    cli = Path(sys.executable).with_name("actstore-cli")
    commands = {
        "numpy": [sys.executable, "-c", "import numpy"],
        "actstore": [sys.executable, "-c", "import numpy, actstore"],
        "help": [str(cli), "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - start)
    counted = {name: of[1:] for name, of in seconds.items()}
    over = [ours - numpy for ours, numpy in zip(counted["actstore"], counted["numpy"], strict=True)]
    return {"import": median(over), "help": median(counted["help"])}


def main() -> None:
    task, *words = sys.argv[1:]
    print(json.dumps({"memory": measure_memory, "write": write, "open": measure_open}[task](*words)))


if __name__ == "__main__":
    main()
