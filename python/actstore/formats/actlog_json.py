"""`actlog-json-v1`, `-v2`, `-v3`: document 000's directories of JSON.

v1 has `metadata.json` with the record of every entry, and each entry's hidden states in `activations/<key>.json`; v2
has them in `.npy` instead; v3 has an index `metadata.jsonl`, each record in `activations/<key>.json` and the states
beside it in `.npy`. A newer logger went on with an older directory, so each file's suffix and content decide, entry by
entry.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from actstore import _core
from actstore.errors import ActstoreError, CorruptError, InvalidInputError, NotFoundError
from actstore.formats.actlog import imported
from actstore.formats.actlog_json_writing import write
from actstore.formats.reading import inside, map_npy, npy_layout, read_json, reading
from actstore.formats.record import Format, Pending, Source
from actstore.formats.widening import numbers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.formats.record import Export, Imported

    States = list[NDArray[Any] | None]

__all__ = ["V1", "V2", "V3", "Log", "Logged"]

_INDEX = "metadata.json"
_LINES = "metadata.jsonl"
_STATES = "all_layers_activations"
_FIRST_LINES = 8
_LONGEST_LINE = 1 << 24
_MOST_STATES = 4096
"""No model has as many layers: a file that says so would be no longer than others."""


class Logged(NamedTuple):
    """What a log has of an entry; `states` reads its hidden states, each [1, tokens, d] or None; None for none."""

    format: str
    record: dict[str, Any]
    states: Callable[[], States | None]


class Log:
    """A directory of document 000's JSON loggers of any version, opened to read. Errors: `malformed`, `not_a_store`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        index: Any = read_json(root / _INDEX) if (root / _INDEX).is_file() else {"entries": {}}
        entries = cast("dict[str, Any]", index).get("entries") if isinstance(index, dict) else None
        if not isinstance(entries, dict):
            raise CorruptError("malformed", f"`{root / _INDEX}` has no object `entries`")
        self._records = cast("dict[str, Any]", entries)
        config = cast("dict[str, Any]", index).get("logger_config")
        self.config = cast("dict[str, Any]", config) if isinstance(config, dict) else {}
        self._lines = self._read_lines() if (root / _LINES).is_file() else {}

    def keys(self) -> list[str]:
        """Every key, those of the older index first, in the order of logging."""
        return list(dict.fromkeys([*self._records, *self._lines]))

    def load(self, key: str) -> Imported:
        """The entry of `key`. Errors: what is missing, damaged, unsafe, or an array of objects."""
        logged = self.logged(key)
        return imported(key, logged.record, logged.states(), logged.format, self.config.get("sequence_mode"))

    def logged(self, key: str) -> Logged:
        """The record of `key`, with its hidden states to be read. Errors: as for `load`, and `no_such_key`."""
        if key in self._lines:
            return self._from_sidecar(key)
        if key not in self._records:
            raise NotFoundError("no_such_key", f"the log `{self.root}` has no entry `{key}`")
        record, place = self._records[key], f"entry `{key}` of `{self.root / _INDEX}`"
        if not isinstance(record, dict):
            raise CorruptError("malformed", f"{place} is no object")
        fields = cast("dict[str, Any]", record)
        name = fields.get("activation_file")
        if name is None:
            if fields.get("has_activations"):
                raise CorruptError("malformed", f"{place} has activations, but no `activation_file`")
            return Logged("actlog-json-v1", fields, _no_states)
        path = inside(self.root, name, f"`activation_file` of {place}")
        if path.suffix == ".npy":
            return Logged("actlog-json-v2", fields, partial(_states_of_npy, path))
        return Logged("actlog-json-v1", fields, partial(_states_of_v1, path))

    def _from_sidecar(self, key: str) -> Logged:
        path = inside(self.root, f"activations/{key}.json", f"`key` in `{self.root / _LINES}`")
        record = read_json(path, _as_array)
        if not isinstance(record, dict):
            raise CorruptError("malformed", f"`{path}` is no object")
        fields = cast("dict[str, Any]", record)
        if _STATES in fields:
            older = self._records.get(key)
            said = {name: value for name, value in self._lines[key].items() if name != "key"}
            line = {**(cast("dict[str, Any]", older) if isinstance(older, dict) else {}), **said}
            return Logged("actlog-json-v1", line, partial(_states_of_json, fields, path))
        has = fields.get("has_activations", self._lines[key].get("has_activations"))
        beside = inside(self.root, f"activations/{key}.npy", f"`key` in `{self.root / _LINES}`")
        return Logged("actlog-json-v3", fields, partial(_states_of_npy, beside) if has else _no_states)

    def _read_lines(self) -> dict[str, dict[str, Any]]:
        """The lines of the index by key; a later one counts. What is no line is passed over, as the logger did."""
        path, found = self.root / _LINES, dict[str, dict[str, Any]]()
        with reading(path), path.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                line = _line(text)
                if line is not None:
                    found[line["key"]] = line
                elif text.strip():
                    torn = "torn" if not text.endswith(b"\n") else "no JSON object with a `key`"
                    self.notes.append(f"line {number} of `{path}` is {torn} and was passed over")
        return found


def _no_states() -> None:
    return None


def _states_of_v1(path: Path) -> States:
    document = read_json(path, _as_array)
    if _is_sidecar(document):
        # A newer logger wrote its record over the states, and its line in the index is lost.
        raise CorruptError("malformed", f"`{path}` has no `{_STATES}`: a newer logger has written over them")
    return _states_of_json(document, path)


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    fields = cast("dict[str, Any]", line) if isinstance(line, dict) else {}
    return fields if isinstance(fields.get("key"), str) else None


