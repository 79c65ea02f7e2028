"""The state of a run as figures: medians, ratios within a round, sizes."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from jobs import READS, TITLES, WRITES
from rounds import cases
from verdicts import compare

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobs import Case, Workload
    from rivals.rival import Rival

__all__ = ["AGAINST", "SHRINKS", "summarize"]

AGAINST = ("actstore", "actstore, raw", "actstore, lmdb, raw", "actstore, json")
"""Whose times are divided by everybody's."""
SHRINKS = {"float16": 0.88, "bfloat16": 0.80, "float32": 0.88}
"""A store of at most so much of the raw bytes is one that shrinks."""


def summarize(state: dict[str, Any], contestants: Iterable[Rival], work: Workload) -> dict[str, Any]:
    """One run as a document."""
    kinds = {rival.name: "ours" if rival.ours else "bound" if rival.bound else "rival" for rival in contestants}
    limit = SHRINKS[state["plan"]["dtype"]]
    sizes = {
        name: {**store, "ratio": store["files"] / store["raw"], "shrinks": store["files"] <= limit * store["raw"]}
        for name, store in state["stores"].items()
    }
    jobs = {job: job_document(job, state, work) for job in TITLES if job in state["samples"]}
    raw = sum(entry.raw_bytes for entry in work.entries)
    data = {"entries": len(work.entries), "tokens": work.tokens(len(work.entries)), "raw": raw, "point": work.point}
    rounds = min(
        (len(of) for job in state["samples"].values() for case in job.values() for of in case.values()), default=0
    )
    return {"plan": state["plan"], "rounds": rounds, "data": data, "kinds": kinds, "sizes": sizes, "jobs": jobs}


def job_document(job: str, state: dict[str, Any], work: Workload) -> dict[str, Any]:
    found = [case_document(job, case, seconds, state, work) for case, seconds in cases(state["samples"][job])]
    unit = "entry" if job in WRITES else READS[job].unit
    return {"title": TITLES[job], "unit": unit, "cases": found}


def case_document(
    job: str, case: Case, seconds: dict[str, list[float]], state: dict[str, Any], work: Workload
) -> dict[str, Any]:
    syncs = state["syncs"].get(job, {}).get(f"{case.entries} {case.operations}", {})
    rows = {
        name: {
            "seconds": of,
            "median": median(of),
            "best": min(of),
            "syncs": syncs.get(name),
            "against": {ours: compare(seconds[ours], of).document() for ours in AGAINST if ours in seconds},
        }
        for name, of in seconds.items()
    }
    every = case.entries if job in WRITES else READS[job].count(work, case.entries)
    return {"entries": case.entries, "operations": case.operations, "of": every, "rows": rows}
