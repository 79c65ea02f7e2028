"""The figures of `codec.py` as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codec_targets import CHECKS, ZIPNN, factor, microseconds
from machine import sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["markdown"]

BUFFERS = ("reused", "fresh")
ORDERS = {"layers": "one layer after the other", "all": "all layers", "top": "top layer of the chain"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> list[str]:
    """Of its columns the first `words` are text."""
    marks = [*["---"] * words, *["--:"] * (len(head) - words)]
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)] + [""]


def rate(of: dict[str, Any]) -> str:
    return f"{of['gb_s']:.2f} / {of['best_gb_s']:.2f}"


def speed_table(result: dict[str, Any]) -> list[str]:
    """The others have no outputs but fresh ones."""
    columns = [f"{task} {buffers}" for task in ("encode", "decode") for buffers in BUFFERS]
    rows: list[list[str]] = []
    for name, row in result["contestants"].items():
        if name == "memcpy":
            cells = [rate(row[buffers]) for buffers in BUFFERS] * 2
        else:
            cells = [speed_cell(name, row[column]) if column in row else "" for column in columns]
        rows.append([name, f"{row.get('ratio', 1.0):.4f}", *cells])
    title = f"### {result['title']} ({result['raw'] / 1e6:.1f} MB)"
    return [title, "", *table(["", "ratio", *columns], rows)]


def speed_cell(name: str, of: dict[str, Any]) -> str:
    return rate(of) if name == ZIPNN else f"{rate(of)} = {factor(of['times_zipnn'])} x"


def activation_table(result: dict[str, Any]) -> list[str]:
    codecs = (*result["others"], "planes", "archive")
    rows = [
        [
            name.split(".", 1)[1].rsplit(".", 1)[0],
            *(f"{point[codec]:.4f}" for codec in codecs),
            f"{point['planes'] / point[ZIPNN]:.4f}",
            counts(point["encodings"]["archive"]),
        ]
        for name, point in result["activations"].items()
    ]
    head = ["", *codecs, "planes to zipnn", "frames of archive"]
    return [f"### {result['title']}: ratio by activation, all bytes counted", "", *table(head, rows)]


def counts(encodings: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in encodings.items())


def rows_table(result: dict[str, Any]) -> list[str]:
    rows: list[list[str]] = []
    for name, row in result["contestants"].items():
        contestant, order = name.split("/")
        rows.append([contestant, ORDERS[order], f"{row['ratio']:.4f}", *(microseconds(row[check]) for check in CHECKS)])
    head = ["", "random order over", "ratio with index", "us a row", "us a row, frame's checksum verified too"]
    layers = f", {result['layers']} layers decoded for the top one of archive" if result["layers"] > 1 else ""
    return [f"### {result['title']}{layers}", "", *table(head, rows, 2)]


def key_table(results: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [f"{result['title']}, {result['layers']} layers", *(f"{ratio:.4f}" for ratio in result["ratios"].values())]
        for result in results
    ]
    return [
        "## archive by key distance: ratio, all bytes counted",
        "",
        *table(["", *map(str, results[0]["ratios"])], rows),
    ]


def store_tables(stores: dict[str, Any]) -> list[str]:
    head = ["", "codec", "raw / all files", "raw / frames", "all files, bytes", "frames"]
    named = [
        *((f"MiniLM, {dtype}", one) for dtype, one in stores["minilm"].items()),
        ("Embedded model, all hook points, bfloat16", stores["embedded"]),
    ]
    rows = [
        [
            title,
            codec,
            f"{store['raw'] / store['files']:.4f}",
            f"{store['raw'] / store['stored']:.4f}",
            f"{store['files']:,}",
            counts(store["encodings"]),
        ]
        for title, codecs in named
        for codec, store in codecs.items()
    ]
    embedded = stores["embedded"]
    by_point = [
        [
            point,
            *(
                cell
                for store in embedded.values()
                for of in (store["points"][point],)
                for cell in (f"{of['raw'] / of['stored']:.4f}", counts(of["encodings"]))
            ),
        ]
        for point in embedded["planes"]["points"]
    ]
    point_head = ["", *(cell for codec in embedded for cell in (f"{codec}: raw / frames", "frames"))]
    return [
        "## Stores, an entry for each text",
        "",
        *table(head, rows, 2),
        "### Embedded model, captured: by hook point",
        "",
        *table(point_head, by_point),
    ]


def target_table(targets: Iterable[dict[str, Any]]) -> list[str]:
    rows = [
        [
            target["figure"],
            target["bound"],
            target["found"],
            "met" if target["met"] else "**not met**",
            target["beside"],
        ]
        for target in targets
    ]
    return ["## Targets", "", *table(["", "target", "found", "", "beside it"], rows, 5)]


def markdown(document: dict[str, Any]) -> str:
    machine = document["machine"]
    lines = [
        "# The codecs against ZipNN, blosc2 and zstd",
        "",
        f"{sentence(machine)}; {machine['rounds']} rounds; key distance {machine['keys']}. README.md says what is "
        "measured and how. Written by `make bench-codec`.",
        "",
        *[f"Left out: {name}: {why}.\n" for name, why in document["left_out"].items()],
        *target_table(document["targets"]),
    ]
    if document["speed"]:
        lines += [
            "## One thread",
            "",
            "GB/s of raw bytes, median / best of the rounds; `x` is times ZipNN in the same round: median "
            "(least-most). Outputs of all but ours are fresh; both columns compare with ZipNN's.",
            "",
        ]
    for result in document["speed"]:
        lines += speed_table(result)
    for result in document["speed"]:
        if result["by_activation"]:
            lines += activation_table(result)
    if document["rows"]:
        lines += ["## Single rows", "", "Median of the rounds (least-most).", ""]
    for result in document["rows"]:
        lines += rows_table(result)
    if document["keys"]:
        lines += key_table(document["keys"])
    lines += store_tables(document["stores"])
    for result in document["threads"]:
        rows = [[name, factor(value)] for name, value in result["factors"].items()]
        title = f"## Two threads against one: {result['title']}, {result['kernel']}"
        lines += [title, "", *table(["", "times as fast"], rows)]
    return "\n".join(lines).rstrip() + "\n"
