"""The entries that the harness stores: real texts, and the residual streams that real models compute of them.

    entries.py [FOLDER]    (default: target/bench-entries)

`minilm`: 2,000 texts of very different lengths, hidden states 0 to 6 of all-MiniLM-L6-v2, 384 wide, computed in float32
and cast where they are loaded. `embedded`: the 500 questions of `actstore.demo`, its embedding and residual stream, 128
wide, in bfloat16 as it computes. One text a forward, so there is no padding. Nothing is downloaded.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEFAULT_FOLDER = streams.ROOT / "target" / "bench-entries"
COUNT = 2000
MOST_TOKENS = 256
LEAST_WORDS = 6
LONGEST_WORDS = 220
DTYPES = streams.DTYPES
NATIVE = {"minilm": "float32", "embedded": "bfloat16"}
"""The dtype that the file of each data set has."""


@dataclass(frozen=True)
class Entry:
    """A text and its activations, each [tokens, d]."""

    key: str
    prompt: str
    token_ids: list[int]
    metadata: dict[str, Any]
    activations: dict[str, torch.Tensor]

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def raw_bytes(self) -> int:
        return sum(value.nbytes for value in self.activations.values())

    def document(self) -> dict[str, Any]:
        """What everybody stores beside the activations; rivals are spared the token ids."""
        return {"key": self.key, "prompt": self.prompt, "metadata": self.metadata}


def load(data: str, dtype: str, count: int, folder: Path = DEFAULT_FOLDER) -> list[Entry]:
    """The first `count` entries, in memory."""
    return list(stream(data, dtype, count, folder))


def stream(data: str, dtype: str, count: int, folder: Path = DEFAULT_FOLDER) -> Iterator[Entry]:
    """The first `count` entries one after the other, each activation in memory of its own."""
    index = describe(data, folder)
    points, width, native = index["points"], index["width"], DTYPES[NATIVE[data]]
    with (folder / f"{data}.raw").open("rb") as file:
        for text in index["texts"][:count]:
            rows = len(text["token_ids"])
            raw = bytearray(file.read(len(points) * rows * width * native.itemsize))
            values = torch.frombuffer(raw, dtype=native).reshape(len(points), rows, width)
            activations = {name: value.to(DTYPES[dtype]).clone() for name, value in zip(points, values, strict=True)}
            yield Entry(**text, activations=activations)


@cache
def describe(data: str, folder: Path = DEFAULT_FOLDER) -> dict[str, Any]:
    """The index of a data set: its points, width, SHA-256, counts of tokens, and texts."""
    return json.loads((folder / f"{data}.json").read_text(encoding="utf-8"))


def sources() -> Iterator[tuple[str, str]]:
    """(source, text) of what there is to read on every machine: licence, questions, and Python's own documentation."""
    from actstore import demo

    yield from (("licence", text) for text in streams.licence())
    yield from (("question", f"{question.message} {question.answer}.") for question in demo.questions())
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            yield from (("docstring", text) for text in docstrings(path))


def docstrings(path: Path) -> Iterator[str]:
    """Of the module and of everything in it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    yield from (text for node in nodes if (text := ast.get_docstring(node)))


def texts(count: int) -> list[tuple[str, str]]:
    """`count` of them, none twice, in an order drawn once."""
    found = {text.strip(): source for source, text in sources()}
    long_enough = [(source, text) for text, source in found.items() if len(text.split()) >= LEAST_WORDS]
    return random.Random(0).sample(long_enough, count)


def record(prompt: str, token_ids: Sequence[int], metadata: dict[str, Any]) -> dict[str, Any]:
    key = hashlib.sha256(prompt.encode()).hexdigest()
    return {"key": key, "prompt": prompt, "token_ids": list(token_ids), "metadata": metadata}


class File:
    """The activations of one data set, entry by entry, and its index."""

    def __init__(self, folder: Path, data: str, points: Sequence[str], width: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._index = folder / f"{data}.json"
        self._file = (folder / f"{data}.raw").open("wb")
        self._dtype = NATIVE[data]
        self._points, self._width = list(points), width
        self._digest = hashlib.sha256()
        self._texts: list[dict[str, Any]] = []

    def add(self, text: dict[str, Any], activations: Sequence[torch.Tensor]) -> None:
        for value in activations:
            raw = streams.to_bytes(value, self._dtype)
            self._digest.update(raw)
            self._file.write(raw)
        self._texts.append(text)

    def close(self) -> None:
        self._file.close()
        lengths = [len(text["token_ids"]) for text in self._texts]
        document = {
            "points": self._points,
            "width": self._width,
            "dtype": self._dtype,
            "sha256": self._digest.hexdigest(),
            "tokens": sum(lengths),
            "texts": self._texts,
        }
        self._index.write_text(json.dumps(document), encoding="utf-8")
        print(f"{self._index.stem}: {len(lengths)} entries, {sum(lengths):,} tokens")


def minilm(folder: Path) -> None:
    model, tokenizer = streams.load_minilm()
    layers = model.config.num_hidden_layers
    points = ["hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(layers))]
    file = File(folder, "minilm", points, model.config.hidden_size)
    for row, (source, text) in enumerate(texts(COUNT)):
        ids = tokenizer(" ".join(text.split()[:LONGEST_WORDS]), truncation=True, max_length=MOST_TOKENS)["input_ids"]
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        metadata = {"row": row, "source": source, "model": "all-MiniLM-L6-v2"}
        file.add(record(text, ids, metadata), [state[0] for state in states])
    file.close()


def embedded(folder: Path) -> None:
    from actstore import demo

    model, tokenizer = demo.load()
    questions = demo.questions()
    prompts = [question.prompt(tokenizer) for question in questions]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    states = streams.seen(model, ids)
    layers = range(model.config.num_hidden_layers)
    points = {"hook_embed": "embed", **{f"blocks.{n}.hook_resid_post": f"resid_post.{n}" for n in layers}}
    file = File(folder, "embedded", list(points), model.config.hidden_size)
    for row, question in enumerate(questions):
        metadata = {"row": row, "source": question.id, "model": "demo"}
        file.add(record(prompts[row], ids[row], metadata), [states[name][row] for name in points.values()])
    file.close()


@torch.inference_mode()
def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    minilm(folder)
    embedded(folder)


if __name__ == "__main__":
    main()
