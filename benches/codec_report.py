"""The figures of `codec.py` as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["CHECKS", "markdown"]

CHECKS = ("plain", "checked")
"""Whether the checksum of a row's frame is verified within the time."""


def factor(of: dict[str, Any]) -> str:
    return f"{of['median']:.2f} ({of['min']:.2f}-{of['max']:.2f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    marks = ["---", *["--:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)] + [""]


def speed_table(result: dict[str, Any]) -> list[str]:
    columns = [f"{task} {buffers}" for task in ("encode", "decode") for buffers in ("reused", "fresh")]
    rows: list[list[str]] = []
    for name, row in result["contestants"].items():
        if name == "zipnn":
            cells = ["", f"{row['encode']['gb_s']:.2f}", "", f"{row['decode']['gb_s']:.2f}"]
        elif name == "memcpy":
            cells = [f"{row[buffers]['gb_s']:.2f}" for buffers in ("reused", "fresh")] * 2
        else:
            cells = [f"{row[name]['gb_s']:.2f} = {factor(row[name]['times_zipnn'])} x" for name in columns]
        rows.append([name, f"{row.get('ratio', 1.0):.4f}", *cells])
    title = f"### {result['title']} ({result['raw'] / 1e6:.1f} MB)"
    return [title, "", *table(["", "ratio", *(f"{name}, GB/s" for name in columns)], rows)]


def activation_table(result: dict[str, Any]) -> list[str]:
    codecs = [
        name
        for name in ("zipnn", "planes", "archive")
        if all(name in point for point in result["activations"].values())
    ]
    rows = [
        [name.split(".", 1)[1].rsplit(".", 1)[0], *(f"{point[codec]:.4f}" for codec in codecs)]
        for name, point in result["activations"].items()
    ]
    return [f"### {result['title']}: ratio by activation", "", *table(["", *codecs], rows)]


def rows_table(result: dict[str, Any]) -> list[str]:
    rows: list[list[str]] = []
    for name, row in result["contestants"].items():
        contestant, framing = name.split("/")
        times = [f"{row[check]['us']:.2f} ({row[check]['min']:.2f}-{row[check]['max']:.2f})" for check in CHECKS]
        rows.append([contestant, "one row" if framing == "rows" else "many rows", f"{row['ratio']:.4f}", *times])
    head = ["", "a frame has", "ratio with table", "us a row", "us a row, frame's checksum verified too"]
    return [f"### {result['title']}", "", *table(head, rows)]


def markdown(document: dict[str, Any]) -> str:
    machine = document["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "# The codecs against ZipNN",
        "",
        f"{machine['cpu']}, {machine['cores']} cores; {machine['date']}; commit {machine['commit']}; {versions}; "
        f"{machine['rounds']} rounds; of a residual stream every layer that {machine['keys']} divides has no layer "
        "below. README.md says what is measured and how. Written by `make bench-codec`.",
        "",
    ]
    if document["speed"]:
        lines += [
            "## One thread",
            "",
            "`x` is times ZipNN in the same round: median (least-most). ZipNN's outputs are fresh; both columns "
            "compare with them.",
            "",
        ]
    for result in document["speed"]:
        lines += speed_table(result)
    for result in document["speed"]:
        if result["by_activation"]:
            lines += activation_table(result)
    if document["rows"]:
        lines += ["## Single rows, in random order over all of the data", ""]
    for result in document["rows"]:
        lines += rows_table(result)
    if document["threads"]:
        result = document["threads"]
        rows = [[name, factor(value)] for name, value in result["factors"].items()]
        title = f"## Two threads against one ({result['title']}, {result['kernel']})"
        lines += [title, "", *table(["", "times as fast"], rows)]
    return "\n".join(lines).rstrip() + "\n"
