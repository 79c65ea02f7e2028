"""What actstore is meant to reach against its rivals, beside what was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from verdicts import ROUNDS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["judge"]

DEFAULT, RAW, LMDB, JSON = "actstore", "actstore, raw", "actstore, lmdb, raw", "actstore, json"
PICKLED, LMDB_RAW, JSON_LISTS = "py-lmdb, pickled", "py-lmdb, raw", "json.dump of lists"
SIZES = {"bfloat16": 0.69, "float16": 0.872, "float32": 0.85}
RAW_SIZE = 1.02
SIZE_ENTRIES = 2000
SPEED_DTYPES = ("bfloat16", "float16")
WRITE_JOBS = ("write_end", "write_64")
COMPRESSED_READS = ("read", "random", "last", "gather", "batches")
RAW_READS = {"read": 1.3, "random": 1.6, "last": 1.2}
"""Times the best rival of any kind, at most."""
RAW_AHEAD = ("gather", "batches")
JSON_JOBS = (*WRITE_JOBS, "read")
GATHER_TIMES = 10.0
JSON_TIMES = 3.0
METADATA_US = 3.0
OPEN_ENTRIES, OPEN_SECONDS, OPEN_MEGABYTES = 1_000_000, 1.0, 300.0
MEMORY_MEGABYTES, MEMORY_GROWTH = 64.0, 1.1
IMPORT_MS, HELP_MS = 120.0, 300.0


@dataclass
class Target:
    """`verdict`: met, not met, not separated, or not measured."""

    row: str
    bound: str
    found: str
    verdict: str


def judge(document: dict[str, Any], codec: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Every target, whatever the run had of it; `codec` is what `codec.py` found."""
    found = [
        target for run in document["runs"] if run["plan"]["data"] == "minilm" for target in [*sizes(run), *speeds(run)]
    ]
    return [asdict(target) for target in [*found, *isolated(document["isolated"]), *codecs(codec)]]


def at_most(row: str, most: float, value: float, unit: str = "", enough: bool = True) -> Target:
    verdict = "met" if value <= most else "not met"
    return Target(row, f"<= {most:g}{unit}", f"{value:.4g}{unit}", verdict if enough else "not measured")


def sizes(run: dict[str, Any]) -> Iterator[Target]:
    dtype = run["plan"]["dtype"]
    enough = run["data"]["entries"] >= SIZE_ENTRIES
    for name, most in ((DEFAULT, SIZES[dtype]), (RAW, RAW_SIZE)):
        yield at_most(f"{dtype}: all files over raw bytes, `{name}`", most, run["sizes"][name]["ratio"], enough=enough)


def speeds(run: dict[str, Any]) -> Iterator[Target]:
    if run["plan"]["dtype"] not in SPEED_DTYPES:
        return
    rivals = [name for name, kind in run["kinds"].items() if kind == "rival"]
    small = [name for name in rivals if run["sizes"].get(name, {}).get("shrinks")]
    for job in run["jobs"]:
        if job in WRITE_JOBS:
            yield faster(Claim(run, job, DEFAULT, [*small, PICKLED], "every rival that shrinks, pickled LMDB"))
            yield not_slower(Claim(run, job, RAW, [LMDB_RAW], LMDB_RAW))
        if job in COMPRESSED_READS:
            yield faster(Claim(run, job, DEFAULT, small, "every rival that shrinks"))
        if job == "gather":
            yield within(Claim(run, job, DEFAULT, small, "the best that shrinks"), 1 / GATHER_TIMES)
        if job in RAW_READS:
            yield within(Claim(run, job, RAW, rivals, "the best rival"), RAW_READS[job])
        if job in RAW_AHEAD:
            yield faster(Claim(run, job, RAW, rivals, "every rival"))
        if job in JSON_JOBS:
            yield within(Claim(run, job, JSON, [JSON_LISTS], JSON_LISTS), 1 / JSON_TIMES)
        yield faster(Claim(run, job, LMDB, [PICKLED], PICKLED))
    if "metadata" in run["jobs"]:
        yield metadata(run)


