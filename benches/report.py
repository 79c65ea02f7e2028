"""The figures of the harness as Markdown: the targets, then a table a job."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from codec_report import table
from machine import sentence
from summary import AGAINST

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["duration", "markdown"]

MAIN = AGAINST[:2]
"""Ours that stand in a column of each table; the others where a rival is theirs alone."""


def duration(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def markdown(document: dict[str, Any]) -> str:
    lines = ["# actstore against what people use", "", *preamble(document), *target_table(document["targets"])]
    for run in document["runs"]:
        lines += run_tables(run)
    lines += isolated_tables(document["isolated"])
    return "\n".join(lines).rstrip() + "\n"


def preamble(document: dict[str, Any]) -> list[str]:
    rounds = ", ".join(sorted({str(run["rounds"]) for run in document["runs"]}))
    lines = [
        f"{sentence(document['machine'])}. {rounds} rounds. Made in "
        f"{document['seconds'] / 60:.1f} minutes by `bench.py {document['mode']}`; README.md says what is measured "
        "and how.",
        "",
    ]
    lines += [f"Left out: {name}: {why}." for name, why in document["left_out"].items()]
    return [*lines, ""] if document["left_out"] else lines


def target_table(targets: Iterable[dict[str, Any]]) -> list[str]:
    targets = list(targets)
    verdicts = Counter(one["verdict"] for one in targets)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    rows = [
        [one["row"], one["bound"], one["found"], one["verdict"] if one["verdict"] == "met" else f"**{one['verdict']}**"]
        for one in targets
    ]
    return ["## Targets", "", f"{counts}.", "", *table(["", "target", "found", ""], rows, 4)]


def run_tables(run: dict[str, Any]) -> list[str]:
    plan, data = run["plan"], run["data"]
    lines = [
        f"## {plan['data']}, {plan['dtype']}",
        "",
        f"{data['entries']:,} entries, {data['tokens']:,} tokens, {size(data['raw'])} of tensors; jobs on one layer "
        f"use `{data['point']}`.",
        "",
        *size_table(run),
    ]
    for name, job in run["jobs"].items():
        lines += job_table(name, job, run["kinds"])
    return lines


def size_table(run: dict[str, Any]) -> list[str]:
    rows = [
        [
            label(name, run["kinds"]),
            f"{of['ratio']:.4f}",
            "yes" if of["shrinks"] else "no",
            f"{of['entries']:,}",
            size(of["files"]),
        ]
        for name, of in sorted(run["sizes"].items(), key=lambda item: item[1]["ratio"])
    ]
    return ["### Bytes on disk", "", *table(["", "all files / raw bytes", "shrinks", "entries", "all files"], rows)]


def label(name: str, kinds: dict[str, str]) -> str:
    return {"ours": f"**{name}**", "bound": f"*{name}*"}.get(kinds[name], name)


def job_table(name: str, job: dict[str, Any], kinds: dict[str, str]) -> list[str]:
    """A row for each contestant, in the largest case that it was in; the fastest operation first."""
    syncs = name.startswith("write")
    head = ["", "k", f"one {job['unit']}", "all k", "best", "x bound", *(f"{ours} / it" for ours in MAIN)]
    if syncs:
        head.insert(5, "syncs")
    largest: dict[str, dict[str, Any]] = {}
    for case in job["cases"]:
        for contestant in case["rows"]:
            largest.setdefault(contestant, case)
    names = sorted(largest, key=lambda name: largest[name]["rows"][name]["median"] / largest[name]["operations"])
    rows = [row(name, largest[name], kinds, syncs) for name in names]
    return [f"### {job['title'][0].upper()}{job['title'][1:]}", "", *table(head, rows)]


def row(name: str, case: dict[str, Any], kinds: dict[str, str], syncs: bool) -> list[str]:
    of = case["rows"][name]
    bound = next((other["median"] for rival, other in case["rows"].items() if kinds[rival] == "bound"), None)
    some = f"{case['operations']:,} of {case['of']:,}"
    return [
        label(name, kinds),
        f"{case['of']:,}" if case["operations"] == case["of"] else some,
        duration(of["median"] / case["operations"]),
        duration(of["median"]),
        duration(of["best"]),
        *([str(of["syncs"])] if syncs else []),
        f"{of['median'] / bound:.1f}" if bound else "",
        *(ratio(of["against"].get(ours)) if kinds[name] != "ours" else "" for ours in MAIN),
    ]


def ratio(of: dict[str, Any] | None) -> str:
    if of is None:
        return ""
    return f"{of['median']:.2f} ({of['least']:.2f}-{of['most']:.2f}), {of['ahead']}/{of['rounds']} {of['verdict']}"


def isolated_tables(found: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if memory := found.get("memory"):
        rows = [[of["name"], f"{of['entries']:,}", size(of["write"]), size(of["read"])] for of in memory.values()]
        head = ["", "entries", "writing", "reading"]
        lines += ["## Peak anonymous memory, over the interpreter with torch", "", *table(head, rows)]
    if syncs := found.get("syncs"):
        rows = [[name, str(of["write_end"]), str(of["write_64"])] for name, of in syncs.items()]
        title = "## Syncs of a durable write, from creating to closing, as the system saw them"
        lines += [title, "", *table(["", "one at the end", "every 64 MiB"], rows)]
    return lines
