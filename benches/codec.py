"""Times the codecs against ZipNN on real activations, in rounds that take turns; README.md says what and how.

    codec.py [--rounds 15] [--keys 8] [--only minilm] [--streams FOLDER] [--out FOLDER] [--program FILE]

One thread on one core for both sides. Every comparison is made within a round, which times each contestant once, in an
order drawn anew; reported are medians over the rounds, the least and the most. What stores take is measured by
`store_size.py`, in the project's own environment.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from codec_report import markdown
from codec_targets import CHECKS, targets
from machine import describe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from zipnn import ZipNN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Task = Callable[[int], float]
    """Given a number that is another each time; the seconds it took."""

ROOT = Path(__file__).resolve().parent.parent
FRAME_BYTES = 13
"""What a frame costs in the table of its activation."""
MODEL_COPIES = 2
"""How often a store has each model."""
ROW_READS = {"raw": 4000, "zstd": 200, "planes": 4000, "archive": 1000}
"""Rows read in a round, about."""
CODECS = ("planes", "archive")
PASSES = 10
"""Of a round of two threads against one."""
DISTANCES = (1, 2, 3, 4, 6, 8, 16)
"""Key distances of which the ratio is reported."""


@dataclass(frozen=True)
class Data:
    """Activations that are coded together."""

    title: str
    group: str
    dtype: str
    cut: str = "whole"
    points: str = "all"

    @property
    def words(self) -> tuple[str, ...]:
        return self.group, self.dtype, self.cut, self.points

    @property
    def name(self) -> str:
        return " ".join(self.words)


MINILM = Data("MiniLM, residual stream, bfloat16", "minilm", "bfloat16")
WIDE = Data("MiniLM, states side by side, bfloat16", "minilm-wide", "bfloat16")
EMBEDDED = Data("Embedded model, all hook points, bfloat16", "embedded", "bfloat16")
EMBEDDED_RESIDUAL = Data("Embedded model, residual stream, bfloat16", "embedded", "bfloat16", points="residual")
MINILM_HALF = Data("MiniLM, residual stream, float16", "minilm", "float16")
ATTENTION = Data("MiniLM, attention weights, bfloat16", "attention", "bfloat16")
SPEED = [
    MINILM,
    MINILM_HALF,
    Data("MiniLM, residual stream, float32", "minilm", "float32"),
    EMBEDDED,
    EMBEDDED_RESIDUAL,
    Data("MiniLM, residual stream, bfloat16, each text by itself", "minilm", "bfloat16", cut="texts"),
    Data("Embedded model, residual stream, bfloat16, each text by itself", "embedded", "bfloat16", "texts", "residual"),
    ATTENTION,
]
BY_ACTIVATION = (MINILM, EMBEDDED, ATTENTION)


class Ours:
    """The Rust side: a child that does what a line says and answers with a line."""

    def __init__(self, program: Path, streams: Path) -> None:
        self._child = subprocess.Popen([program, streams], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.kernels: list[str] = self.ask("kernels")

    def ask(self, *words: object) -> Any:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(" ".join(map(str, words)) + "\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline() or '{"error": "the program has ended"}')
        if isinstance(answer, dict) and "error" in answer:
            raise SystemExit(answer["error"])
        return answer

    def load(self, data: Data, keys: int, threads: int = 1) -> None:
        self.ask("load", *data.words, threads, keys)

    def close(self) -> None:
        assert self._child.stdin
        self._child.stdin.close()
        self._child.wait()


class Rival:
    """ZipNN on the same pieces, through its own interface. Its outputs are always fresh: it has no other way."""

    def __init__(self, data: Data, streams: Path) -> None:
        self._zipnn = ZipNN(input_format="byte", bytearray_dtype=data.dtype, threads=1)
        records = json.loads((streams / "index.json").read_text(encoding="utf-8"))["streams"]
        chosen = [record for record in records if (record["group"], record["dtype"]) == (data.group, data.dtype)]
        if data.points == "residual":
            chosen = [record for record in chosen if record["chain"] == "residual"]
        self._pieces: list[bytes] = []
        self._stored: list[bytes] = []
        self.stored_by_name: dict[str, int] = {}
        for record in chosen:
            pieces = list(cut(record, (streams / record["file"]).read_bytes(), data.cut))
            # A copy, since ZipNN changes what it is given.
            stored = [bytes(self._zipnn.compress(bytearray(piece))) for piece in pieces]
            self.stored_by_name[record["name"]] = sum(map(len, stored))
            self._pieces += pieces
            self._stored += stored
        for piece, stored in zip(self._pieces, self._stored, strict=True):
            assert self._zipnn.decompress(stored) == piece, "ZipNN does not keep the bytes"
        self.raw = sum(map(len, self._pieces))

    def encode(self, _number: int) -> float:
        return self._timed(self._zipnn.compress, [bytearray(piece) for piece in self._pieces])

    def decode(self, _number: int) -> float:
        return self._timed(self._zipnn.decompress, self._stored)

    def _timed(self, work: Callable[[Any], object], pieces: Iterable[Any]) -> float:
        start = time.perf_counter()
        for piece in pieces:
            work(piece)
        return time.perf_counter() - start


def cut(record: dict[str, Any], raw: bytes, how: str) -> Iterable[bytes]:
    row = len(raw) // record["rows"]
    start = 0
    for rows in record["entries"] if how == "texts" else [record["rows"]]:
        yield raw[start : start + rows * row]
        start += rows * row


@dataclass
class Series:
    """Seconds of one contestant at one task, round by round."""

    seconds: list[float] = field(default_factory=list)

    def against(self, other: Series) -> dict[str, float]:
        """How many times as fast as `other`, within each round."""
        factors = [theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True)]
        return {"median": median(factors), "min": min(factors), "max": max(factors)}

    def rate(self, raw: int) -> dict[str, float]:
        """Gigabytes of raw bytes a second."""
        return {"gb_s": raw / median(self.seconds) / 1e9, "best_gb_s": raw / min(self.seconds) / 1e9}


def rounds(tasks: dict[str, Task], count: int) -> dict[str, Series]:
    """Runs every task in each round, in an order drawn anew: once to warm up after the others, and once that counts."""
    order, series, chance = list(tasks), {name: Series() for name in tasks}, random.Random(0)
    for number in range(count):
        chance.shuffle(order)
        for name in order:
            tasks[name](2 * number)
            series[name].seconds.append(tasks[name](2 * number + 1))
    return series


def total(sizes: Sequence[dict[str, Any]]) -> int:
    return sum(map(cost, sizes))


def cost(size: dict[str, Any]) -> int:
    """All bytes that a store has for an activation's rows."""
    return size["stored"] + FRAME_BYTES * size["frames"] + MODEL_COPIES * size["model"]