@dataclass
class Claim:
    """That one of ours compares in some way with each of some rivals."""

    run: dict[str, Any]
    job: str
    ours: str
    rivals: list[str]
    whom: str
    """The rivals in words."""

    def comparisons(self) -> dict[str, dict[str, Any]]:
        """With each rival, on the largest case that has both; the one that is hardest to beat first."""
        found: dict[str, dict[str, Any]] = {}
        for case in self.run["jobs"][self.job]["cases"]:
            for rival in self.rivals:
                if (row := case["rows"].get(rival)) and self.ours in row["against"]:
                    found.setdefault(rival, row["against"][self.ours])
        return dict(sorted(found.items(), key=lambda item: item[1]["median"], reverse=True))

    def target(self, bound: str, found: dict[str, dict[str, Any]], verdict: str) -> Target:
        row = f"{self.run['plan']['dtype']}: {self.run['jobs'][self.job]['title']}, `{self.ours}`"
        if not self.rivals:
            return Target(row, bound, "there is no such rival", verdict)
        if not found:
            return Target(row, bound, "nobody did the same k", "not measured")
        rival, of = next(iter(found.items()))
        shown = f"{of['median']:.2f} of {rival} ({of['ahead']}/{of['rounds']} rounds ahead)"
        missing = [name for name in dict.fromkeys(self.rivals) if name not in found]
        shown += f"; not compared: {', '.join(missing)}" if missing else ""
        return Target(row, bound, shown, verdict if of["rounds"] >= ROUNDS else "too few rounds")


def faster(claim: Claim) -> Target:
    """Than each of them."""
    found = claim.comparisons()
    verdicts = {of["verdict"] for of in found.values()}
    verdict = "not met" if "slower" in verdicts else "met" if verdicts <= {"faster"} else "not separated"
    return claim.target(f"faster than {claim.whom}", found, verdict)


def not_slower(claim: Claim) -> Target:
    found = claim.comparisons()
    slower = any(of["verdict"] == "slower" for of in found.values())
    return claim.target(f"at least not separated from {claim.whom}", found, "not met" if slower else "met")


def within(claim: Claim, most: float) -> Target:
    """A part of the time, or some times the time, of the best of them."""
    found = claim.comparisons()
    ratio = max((of["median"] for of in found.values()), default=0.0)
    return claim.target(f"<= {most:.3g} of {claim.whom}", found, "met" if ratio <= most else "not met")


def metadata(run: dict[str, Any]) -> Target:
    case = next(case for case in run["jobs"]["metadata"]["cases"] if DEFAULT in case["rows"])
    us = case["rows"][DEFAULT]["median"] / case["operations"] * 1e6
    return at_most(f"{run['plan']['dtype']}: metadata of an entry, as a dict", METADATA_US, us, " us")


def isolated(found: dict[str, Any]) -> Iterator[Target]:
    for opened in found.get("open", {}).values():
        row = f"open of a store with {opened['entries']:,} entries"
        enough = opened["entries"] >= OPEN_ENTRIES
        megabytes = opened["peak"] / 1e6
        yield at_most(row, OPEN_SECONDS, opened["seconds"], " s", enough)
        yield at_most(row, OPEN_MEGABYTES, megabytes, " MB", enough)
    memory = list(found.get("memory", {}).values())
    for name in (DEFAULT, RAW):
        yield from peaks(name, [of for of in memory if of["name"] == name])
    for times in found.get("imports", {}).values():
        yield at_most("import of `actstore` over numpy's", IMPORT_MS, times["import"] * 1000, " ms")
        yield at_most("`actstore-cli --help`", HELP_MS, times["help"] * 1000, " ms")


def peaks(name: str, memory: list[dict[str, Any]]) -> Iterator[Target]:
    for task in ("write", "read"):
        for of in memory:
            row = f"peak anonymous memory, `{name}`, {task}, {of['entries']:,} entries"
            yield at_most(row, MEMORY_MEGABYTES, of[task] / 1e6, " MB")
        if len(memory) > 1:
            row = f"peak anonymous memory, `{name}`, {task}, {memory[-1]['entries']:,} entries over the fewer"
            yield at_most(row, MEMORY_GROWTH, memory[-1][task] / max(1, memory[0][task]), " x")


def codecs(found: dict[str, Any] | None) -> Iterator[Target]:
    """The targets of codecs alone and of two threads, as `codec.py` judged them."""
    if found is None:
        yield Target("codecs alone; two threads", "see codec_targets.py", "run `make bench-codec`", "not measured")
        return
    for target in found["targets"]:
        row = f"codecs ({found['machine']['commit']}): {target['figure']}"
        yield Target(row, target["bound"], target["found"], "met" if target["met"] else "not met")
