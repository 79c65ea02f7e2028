"""Who does how much of a job: all of it, or the first k operations where all would take too long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs import READS, WHOLE_STORE, WRITES, Case

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs import Workload
    from rivals.rival import Rival

__all__ = ["SHARES", "Shares", "step", "whole"]

SHARES = (1 / 200, 1 / 50, 1 / 10, 1 / 3, 1.0)
"""Of the operations of a job: a few steps, so that slow rivals share their cases."""
LEAST_LIMIT = 0.01


class Shares:
    """Cases from what is known: `stores`, entries by contestant, and `shares`, by job and contestant the largest share
    that was tried, its `seconds`, and the `cost` with all that is not timed.
    """

    def __init__(self, contestants: Mapping[str, Rival], work: Workload, state: dict[str, Any]) -> None:
        self._contestants, self._work, self._state = contestants, work, state

    def case(self, job: str, name: str, share: float) -> Case:
        entries = len(self._work.entries) if job in WRITES else self._state["stores"][name]["entries"]
        return Case(entries, whole(entries if job in WRITES else READS[job].count(self._work, entries), share))

    def cases(self, job: str, limit: float) -> dict[Case, list[str]]:
        """Who does what within `limit` seconds each: every rival its share, ours and the bound that of everybody.

        One of ours that is beside a single rival does what this one does.
        """
        known = self._state["shares"][job]
        found: dict[Case, list[str]] = {}
        for name, of in known.items():
            if self._contestants[name].beside not in known:
                share = step(of["share"] * limit / of["seconds"])
                found.setdefault(self.case(job, name, share), []).append(name)
        for case, names in found.items():
            names += [name for name in known if name not in names and self._joins(job, name, case, names)]
        return found

    def _joins(self, job: str, name: str, case: Case, names: list[str]) -> bool:
        one = self._contestants[name]
        stored = self._state["stores"][name]["entries"]
        wanted = one.beside in names if one.beside else one.ours or one.bound
        # What goes over a whole store cannot be done with its first entries alone.
        able = job in WRITES or stored == case.entries or (stored > case.entries and job not in WHOLE_STORE)
        return wanted and able

    def foreseen(self, job: str, limit: float) -> float:
        """Seconds that the job will take in one round."""
        known = self._state["shares"][job]
        cells = [(case, name) for case, names in self.cases(job, limit).items() for name in names]
        return sum(self._foreseen(job, name, case, known[name]) for case, name in cells)

    def _foreseen(self, job: str, name: str, case: Case, of: dict[str, float]) -> float:
        tried = self.case(job, name, of["share"]).operations
        return of["cost"] - of["seconds"] + of["seconds"] * case.operations / tried

    def limit(self, jobs: Sequence[str], most: float, seconds: float) -> float:
        """The limit, of `most` at most, with which a round of all jobs is foreseen to take no longer than `seconds`."""
        limit = most
        while limit > LEAST_LIMIT and sum(self.foreseen(job, limit) for job in jobs) > seconds:
            limit /= 1.1
        return limit


def step(share: float) -> float:
    """The largest of the shares that is not above."""
    return max([of for of in SHARES if of <= share], default=SHARES[0])


def whole(count: int, share: float) -> int:
    return max(1, int(count * share))
