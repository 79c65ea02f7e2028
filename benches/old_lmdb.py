"""Old LMDB logs: what importing one costs beside copying it, and what two layers cost before and after.

    old_lmdb.py [--rounds N] [--entries N] [--out FOLDER]

Writes FOLDER/old_lmdb.md and old_lmdb.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np
import torch

import actstore
import machine
import page_cache
from actstore.formats import import_store
from codec_report import table
from contest import undisturbed
from verdicts import ROUNDS, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.store import Store

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target" / "bench-old-lmdb"
SOURCE = FOLDER / "log.lmdb"
COPY = "py-lmdb loop"
IMPORTS: dict[str, dict[str, Any]] = {
    "actstore": {},
    "actstore, raw": {"codec": "raw"},
    "actstore, lmdb, raw": {"codec": "raw", "target_format": "lmdb"},
}
MAP_BYTES = 64 << 30
LAYERS, TOKENS, WIDTH = 37, 64, 4096
POINTS = ("resid_post.14", "resid_post.22")
LEAST_SHARE = 0.8
"""Of the speed of the copy."""
LEAST_FACTOR = 10.0
"""Two layers, in times of the pickle."""
READS = 20


def write_log(count: int) -> None:
    """Entries as the logger wrote them: channels of scales of their own, and each layer the one below and a little."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    scales = np.exp(np.random.default_rng(0).normal(0, 1, WIDTH)).astype(np.float32)
    places = (SOURCE, SOURCE.with_name(f"{SOURCE.name}_metadata"))
    entries, metadata = (lmdb.open(str(place), map_size=MAP_BYTES) for place in places)
    for number in range(count):
        generator = np.random.default_rng(number + 1)
        state, states = np.zeros((1, TOKENS, WIDTH), np.float32), list[torch.Tensor]()
        for _ in range(LAYERS):
            state = state + generator.standard_normal((1, TOKENS, WIDTH), np.float32) * scales
            states.append(torch.from_numpy(state.astype(np.float16)))
        prompt = f"Question {number}?"
        fields = {"prompt": prompt, "response": "An answer.", "input_length": 16, "model": "m", "trim_position": None}
        value = {"data": {**fields, "all_layers_activations": states}, "metadata": {"compression": "none"}}
        said = {
            **fields,
            "logging_config": {"target_layers": "all", "sequence_mode": "all"},
            "timestamp": 1.7e9 + number,
            "has_activations": True,
            "compression_metadata": {"compression": "none"},
        }
        for environment, item in ((entries, value), (metadata, said)):
            with environment.begin(write=True) as transaction:
                transaction.put(hashlib.sha256(prompt.encode()).hexdigest().encode(), pickle.dumps(item, 4))
    for environment in (entries, metadata):
        environment.close()


def copy() -> None:
    """Both environments into new ones: a transaction an entry, as the logger has, and one sync at the end."""
    for place in (SOURCE, SOURCE.with_name(f"{SOURCE.name}_metadata")):
        target = FOLDER / "made" / place.name
        target.mkdir(parents=True)
        with (
            lmdb.open(str(place), map_size=MAP_BYTES, readonly=True, lock=False) as source,
            lmdb.open(str(target), map_size=MAP_BYTES, sync=False) as copied,
            source.begin(buffers=True) as values,
        ):
            for key, value in values.cursor():
                with copied.begin(write=True) as transaction:
                    transaction.put(key, value, append=True)
            copied.sync(True)


def imported(name: str) -> None:
    report = import_store(SOURCE, FOLDER / "made" / "store", **IMPORTS[name])
    if report.left_out:
        raise AssertionError(report.left_out)


def contestants() -> dict[str, Callable[[], None]]:
    ours: dict[str, Callable[[], None]] = {name: (lambda name=name: imported(name)) for name in IMPORTS}
    return {COPY: copy, **ours}


def timed(contestant: Callable[[], None]) -> tuple[float, float, int]:
    """Seconds until all is durable and closed, CPU seconds, bytes of files. The source is warm, the disk idle."""
    shutil.rmtree(FOLDER / "made", ignore_errors=True)
    page_cache.warm(SOURCE)
    os.sync()
    with undisturbed():
        start, cpu = time.perf_counter(), time.process_time()
        contestant()
        return time.perf_counter() - start, time.process_time() - cpu, page_cache.file_bytes(FOLDER / "made")


def measure_imports(rounds: int) -> dict[str, dict[str, Any]]:
    """By contestant `seconds` and `cpu`, a round an item; a first round does not count."""
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "cpu": []} for name in contestants()}
    for number in range(rounds + 1):
        order = list(contestants().items())
        random.Random(number).shuffle(order)
        for name, contestant in order:
            seconds, cpu, size = timed(contestant)
            if number:
                found[name]["seconds"].append(seconds)
                found[name]["cpu"].append(cpu)
                found[name]["bytes"] = size
        print(f"  import: round {number} of {rounds}", flush=True)
    return found


def peak_bytes(name: str) -> int:
    """The most anonymous memory while a process imports, over what it had before."""
    shutil.rmtree(FOLDER / "made", ignore_errors=True)
    done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True)
    return int(done.stdout)


def print_peak(name: str) -> None:
    sys.path.append(str(ROOT / "tests"))
    from memory import Peak, anonymous_bytes

    actstore.create(backend="memory").close()
    before = anonymous_bytes()
    with Peak() as peak:
        imported(name)
    print(peak.bytes - before)


