"""Times the codecs against ZipNN, blosc2 and zstd on real activations, in rounds that take turns; README.md says how.

    codec.py [--rounds 15] [--keys 8] [--only minilm] [--streams FOLDER] [--out FOLDER] [--program FILE]

One thread on one core for all sides. Every comparison is made within a round, which times each contestant once, in an
order drawn anew; reported are medians over the rounds, the least and the most. What stores take is measured by
`store_size.py`, in the project's own environment.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from codec_data import (
    BY_ACTIVATION,
    EMBEDDED,
    EMBEDDED_RESIDUAL,
    MINILM,
    MINILM_HALF,
    SPEED,
    WIDE,
    Data,
    pieces,
)
from codec_report import markdown
from codec_rounds import rounds
from codec_sides import Other, Ours
from codec_targets import CHECKS, ZIPNN, targets
from machine import describe
from rivals import load_codecs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from codec_rounds import Series, Task
    from rivals.codec_alone import CodecAlone

ROOT = Path(__file__).resolve().parent.parent
FRAME_BYTES = 13
"""What a frame costs in the table of its activation."""
MODEL_COPIES = 2
"""How often a store has each model."""
ROW_READS = {"raw": 4000, "zstd": 200, "planes": 4000, "archive": 1000}
"""Rows read in a round, about."""
CODECS = ("planes", "archive")
TASKS = ("encode", "decode")
BUFFERS = ("reused", "fresh")
PASSES = 10
"""Of a round of two threads against one."""
DISTANCES = (1, 2, 3, 4, 6, 8, 16)
"""Key distances of which the ratio is reported."""


def total(sizes: Sequence[dict[str, Any]]) -> int:
    return sum(map(cost, sizes))


def cost(size: dict[str, Any]) -> int:
    """All bytes that a store has for an activation's rows."""
    return size["stored"] + FRAME_BYTES * size["frames"] + MODEL_COPIES * size["model"]


def speed(ours: Ours, codecs: Sequence[type[CodecAlone]], data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Ratio and speed of each codec and kernel, of the others, and of a copy."""
    ours.load(data, options.keys)
    cut = pieces(data, options.streams)
    others = [Other(codec(data.dtype), cut) for codec in codecs]
    sizes = {codec: ours.ask("sizes", codec) for codec in CODECS}
    raw = sum(size["raw"] for size in sizes["planes"])
    series = rounds(speed_tasks(ours, others), options.rounds)
    rows = {other.name: {"ratio": raw / other.stored, **other_speeds(other.name, series, raw)} for other in others}
    for codec, kernel in ((codec, kernel) for codec in sizes for kernel in ours.kernels):
        speeds = {
            f"{task} {buffers}": beside_zipnn(series, f"{codec} {kernel}/{task}/{buffers}", task, raw)
            for task in TASKS
            for buffers in BUFFERS
        }
        rows[f"{codec} {kernel}"] = {"ratio": raw / total(sizes[codec]), **speeds}
    rows["memcpy"] = {buffers: series[f"memcpy/{buffers}"].rate(raw) for buffers in BUFFERS}
    return {
        "title": data.title,
        "name": data.name,
        "raw": raw,
        "others": [other.name for other in others],
        "contestants": rows,
        "activations": by_activation(sizes, others),
        "by_activation": data in BY_ACTIVATION,
    }


def speed_tasks(ours: Ours, others: Iterable[Other]) -> dict[str, Task]:
    """By contestant, what it does, and into which buffers; those of the others are always fresh."""
    tasks: dict[str, Task] = {}
    for other in others:
        tasks |= {f"{other.name}/encode/fresh": other.encode, f"{other.name}/decode/fresh": other.decode}
    for buffers in BUFFERS:
        tasks[f"memcpy/{buffers}"] = lambda _, buffers=buffers: ours.ask("copy", buffers)
        for codec, kernel in ((codec, kernel) for codec in CODECS for kernel in ours.kernels):
            for task in TASKS:
                words = (task, codec, kernel, buffers, 1)
                tasks[f"{codec} {kernel}/{task}/{buffers}"] = lambda _, words=words: ours.ask(*words)
    return tasks


def other_speeds(name: str, series: dict[str, Series], raw: int) -> dict[str, Any]:
    return {f"{task} fresh": beside_zipnn(series, f"{name}/{task}/fresh", task, raw) for task in TASKS}


def beside_zipnn(series: dict[str, Series], name: str, task: str, raw: int) -> dict[str, Any]:
    return {**series[name].rate(raw), "times_zipnn": series[name].against(series[f"{ZIPNN}/{task}/fresh"])}


def by_activation(sizes: dict[str, Any], others: Iterable[Other]) -> dict[str, Any]:
    return {
        size["name"]: {
            "raw": size["raw"],
            **{other.name: size["raw"] / other.stored_by_name[size["name"]] for other in others},
            **{codec: size["raw"] / cost(sizes[codec][number]) for codec in sizes},
            "stored": {codec: sizes[codec][number]["stored"] for codec in sizes},
            "encodings": {codec: sizes[codec][number]["encodings"] for codec in sizes},
        }
        for number, size in enumerate(sizes["planes"])
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
    for codec, task in ((codec, task) for codec in CODECS for task in TASKS):
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
    parser = argparse.ArgumentParser(description="Times the codecs against others; see README.md.")
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
    codecs, absent = load_codecs()
    if ZIPNN not in {codec.name for codec in codecs}:
        raise SystemExit(f"all are compared with `{ZIPNN}`, which is not here: {absent}")
    packages = sorted({codec.package for codec in codecs})
    document: dict[str, Any] = {"machine": {**describe((*packages, "torch")), **settings}, "left_out": absent}
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

    document["speed"] = [speed(one, codecs, data, chosen) for data in wanted("speed", *SPEED)]
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
