"""actstore against what people store activations in, in rounds that take turns; README.md says what and how.

    bench.py quick|bench|full [--rounds N] [--only JOB] [--out FOLDER]

Writes FOLDER/MODE.md, MODE.json and a picture a run. What was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import entries
import isolated
import machine
import ours
import rivals
from jobs import Workload
from plot import draw
from report import markdown
from rounds import Plan, Run
from summary import summarize
from targets import judge

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
STORES = ROOT / "target" / "bench"
PACKAGES = ("actstore", "numpy", "torch", "matplotlib", "zipnn")


LONGEST = 5.0
"""Seconds that any job may take before its contestant does the first k operations alone."""


@dataclass(frozen=True)
class Mode:
    """How much of everything."""

    dtypes: tuple[str, ...]
    entries: int
    rounds: int
    read_limit: float
    write_limit: float
    many_entries: int
    memory_entries: tuple[int, ...]
    rivals_apart: bool
    """Whether memory and syncs are those of rivals too."""


MODES = {
    "quick": Mode(("bfloat16",), 60, 1, 0.05, 0.1, 20_000, (60,), rivals_apart=False),
    "bench": Mode(("bfloat16",), 2000, 7, 0.4, 2.5, 1_000_000, (2000, 20_000), rivals_apart=False),
    "full": Mode(
        ("bfloat16", "float16", "float32"), 2000, 9, LONGEST, LONGEST, 1_000_000, (2000, 20_000), rivals_apart=True
    ),
}


def contestants() -> tuple[list[rivals.Rival], dict[str, str]]:
    others, absent = rivals.load()
    return [*(one() for one in ours.OURS), *others], absent


def runs(mode: Mode, chosen: argparse.Namespace, commit: str, some: list[rivals.Rival]) -> list[dict[str, Any]]:
    """MiniLM in each dtype, and the embedded model in its own."""
    found: list[dict[str, Any]] = []
    for data, dtype in [*(("minilm", dtype) for dtype in mode.dtypes), ("embedded", "bfloat16")]:
        print(f"{data}, {dtype}", flush=True)
        work = Workload(entries.load(data, dtype, mode.entries))
        limits = (mode.read_limit, mode.write_limit)
        if data == "embedded" and mode.read_limit < LONGEST:
            limits = (mode.read_limit / 4, mode.write_limit / 4)  # it is far smaller
        plan = Plan(data, dtype, len(work.entries), chosen.rounds or mode.rounds, *limits, commit)
        gc.collect()
        gc.freeze()  # so that collecting before each time looks at nothing that stays
        run = Run(plan, some, work, STORES / chosen.mode)
        found.append(summarize(run.go(chosen.only), some, work))
        run.clear()
    return found


def apart(mode: Mode, some: list[rivals.Rival]) -> dict[str, Any]:
    """What runs in processes of its own."""
    print("processes of their own: import, open, memory", flush=True)
    folder = STORES / "apart"
    folder.mkdir(parents=True, exist_ok=True)
    measured = [
        one for one in some if one.name in ("actstore", "actstore, raw") or (mode.rivals_apart and not one.ours)
    ]
    few = mode.memory_entries[:1]
    return {
        "imports": isolated.imports(mode.rounds),
        "open": isolated.many_entries(folder, mode.many_entries),
        "syncs": {one.name: isolated.syncs(one, folder, "minilm", "bfloat16", mode.entries) for one in measured},
        "memory": {
            one.name: isolated.memory(one, folder, "minilm", "bfloat16", mode.memory_entries if one.ours else few)
            for one in measured
        },
    }


def codec_figures() -> dict[str, Any] | None:
    """What `make bench-codec` found last."""
    path = RESULTS / "codec.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="actstore against what people use; see README.md.")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--rounds", type=int, default=0, help="another number of rounds")
    parser.add_argument("--only", default="", help="only jobs that have this in their name, and no others' processes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    start = time.monotonic()
    mode = MODES[chosen.mode]
    some, absent = contestants()
    packages = sorted({one.package for one in some if one.package} | set(PACKAGES))
    where = machine.describe(packages)
    document: dict[str, Any] = {"mode": chosen.mode, "machine": where, "left_out": absent, "codec": codec_figures()}
    document["runs"] = runs(mode, chosen, where["commit"], some)
    document["isolated"] = {} if chosen.only else apart(mode, some)
    document["targets"] = judge(document)
    document["seconds"] = time.monotonic() - start
    del document["codec"]
    write(document, chosen.mode, chosen.out)
    shutil.rmtree(STORES / chosen.mode, ignore_errors=True)


def write(document: dict[str, Any], mode: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{mode}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = markdown(document)
    (out / f"{mode}.md").write_text(text, encoding="utf-8")
    for run in document["runs"]:
        draw(run, document["machine"], out / f"{mode}-{run['plan']['data']}-{run['plan']['dtype']}.png")
    print(text)


if __name__ == "__main__":
    main()
