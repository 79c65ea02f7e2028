"""The store that a recorder writes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore import store as stores
from actstore.options import open_or_create, require
from actstore.sizes import parse_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from actstore.store import Store

__all__ = ["Target"]


class Target:
    """An open store, a path to one or for one, or None for one in memory, with the options asked for."""

    def __init__(
        self, place: Store | str | os.PathLike[str] | None, options: Mapping[str, Any], memory: int | str
    ) -> None:
        self.memory = parse_bytes("memory", memory)
        self._place = place
        self._options = dict(options)

    def open(self) -> Store:
        """The store, writable. Errors: `invalid_option` where it exists with other options than were asked for."""
        if isinstance(self._place, stores.Store):
            require(self._place, self._options)
            return self._place
        if self._place is None:
            options: dict[str, Any] = {"backend": "memory", **self._options}
            return stores.create(None, memory=self.memory, **options)
        return open_or_create(self._place, self._options, self.memory)

    def settle(self, store: Store) -> Store:
        """What the caller has of `store` once it is written: one opened from a path gives its lock back."""
        path = store.path
        if store is self._place or path is None:
            return store
        store.close()
        return stores.open(path, "r", memory=self.memory)
