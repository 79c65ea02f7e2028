"""What actstore is meant to reach against its rivals, beside what was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from verdicts import ROUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["judge"]

DEFAULT, RAW, LMDB, JSON = "actstore", "actstore, raw", "actstore, lmdb, raw", "actstore, json"
PICKLED, LMDB_RAW, JSON_LISTS = "py-lmdb, pickled", "py-lmdb, raw", "json.dump of lists"
SIZES = {"bfloat16": 0.69, "float16": 0.872, "float32": 0.85}
RAW_SIZE = 1.02
SPEED_DTYPES = ("bfloat16", "float16")
WRITE_JOBS = ("write_end", "write_64")
COMPRESSED_READS = ("read", "random", "last", "gather", "batches")
RAW_READS = {"read": 1.3, "random": 1.6, "last": 1.2}
"""Times the best rival of any kind, at most."""
RAW_AHEAD = ("gather", "batches")
GATHER_TIMES = 10.0
JSON_TIMES = 3.0
METADATA_US = 3.0
OPEN_ENTRIES, OPEN_SECONDS, OPEN_BYTES = 1_000_000, 1.0, 300e6
MEMORY_BYTES, MEMORY_GROWTH, MEMORY_ENTRIES = 64e6, 1.1, 20_000
IMPORT_SECONDS, HELP_SECONDS = 0.120, 0.300


@dataclass
class Target:
    """`verdict`: met, not met, not separated, or not measured."""

    row: str
    bound: str
    found: str
    verdict: str


def judge(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target, whatever the run had of it."""
    found = [
        target for run in document["runs"] if run["plan"]["data"] == "minilm" for target in [*sizes(run), *speeds(run)]
    ]
    return [asdict(target) for target in [*found, *isolated(document["isolated"]), *codecs(document["codec"])]]


def at_most(row: str, bound: str, most: float, value: float, shown: str) -> Target:
    return Target(row, bound, shown, "met" if value <= most else "not met")


def sizes(run: dict[str, Any]) -> Iterator[Target]:
    dtype = run["plan"]["dtype"]
    for name, most in ((DEFAULT, SIZES[dtype]), (RAW, RAW_SIZE)):
        ratio = run["sizes"][name]["ratio"]
        yield at_most(f"{dtype}: size of `{name}`, all files over raw bytes", f"<= {most}", most, ratio, f"{ratio:.4f}")


def speeds(run: dict[str, Any]) -> Iterator[Target]:
    dtype = run["plan"]["dtype"]
    if dtype not in SPEED_DTYPES:
        return
    rivals = [name for name, kind in run["kinds"].items() if kind == "rival"]
    small = [name for name in rivals if run["sizes"].get(name, {}).get("shrinks")]
    for job in run["jobs"]:
        title = f"{dtype}: {run['jobs'][job]['title']}"
        if job in WRITE_JOBS:
            yield faster(
                run, job, DEFAULT, [*small, PICKLED], f"{title}, compressed", "every rival that shrinks, pickled LMDB"
            )
            yield not_slower(run, job, RAW, LMDB_RAW, f"{title}, raw")
        if job in COMPRESSED_READS:
            yield faster(run, job, DEFAULT, small, f"{title}, compressed", "every rival that shrinks")
        if job == "gather":
            yield times(run, job, DEFAULT, small, GATHER_TIMES, f"{title}, compressed")
        if job in RAW_READS:
            yield near_best(run, job, RAW, rivals, RAW_READS[job], f"{title}, raw")
        if job in RAW_AHEAD:
            yield faster(run, job, RAW, rivals, f"{title}, raw", "every rival")
        if job in (*WRITE_JOBS, "read"):
            yield times(run, job, JSON, [JSON_LISTS], JSON_TIMES, f"{title}, json")
        yield faster(run, job, LMDB, [PICKLED], f"{title}, lmdb raw", "pickled LMDB")
    if "metadata" in run["jobs"]:
        yield metadata(run)


def against(run: dict[str, Any], job: str, ours: str, rival: str) -> dict[str, Any] | None:
    """The comparison on the largest case that has both."""
    for case in run["jobs"][job]["cases"]:
        row = case["rows"].get(rival)
        if row and ours in row["against"]:
            return row["against"][ours]
    return None


def comparisons(run: dict[str, Any], job: str, ours: str, rivals: Iterable[str]) -> dict[str, dict[str, Any]]:
    found = {rival: against(run, job, ours, rival) for rival in rivals}
    return {rival: comparison for rival, comparison in found.items() if comparison}


def shown(rival: str, of: dict[str, Any]) -> str:
    return f"{of['median']:.2f} of {rival} ({of['ahead']}/{of['rounds']} rounds ahead)"


def faster(run: dict[str, Any], job: str, ours: str, rivals: Iterable[str], row: str, whom: str) -> Target:
    """Than each of them; what is shown is the nearest."""
    found = comparisons(run, job, ours, rivals)
    bound = f"faster than {whom}"
    if not found:
        return Target(
            row, bound, run["jobs"][job]["unsupported"].get(ours, "nothing to compare on the same k"), "not measured"
        )
    nearest = max(found, key=lambda rival: found[rival]["median"])
    verdicts = {of["verdict"] for of in found.values()}
    verdict = next((word for word in ("too few rounds", "slower", "not separated") if word in verdicts), "met")
    return Target(row, bound, shown(nearest, found[nearest]), "not met" if verdict == "slower" else verdict)


