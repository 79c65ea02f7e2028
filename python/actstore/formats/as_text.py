"""Values that Python's JSON has and a store's metadata has not, kept as the text that spells them.

NaN and infinities, integers beyond 64 bits and strings with lone surrogates are replaced by their JSON text; the list
of where they were brings them back.
"""

from __future__ import annotations

import json
import math
from typing import Any, cast

from actstore.errors import InvalidInputError

__all__ = ["as_values", "replace_values"]

Path = list[str | int]
_MOST_LEVELS = 64
"""Of lists and objects in each other; stores keep no more."""


def replace_values(document: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """`document` with text in the place of what metadata cannot hold, and the paths of the replaced values.

    Errors: `invalid_metadata` for what is nested too deeply.
    """
    paths: list[Path] = []
    return cast("dict[str, Any]", _replaced(document, [], paths)), paths


def _replaced(value: Any, path: Path, paths: list[Path]) -> Any:
    if len(path) > _MOST_LEVELS:
        message = f"`{path[0]}` of the metadata is nested more than {_MOST_LEVELS} deep"
        raise InvalidInputError("invalid_metadata", message)
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: _replaced(item, [*path, name], paths) for name, item in fields.items()}
    if isinstance(value, list):
        return [_replaced(item, [*path, index], paths) for index, item in enumerate(cast("list[Any]", value))]
    if _fits(value):
        return value
    paths.append(path)
    return json.dumps(value)


def _fits(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return not (isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value))


def as_values(document: dict[str, Any], paths: Any) -> dict[str, Any]:
    """`document` with the values at `paths` back from their text; what is no path, or leads nowhere, is passed over."""
    restored: Any = json.loads(json.dumps(document))
    for path in cast("list[Any]", paths) if isinstance(paths, list) else []:
        place: Any = restored
        try:
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = json.loads(place[path[-1]])
        except (IndexError, KeyError, TypeError, ValueError):
            continue
    return restored
