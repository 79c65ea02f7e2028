"""Values that Python's JSON has and a store's metadata has not, kept as the text that spells them.

NaN and infinities, integers beyond 64 bits and strings with lone surrogates are replaced by their JSON text; the list
of where they were brings them back.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["as_values", "fits_metadata", "replace_values"]

Path = list[str | int]
_MOST_LEVELS = 64
"""Of lists and objects in each other; stores keep no more."""


def fits_metadata(value: Any) -> bool:
    """Whether metadata can hold `value`, which is no container."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return not (isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value))


def replace_values(
    document: dict[str, Any], fits: Callable[[Any], bool] = fits_metadata
) -> tuple[dict[str, Any], list[Path]]:
    """`document` with text in the place of what does not fit, by default metadata, and the paths of those values.

    Errors: `invalid_metadata` for what is nested too deeply.
    """
    paths: list[Path] = []

    def replaced(value: Any, path: Path) -> Any:
        if len(path) > _MOST_LEVELS:
            message = f"`{path[0]}` of the metadata is nested more than {_MOST_LEVELS} deep"
            raise InvalidInputError("invalid_metadata", message)
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            return {name: replaced(item, [*path, name]) for name, item in fields.items()}
        if isinstance(value, list):
            return [replaced(item, [*path, index]) for index, item in enumerate(cast("list[Any]", value))]
        if fits(value):
            return value
        paths.append(path)
        return json.dumps(value)

    return replaced(document, []), paths


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
