"""Where a source is and where a target may be: never the one in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["place_in", "refuse_inside"]


def place_in(root: Path | None, path: Path | None) -> Path | None:
    """Where `path` is in `root`, links followed; None where it is elsewhere."""
    if root is None or path is None or not path.resolve().is_relative_to(root.resolve()):
        return None
    return path.resolve().relative_to(root.resolve())


def refuse_inside(source: Path | None, target: Path | None) -> None:
    """Refuse a target that is the source or lies in it, which is never changed. Errors: `invalid_option`."""
    if place_in(source, target) is not None:
        message = f"target `{target}` lies in the source `{source}`, which is never changed; give a place outside"
        raise InvalidInputError("invalid_option", message)
