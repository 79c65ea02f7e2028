"""Reading one hook point of a whole store, in the order of writing, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore import arrays

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actstore import _core


def scan(
    core: _core.Store, point: str, positions: str | list[int], keys: list[str] | None
) -> Iterator[tuple[str, Any]]:
    """(key, array) of each entry of `keys`, or of all, that has `point`; the core reads on while a part is handed out.

    Where no entry has the point: the `point_not_stored` error of the first one, which names what it has.
    """
    return _arrays(core.scan(point, positions, keys))


def _arrays(planned: _core.Scan) -> Iterator[tuple[str, Any]]:
    while window := planned.window():
        # Emptied while it is handed out, so that the consumer alone decides how long an array lives.
        window.reverse()
        while window:
            yield _array(*window.pop())


def _array(key: str, read: tuple[_core.Rows, str, list[int]]) -> tuple[str, Any]:
    return key, arrays.as_array(*read)
