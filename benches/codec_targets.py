"""What the codecs are meant to reach, beside what `codec.py` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["CHECKS", "ZIPNN", "factor", "microseconds", "targets"]

CHECKS = ("plain", "checked")
"""Whether the checksum of a row's frame is verified within the time."""
ZIPNN = "zipnn"
"""Whom the speeds are compared with, which therefore cannot be left out."""
MOST_GROWTH = 1.01
RATIOS = {"bfloat16": 1.475, "float16": 1.155, "float32": 1.19}
"""Of `planes`, on MiniLM."""
SPEEDS = {
    ("planes", "portable"): {"encode": 2.0, "decode": 1.35},
    ("planes", "avx2"): {"encode": 4.0, "decode": 1.7},
    ("archive", "portable"): {"decode": 0.25},
    ("archive", "avx2"): {"encode": 0.9, "decode": 0.5},
}
"""Times ZipNN, on MiniLM in bfloat16."""
ROWS = {"minilm bfloat16 whole all": ("384", 0.6), "minilm-wide bfloat16 whole all": ("4,096", 3.5)}
"""Values of a row, and microseconds."""
ROWS_RATIO = 1.45
ARCHIVE_RATIO = 1.57
BESIDE_ZIPNN = 0.995
TWO_THREADS = 1.8


def factor(of: dict[str, Any]) -> str:
    return f"{of['median']:.2f} ({of['min']:.2f}-{of['max']:.2f})"


def microseconds(of: dict[str, Any]) -> str:
    return f"{of['us']:.2f} ({of['min']:.2f}-{of['max']:.2f})"


@dataclass
class Target:
    """A figure, the bound that it is meant to keep, what it is, and what else is to be known of it."""

    figure: str
    bound: str
    found: str
    met: bool
    beside: str = ""


