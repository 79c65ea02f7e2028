"""What capturing costs: tokens a second of a model left alone, captured by actstore, and by what people do instead.

    capture.py [--rounds N] [--batches N] [--out FOLDER]

On the CUDA device where there is one, else on the CPU. Writes FOLDER/capture.md and capture.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest import mock

import lmdb
import torch

import actstore
import entries
import machine
import streams
from actstore.capture.drain import Finished
from codec_report import table
from contest import undisturbed
from verdicts import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target" / "bench-capture"
BATCH_TEXTS = 32
BATCHES = {"cpu": 4, "cuda": 60}
"""A device that is fast gets more, so that beginning and ending weigh as little as in a long run."""
POINTS = ("embed", "resid_post")
"""As many as hidden states: of the last layer the block's own output, where transformers gives the normed one."""
LEAST_ROUNDS = 10
MAP_BYTES = 1 << 36
ALONE, PICKLED = "no hooks", "output_hidden_states, .cpu(), pickled LMDB"

Batch = dict[str, "Tensor"]


@dataclass
class Subject:
    """A model, and the batches that it is fed."""

    name: str
    model: Any
    batches: list[Batch]
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = sum(int(batch["attention_mask"].sum()) for batch in self.batches)

    def forward(self) -> None:
        for batch in self.batches:
            self.model(**batch)

    @property
    def raw_bytes(self) -> int:
        """Of all activations that are to be stored."""
        config = self.model.config
        return self.tokens * config.hidden_size * (config.num_hidden_layers + 1) * self.model.dtype.itemsize


def alone(subject: Subject) -> None:
    subject.forward()


def captured(subject: Subject, expected: int, **options: Any) -> None:
    with actstore.capture(subject.model, points=POINTS, **options) as recorder:
        subject.forward()
    if recorder.stats.raw_bytes != expected:
        raise AssertionError(f"{recorder.stats.raw_bytes} bytes were captured of {expected}")


def discarded(subject: Subject) -> None:
    """Hooks, copies and the batch that they go to, but no entry: what the model pays before anything is stored."""
    with mock.patch.object(Finished, "run"):
        captured(subject, 0, backend="memory")


def in_memory(subject: Subject) -> None:
    captured(subject, subject.raw_bytes, backend="memory")


def in_shards(subject: Subject) -> None:
    captured(subject, subject.raw_bytes, store=FOLDER / "store")


def pickled(subject: Subject) -> None:
    """One transaction for all, which is what suits it best."""
    stored = 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(FOLDER / "lmdb"), map_size=MAP_BYTES) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number, batch in enumerate(subject.batches):
            states = [state.cpu() for state in subject.model(**batch, output_hidden_states=True).hidden_states]
            for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
                # Of a view all that it views is pickled.
                values = {f"layer_{layer}": state[row, :length].clone() for layer, state in enumerate(states)}
                stored += sum(value.nbytes for value in values.values())
                transaction.put(f"{number}-{row}".encode(), pickle.dumps(values, pickle.HIGHEST_PROTOCOL))
    if stored != subject.raw_bytes:
        raise AssertionError(f"{stored} bytes were stored of {subject.raw_bytes}")


CONTESTANTS: dict[str, Callable[[Subject], None]] = {
    ALONE: alone,
    "actstore, discarded": discarded,
    "actstore, memory": in_memory,
    "actstore, shards": in_shards,
    PICKLED: pickled,
}


def subjects(device: str, count: int) -> list[Subject]:
    minilm, _ = streams.load_minilm()
    embedded, _ = actstore.demo.load()
    models = {"minilm": minilm, "embedded": embedded}
    return [Subject(name, model.to(device).eval(), batches(name, device, count)) for name, model in models.items()]


def batches(data: str, device: str, count: int) -> list[Batch]:
    """Of the first texts of the harness, those of like length together, padded on the right."""
    texts = entries.describe(data)["texts"][: count * BATCH_TEXTS]
    ids = sorted((text["token_ids"] for text in texts), key=len)
    starts = range(0, len(ids), BATCH_TEXTS)
    return [padded(ids[start : start + BATCH_TEXTS], device) for start in starts]


