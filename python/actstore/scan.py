"""Reading one hook point of a whole store, in the order of writing, in bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from actstore import arrays
from actstore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from actstore import _core

_WINDOW_BYTES = 32 << 20
_WINDOW_ENTRIES = 256
"""Bounds the handles of a window where activations are tiny."""

Request = tuple["_core.StoredEntry", str, str | list[int], memoryview]
Layout = tuple["NDArray[Any]", str, list[int]]
Decoded = list[tuple[str, Any]]


def scan(core: _core.Store, keys: list[str], point: str, positions: str | list[int]) -> Iterator[tuple[str, Any]]:
    """(key, array) of each entry that has `point`; one window is decoded while the one before is handed out.

    Where no entry has the point: the `point_not_stored` error of the first one, which names what it has.
    """
    planned, found = iter(keys), False
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="actstore-scan") as thread:
        upcoming = thread.submit(_next_window, core, planned, point, positions)
        while window := upcoming.result():
            upcoming = thread.submit(_next_window, core, planned, point, positions)
            # Emptied while it is handed out, so that the consumer alone decides how long an array lives.
            found = True
            window.reverse()
            while window:
                yield window.pop()
    if keys and not found:
        core.entry(keys[0]).layout(point, positions)


def _next_window(core: _core.Store, keys: Iterator[str], point: str, positions: str | list[int]) -> Decoded:
    requests: list[Request] = []
    arrived: list[tuple[str, Layout]] = []
    size = 0
    for key in keys:
        entry = core.entry(key)
        try:
            dtype, shape, entry_size = entry.layout(point, positions)
        except NotFoundError:
            continue
        data = arrays.allocate(entry_size)
        requests.append((entry, point, positions, data.data))
        arrived.append((key, (data, dtype, shape)))
        size += entry_size
        if size >= _WINDOW_BYTES or len(requests) >= _WINDOW_ENTRIES:
            break
    core.read(requests)
    return [(key, arrays.as_array(*layout)) for key, layout in arrived]
