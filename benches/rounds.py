"""One run: who does how much of what, and the rounds in which everybody takes turns. Goes on where it stopped."""

from __future__ import annotations

import json
import random
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import contest
import page_cache
from jobs import JOBS, READS, WRITES, Case
from rivals.rival import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from jobs import Workload
    from rivals.rival import Rival

__all__ = ["NO_PART", "Plan", "Run", "cases"]

SHARES = (1 / 200, 1 / 50, 1 / 10, 1 / 3, 1.0)
"""Of the operations of a job: a few steps, so that slow rivals share their cases."""
STORE_LIMITS = 16.0
"""A store that takes more than so many limits to write is made of the first entries alone."""
NO_PART = "takes no part"
PATIENCE = 4.0
"""How many times the limit ours, and the bound, may take on a case that is a rival's."""


@dataclass(frozen=True)
class Plan:
    """What a run is meant to be; another plan or another commit starts anew."""

    data: str
    dtype: str
    entries: int
    rounds: int
    read_limit: float
    write_limit: float
    """Seconds that a job may take before its contestant is given the first k operations alone."""
    commit: str


class Run:
    """The state is a JSON document, saved after every job of every round."""

    def __init__(self, plan: Plan, contestants: Sequence[Rival], work: Workload, folder: Path) -> None:
        self._plan, self._work = plan, work
        self._contestants = {rival.name: rival for rival in contestants}
        self._folder = folder / f"{plan.data}-{plan.dtype}"
        self._path = self._folder / "state.json"
        self.state = self._resumed()

    def _resumed(self) -> dict[str, Any]:
        plan = vars(self._plan)
        if self._path.exists():
            state = json.loads(self._path.read_text(encoding="utf-8"))
            if state["plan"] == plan and state["contestants"] == list(self._contestants):
                return state
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        empty: dict[str, Any] = {"stores": {}, "shares": {}, "unsupported": {}, "samples": {}, "syncs": {}, "done": []}
        return {"plan": plan, "contestants": list(self._contestants), **empty}

    def _save(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.state), encoding="utf-8")
        new.replace(self._path)

    def go(self, only: str = "") -> dict[str, Any]:
        """Stores first, then how long everybody takes, then the rounds."""
        jobs = [job for job in JOBS if only in job]
        begun = time.monotonic()
        for name in self._contestants:
            if name not in self.state["stores"]:
                print(f"  store: {name}", flush=True)
                self._prepare(name)
                self._save()
        print(f"  {time.monotonic() - begun:.0f} s: everybody has a store", flush=True)
        for job in jobs:
            for name in self._contestants:
                self._calibrate(job, name)
            self._save()
        print(f"  {time.monotonic() - begun:.0f} s: everybody has a share", flush=True)
        for number in range(self._plan.rounds):
            for name in self._contestants:
                page_cache.warm(self._store(name))
            for job in jobs:
                if [number, job] not in self.state["done"]:
                    self._round(number, job)
                    self.state["done"].append([number, job])
                    self._save()
            print(f"  {time.monotonic() - begun:.0f} s: round {number + 1} of {self._plan.rounds}", flush=True)
        return self.state

    def clear(self) -> None:
        """Delete the stores, which can be large; the state stays, for a run that is interrupted later."""
        for name in self._contestants:
            shutil.rmtree(self._store(name), ignore_errors=True)

    def _store(self, name: str) -> Path:
        return self._folder / "".join(letter if letter.isalnum() else "-" for letter in name)

    def _prepare(self, name: str) -> None:
        """The store that every read of a contestant uses."""
        rival, every = self._contestants[name], self._plan.entries
        some = max(1, every // 50)
        contest.write(rival, self._store(name), self._work, some, "write_64")
        seconds, _ = contest.write(rival, self._store(name), self._work, some, "write_64")
        most = STORE_LIMITS * self._plan.write_limit
        slow = seconds * every / some > most
        count = whole(every, step(most * some / seconds / every)) if slow else every
        contest.write(rival, self._store(name), self._work, count, "write_64")
        raw = sum(entry.raw_bytes for entry in self._work.entries[:count])
        size = page_cache.file_bytes(self._store(name))
        self.state["stores"][name] = {"entries": count, "raw": raw, "files": size}

    def _calibrate(self, job: str, name: str) -> None:
        """The share of the operations that takes no longer than the limit, and its seconds."""
        known = self.state["shares"].setdefault(job, {})
        refused = self.state["unsupported"].setdefault(job, {})
        wanted = self._contestants[name].jobs
        if name in known or name in refused:
            return
        if wanted is not None and job not in wanted:
            refused[name] = NO_PART
            return
        share, larger = 0.0, SHARES[0]
        try:
            while larger > share:
                share = larger
                seconds = self._perform(job, name, self._case(job, name, share))
                # What it costs to begin counts as if it grew, so that a step is never too large.
                larger = max(share, step(share * self._limit(job) / seconds))
        except Unsupported as reason:
            refused[name] = str(reason)
        else:
            known[name] = {"share": share, "seconds": seconds}

    def _limit(self, job: str) -> float:
        return self._plan.write_limit if job in WRITES else self._plan.read_limit

    def _operations(self, job: str, entries: int) -> int:
        return entries if job in WRITES else READS[job].count(self._work, entries)

    def _case(self, job: str, name: str, share: float) -> Case:
        entries = self.state["stores"][name]["entries"]
        if job in WRITES:
            entries = self._plan.entries
        return Case(entries, whole(self._operations(job, entries), share))

    def _cases(self, job: str) -> dict[Case, list[str]]:
        """Who does what: each rival its share, ours and the bound whatever a rival does."""
        known = self.state["shares"][job]
        cases: dict[Case, list[str]] = {}
        for name, of in known.items():
            if self._contestants[name].beside not in known:
                cases.setdefault(self._case(job, name, of["share"]), []).append(name)
        for case, names in cases.items():
            for name, rival in self._contestants.items():
                joins = rival.beside in names if rival.beside else rival.ours or rival.bound
                if joins and name in known and name not in names and self._can(job, name, case):
                    names.append(name)
        return cases

    def _can(self, job: str, name: str, case: Case) -> bool:
        stored = self.state["stores"][name]["entries"]
        share = case.operations / self._operations(job, self._plan.entries)
        known = self.state["shares"][job][name]
        soon = known["seconds"] * share / known["share"] <= PATIENCE * self._limit(job)
        # A shuffle goes over a whole store, and the metadata of it is one operation.
        whole_store = job in ("batches", "metadata", "open")
        return soon and (stored == case.entries or (stored > case.entries and not whole_store) or job in WRITES)

    def _round(self, number: int, job: str) -> None:
        cells = [(case, name) for case, names in self._cases(job).items() for name in names]
        random.Random(f"{number} {job}").shuffle(cells)
        samples = self.state["samples"].setdefault(job, {})
        for case, name in cells:
            of = samples.setdefault(f"{case.entries} {case.operations}", {}).setdefault(name, [])
            of.append(self._perform(job, name, case))

    def _perform(self, job: str, name: str, case: Case) -> float:
        rival = self._contestants[name]
        if job not in WRITES:
            return contest.read(rival, self._store(name), self._work, case, READS[job])
        folder = self._folder / "written"
        seconds, syncs = contest.write(rival, folder, self._work, case.operations, job)
        shutil.rmtree(folder)
        counts = self.state["syncs"].setdefault(job, {}).setdefault(f"{case.entries} {case.operations}", {})
        counts[name] = max(syncs, counts.get(name, 0))
        return seconds


def step(share: float) -> float:
    """The largest of the shares that is not above."""
    return max([of for of in SHARES if of <= share], default=SHARES[0])


def whole(count: int, share: float) -> int:
    return max(1, int(count * share))


def cases(samples: dict[str, Any]) -> Iterator[tuple[Case, dict[str, list[float]]]]:
    """Of one job: each case, and the seconds of everybody in it, round by round. The largest case first."""
    found = {Case(*map(int, name.split())): of for name, of in samples.items()}
    for case in sorted(found, key=lambda case: (case.entries, case.operations), reverse=True):
        yield case, found[case]