def _is_sidecar(document: object) -> bool:
    return isinstance(document, dict) and _STATES not in document and "prompt" in document


def _as_array(fields: dict[str, Any]) -> Any:
    """Turn the JSON object of a tensor into its array as soon as it is parsed, so that its numbers are not kept."""
    if fields.get("_type") not in ("torch.Tensor", "numpy.ndarray") or "data" not in fields:
        return fields
    name = str(fields.get("dtype")).removeprefix("torch.")
    dtype = numbers(name)
    if dtype is None:
        raise CorruptError("malformed", f"a tensor has the `dtype` `{fields.get('dtype')}`, which does not exist")
    shape = fields.get("shape")
    sizes: list[Any] = cast("list[Any]", shape) if isinstance(shape, list) else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise CorruptError("malformed", f"a tensor has the `shape` `{str(sizes)[:100]}`, which is none")
    return _array(fields["data"], dtype, tuple(sizes))


def _array(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        given = np.array(data)
        # The lists of an empty array do not show the extents within it.
        given = given.reshape(shape) if given.size == 0 and 0 in shape else given
    except (ValueError, OverflowError):
        raise CorruptError("malformed", "the `data` of a tensor is ragged or holds no numbers") from None
    is_float = dtype.kind not in "iub"
    if given.size and given.dtype.kind not in ("fiu" if is_float else "iu" if dtype.kind != "b" else "b"):
        raise CorruptError("malformed", f"the `data` of a tensor is no array of `{dtype}`")
    if given.shape != shape:
        message = f"a tensor has the `shape` `{str(list(shape))[:100]}`, but its `data` has `{list(given.shape)}`"
        raise CorruptError("malformed", message)
    with np.errstate(all="ignore"):
        array = given.astype(dtype)
        same = np.isfinite(array) == np.isfinite(given) if is_float else array == given
    if not np.all(same):
        raise CorruptError("malformed", f"the `data` of a tensor has values that its `dtype` `{dtype}` has not")
    return array


def _states_of_json(document: Any, path: Path) -> States:
    states = cast("dict[str, Any]", document).get(_STATES) if isinstance(document, dict) else None
    if not isinstance(states, list):
        raise CorruptError("malformed", f"`{path}` has no list `{_STATES}`")
    return _checked(cast("list[Any]", states), path)


def _states_of_npy(path: Path) -> States:
    """One array of all hidden states; where they differ in shape, or one is missing, NumPy pickled a list of them."""
    with reading(path), path.open("rb") as file:
        if not _holds_objects(file, path):
            array = map_npy(path)
            if array.ndim not in (3, 4) or len(array) > _MOST_STATES:
                message = f"`{path}` is an array {list(array.shape)}, not `[layers, 1, tokens, d]`"
                raise CorruptError("malformed", message)
            return list(array)
        states = _core.unpickle(file.read())
    if not isinstance(states, list):
        raise CorruptError("malformed", f"`{path}` has a `{type(states).__name__}`, not a list of hidden states")
    return _checked(cast("list[Any]", states), path)


def _holds_objects(file: Any, path: Path) -> bool:
    try:
        npy_layout(file, f"`{path}`")
    except InvalidInputError:
        return True
    return False


def _checked(states: list[Any], path: Path) -> States:
    for index, state in enumerate(states):
        if state is not None and not isinstance(state, np.ndarray):
            message = f"`{path}` has a `{type(state).__name__}` as hidden state {index}, not a tensor or null"
            raise CorruptError("malformed", message)
    return cast("States", states)


def _read(root: Path) -> Source:
    log = Log(root)
    keys = log.keys()
    return Source(len(keys), (Pending(key, partial(_named, log, key)) for key in keys), tuple(log.notes))


def _named(log: Log, key: str) -> Imported:
    """`log.load`, whose errors name the entry's file where they are about what is in a tensor."""
    try:
        return log.load(key)
    except ActstoreError as error:
        if str(log.root) in error.message:
            raise
        raise type(error)(error.kind, f"entry `{key}` of `{log.root}`: {error.message}") from None


def _version(root: Path) -> str | None:
    """`1`, `2` or `3`: the newest logger that wrote to `root`; None where none did."""
    if (root / _LINES).is_file():
        with (root / _LINES).open("rb") as lines:
            first = [_line(lines.readline(_LONGEST_LINE)) for _ in range(_FIRST_LINES)]
        if any(line is not None and "has_activations" in line for line in first):
            return "3"
    try:
        index: Any = read_json(root / _INDEX)
    except ActstoreError:
        return None
    fields = cast("dict[str, Any]", index) if isinstance(index, dict) else {}
    config = fields.get("logger_config")
    if not isinstance(config, dict) or not isinstance(fields.get("entries"), dict):
        return None
    # A store of our own has this shape too, and another version.
    version = cast("dict[str, Any]", config).get("version")
    return version.removesuffix(".0") if version in ("1.0", "2.0") else None


def _write(version: str, export: Export) -> None:
    write(version, export, _is_any if export.overwrite else None)


def _is_any(root: Path) -> bool:
    return _version(root) is not None


def _is_version(version: str, root: Path) -> bool:
    return _version(root) == version


V1 = Format("actlog-json-v1", partial(_is_version, "1"), _read, partial(_write, "1"))
V2 = Format("actlog-json-v2", partial(_is_version, "2"), _read, partial(_write, "2"))
V3 = Format("actlog-json-v3", partial(_is_version, "3"), _read, partial(_write, "3"))
