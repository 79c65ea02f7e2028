"""Writing document 004's directories: padded arrays for each layer, with the lengths beside them."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from actstore.errors import InvalidInputError
from actstore.formats.as_text import as_values
from actstore.formats.record import CONVENTIONS, conventions_of
from actstore.formats.tree import file_name
from actstore.formats.widening import beyond_numpy, entry_bytes, widen
from actstore.hook_points import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actstore.entry import Entry
    from actstore.formats.record import Export
    from actstore.formats.tree import Tree

__all__ = ["write"]

_RUN = (
    "model_type",
    "base_model_name",
    "lora_checkpoint",
    "num_questions",
    "batch_size",
    "dataset_path",
    "which_questions",
    "timestamp",
    "device",
)


def write(export: Export, replaces: Callable[[Path], bool] | None) -> None:
    """Write the `resid_post` of the entries, those of each pass in a directory of its name, others in the place itself.

    Entries of fewer rows than the longest are padded with zeros on the left; `lengths.npy` says how many are real.
    Errors: `invalid_tensor` where entries of a pass differ in layers, dtypes or widths.
    """
    passes: defaultdict[str, list[str]] = defaultdict(list)
    for key in export.keys:
        name = conventions_of(export.store[key].metadata).get("pass", "")
        passes[file_name(name) + "/" if isinstance(name, str) and name else ""].append(key)
    if "" in passes and len(passes) > 1:
        message = f"entry `{passes[''][0]}` is of no pass, but others are; export them to two places"
        raise InvalidInputError("invalid_metadata", message)
    layers = {name: _checked(export, keys) for name, keys in passes.items()}
    with export.tree(export.target, replaces) as tree:
        tree.put("run_config.json", lambda: json.dumps(_run(export), indent=2).encode("ascii"))
        for name in sorted(passes):
            _write_pass(export, tree, name, passes[name], layers[name])


def _run(export: Export) -> dict[str, Any]:
    first = export.store[export.keys[0]].metadata if export.keys else {}
    known = conventions_of(first)
    said: Any = as_values({CONVENTIONS: known}, known.get("as_text"))[CONVENTIONS].get("run_config")
    fields = dict.fromkeys(_RUN) | {"base_model_name": first.get("model"), "num_questions": len(export.keys)}
    return fields | (cast("dict[str, Any]", said) if isinstance(said, dict) else {})


def _checked(export: Export, keys: list[str]) -> dict[str, tuple[str, int]]:
    """dtype and width at each hook point, which every entry has alike."""
    first = _layout(export.store[keys[0]])
    for key in keys:
        entry = export.store[key]
        if not first or _layout(entry) != first:
            message = (
                f"entry `{key}` has other layers, dtypes or widths of `resid_post` than `{keys[0]}`, or none; an array "
                "holds one of each"
            )
            raise InvalidInputError("invalid_tensor", message)
        if len({entry.shape(point)[0] for point in first}) > 1:
            message = f"entry `{key}` has other numbers of rows at its layers; `lengths.npy` has one for all"
            raise InvalidInputError("invalid_tensor", message)
        for point in set(entry.points) - set(first):
            export.note(f"`{point}` is left out, the format has residual streams alone")
    for dtype in {dtype for dtype, _ in first.values() if beyond_numpy(dtype)}:
        export.note(f"{dtype} is written as float32, `.npy` has no {dtype}; every value is kept")
    return first


def _layout(entry: Entry) -> dict[str, tuple[str, int]]:
    points = [point for point in entry.points if parse(point)[0] == "resid_post"]
    return {point: (entry.dtype(point), entry.shape(point)[-1]) for point in points if len(entry.shape(point)) == 2}


def _write_pass(export: Export, tree: Tree, name: str, keys: list[str], points: dict[str, tuple[str, int]]) -> None:
    any_point = next(iter(points))
    lengths = [export.store[key].shape(any_point)[0] for key in keys]
    tree.put(f"{name}metadata.json", lambda: _records(export, keys))
    with tree.file(f"{name}lengths.npy") as path:
        if path is not None:
            np.save(path, np.array(lengths, np.int64))
    for point, kind in points.items():
        with tree.file(f"{name}activations_layer_{parse(point)[1] or 0:02d}.npy") as path:
            if path is not None:
                _write_layer(export, path, keys, point, kind)
    for key in keys:
        entry = export.store[key]
        export.wrote(key, points, sum(entry_bytes(entry, point) for point in points))


def _write_layer(export: Export, path: Path, keys: list[str], point: str, kind: tuple[str, int]) -> None:
    """Write the array of one layer, of dtype and width `kind`, an entry at a time."""
    (dtype, width), lengths = kind, [export.store[key].shape(point)[0] for key in keys]
    shape = (len(keys), max(lengths), width)
    written = np.dtype("float32" if beyond_numpy(dtype) else dtype)
    # Not through a mapping: a full disk would end the process.
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(written), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for key, length in zip(keys, lengths, strict=True):
            file.write(bytes((shape[1] - length) * width * written.itemsize))
            file.write(widen(export.store[key].numpy(point), dtype).tobytes())


def _records(export: Export, keys: list[str]) -> bytes:
    return json.dumps([_record(export.store[key], export) for key in keys], indent=2).encode("ascii")


def _record(entry: Entry, export: Export) -> dict[str, Any]:
    known = conventions_of(entry.metadata)
    fields = {name: value for name, value in entry.metadata.items() if name != CONVENTIONS or not known}
    if known.get("format") == "npy-layers":
        return as_values(fields, known.get("as_text"))
    if entry.token_ids is not None or entry.positions is not None:
        export.note("token ids and positions are left out, the format has none")
    return {"question_id": entry.key, "prompt_text": entry.prompt, "output_text": entry.response, **fields}