def speed(ours: Ours, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Ratio and speed of each codec and kernel, of ZipNN, and of a copy."""
    ours.load(data, options.keys)
    rival = Rival(data, options.streams)
    tasks: dict[str, Task] = {"zipnn/encode": rival.encode, "zipnn/decode": rival.decode}
    sizes = {codec: ours.ask("sizes", codec) for codec in CODECS}
    for buffers in ("reused", "fresh"):
        tasks[f"memcpy/{buffers}"] = lambda _, buffers=buffers: ours.ask("copy", buffers)
        for codec, kernel in ((codec, kernel) for codec in sizes for kernel in ours.kernels):
            for task in ("encode", "decode"):
                words = (task, codec, kernel, buffers, 1)
                tasks[f"{codec} {kernel}/{task}/{buffers}"] = lambda _, words=words: ours.ask(*words)
    series = rounds(tasks, options.rounds)
    rows: dict[str, Any] = {
        "zipnn": {
            "ratio": rival.raw / sum(rival.stored_by_name.values()),
            **{task: series[f"zipnn/{task}"].rate(rival.raw) for task in ("encode", "decode")},
        }
    }
    for codec, kernel in ((codec, kernel) for codec in sizes for kernel in ours.kernels):
        row = rows[f"{codec} {kernel}"] = {"ratio": rival.raw / total(sizes[codec])}
        for task, buffers in ((task, buffers) for task in ("encode", "decode") for buffers in ("reused", "fresh")):
            one = series[f"{codec} {kernel}/{task}/{buffers}"]
            factor = one.against(series[f"zipnn/{task}"])
            row[f"{task} {buffers}"] = {**one.rate(rival.raw), "times_zipnn": factor}
    rows["memcpy"] = {buffers: series[f"memcpy/{buffers}"].rate(rival.raw) for buffers in ("reused", "fresh")}
    points = {
        size["name"]: {
            "raw": size["raw"],
            "zipnn": size["raw"] / rival.stored_by_name[size["name"]],
            **{codec: size["raw"] / cost(sizes[codec][number]) for codec in sizes},
            "stored": {codec: sizes[codec][number]["stored"] for codec in sizes},
            "encodings": {codec: sizes[codec][number]["encodings"] for codec in sizes},
        }
        for number, size in enumerate(sizes["planes"])
    }
    return {
        "title": data.title,
        "name": data.name,
        "raw": rival.raw,
        "contestants": rows,
        "activations": points,
        "by_activation": data in BY_ACTIVATION,
    }


def single_rows(ours: Ours, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds for a row out of the frames that a store has, in random order: of one layer after the other, of all
    layers at once, and for `archive` of the top layer of the chain instead of the first."""
    ours.load(data, options.keys)
    sizes = {codec: ours.ask("sizes", codec) for codec in ("raw", "zstd", *CODECS)}
    depth = max(size["depth"] for size in sizes["archive"])
    if depth == 0:
        del sizes["archive"]
    found: dict[str, Any] = {}
    tasks: dict[str, Task] = {}
    for codec in sizes:
        for kernel in ours.kernels if codec in CODECS else ours.kernels[-1:]:
            orders = ("top" if codec == "archive" else "layers", "all")
            for order in orders if len(sizes[codec]) > 1 else orders[:1]:
                name = f"{codec} {kernel}/{order}"
                found[name] = {"ratio": sum(size["raw"] for size in sizes[codec]) / total(sizes[codec])}
                for check in CHECKS:
                    words = ("read", codec, kernel, order, check, ROW_READS[codec])
                    tasks[f"{name}/{check}"] = lambda seed, words=words: ours.ask(*words, seed)
    for name, series in rounds(tasks, options.rounds).items():
        contestant, check = name.rsplit("/", 1)
        times = [seconds * 1e6 for seconds in series.seconds]
        found[contestant][check] = {"us": median(times), "min": min(times), "max": max(times)}
    return {"title": data.title, "name": data.name, "layers": depth + 1, "contestants": found}


def key_distances(ours: Ours, data: Data) -> dict[str, Any]:
    """Ratio of `archive` by key distance."""
    ratios: dict[int, float] = {}
    for distance in DISTANCES:
        ours.load(data, distance)
        sizes = ours.ask("sizes", "archive")
        ratios[distance] = sum(size["raw"] for size in sizes) / total(sizes)
    return {"title": data.title, "layers": len(sizes), "ratios": ratios}


def threads(one: Ours, two: Ours, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Two threads against one, in the same rounds. A round is several passes: threads that wake up late, once, are not
    what is looked for."""
    one.load(data, options.keys)
    two.load(data, options.keys, threads=2)
    tasks: dict[str, Task] = {}
    for codec, task in ((codec, task) for codec in CODECS for task in ("encode", "decode")):
        words = (task, codec, one.kernels[-1], "reused", PASSES)
        for count, side in enumerate((one, two), 1):
            tasks[f"{codec} {task}/{count}"] = lambda _, side=side, words=words: side.ask(*words)
    series = rounds(tasks, options.rounds)
    names = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in tasks))
    factors = {name: series[f"{name}/2"].against(series[f"{name}/1"]) for name in names}
    return {"title": data.title, "name": data.name, "kernel": one.kernels[-1], "factors": factors}


def stores(options: argparse.Namespace) -> dict[str, Any]:
    """What `store_size.py` says."""
    script = Path(__file__).with_name("store_size.py")
    command = [options.python, script, "--streams", options.streams, "--keys", str(options.keys)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the codecs against ZipNN; see README.md.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--keys", type=int, default=8, help="the key distance of archive")
    parser.add_argument("--only", default="", help="only what has this in its title")
    parser.add_argument("--streams", type=Path, default=ROOT / "target" / "bench-streams")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "results")
    program = ROOT / "target" / "release" / "examples" / "codec_rounds"
    parser.add_argument("--program", type=Path, default=program)
    python = ROOT / ".venv" / "bin" / "python"
    parser.add_argument("--python", type=Path, default=python, help="has actstore")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    torch.set_num_threads(1)
    gc.disable()
    settings = {"rounds": chosen.rounds, "keys": chosen.keys}
    document: dict[str, Any] = {"machine": {**describe(("zipnn", "torch")), **settings}}
    print("stores", flush=True)
    document["stores"] = stores(chosen)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-2:])
    two = Ours(chosen.program, chosen.streams)
    os.sched_setaffinity(0, cores[-1:])
    one = Ours(chosen.program, chosen.streams)
    document["machine"]["kernels"] = one.kernels

    def wanted(what: str, *some: Data) -> Iterable[Data]:
        for data in some:
            if chosen.only in data.title:
                print(f"{what}: {data.title}", flush=True)
                yield data

    document["speed"] = [speed(one, data, chosen) for data in wanted("speed", *SPEED)]
    document["rows"] = [single_rows(one, data, chosen) for data in wanted("single rows", MINILM, WIDE)]
    document["keys"] = [
        key_distances(one, data) for data in wanted("key distances", MINILM, MINILM_HALF, EMBEDDED_RESIDUAL)
    ]
    paired = (MINILM, EMBEDDED) if len(cores) > 1 else ()
    document["threads"] = [threads(one, two, data, chosen) for data in wanted("two threads", *paired)]
    document["targets"] = targets(document)
    one.close()
    two.close()
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "codec.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = markdown(document)
    (chosen.out / "codec.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
