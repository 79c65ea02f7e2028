"""Metadata: the checks before it is stored, the table over a whole store, and searching it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from actstore import _core

__all__ = ["MetadataTable", "dump_json", "search"]

_LARGEST_INTEGER = 2**64 - 1
_SMALLEST_INTEGER = -(2**63)


class MetadataTable:
    """The metadata of a store, one row an entry, in the order of `Store.keys`.

    Iteration gives the documents as dicts: `key`, `key_recipe`, `prompt`, `response`, `prompt_sha256`,
    `prompt_length`, `positions`, `metadata`, `created`. The table is an Arrow stream too, so `polars.DataFrame(table)`,
    `pyarrow.table(table)`, `pandas.DataFrame.from_arrow(table)` and DuckDB read it as it is. It shows the store as it
    stands when it is read, and never touches an activation.
    """

    __slots__ = ("_core",)

    def __init__(self, core: _core.Store) -> None:
        self._core = core

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        """PyCapsule of an Arrow array stream. The schema is the store's own, which the protocol allows."""
        del requested_schema
        return self._core.metadata_stream()

    def __len__(self) -> int:
        return len(self._core)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        planned = self._core.documents()
        while window := planned.window():
            yield from window

    def dicts(self) -> list[dict[str, Any]]:
        """Every row as a dict."""
        return list(self)

    def __repr__(self) -> str:
        return f"MetadataTable({len(self):,} rows)"


def search(
    documents: Iterable[dict[str, Any]],
    predicate: Callable[[dict[str, Any]], object] | None,
    fields: Mapping[str, object],
) -> list[str]:
    """The keys of the `documents` that have `fields` and that `predicate` accepts, as `Store.search` gives them."""
    return [
        document["key"]
        for document in documents
        if _has_fields(document, fields) and (predicate is None or predicate(document))
    ]


def _has_fields(document: dict[str, Any], fields: Mapping[str, object]) -> bool:
    for name, value in fields.items():
        holder = document if name in document else document["metadata"]
        if name not in holder or holder[name] != value:
            return False
    return True


def dump_json(document: Mapping[str, Any]) -> str:
    """`document` as JSON text that reads back as equal values (tuples as lists).

    Whatever JSON would lose or cannot hold is an `InvalidInputError` of kind `invalid_metadata` that names the field:
    keys that are not strings, NaN and infinities, integers beyond 64 bits, lone surrogates, cycles, other types.
    """
    try:
        for name, value in document.items():
            _require_json(name, value)
    except RecursionError:
        raise InvalidInputError("invalid_metadata", "the metadata is nested too deeply, or contains itself") from None
    return json.dumps(document, allow_nan=False, ensure_ascii=False, check_circular=False)


def _require_json(name: str, value: object) -> None:
    if isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            if not isinstance(key, str):
                raise _refusal(name, f"has the key `{key!r}`, which is not a string")
            _require_utf8(name, key)
            _require_json(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast("Sequence[object]", value)):
            _require_json(f"{name}[{index}]", item)
    else:
        _require_scalar(name, value)


def _require_scalar(name: str, value: object) -> None:
    if isinstance(value, str):
        _require_utf8(name, value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _refusal(name, f"is `{value}`, which JSON cannot hold")
    elif isinstance(value, int):
        if not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
            raise _refusal(name, f"is `{value}`, which does not fit 64 bits; store it as a string")
    elif value is not None:
        raise _refusal(name, f"is a `{type(value).__name__}`, which JSON cannot hold")


def _require_utf8(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refusal(name, f"is not valid Unicode: a lone surrogate at character `{error.start}`") from None


def _refusal(name: str, reason: str) -> InvalidInputError:
    return InvalidInputError("invalid_metadata", f"`{name}` {reason}")
