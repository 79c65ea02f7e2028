"""Writing document 001's trees."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.errors import InvalidInputError
from actstore.formats.as_text import as_values
from actstore.formats.record import CONVENTIONS, conventions_of
from actstore.formats.widening import beyond_numpy, entry_bytes, widen
from actstore.hook_points import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.entry import Entry
    from actstore.formats.capture_files import Captured, Kind
    from actstore.formats.record import Export
    from actstore.formats.tree import Tree

__all__ = ["POINTS", "TIMESTAMP", "new_record", "safe_name", "write"]

POINTS = {"hidden_states": ("resid_post", 2), "attention_weights": ("attn_probs", 3), "mlp_activations": ("mlp_act", 2)}
"""The hook point of each kind, and how many axes it has."""
TIMESTAMP = "%Y%m%d_%H%M%S"
_KINDS = {point: kind for kind, (point, _) in POINTS.items()}
_OTHER = re.compile(r"layer_(\d+)\.(\w+)", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)
_LONGEST_ID = 50
_LONGEST_KEY = 200


def safe_name(question_id: str) -> str:
    """An id as the program makes the beginning of a file's name of it."""
    return _UNSAFE.sub("_", question_id)[:_LONGEST_ID]


def _file_name(key: str) -> str:
    """A key where it is one; else what is left of it, with a digest that keeps two keys apart."""
    if key and len(key) <= _LONGEST_KEY and not _UNSAFE.search(key):
        return key
    return f"{safe_name(key)}_{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def write(kind: Kind, export: Export, replaces: Callable[[Path], bool] | None) -> None:
    """Write a file of activations, a record and a response for each entry; see `POINTS` for what has a place.

    Files are compressed, but for entries that were imported from uncompressed ones.
    """
    names = {_file_name(key): key for key in export.keys}
    if len(names) < len(export.keys):
        raise InvalidInputError("invalid_key", "two keys make the same file name; export them to two places")
    with export.tree(export.target, replaces) as tree:
        for name, key in sorted(names.items()):
            _write_entry(kind, export, tree, name, export.store[key])


def _write_entry(kind: Kind, export: Export, tree: Tree, name: str, entry: Entry) -> None:
    known, fields = _restored(entry)
    points = _places(entry, export)
    file = name + kind.suffix(compression=bool(known.get("compression", True)))
    with tree.file(f"activations/{file}") as path:
        if path is not None:
            data = {"metadata": _inner(entry, points, known), "layers": _layers(entry, points, known, export)}
            kind.save(path, data, bool(known.get("compression", True)))
    record = _record(entry, points, fields, known, f"activations/{file}")
    tree.put(f"metadata/{name}_metadata.json", lambda: json.dumps(record, indent=2).encode("ascii"))
    if entry.response is not None:
        tree.put(f"responses/{name}_response.txt", entry.response.encode)
    if entry.token_ids is not None or entry.positions is not None:
        export.note("token ids and positions are left out, the format has none")
    export.wrote(entry.key, points, sum(entry_bytes(entry, point) for point in points))


def _restored(entry: Entry) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is known of how these trees had the entry, nothing where it is not of one, and its other metadata."""
    known = conventions_of(entry.metadata)
    if not str(known.get("format")).startswith("capture-"):
        return {}, dict(entry.metadata)
    fields = as_values(entry.metadata, known.get("as_text"))
    return fields.pop(CONVENTIONS), fields


def _places(entry: Entry, export: Export) -> dict[str, tuple[int, str]]:
    """Layer and kind of each hook point that the format has a place for."""
    places: dict[str, tuple[int, str]] = {}
    for point in entry.points:
        name, layer = parse(point)
        other = _OTHER.fullmatch(point)
        if other is not None:
            places[point] = int(other[1]), other[2]
        elif layer is not None and name in _KINDS and len(entry.shape(point)) == POINTS[_KINDS[name]][1]:
            places[point] = layer, _KINDS[name]
        else:
            export.note(f"`{point}` is left out, the format has no place for it")
    return places


def _layers(
    entry: Entry, points: dict[str, tuple[int, str]], known: dict[str, Any], export: Export
) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for point, (layer, kind) in points.items():
        dtype = entry.dtype(point)
        if beyond_numpy(dtype):
            export.note(f"{dtype} is written as float32, the format has no {dtype}; every value is kept")
        array = widen(entry.numpy(point), dtype)
        batched = bool(known.get("batch_axis")) and kind in POINTS
        layers.setdefault(f"layer_{layer}", {})[kind] = array[np.newaxis] if batched else array
    return layers


def _inner(entry: Entry, points: dict[str, tuple[int, str]], known: dict[str, Any]) -> Captured:
    """The fields that lie with the activations."""
    text = {
        name: value for name, value in (("prompt", entry.prompt), ("response", entry.response)) if value is not None
    }
    if known:
        return {**text, **known.get("metadata", {})}
    return {
        **text,
        "model": entry.metadata.get("model"),
        "capture_layers": sorted({layer for layer, _ in points.values()}),
        "prompt_length": len((entry.prompt or "").split()),
        "response_length": len((entry.response or "").split()),
    }


def _record(
    entry: Entry, points: dict[str, tuple[int, str]], fields: dict[str, Any], known: dict[str, Any], file: str
) -> dict[str, Any]:
    if isinstance(known.get("record"), list):
        found = {**fields, "response": entry.response, "activation_file": file}
        return {name: found[name] for name in known["record"] if name in found}
    data = {"id": entry.key, "question": entry.prompt, **fields}
    made = datetime.fromtimestamp(entry.created, UTC).strftime(TIMESTAMP)
    kinds = {kind for _, kind in points.values()}
    layers = sorted({layer for layer, _ in points.values()})
    return new_record(
        {"question_id": entry.key, "question_data": data, "response": entry.response, "timestamp": made},
        file,
        layers,
        kinds,
        fields.get("model"),
    )


def new_record(head: dict[str, Any], file: str, layers: list[int], kinds: set[str], model: object) -> dict[str, Any]:
    """A record in its order: `head` (question_id, question_data, response, timestamp), then what was captured."""
    config = {
        "target_layers": layers,
        "capture_attention_weights": "attention_weights" in kinds,
        "capture_hidden_states": "hidden_states" in kinds,
        "capture_mlp_activations": "mlp_activations" in kinds,
        "model_name": model,
    }
    return {**head, "activation_file": file, "config": config}