def two_layers_of_pickle(environment: lmdb.Environment, key: bytes) -> int:
    with environment.begin() as transaction:
        states = pickle.loads(transaction.get(key))["data"]["all_layers_activations"]
    # Hidden state i is the residual stream of layer i - 1.
    return sum_of([states[15][0], states[23][0]])


def two_layers_of_store(store: Store, key: str) -> int:
    entry = store[key]
    return sum_of([entry.torch(point) for point in POINTS])


def sum_of(tensors: list[torch.Tensor]) -> int:
    """Of the bits: whoever mapped a file has read it."""
    return sum(int(tensor.numpy().view(np.int64).sum()) for tensor in tensors)


def measure_reads(rounds: int) -> dict[str, list[float]]:
    """Mean seconds of reading two layers of one entry, another each time; by contestant, a round an item."""
    found: dict[str, list[float]] = {name: [] for name in ("pickle.loads(txn.get(key))", *IMPORTS)}
    stores: dict[str, Any] = {}
    for number, name in enumerate(IMPORTS):
        import_store(SOURCE, FOLDER / f"read-{number}", **IMPORTS[name])
        stores[name] = actstore.open(FOLDER / f"read-{number}")
    keys = stores["actstore"].keys()
    with lmdb.open(str(SOURCE), map_size=MAP_BYTES, readonly=True, lock=False) as environment:
        readers: dict[str, Callable[[str], int]] = {
            "pickle.loads(txn.get(key))": lambda key: two_layers_of_pickle(environment, key.encode()),
            **{name: (lambda key, store=store: two_layers_of_store(store, key)) for name, store in stores.items()},
        }
        for number in range(rounds + 1):
            chosen = random.Random(number).choices(keys, k=READS)
            order = list(readers)
            random.Random(number).shuffle(order)
            sums = set[int]()
            for name in order:
                with undisturbed():
                    start = time.perf_counter()
                    sums.add(sum(readers[name](key) for key in chosen))
                    seconds = (time.perf_counter() - start) / READS
                if number:
                    found[name].append(seconds)
            if len(sums) != 1:
                raise AssertionError("contestants read different values")
    for store in stores.values():
        store.close()
    return found


def summary(
    entries: int, load: float, imports: dict[str, dict[str, Any]], reads: dict[str, list[float]]
) -> dict[str, Any]:
    pickled = next(iter(reads))
    for of in imports.values():
        of["speed"] = compare(imports[COPY]["seconds"], of["seconds"]).document()
    return {
        "machine": machine.describe(("actstore", "torch", "numpy", "lmdb")),
        "load": load,
        "entries": entries,
        "raw_bytes": entries * LAYERS * TOKENS * WIDTH * 2,
        "imports": imports,
        "reads": {
            name: {"seconds": of, "factor": compare(reads[pickled], of).document()} for name, of in reads.items()
        },
    }


def markdown(document: dict[str, Any]) -> str:
    raw = document["raw_bytes"]
    rows = [
        [
            name,
            f"{median(of['seconds']):.2f}",
            f"{raw / median(of['seconds']) / 1e6:,.0f}",
            "" if name == COPY else ratio(of["speed"]),
            f"{median(of['cpu']):.2f}",
            f"{raw / of['bytes']:.3f}",
            "" if name == COPY else f"{of['peak_bytes'] / 1e6:,.0f}",
        ]
        for name, of in document["imports"].items()
    ]
    reads = [
        [name, f"{median(of['seconds']) * 1e3:.2f}", "" if not number else ratio(of["factor"])]
        for number, (name, of) in enumerate(document["reads"].items())
    ]
    share, times = (
        document[part]["actstore"][of]["median"] for part, of in (("imports", "speed"), ("reads", "factor"))
    )
    return "\n".join(
        [
            "# Old LMDB logs",
            "",
            f"{machine.sentence(document['machine'])}. {document['entries']} entries of {LAYERS} x "
            f"[1, {TOKENS}, {WIDTH}] float16, {raw / 1e6:,.0f} MB; ratios within a round, above 1 is faster. "
            f"Processes that others had running at the start: {document['load']:.1f}.",
            "",
            f"Import at {LEAST_SHARE} of the copy's speed: {share:.2f}, {verdict(share >= LEAST_SHARE)}. "
            f"Two layers {LEAST_FACTOR:.0f} times as fast: {times:.1f}, {verdict(times >= LEAST_FACTOR)}.",
            "",
            "## Importing, durable",
            "",
            *table(["", "s", "MB/s", "speed / copy", "CPU s", "raw / files", "peak MB"], rows),
            "## Two layers of one entry, warm",
            "",
            *table(["", "ms", "times as fast"], reads),
        ]
    )


def ratio(of: dict[str, Any]) -> str:
    return f"{of['median']:.2f} ({of['least']:.2f}-{of['most']:.2f})"


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Old LMDB logs; see README.md.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--entries", type=int, default=52, help="of 19.4 MB each")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "results")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    if chosen.peak is not None:
        print_peak(chosen.peak)
        return
    load = os.getloadavg()[0]
    write_log(chosen.entries)
    imports = measure_imports(chosen.rounds)
    for name in IMPORTS:
        imports[name]["peak_bytes"] = peak_bytes(name)
    document = summary(chosen.entries, load, imports, measure_reads(chosen.rounds))
    shutil.rmtree(FOLDER)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "old_lmdb.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (chosen.out / "old_lmdb.md").write_text(markdown(document), encoding="utf-8")
    print(markdown(document))


if __name__ == "__main__":
    main()
