"""Entries of document 000's loggers, whichever files they are in: their fields, their hidden states, their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from actstore import arrays
from actstore.errors import CorruptError
from actstore.formats.as_text import as_values, replace_values
from actstore.formats.hidden_states import count_states, state_points
from actstore.formats.record import CONVENTIONS, Imported, conventions, conventions_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.entry import Entry

    States = Sequence[NDArray[Any] | None]
    Named = Mapping[str, NDArray[Any] | None]
    Record = Mapping[str, Any]

__all__ = ["Recipient", "has_batch_axis", "imported", "logged_record", "logged_states"]

_DERIVED = ("all_layers_activations", "has_activations", "activation_file", "activation_shape_info")
_FIRST = ("prompt", "response", "input_length", "model", "messages", "trim_position")
_OTHER_MODE = "other"
"""What is written as `sequence_mode` where the rows are none of those it has names for."""


def imported(
    key: str, record: Record, states: States | Named | None, format: str, mode: object = None, **more: Any
) -> Imported:
    """The entry of a log's `record` and its list of hidden states, each [1, tokens, d] or None.

    The oldest logs have arrays by name instead, which stay what they are called. `mode`: the `sequence_mode` of the
    whole log, for records without one. Rows are tied to tokens where the mode is known and the number of rows fits
    `input_length`; else they stay rows, and nothing is guessed. `more` goes into the conventions.

    Errors: `malformed`.
    """
    activations, count, batched = _activations(key, states)
    fields, as_text = replace_values({name: value for name, value in record.items() if name not in _DERIVED})
    prompt, response = fields.pop("prompt", None), fields.pop("response", None)
    known = conventions(
        format,
        layer_counting=None if count is None else "hidden_states",
        padding_side=None,
        dtypes=[arrays.encode(point, row)[0] for point, row in activations.items()],
        hidden_states=count,
        batch_axis=batched,
        **replace_values(more)[0],
        **({"as_text": as_text} if as_text else {}),
        **({"fields": {CONVENTIONS: fields[CONVENTIONS]}} if CONVENTIONS in fields else {}),
    )
    length, positions = _tokens(record, {row.shape[0] for row in activations.values()}, mode)
    return Imported(
        key,
        activations,
        {**fields, CONVENTIONS: known},
        prompt,
        response,
        prompt_length=length,
        positions=positions,
        created=_seconds(record.get("timestamp")),
    )


def _activations(key: str, states: States | Named | None) -> tuple[dict[str, NDArray[Any]], int | None, bool]:
    """Those there are by hook point, how many hidden states there were, if they were, and whether as batches of one."""
    named = states if isinstance(states, Mapping) else None
    listed = list(named.values() if named is not None else cast("States", states or ()))
    batched = all(state is None or (state.ndim == 3 and state.shape[0] == 1) for state in listed)
    points = state_points(len(listed)) if named is None else list(named)
    activations = {
        point: state[0] if batched else state for point, state in zip(points, listed, strict=True) if state is not None
    }
    if named is None and any(row.ndim != 2 for row in activations.values()):
        shapes = [list(state.shape) for state in listed if state is not None]
        raise CorruptError("malformed", f"entry `{key}` has hidden states of shapes {shapes[:3]}, not `[1, tokens, d]`")
    return activations, len(listed) if named is None else None, batched


def _seconds(timestamp: object) -> float | None:
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float):
        return None
    return float(timestamp) if 0 <= timestamp < 2**53 else None


def _tokens(record: Record, rows: set[int], mode: object) -> tuple[int | None, list[tuple[int, int]] | None]:
    """Length of the prompt, and the positions of the rows."""
    length = record.get("input_length")
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length < 2**31:
        return None, None
    config = record.get("logging_config")
    if isinstance(config, dict):
        mode = cast("dict[str, Any]", config).get("sequence_mode", mode)
    if len(rows) != 1:
        return length, None
    count = next(iter(rows))
    first = {"all": 0, "prompt": 0, "response": length}.get(mode) if isinstance(mode, str) else None
    fits = {"all": count >= length, "prompt": count == length, "response": True}
    if first is None or not fits[cast("str", mode)]:
        return length, None
    return length, [(first, first + count)] if count else []


class Recipient(Protocol):
    """Who gets an entry as the loggers have it: an `Export`, or whoever reads it so."""

    @property
    def layers(self) -> int | None:
        """How many the model has; None where nobody said."""
        ...

    def note(self, sentence: str) -> None:
        """Hear what the entry loses."""
        ...


def logged_record(entry: Entry, export: Recipient) -> dict[str, Any]:
    """The fields of `entry` as the loggers order them, up to `trim_position`, then the others."""
    known = conventions_of(entry.metadata)
    metadata = {name: value for name, value in entry.metadata.items() if name != CONVENTIONS or not known}
    fields = {"prompt": entry.prompt, "response": entry.response, **metadata}
    fields = as_values(fields, known["as_text"]) if "as_text" in known else fields
    fields |= known.get("fields", {})
    if entry.prompt_length is not None:
        fields.setdefault("input_length", entry.prompt_length)
    if entry.token_ids is not None:
        export.note("token ids are left out, the format has none")
    if not str(known.get("format", "")).startswith("actlog"):
        fields.setdefault("trim_position", None)
        fields.setdefault("logging_config", {"target_layers": "all", "sequence_mode": _mode(entry, export)})
        fields.setdefault("timestamp", entry.created)
    first = {name: fields.pop(name) for name in _FIRST if name in fields}
    return first | fields


def _mode(entry: Entry, export: Recipient) -> str:
    positions, length = entry.positions, entry.prompt_length
    if positions is not None and length is not None and positions:
        if positions == list(range(length, length + len(positions))):
            return "response"
        if positions == list(range(len(positions))) and len(positions) >= length:
            return "prompt" if len(positions) == length else "all"
    if positions is not None:
        export.note("rows that are not all, the prompt's or the response's lose their positions")
    return _OTHER_MODE


def logged_states(entry: Entry, export: Recipient) -> list[str | None]:
    """The hook point of each hidden state of `entry`, None for one that is not stored."""
    count = conventions_of(entry.metadata).get("hidden_states")
    if not isinstance(count, int):
        count = count_states(entry.points, export.layers)
    names = state_points(count)
    for point in entry.points:
        if point not in names:
            export.note(f"`{point}` is left out, it is no hidden state")
    return [name if name in entry.points else None for name in names]


def has_batch_axis(entry: Entry) -> bool:
    """Whether the log that `entry` is from, or is for, has an axis of length 1 before the tokens."""
    return bool(conventions_of(entry.metadata).get("batch_axis", True))
