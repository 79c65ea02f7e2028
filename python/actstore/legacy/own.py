"""A log in a store of actstore's own: hidden states under the names of their hook points, fields as metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore import store as stores
from actstore.errors import InvalidInputError
from actstore.formats.actlog import has_batch_axis, imported, logged_record, logged_states
from actstore.options import open_existing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actstore.entry import Entry
    from actstore.legacy.extraction import States
    from actstore.store import Store

__all__ = ["OwnLog", "open_own"]

_FORMAT = "actstore.legacy"
"""Where entries say that they are from."""


def open_own(path: Path, backend: str, codec: str | None, *, read_only: bool) -> OwnLog:
    """The store at `path`, to be read whatever it is, or to be written and then created where there is none.

    Errors: those of `open` and `create`, and `invalid_option` where what is there was created with other options.
    """
    if read_only:
        return OwnLog(stores.open(path))
    existing = open_existing(path, {})
    if existing is None:
        return OwnLog(stores.create(path, backend, codec=codec, on_conflict="replace"))
    try:
        _require(existing, {"backend": backend, "compression": codec})
    except BaseException:
        existing.close()
        raise
    return OwnLog(existing)


def _require(store: Store, asked: Mapping[str, str | None]) -> None:
    has = {"backend": store.backend, "compression": store.settings.get("codec")}
    for name, wanted in asked.items():
        if wanted is not None and wanted != has[name]:
            message = (
                f"`{name}` is `{wanted}`, but the store `{store.path}` was created with `{has[name]}`; "
                "log to another path, or with the logger and options that it was created with"
            )
            raise InvalidInputError("invalid_option", message)


class OwnLog:
    """Entries of a store, as the loggers have them. What is no hidden state is left to `Store`."""

    layers = None

    def __init__(self, store: Store) -> None:
        self._store = store

    def note(self, sentence: str) -> None:
        """Nothing that an entry has beside is lost by reading it so."""

    def keys(self) -> list[str]:
        """Every key, in the order of logging."""
        return self._store.keys()

    def record(self, key: str) -> dict[str, Any]:
        """What is logged of `key` beside its hidden states, of which none is read. Errors: `no_such_key`."""
        return self._record(self._store[key])

    def entry(self, key: str) -> tuple[dict[str, Any], States | None]:
        """The record of `key`, and its hidden states; None for none at all. Errors: as for `Entry`."""
        entry = self._store[key]
        batched = has_batch_axis(entry)
        names = logged_states(entry, self) if entry.points else None
        states = names and [None if name is None else entry[name][None] if batched else entry[name] for name in names]
        return self._record(entry), states

    def put(self, key: str, record: Mapping[str, Any], states: States) -> None:
        """Log an entry, durable on return; of a key that there is, it takes the place. Errors: as for `Writer.put`."""
        with self._store.writer() as writer:
            imported(key, record, states, _FORMAT).put(writer)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _record(self, entry: Entry) -> dict[str, Any]:
        record = logged_record(entry, self)
        # An entry that was logged without these had none, and predicates look for text.
        missing = [name for name in ("prompt", "response") if record[name] is None]
        return {name: value for name, value in record.items() if name not in missing} | {
            "has_activations": bool(entry.points)
        }
