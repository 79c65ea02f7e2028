"""Writing document 000's JSON directories, each version as its own logger wrote it."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from actstore.errors import InvalidInputError
from actstore.formats.actlog import has_batch_axis, logged_record, logged_states
from actstore.formats.tree import file_name
from actstore.formats.widening import beyond_numpy, entry_bytes, widen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.entry import Entry
    from actstore.formats.record import Export
    from actstore.formats.tree import Tree

    States = list[str | None]
    """The hook point of each hidden state."""

__all__ = ["write"]

_LINE = ("prompt", "has_activations", "timestamp")
_MODE = {"target_layers": "all", "sequence_mode": "all"}


def write(version: str, export: Export, replaces: Callable[[Path], bool] | None) -> None:
    """Write the entries of `export` as the logger of `version` did, and its index last.

    `.npy` holds neither a missing hidden state nor several shapes or dtypes, nor bfloat16. Version 2 then has the entry
    as version 1 would, which its readers take; version 3 widens bfloat16 to float32, and leaves out what is left.
    Errors: `unsafe_path` for a key that is no file name, before anything is written.
    """
    for key in export.keys:
        file_name(key, ".json")
    name = "metadata.jsonl" if version == "3" else "metadata.json"
    with (
        export.tree(export.target, replaces) as tree,
        tree.file(name, always=True) as index,
        cast("Path", index).open("w", encoding="ascii", newline="\n") as file,
    ):
        for piece in _lines(export, tree) if version == "3" else _index(version, export, tree):
            file.write(piece)


def _index(version: str, export: Export, tree: Tree) -> Iterator[str]:
    """The pieces of `metadata.json`, indented like one document."""
    storage = {"storage_format": "npy"} if version == "2" else {}
    config = {**_logger_config(export), "version": f"{version}.0", **storage}
    yield "{\n" + f'  "logger_config": {_indented(config, 2)},\n  "entries": {{'
    before = "\n"
    for key in export.keys:
        record = _write_entry(version, export.store[key], export, tree)
        yield f"{before}    {json.dumps(key)}: {_indented(record, 4)}"
        before = ",\n"
    yield ("\n  }" if before == ",\n" else "}") + "\n}"


def _lines(export: Export, tree: Tree) -> Iterator[str]:
    """The lines of `metadata.jsonl`, each after its entry's files."""
    for key in export.keys:
        try:
            record = _write_entry("3", export.store[key], export, tree)
        except InvalidInputError as error:
            export.leave_out(key, error)
            continue
        line = {"key": key, **{name: record[name] for name in _LINE if name in record}}
        yield json.dumps(line, separators=(",", ":")) + "\n"


def _write_entry(version: str, entry: Entry, export: Export, tree: Tree) -> dict[str, Any]:
    """Write the files of one entry; its record."""
    states = logged_states(entry, export)
    fields = logged_record(entry, export)
    last = {name: fields.pop(name) for name in ("logging_config", "timestamp") if name in fields}
    if "logging_config" in last:
        fields["logging_config"] = last.pop("logging_config")
    fields["has_activations"] = any(state is not None for state in states)
    if fields["has_activations"]:
        fields |= _write_states(version, entry, states, export, tree)
    fields |= last
    if version == "3":
        tree.put(f"activations/{file_name(entry.key, '.json')}", lambda: json.dumps(fields, indent=2).encode("ascii"))
    stored = [state for state in states if state is not None]
    export.wrote(entry.key, stored, sum(entry_bytes(entry, state) for state in stored))
    return fields


def _write_states(version: str, entry: Entry, states: States, export: Export, tree: Tree) -> dict[str, Any]:
    """Write the hidden states of an entry; what its record says of them."""
    in_npy = version == "3" or (version == "2" and _fits_npy(entry, states, widened=False))
    name = f"activations/{file_name(entry.key, '.npy' if in_npy else '.json')}"
    if not in_npy:
        tree.put(name, lambda: _as_json(entry, states, export))
        return {"activation_file": name}
    if not _fits_npy(entry, states, widened=True):
        message = (
            f"entry `{entry.key}` lacks some hidden states, or has several shapes or dtypes, which `actlog-json-v3` "
            "cannot hold; `actlog-json-v1` and `-v2` can"
        )
        raise InvalidInputError("invalid_tensor", message)
    tree.put(name, lambda: _as_npy(entry, cast("list[str]", states)))
    dtype = entry.dtype(cast("str", states[0]))
    if beyond_numpy(dtype):
        export.note(f"{dtype} is written as float32, `.npy` has no {dtype}; every value is kept")
    shape = [*([1] if has_batch_axis(entry) else []), *entry.shape(cast("str", states[0]))]
    info = {"shape": shape, "dtype": "float32" if beyond_numpy(dtype) else dtype}
    return {**({} if version == "3" else {"activation_file": name}), "activation_shape_info": [info] * len(states)}


def _fits_npy(entry: Entry, states: States, *, widened: bool) -> bool:
    """Whether one array can hold all hidden states, `widened` to what NumPy has where they are of another dtype."""
    kinds = {None if state is None else (entry.shape(state), entry.dtype(state)) for state in states}
    return len(kinds) == 1 and None not in kinds and (widened or not beyond_numpy(entry.dtype(cast("str", states[0]))))


def _as_npy(entry: Entry, states: list[str]) -> bytes:
    arrays = [_state(entry, state) for state in states]
    file = io.BytesIO()
    np.save(file, np.stack(arrays), allow_pickle=False)
    return file.getvalue()


def _state(entry: Entry, point: str) -> NDArray[Any]:
    array = widen(entry.numpy(point), entry.dtype(point))
    return array[np.newaxis] if has_batch_axis(entry) else array


def _as_json(entry: Entry, states: States, export: Export) -> bytes:
    listed = [None if state is None else _tensor(entry, state, export) for state in states]
    return json.dumps({"all_layers_activations": listed}, indent=2).encode("ascii")


def _tensor(entry: Entry, point: str, export: Export) -> dict[str, Any]:
    array = _state(entry, point)
    if array.dtype.kind == "f" and _has_payload(array):
        export.note("NaNs lose their sign and payload, JSON has one NaN")
    dtype = f"torch.{entry.dtype(point)}"
    return {"_type": "torch.Tensor", "data": array.tolist(), "shape": list(array.shape), "dtype": dtype}


def _has_payload(array: NDArray[Any]) -> bool:
    nan = np.isnan(array)
    return bool(nan.any()) and array[nan].tobytes() != np.full(int(nan.sum()), np.nan, array.dtype).tobytes()


def _logger_config(export: Export) -> dict[str, Any]:
    """Of the first entry that has one: the loggers had one for all."""
    for key in export.keys:
        config: Any = export.store[key].metadata.get("logging_config")
        return {**_MODE, **config} if isinstance(config, dict) else _MODE
    return _MODE


def _indented(value: Any, spaces: int) -> str:
    return json.dumps(value, indent=2).replace("\n", "\n" + " " * spaces)
