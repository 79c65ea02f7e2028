"""Writing document 000's LMDB logs as the last of its loggers did: two environments, nothing compressed."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, cast

from actstore import _core
from actstore.errors import InvalidInputError, LimitExceededError
from actstore.formats.actlog import has_batch_axis, logged_record, logged_states
from actstore.formats.as_text import replace_values
from actstore.formats.widening import entry_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from actstore.entry import Entry
    from actstore.formats.record import Export

    Test = Callable[[Path], bool]
    Fields = dict[str, Any]

__all__ = ["beside", "write"]

_PROTOCOL = 4
"""What Python 3.8 to 3.13, which the logger ran on, wrote by default."""
_BATCH_BYTES = 64 << 20
_LONGEST_KEY = 511
_LARGEST_VALUE = (1 << 31) - (1 << 16)
_NOT_COMPRESSED = {"compression": "none"}


def beside(root: Path) -> Path:
    """Where the second environment of the log `root` is."""
    return root.with_name(f"{root.name}_metadata")


def write(export: Export, is_log: Test, is_metadata: Test) -> None:
    """Write the entries of `export`, in the order of their keys, which is that of every LMDB environment.

    The metadata gets its place first, so that there is never a log without it. A stored dtype that tensors of the old
    program did not have is widened to float32. A `sequence_mode` other than `all` is also in the entry itself, where
    the program's parser looks for it, and would without it cut the rows of the prompt off once more.
    """
    second = beside(export.target)
    export.places.append(second)
    tree = export.tree(export.target, is_log if export.overwrite else None)
    replaces = is_metadata if export.overwrite or tree.is_resumed else None
    other = export.tree(second, replaces)
    with tree, other:
        entries, metadata = _Values(tree.growing("data.mdb")), _Values(other.growing("data.mdb"))
        for key in sorted(export.keys):
            _write_entry(export.store[key], export, entries, metadata)
        entries.commit()
        metadata.commit()


class _Values:
    """What goes into an environment by and by, in durable commits of 64 MiB; what is there stays.

    `data`: its file, which may have begun; None where nothing is written.
    """

    def __init__(self, data: Path | None) -> None:
        self._data = data
        self._there = frozenset[str]()
        if data is not None:
            data.touch()
            self._there = frozenset(_core.ActlogLmdb(str(data.parent)).keys() if data.stat().st_size else ())
        self._waiting: list[tuple[bytes, bytes]] = []
        self._bytes = 0

    def put(self, key: str, value: Callable[[], Fields]) -> None:
        """Put the pickled `value`. Errors: `limit_exceeded` for what no value of LMDB can be."""
        if self._data is None or key in self._there:
            return
        pickled = pickle.dumps(value(), _PROTOCOL)
        if len(pickled) > _LARGEST_VALUE:
            message = f"entry `{key}` has {len(pickled):,} bytes, more than the {_LARGEST_VALUE:,} that LMDB can hold"
            raise LimitExceededError("limit_exceeded", message)
        self._waiting.append((key.encode(), pickled))
        self._bytes += len(pickled)
        if self._bytes >= _BATCH_BYTES:
            self.commit()

    def commit(self) -> None:
        """Make durable what was put."""
        if self._data is None:
            return
        _core.put_exported(str(self._data.parent), self._waiting)
        self._waiting.clear()
        self._bytes = 0


def _write_entry(entry: Entry, export: Export, entries: _Values, metadata: _Values) -> None:
    states = logged_states(entry, export)
    fields, last = _fields(entry, export)
    stored = [state for state in states if state is not None]
    about = {**fields, **last, "has_activations": bool(stored), "compression_metadata": _NOT_COMPRESSED}
    config = last.get("logging_config")
    if isinstance(config, dict) and cast("Fields", config).get("sequence_mode") != "all":
        fields["logging_config"] = config

    def value() -> Fields:
        listed = {"all_layers_activations": [_tensor(entry, state, export) for state in states]} if stored else {}
        return {"data": {**fields, **listed}, "metadata": _NOT_COMPRESSED}

    try:
        if not 0 < len(entry.key.encode()) <= _LONGEST_KEY:
            message = f"`{entry.key}` is longer than the {_LONGEST_KEY} bytes that a key of LMDB can have"
            raise InvalidInputError("invalid_key", message)
        entries.put(entry.key, value)
        metadata.put(entry.key, lambda: about)
    except (InvalidInputError, LimitExceededError) as error:
        export.leave_out(entry.key, error)
    else:
        export.wrote(entry.key, stored, sum(entry_bytes(entry, state) for state in stored))


def _fields(entry: Entry, export: Export) -> tuple[Fields, Fields]:
    """What both environments have of an entry, and what the second one alone."""
    record, replaced = replace_values(logged_record(entry, export), _fits)
    if replaced:
        export.note("integers beyond 64 bits with sign and text that is no Unicode become their JSON text")
    last = {name: record.pop(name) for name in ("logging_config", "timestamp") if name in record}
    return record, last


def _fits(value: Any) -> bool:
    """Whether a reader that executes nothing, ours, gets `value` back out of a pickle."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not (isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value))


def _tensor(entry: Entry, point: str | None, export: Export) -> torch.Tensor | None:
    """A tensor with memory of its own: a pickled view brings all of what it views."""
    if point is None:
        return None
    tensor, dtype = entry.torch(point), entry.dtype(point)
    if dtype.startswith("float8"):
        export.note(f"{dtype} is written as float32, the format has no {dtype}; every value is kept")
        tensor = tensor.float()
    return tensor.unsqueeze(0) if has_batch_axis(entry) else tensor
