"""One run: stores, how much everybody does, and the rounds in which all take turns. Goes on where it stopped."""

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
from shares import SHARES, Shares, step, whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from jobs import Workload
    from rivals.rival import Rival

__all__ = ["Plan", "Run", "cases"]

LONGEST = 5.0
"""Seconds that a contestant may take for a job before it does the first k operations alone."""
LONGEST_STORE = 80.0
"""The same for the store that its reads use, which then has the first entries alone."""
CALIBRATED = 0.1
"""Of the time that is left: what finding out how fast everybody is may take."""
PLANNED = 0.9
"""Of the time that is left then: what the rounds are planned to take."""


@dataclass(frozen=True)
class Plan:
    """What a run is meant to be; another plan or another commit starts anew."""

    data: str
    dtype: str
    entries: int
    rounds: int
    seconds: float | None
    """What all may take. None: no bound but `LONGEST`."""
    commit: str


class Run:
    """The state is a JSON document, saved after every job of every round."""

    def __init__(self, plan: Plan, contestants: Sequence[Rival], work: Workload, folder: Path) -> None:
        self._plan, self._work = plan, work
        self._contestants = {rival.name: rival for rival in contestants}
        self._folder = folder / f"{plan.data}-{plan.dtype}"
        self._path = self._folder / "state.json"
        self._begun = time.monotonic()
        self.state = self._resumed()
        self._shares = Shares(self._contestants, work, self.state)

    def _resumed(self) -> dict[str, Any]:
        plan = vars(self._plan)
        if self._path.exists():
            state = json.loads(self._path.read_text(encoding="utf-8"))
            if state["plan"] == plan and state["contestants"] == list(self._contestants):
                print(f"  goes on after {len(state['done'])} jobs of rounds", flush=True)
                return state
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        parts = ("stores", "shares", "limits", "samples", "syncs")
        return {"plan": plan, "contestants": list(self._contestants), **{part: {} for part in parts}, "done": []}

    def _save(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.state), encoding="utf-8")
        new.replace(self._path)

    def _left(self) -> float:
        """Seconds, of all that the run may take."""
        most = self._plan.seconds
        return float("inf") if most is None else most - (time.monotonic() - self._begun)

    def _say(self, what: str) -> None:
        print(f"  {time.monotonic() - self._begun:4.0f} s: {what}", flush=True)

    def go(self, only: str = "") -> dict[str, Any]:
        """Everything that is not done yet, of the jobs that have `only` in their name."""
        jobs = [job for job in JOBS if only in job]
        for name in self._contestants:
            if name not in self.state["stores"]:
                self._prepare(name)
                self._save()
        self._say("everybody has a store")
        self._share_out(jobs)
        longest = 0.0
        for number in range(self._plan.rounds):
            if number and self._left() < longest:
                self._say(f"no time for more than {number} of {self._plan.rounds} rounds")
                break
            begun = time.monotonic()
            self._round(number, jobs)
            longest = max(longest, time.monotonic() - begun)
            self._say(f"round {number + 1} of {self._plan.rounds}")
        return self.state

    def clear(self) -> None:
        """Delete the stores, which can be large; the state stays, for a run that is interrupted later."""
        for name in self._contestants:
            shutil.rmtree(self._store(name), ignore_errors=True)

    def _store(self, name: str) -> Path:
        return self._folder / "".join(letter if letter.isalnum() else "-" for letter in name)

    def _prepare(self, name: str) -> None:
        """The store that every read of a contestant uses; a first small one is for whatever happens only once.

        Ours and the bound have all entries, since everybody is compared with them.
        """
        rival, count, store = self._contestants[name], self._plan.entries, self._store(name)
        some = max(1, count // 50)
        for _ in range(2):
            seconds, _ = contest.write(rival, store, self._work, some, "write_64")
        most = min(LONGEST_STORE, self._left() / (2 * len(self._contestants)))
        if not rival.ours and not rival.bound and seconds * count / some > most:
            count = whole(count, step(most * some / seconds / count))
        contest.write(rival, store, self._work, count, "write_64")
        raw = sum(entry.raw_bytes for entry in self._work.entries[:count])
        self.state["stores"][name] = {"entries": count, "raw": raw, "files": page_cache.file_bytes(store)}

    def _share_out(self, jobs: Sequence[str]) -> None:
        """How much everybody does: one limit for all jobs, with which the rounds fit into what is left."""
        most = min(LONGEST, CALIBRATED * self._left() / (len(jobs) * len(self._contestants)))
        for job in jobs:
            for name in self._contestants:
                self._calibrate(job, name, most)
            self._save()
        limit = self._shares.limit(jobs, LONGEST, PLANNED * self._left() / self._plan.rounds)
        for job in jobs:
            self.state["limits"].setdefault(job, limit)
        self._save()
        self._say(f"a job takes {limit:.2f} s at most")

    def _calibrate(self, job: str, name: str, limit: float) -> None:
        """What the largest share of the operations takes that is foreseen to take no longer than the limit."""
        known = self.state["shares"].setdefault(job, {})
        wanted = self._contestants[name].jobs
        if name in known or (wanted is not None and job not in wanted):
            return
        share, larger = 0.0, SHARES[0]
        while larger > share:
            share = larger
            begun = time.monotonic()
            seconds = self._perform(job, name, self._shares.case(job, name, share))
            known[name] = {"share": share, "seconds": seconds, "cost": time.monotonic() - begun}
            # What it costs to begin counts as if it grew, so that a step is never too large.
            larger = max(share, step(share * limit / seconds))

    def _round(self, number: int, jobs: Sequence[str]) -> None:
        for name in self._contestants:
            page_cache.warm(self._store(name))
        for job in jobs:
            if [number, job] not in self.state["done"]:
                self._turns(number, job)
                self.state["done"].append([number, job])
                self._save()

    def _turns(self, number: int, job: str) -> None:
        found = self._shares.cases(job, self.state["limits"][job])
        cells = [(case, name) for case, names in found.items() for name in names]
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


def cases(samples: dict[str, Any]) -> Iterator[tuple[Case, dict[str, list[float]]]]:
    """Of one job: each case, and the seconds of everybody in it, round by round. The largest case first."""
    found = {Case(*map(int, name.split())): of for name, of in samples.items()}
    for case in sorted(found, key=lambda case: (case.entries, case.operations), reverse=True):
        yield case, found[case]
