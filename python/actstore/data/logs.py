"""Where the activations of a data set are: a store of any backend, or a log that document 000's loggers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from actstore import store as stores
from actstore.data.old_logs import ActlogLog
from actstore.errors import InvalidInputError, NotFoundError
from actstore.formats import format_of
from actstore.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from actstore.entry import Entry

__all__ = ["Log", "Recorded", "open_log"]

AUTO = "auto"
_BACKENDS = ("shards", "lmdb", "json", "memory")


class Recorded(Protocol):
    """One entry of a log, as `actstore.Entry` is one of a store."""

    @property
    def key(self) -> str:
        """The name of the entry."""
        ...

    @property
    def prompt(self) -> str | None:
        """Text of the prompt."""
        ...

    @property
    def response(self) -> str | None:
        """Text of the response."""
        ...

    @property
    def prompt_length(self) -> int | None:
        """How many tokens the prompt has."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """All else that is known of it."""
        ...

    @property
    def points(self) -> list[str]:
        """Hook points of its activations."""
        ...

    def torch(self, point: str, positions: str | Sequence[int] = "all", /) -> Tensor:
        """The activation at `point`, [positions, d], in memory of its own."""
        ...


class Log(Protocol):
    """Entries by key. Opened to read; pickles as its path, for the workers of a data loader."""

    @property
    def path(self) -> Path | None:
        """Where it lies; None for a store in memory."""
        ...

    @property
    def kind(self) -> str:
        """`shards`, `lmdb`, `json` or `memory`."""
        ...

    def __len__(self) -> int: ...
    def __contains__(self, key: str, /) -> bool: ...

    def keys(self) -> Iterable[str]:
        """Every key, in the order of the log."""
        ...

    def fields(self, key: str) -> dict[str, Any]:
        """What is known of an entry, by document 000's names; reads no activation, unless an old log has no other.

        `prompt`, `response`, `input_length` (tokens of the prompt), `timestamp` (Unix seconds), and all metadata.
        Errors: `no_such_key`, and what is damaged.
        """
        ...

    def rows(self, key: str, positions: str) -> int | None:
        """How many rows the activations have at `positions`; None where only reading them tells.

        Errors: `unknown_position` where that cannot be known at all.
        """
        ...

    def entry(self, key: str) -> Recorded:
        """The entry; its activations are read when they are asked for. Errors: as for `fields`."""
        ...

    def close(self) -> None:
        """Close what was opened."""
        ...


class StoreLog:
    """A store as a `Log`."""

    def __init__(self, store: Store, *, owned: bool) -> None:
        self._store = store
        self._owned = owned

    @property
    def path(self) -> Path | None:
        """As in `Log`."""
        return self._store.path

    @property
    def kind(self) -> str:
        """As in `Log`."""
        return self._store.backend

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, key: str, /) -> bool:
        return key in self._store

    def keys(self) -> list[str]:
        """As in `Log`."""
        return self._store.keys()

    def fields(self, key: str) -> dict[str, Any]:
        """As in `Log`."""
        entry = self._store[key]
        known = {"prompt": entry.prompt, "response": entry.response, **entry.metadata}
        known.setdefault("input_length", entry.prompt_length)
        known.setdefault("timestamp", entry.created)
        return known

    def rows(self, key: str, positions: str) -> int | None:
        """As in `Log`."""
        entry = self._store[key]
        points = entry.points
        return next(iter(entry.shape(points[0], positions)), 1) if points else 0

    def entry(self, key: str) -> Entry:
        """As in `Log`."""
        return self._store[key]

    def close(self) -> None:
        """As in `Log`; a store that was given open stays open."""
        if self._owned:
            self._store.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # What a worker opens is its own.
        return _from_store, (self._store,)


def _from_store(store: Store) -> StoreLog:
    return StoreLog(store, owned=True)


def open_log(place: Store | str | os.PathLike[str], kind: str = AUTO) -> Log:
    """The log at `place`, of whatever kind its content shows: a store, or a log of document 000, which is only read.

    `kind`: what it has to be, `shards`, `lmdb` or `json`. Errors: `not_a_store` where there is nothing or something
    else, `invalid_option`, and those of `actstore.open`.
    """
    if kind != AUTO and kind not in _BACKENDS:
        known = ", ".join(f"`{name}`" for name in (AUTO, *_BACKENDS))
        raise InvalidInputError("invalid_option", f"`logger_type` is `{kind}`; one of {known}")
    log = StoreLog(place, owned=False) if isinstance(place, Store) else _open(Path(place))
    if kind not in (AUTO, log.kind):
        log.close()
        message = f"`{place}` is of the kind `{log.kind}`, not `{kind}`; say that, or `{AUTO}`"
        raise InvalidInputError("invalid_option", message)
    return log


def _open(path: Path) -> Log:
    try:
        return StoreLog(stores.open(path), owned=True)
    except NotFoundError as error:
        if error.kind != "not_a_store":
            raise
    # Imports NumPy, which stores are found without.
    from actstore.formats.actlog_by_key import open_actlog

    log = open_actlog(path)
    if log is not None:
        return ActlogLog(log)
    format = format_of(path) if path.is_dir() else None
    if format is not None:
        message = f"`{path}` is in the format `{format.name}`; import it into a store first"
    else:
        what = "is no store and no log of activations" if path.exists() else "does not exist"
        message = f"`{path}` {what}; give the directory that has the activations"
    raise NotFoundError("not_a_store", message)