def not_slower(run: dict[str, Any], job: str, ours: str, rival: str, row: str) -> Target:
    of = against(run, job, ours, rival)
    bound = f"at least not separated from {rival}"
    if of is None:
        return Target(row, bound, "", "not measured")
    verdict = {"slower": "not met", "too few rounds": "too few rounds"}.get(of["verdict"], "met")
    return Target(row, bound, shown(rival, of), verdict)


def times(run: dict[str, Any], job: str, ours: str, rivals: Iterable[str], least: float, row: str) -> Target:
    """So many times as fast as the best of them."""
    found = comparisons(run, job, ours, rivals)
    bound = f">= {least:g} x the best of {'those that shrink' if ours == DEFAULT else JSON_LISTS}"
    if not found:
        return Target(
            row, bound, run["jobs"][job]["unsupported"].get(ours, "nothing to compare on the same k"), "not measured"
        )
    nearest = max(found, key=lambda rival: found[rival]["median"])
    factor = 1 / found[nearest]["median"]
    return limited(
        found[nearest], Target(row, bound, f"{factor:.1f} x {nearest}", "met" if factor >= least else "not met")
    )


def near_best(run: dict[str, Any], job: str, ours: str, rivals: Iterable[str], most: float, row: str) -> Target:
    found = comparisons(run, job, ours, rivals)
    bound = f"<= {most:g} x the time of the best rival"
    if not found:
        return Target(row, bound, run["jobs"][job]["unsupported"].get(ours, ""), "not measured")
    nearest = max(found, key=lambda rival: found[rival]["median"])
    ratio = found[nearest]["median"]
    return limited(
        found[nearest], Target(row, bound, f"{ratio:.2f} x {nearest}", "met" if ratio <= most else "not met")
    )


def limited(of: dict[str, Any], target: Target) -> Target:
    if of["rounds"] < ROUNDS:
        target.verdict = "too few rounds"
    return target


def metadata(run: dict[str, Any]) -> Target:
    case = next(case for case in run["jobs"]["metadata"]["cases"] if DEFAULT in case["rows"])
    us = case["rows"][DEFAULT]["median"] / case["entries"] * 1e6
    row = f"{run['plan']['dtype']}: metadata of all entries as dicts, us an entry"
    return at_most(row, f"<= {METADATA_US:g}", METADATA_US, us, f"{us:.2f}")


def isolated(found: dict[str, Any]) -> Iterator[Target]:
    if opened := found.get("open"):
        row = f"open of a store with {opened['entries']:,} entries"
        small = "" if opened["entries"] >= OPEN_ENTRIES else "not measured"
        for value, most, unit in (
            (opened["seconds"], OPEN_SECONDS, "s"),
            (opened["peak"] / 1e6, OPEN_BYTES / 1e6, "MB"),
        ):
            target = at_most(row, f"<= {most:g} {unit}", most, value, f"{value:.3g} {unit}")
            target.verdict = small or target.verdict
            yield target
    for name in (DEFAULT, RAW):
        if name in found.get("memory", {}):
            yield from memory(name, found["memory"][name])
    if times := found.get("imports"):
        for row, most, value in (
            ("import of `actstore` over numpy's", IMPORT_SECONDS, times["import"]),
            ("`actstore-cli --help`", HELP_SECONDS, times["help"]),
        ):
            yield at_most(row, f"<= {most * 1000:g} ms", most, value, f"{value * 1000:.0f} ms")


def memory(name: str, peaks: dict[str, dict[str, int]]) -> Iterator[Target]:
    few, *rest = sorted(peaks, key=int)
    for task in ("write", "read"):
        most = max(of[task] for of in peaks.values())
        row = f"peak anonymous memory, `{name}`, {task}"
        yield at_most(row, f"<= +{MEMORY_BYTES / 1e6:g} MB", MEMORY_BYTES, most, f"+{most / 1e6:.1f} MB")
        for many in rest:
            growth = peaks[many][task] / max(1, peaks[few][task])
            shown = f"{peaks[many][task] / 1e6:.1f} to {peaks[few][task] / 1e6:.1f} MB"
            bound = f"equal (<= {MEMORY_GROWTH:g} x)"
            target = at_most(f"{row}: {int(many):,} entries to {int(few):,}", bound, MEMORY_GROWTH, growth, shown)
            target.verdict = target.verdict if int(many) >= MEMORY_ENTRIES else "not measured"
            yield target


def codecs(found: dict[str, Any] | None) -> Iterator[Target]:
    """The targets of `codec.py`, as it judged them."""
    if found is None:
        yield Target(
            "codecs alone against ZipNN; two threads", "codec_targets.py", "run `make bench-codec`", "not measured"
        )
        return
    for target in found["targets"]:
        row = f"codecs ({found['machine']['commit']}): {target['figure']}"
        yield Target(row, target["bound"], target["found"], "met" if target["met"] else "not met")
