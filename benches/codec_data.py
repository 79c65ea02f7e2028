"""Which activations are coded together, and how they are cut into pieces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "BY_ACTIVATION",
    "EMBEDDED",
    "EMBEDDED_RESIDUAL",
    "MINILM",
    "MINILM_HALF",
    "SPEED",
    "WIDE",
    "Data",
    "pieces",
]


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


def pieces(data: Data, streams: Path) -> dict[str, list[bytes]]:
    """By activation."""
    records = json.loads((streams / "index.json").read_text(encoding="utf-8"))["streams"]
    chosen = [record for record in records if (record["group"], record["dtype"]) == (data.group, data.dtype)]
    if data.points == "residual":
        chosen = [record for record in chosen if record["chain"] == "residual"]
    return {record["name"]: list(cut(record, (streams / record["file"]).read_bytes(), data.cut)) for record in chosen}


def cut(record: dict[str, Any], raw: bytes, how: str) -> Iterable[bytes]:
    row = len(raw) // record["rows"]
    start = 0
    for rows in record["entries"] if how == "texts" else [record["rows"]]:
        yield raw[start : start + rows * row]
        start += rows * row