def padded(ids: Sequence[list[int]], device: str) -> Batch:
    lengths = torch.tensor([len(row) for row in ids])
    values = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
    mask = torch.arange(values.shape[1]) < lengths[:, None]
    return {"input_ids": values.to(device), "attention_mask": mask.long().to(device)}


def timed(contestant: Callable[[Subject], None], subject: Subject) -> tuple[float, float]:
    """Seconds until all is stored, durably where there are files; and CPU seconds of all threads."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with undisturbed():
        start, cpu = time.perf_counter(), time.process_time()
        contestant(subject)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start, time.process_time() - cpu


def measure(subject: Subject, rounds: int) -> dict[str, dict[str, list[float]]]:
    """By contestant `seconds` and `cpu`, a round an item; a first round does not count."""
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu": []} for name in CONTESTANTS}
    for number in range(rounds + 1):
        order = list(CONTESTANTS)
        random.Random(number).shuffle(order)
        for name in order:
            seconds, cpu = timed(CONTESTANTS[name], subject)
            if number:
                found[name]["seconds"].append(seconds)
                found[name]["cpu"].append(cpu)
        print(f"  {subject.name}: round {number} of {rounds}", flush=True)
    return found


def summary(subject: Subject, found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    rows = {
        name: {
            **of,
            "tokens_per_second": subject.tokens / median(of["seconds"]),
            "against_alone": compare(of["seconds"], found[ALONE]["seconds"]).document(),
            "against_pickled": compare(of["seconds"], found[PICKLED]["seconds"]).document(),
            "cpu_against_alone": median(a / b for a, b in zip(of["cpu"], found[ALONE]["cpu"], strict=True)),
        }
        for name, of in found.items()
    }
    sizes = {"tokens": subject.tokens, "batches": len(subject.batches), "raw_bytes": subject.raw_bytes}
    return {"model": subject.name, "dtype": str(subject.model.dtype).removeprefix("torch."), **sizes, "rows": rows}


def markdown(document: dict[str, Any]) -> str:
    lines = [
        "# What capturing costs",
        "",
        f"{document['device']}; {machine.sentence(document['machine'])}. {document['rounds']} rounds that take turns; "
        "ratios of times within a round, above 1 is slower.",
        "",
    ]
    head = ["", "tokens/s", "time / no hooks", "CPU s", "CPU / no hooks", "time / pickled LMDB"]
    for subject in document["subjects"]:
        lines += [
            f"## {subject['model']}, {subject['dtype']}",
            "",
            f"{subject['tokens']:,} tokens in {subject['batches']} batches; {subject['raw_bytes'] / 1e6:,.1f} MB.",
            "",
            *table(head, [row(name, of) for name, of in subject["rows"].items()]),
        ]
    return "\n".join(lines).rstrip() + "\n"


def row(name: str, of: dict[str, Any]) -> list[str]:
    beside, rival = of["against_alone"], of["against_pickled"]
    return [
        name,
        f"{of['tokens_per_second']:,.0f}",
        "" if name == ALONE else f"{beside['median']:.2f} ({beside['least']:.2f}-{beside['most']:.2f})",
        f"{median(of['cpu']):.2f}",
        "" if name == ALONE else f"{of['cpu_against_alone']:.2f}",
        "" if name == PICKLED else f"{rival['median']:.2f} {rival['verdict']}",
    ]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What capturing costs; see README.md.")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--batches", type=int, default=0, help=f"another number, of {BATCH_TEXTS} texts each")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "results")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    chosen = options()
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "no CUDA device here, so on the CPU"
    print(device, flush=True)
    document: dict[str, Any] = {
        "device": device,
        "machine": machine.describe(("actstore", "torch", "transformers", "lmdb")),
    }
    document["rounds"] = chosen.rounds
    document["subjects"] = []
    kind = "cuda" if cuda else "cpu"
    for subject in subjects(kind, chosen.batches or BATCHES[kind]):
        gc.collect()
        document["subjects"].append(summary(subject, measure(subject, chosen.rounds)))
    shutil.rmtree(FOLDER, ignore_errors=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "capture.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (chosen.out / "capture.md").write_text(markdown(document), encoding="utf-8")
    print(markdown(document))


if __name__ == "__main__":
    main()
