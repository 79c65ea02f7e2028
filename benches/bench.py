"""actstore against what people store activations in, in rounds that take turns; README.md says what and how.

    bench.py quick|bench|full [--rounds N] [--entries N] [--only JOB] [--dtype DTYPE]
             [--seconds N] [--out FOLDER]

Writes FOLDER/MODE.md, MODE.json and a picture a run; with a dtype, FOLDER/MODE-DTYPE.md and so on. What was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entries
import machine
import ours
import rivals
from isolated import Isolated
from jobs import Workload
from plot import draw
from report import markdown
from rounds import Plan, Run
from summary import summarize
from targets import judge

if TYPE_CHECKING:
    from rivals.rival import Rival

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
STORES = ROOT / "target" / "bench"
PACKAGES = ("actstore", "numpy", "torch", "matplotlib", "zipnn")


@dataclass(frozen=True)
class Mode:
    """How much of everything."""

    dtypes: tuple[str, ...]
    entries: int
    rounds: int
    seconds: float | None
    """What everything may take, the report left out; None has no bound."""
    many_entries: int
    memory_entries: tuple[int, ...]
    rivals_apart: bool = False
    """Whether memory and syncs are those of all rivals too."""


MODES = {
    "quick": Mode(("bfloat16",), 60, 1, 150, 20_000, (60,)),
    "bench": Mode(("bfloat16",), 2000, 7, 1170, 1_000_000, (2000, 20_000)),
    "full": Mode(("bfloat16", "float16", "float32"), 2000, 9, None, 1_000_000, (2000, 20_000), rivals_apart=True),
}
PARTS = {"minilm": 0.68, "embedded": 0.08}
"""Of the seconds; what is left of them is for what runs in processes of its own."""
COMPARED = ("actstore", "actstore, raw", "py-lmdb, pickled")
"""Whose memory and syncs are measured where not everybody's are."""


def runs(mode: Mode, chosen: argparse.Namespace, commit: str, some: list[Rival]) -> list[dict[str, Any]]:
    """MiniLM in each dtype, and the embedded model in its own; or MiniLM in the chosen one."""
    found: list[dict[str, Any]] = []
    everything = [*(("minilm", dtype) for dtype in mode.dtypes), ("embedded", "bfloat16")]
    for data, dtype in [("minilm", chosen.dtype)] if chosen.dtype else everything:
        print(f"{data}, {dtype}", flush=True)
        work = Workload(entries.load(data, dtype, chosen.entries or mode.entries))
        part = 1.0 if chosen.dtype else PARTS[data]
        seconds = None if mode.seconds is None else (chosen.seconds or mode.seconds) * part
        plan = Plan(data, dtype, len(work.entries), chosen.rounds or mode.rounds, seconds, commit)
        gc.collect()
        gc.freeze()  # so that collecting before each time looks at nothing that stays
        run = Run(plan, some, work, STORES / chosen.mode)
        found.append(summarize(run.go(chosen.only), some, work))
        run.clear()
        gc.unfreeze()
    return found


def apart(mode: Mode, isolated: Isolated, some: list[Rival]) -> dict[str, Any]:
    """What runs in processes of its own."""
    print("processes of their own", flush=True)
    measured = [one for one in some if one.name in COMPARED or (mode.rivals_apart and not one.ours)]
    isolated.imports(mode.rounds)
    isolated.open(mode.many_entries)
    isolated.syncs(measured, mode.memory_entries[0])
    isolated.memory(measured, mode.memory_entries[:1])
    isolated.memory([one for one in measured if one.ours], mode.memory_entries[1:])
    return isolated.found


def codec_figures() -> dict[str, Any] | None:
    """What `make bench-codec` found last."""
    path = RESULTS / "codec.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="actstore against what people use; see README.md.")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--rounds", type=int, default=0, help="another number of rounds")
    parser.add_argument("--entries", type=int, default=0, help="another number of entries")
    parser.add_argument("--only", default="", help="only jobs that have this in their name, and no others' processes")
    parser.add_argument("--dtype", default="", help="MiniLM in this dtype alone, and no others' processes")
    parser.add_argument("--seconds", type=int, default=0, help="another bound of time for the rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    start = time.monotonic()
    mode = MODES[chosen.mode]
    others, absent = rivals.load()
    some = [*ours.load(), *others]
    where = machine.describe(sorted({one.package for one in some if one.package} | set(PACKAGES)))
    document: dict[str, Any] = {"mode": chosen.mode, "machine": where, "left_out": absent, "isolated": {}}
    document["runs"] = runs(mode, chosen, where["commit"], some)
    if not chosen.only and not chosen.dtype:
        left = None if mode.seconds is None else mode.seconds - (time.monotonic() - start)
        isolated = Isolated(STORES / chosen.mode / "apart", where["commit"], left)
        document["isolated"] = apart(mode, isolated, some)
    document["targets"] = judge(document, codec_figures())
    document["seconds"] = time.monotonic() - start
    write(document, "-".join(filter(None, (chosen.mode, chosen.dtype))), chosen.out)
    shutil.rmtree(STORES / chosen.mode, ignore_errors=True)


def write(document: dict[str, Any], name: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = markdown(document)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    for run in document["runs"]:
        draw(run, document["machine"], out / f"{document['mode']}-{run['plan']['data']}-{run['plan']['dtype']}.png")
    print(text)


if __name__ == "__main__":
    main()
