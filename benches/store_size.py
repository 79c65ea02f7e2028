"""Writes the benchmark's activations to stores with the public API, and says what all files of each take.

    .venv/bin/python benches/store_size.py [--streams FOLDER] [--keys 8]

Prints JSON: `minilm`, by dtype and codec, and `embedded`, by codec. Nothing is timed. Run in the project's own
environment.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import actstore
from actstore import demo

if TYPE_CHECKING:
    from actstore.store import Store

ROOT = Path(__file__).resolve().parent.parent
CODECS = ("planes", "archive", "zstd", "raw")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POINTS = ("embed", "resid_post", "attn_out", "mlp_out", "final_norm", "logits")


def minilm(streams: Path, dtype: str) -> tuple[list[list[int]], list[dict[str, torch.Tensor]]]:
    """Token ids of each text, and its hidden states as the hook points of a decoder."""
    index = json.loads((streams / "index.json").read_text(encoding="utf-8"))
    chosen = [record for record in index["streams"] if (record["group"], record["dtype"]) == ("minilm", dtype)]
    texts: list[dict[str, torch.Tensor]] = [{} for _ in index["texts"]]
    for record in chosen:
        raw = bytearray((streams / record["file"]).read_bytes())
        values = torch.frombuffer(raw, dtype=DTYPES[dtype]).reshape(record["rows"], record["row_values"])
        layer = record["layer"]
        point = f"blocks.{layer - 1}.hook_resid_post" if layer else "hook_embed"
        for text, rows in zip(texts, values.split(record["entries"]), strict=True):
            text[point] = rows
    return index["texts"], texts


def create(path: Path, codec: str, keys: int) -> Store:
    return actstore.create(path, codec=codec, key_distance=keys if codec == "archive" else None)


def size(path: Path) -> dict[str, Any]:
    """What a store of raw bytes has in frames, and in all files."""
    with actstore.open(path) as store:
        info = store.info()
    encodings: Counter[str] = Counter()
    for point in info["points"]:
        encodings.update(point["encodings"])
    files = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert files == info["file_bytes"], "info counts other files"
    return {
        "entries": info["entries"],
        "raw": info["raw_bytes"],
        "stored": info["stored_bytes"],
        "files": files,
        "encodings": dict(encodings),
        "points": {
            point["point"]: {
                "raw": point["raw_bytes"],
                "stored": point["stored_bytes"],
                "encodings": point["encodings"],
            }
            for point in info["points"]
        },
    }


def put_minilm(path: Path, streams: Path, dtype: str, codec: str, keys: int) -> dict[str, Any]:
    ids, texts = minilm(streams, dtype)
    with create(path, codec, keys) as store:
        with store.writer() as writer:
            for number, (row, activations) in enumerate(zip(ids, texts, strict=True)):
                writer.put(activations=activations, token_ids=row, key=f"text-{number}")
        last = store[f"text-{len(texts) - 1}"]
        for point, rows in texts[-1].items():
            assert torch.equal(last[point], rows), "a store does not keep the bytes"
    return size(path)


def capture_embedded(path: Path, codec: str, keys: int) -> dict[str, Any]:
    """Every hook point over all questions, one at a time, so that the states are those of `streams.py`."""
    model, tokenizer = demo.load()
    with (
        create(path, codec, keys) as store,
        actstore.capture(model, tokenizer, points=POINTS, store=store),
        torch.inference_mode(),
    ):
        for question in demo.questions():
            model(torch.tensor([tokenizer(question.prompt(tokenizer))["input_ids"]]))
    return size(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="What stores of the benchmark's activations take.")
    parser.add_argument("--streams", type=Path, default=ROOT / "target" / "bench-streams")
    parser.add_argument("--keys", type=int, default=8)
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small for more
    document: dict[str, Any] = {"minilm": {}, "embedded": {}}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            document["minilm"][dtype] = {
                codec: put_minilm(Path(folder, f"{dtype}-{codec}"), chosen.streams, dtype, codec, chosen.keys)
                for codec in CODECS
            }
        for codec in ("planes", "archive"):
            document["embedded"][codec] = capture_embedded(Path(folder, f"embedded-{codec}"), codec, chosen.keys)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