def targets(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the figures that were measured."""
    speed = {result["name"]: result for result in document["speed"]}
    found = [
        *_ratios(speed, document["stores"]),
        *_speeds(speed.get("minilm bfloat16 whole all"), speed.get("minilm bfloat16 texts all")),
        *_rows(document["rows"], document["machine"]["kernels"][-1]),
        *_threads(document["threads"]),
        _growth(document),
    ]
    return [asdict(target) for target in found]


def _at_least(figure: str, least: float, value: float, beside: str = "", digits: int = 4) -> Target:
    return Target(figure, f">= {least:g}", f"{value:.{digits}f}", value >= least, beside)


def _ratios(speed: dict[str, Any], stores: dict[str, Any]) -> Iterator[Target]:
    for dtype, least in RATIOS.items():
        result = speed.get(f"minilm {dtype} whole all")
        if result is None:
            continue
        texts = speed.get(f"minilm {dtype} texts all")
        beside = f"texts by themselves {_ratio(texts, 'planes'):.4f}, " if texts else ""
        beside = f"frames alone {_frames_ratio(result, 'planes'):.4f}, {beside}"
        beside += f"in a store of texts {_store_ratios(stores['minilm'][dtype]['planes'])}"
        yield _at_least(f"`planes` {dtype}: ratio, all bytes counted", least, _ratio(result, "planes"), beside)
    for name in ("embedded bfloat16 whole residual", "embedded bfloat16 whole all"):
        if name in speed:
            result = speed[name]
            ours, theirs = _ratio(result, "planes"), _ratio(result, ZIPNN)
            figure = f"`planes`, {result['title']}: ratio, times ZipNN's"
            yield _at_least(figure, BESIDE_ZIPNN, ours / theirs, f"{ours:.4f} / {theirs:.4f}")
            points = {point: of["planes"] / of[ZIPNN] for point, of in result["activations"].items()}
            least = min(points, key=lambda point: points[point])
            yield _at_least("the same, the least of its activations", BESIDE_ZIPNN, points[least], f"`{least}`")
    store = stores["minilm"]["bfloat16"]["archive"]
    yield _at_least(
        "`archive` bfloat16 in a store of texts: ratio of the frames", ARCHIVE_RATIO, store["raw"] / store["stored"]
    )
    yield _at_least("the same, of all files", ARCHIVE_RATIO, store["raw"] / store["files"])
    if result := speed.get("minilm bfloat16 whole all"):
        beside = f"frames alone {_frames_ratio(result, 'archive'):.4f}"
        figure = "the same, whole activations, all bytes counted"
        yield _at_least(figure, ARCHIVE_RATIO, _ratio(result, "archive"), beside)


def _ratio(result: dict[str, Any], codec: str) -> float:
    return next(row["ratio"] for name, row in result["contestants"].items() if name.split()[0] == codec)


def _frames_ratio(result: dict[str, Any], codec: str) -> float:
    return result["raw"] / sum(point["stored"][codec] for point in result["activations"].values())


def _store_ratios(store: dict[str, Any]) -> str:
    return f"{store['raw'] / store['stored']:.4f} (frames), {store['raw'] / store['files']:.4f} (all files)"


def _speeds(result: dict[str, Any] | None, texts: dict[str, Any] | None) -> Iterator[Target]:
    """Beside each speed the same with fresh outputs, of whole activations and of those of one text, as a store has."""
    for (codec, kernel), bounds in SPEEDS.items():
        row = result["contestants"].get(f"{codec} {kernel}") if result else None
        for task, least in bounds.items() if row else ():
            reused, fresh = (row[f"{task} {buffers}"]["times_zipnn"] for buffers in ("reused", "fresh"))
            beside = f"fresh outputs {factor(fresh)}"
            if texts:
                of_text = texts["contestants"][f"{codec} {kernel}"][f"{task} fresh"]["times_zipnn"]
                beside += f", of each text by itself {factor(of_text)}"
            target = _at_least(f"`{codec}` bfloat16 {task}, {kernel}", least, reused["median"], beside, 2)
            target.bound += " x"
            target.found = f"{factor(reused)} x"
            yield target


def _rows(results: Iterable[dict[str, Any]], kernel: str) -> Iterator[Target]:
    for result in results:
        values, most = ROWS[result["name"]]
        row, scattered = (result["contestants"].get(f"planes {kernel}/{order}") for order in ("layers", "all"))
        beside = f"with the checksum {microseconds(row['checked'])}"
        if scattered:
            beside += f"; over all layers {microseconds(scattered['plain'])}"
        time = row["plain"]
        figure = f"`planes`: a random row of {values} values of one layer, us"
        yield Target(figure, f"<= {most:g}", microseconds(time), time["us"] <= most, beside)
        yield _at_least(f"ratio of rows of {values} values, with the index", ROWS_RATIO, row["ratio"])


def _threads(results: Iterable[dict[str, Any]]) -> Iterator[Target]:
    for result in results:
        for name, value in result["factors"].items():
            target = _at_least(f"two threads, {name}, {result['title']}", TWO_THREADS, value["median"], digits=2)
            target.bound += " x one"
            target.found = factor(value)
            yield target


def _growth(document: dict[str, Any]) -> Target:
    """What grew most, headers and models apart."""
    grown = {
        (codec, name): stored / point["raw"]
        for result in document["speed"]
        for name, point in result["activations"].items()
        for codec, stored in point["stored"].items()
    }
    for store in (*document["stores"]["minilm"].items(), ("embedded", document["stores"]["embedded"])):
        for codec, one in store[1].items():
            for name, point in one["points"].items():
                grown[codec, f"{name} in a store ({store[0]})"] = point["stored"] / point["raw"]
    grown = {key: value for key, value in grown.items() if key[0] in ("planes", "archive")}
    codec, name = max(grown, key=lambda key: grown[key])
    most = grown[codec, name]
    beside = f"{codec}, {name}; {len(grown)} looked at"
    return Target(
        "bytes of frames to raw, of any activation, at most",
        f"<= {MOST_GROWTH}",
        f"{most:.4f}",
        most <= MOST_GROWTH,
        beside,
    )
