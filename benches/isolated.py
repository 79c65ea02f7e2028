"""What needs processes of its own: import, the open of a huge store, syncs as the system sees them, peak memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from jobs import WRITES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rivals.rival import Rival

__all__ = ["Isolated"]

CHILD = Path(__file__).with_name("child.py")
CLI = Path(sys.executable).with_name("actstore-cli")
SYNCS = ("fsync", "fdatasync", "syncfs", "sync", "msync")
DATA, DTYPE = "minilm", "bfloat16"
OPENS = 3
LEAST_SECONDS = 10.0
"""With less time left nothing is begun."""


class Isolated:
    """Measures one thing after the other within `seconds`; what was measured is saved, and not measured again."""

    def __init__(self, folder: Path, commit: str, seconds: float | None) -> None:
        self._folder, self._path = folder, folder / "state.json"
        self._end = None if seconds is None else time.monotonic() + seconds
        saved = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        if saved.get("commit") != commit:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            saved = {"commit": commit}
        self.found: dict[str, Any] = saved

    def imports(self, rounds: int) -> None:
        self._once("imports", "of actstore", lambda: self._imports(rounds))

    def open(self, entries: int) -> None:
        self._once("open", f"{entries:,} entries", lambda: self._open(entries))

    def syncs(self, some: Iterable[Rival], entries: int) -> None:
        """System calls that sync, from creating to closing, in each regime. Needs strace."""
        if tracer := shutil.which("strace"):
            for one in some:
                self._once("syncs", one.name, lambda one=one: self._syncs(tracer, one, entries))

    def memory(self, some: Iterable[Rival], counts: Sequence[int]) -> None:
        for one in some:
            for count in counts:
                self._once("memory", f"{one.name}, {count}", lambda one=one, count=count: self._memory(one, count))

    def _once(self, what: str, of: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure, unless it was or no time is left."""
        known = self.found.setdefault(what, {})
        if of in known:
            return
        print(f"  {what}: {of}", flush=True)
        try:
            known[of] = measure()
        except subprocess.TimeoutExpired:
            print("  no time left", flush=True)
            return
        finally:
            shutil.rmtree(self._place, ignore_errors=True)
        self._path.write_text(json.dumps(self.found), encoding="utf-8")

    @property
    def _place(self) -> Path:
        return self._folder / "store"

    def _run(self, *command: object) -> bytes:
        left = None if self._end is None else self._end - time.monotonic()
        words = list(map(str, command))
        if left is not None and left < LEAST_SECONDS:
            raise subprocess.TimeoutExpired(words, left)
        with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as process:
            try:
                output, _ = process.communicate(timeout=left)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # whatever is traced would go on without its tracer
                raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
        return output

    def _child(self, *words: object, within: Sequence[object] = ()) -> dict[str, Any]:
        return json.loads(self._run(*within, sys.executable, CHILD, *words))

    def _imports(self, rounds: int) -> dict[str, Any]:
        """Seconds of a child each, taking turns: numpy, actstore after it, and the help of the CLI."""
        commands = {
            "numpy": (sys.executable, "-c", "import numpy"),
            "actstore": (sys.executable, "-c", "import numpy, actstore"),
            "help": (CLI, "--help"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds + 1):  # the first fills caches, and does not count
            for name, command in commands.items():
                start = time.perf_counter()
                self._run(*command)
                seconds[name].append(time.perf_counter() - start)
        counted = {name: of[1:] for name, of in seconds.items()}
        over = [ours - numpy for ours, numpy in zip(counted["actstore"], counted["numpy"], strict=True)]
        return {"import": median(over), "help": median(counted["help"])}

    def _open(self, entries: int) -> dict[str, Any]:
        """Seconds and bytes to open a store of tiny entries, with its files in memory."""
        self._child("create", self._place, entries)
        runs = [self._child("open", self._place, entries) for _ in range(OPENS)]
        return {"entries": entries, **{name: median(run[name] for run in runs) for name in ("seconds", "peak")}}

    def _memory(self, one: Rival, entries: int) -> dict[str, Any]:
        words = (self._place, DATA, DTYPE, entries)
        wrote = self._child("write-peak", place(one), *words)
        read = self._child("read-peak", place(one), *words)
        return {"name": one.name, "entries": entries, "write": wrote["peak"], "read": read["peak"]}

    def _syncs(self, tracer: str, one: Rival, entries: int) -> dict[str, int]:
        found: dict[str, int] = {}
        log = self._folder / "syncs.txt"
        within = (
            tracer,
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-e",
            f"trace={','.join(SYNCS)}",
            "-e",
            "signal=none",
            "-o",
            log,
        )
        for job in WRITES:
            shutil.rmtree(self._place, ignore_errors=True)
            self._child("write", place(one), job, self._place, DATA, DTYPE, entries, within=within)
            lines = log.read_text(encoding="utf-8").splitlines()
            found[job] = sum("(" in line and "resumed" not in line for line in lines)
        return found


def place(one: Rival) -> str:
    """Where a child finds it."""
    return f"{type(one).__module__}:{type(one).__name__}"
