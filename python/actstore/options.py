"""Opening a store to go on with it: what was asked for must be what it was created with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore import store as stores
from actstore.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from actstore.store import Store

__all__ = ["open_existing", "open_or_create", "require"]


def open_or_create(path: str | os.PathLike[str], options: Mapping[str, Any], memory: int | str = "1 GiB") -> Store:
    """The store at `path`, writable, or a new one with these `options` of `create`; None asks for nothing.

    Errors: `invalid_option` where it exists with other options, and those of `open` and `create`.
    """
    existing = open_existing(path, options, memory=memory)
    if existing is not None:
        return existing
    return stores.create(path, memory=memory, **{name: value for name, value in options.items() if value is not None})


def open_existing(
    path: str | os.PathLike[str],
    options: Mapping[str, Any],
    mode: stores.Mode = "a",
    *,
    memory: int | str = "1 GiB",
) -> Store | None:
    """The store at `path`, if there is one; it must have the `options` that are not None.

    Errors: `invalid_option` where it has others, and those of `open`.
    """
    try:
        store = stores.open(path, mode, memory=memory)
    except NotFoundError:
        return None
    try:
        require(store, options)
    except BaseException:
        store.close()
        raise
    return store


def require(store: Store, options: Mapping[str, Any]) -> None:
    """Refuse `options` of `create` that are not those of `store`; None asks for nothing. Errors: `invalid_option`."""
    has = {"backend": store.backend, **store.settings}
    for name, wanted in options.items():
        if wanted is not None and wanted != has[name]:
            place = "in memory" if store.path is None else f"`{store.path}`"
            message = (
                f"`{name}` is `{wanted}`, but the store {place} was created with `{has[name] or 'none'}`; "
                "leave it out or use another store"
            )
            raise InvalidInputError("invalid_option", message)
