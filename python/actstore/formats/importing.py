"""From a tree of an older system into a store."""

from __future__ import annotations

import itertools
import json
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actstore import _core, arrays
from actstore import store as stores
from actstore.errors import ActstoreError, InvalidInputError, LimitExceededError, LockedError
from actstore.formats.place import refuse_inside
from actstore.formats.table import AUTO, source_path
from actstore.options import open_existing, open_or_create, require
from actstore.reports import Damage, Difference, MigrationReport
from actstore.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterable, Iterator

    import torch

    from actstore.formats.record import Format, Imported, Pending, Source
    from actstore.writer import Writer

    Step = Callable[[int, int, int], object]

__all__ = ["Importing", "import_store"]

_BATCH_BYTES = 64 << 20
_BATCH_ENTRIES = 1024


def import_store(
    source: str | os.PathLike[str],
    target: Store | str | os.PathLike[str],
    source_format: str = AUTO,
    *,
    target_format: str | None = None,
    codec: str | None = None,
    key_distance: int | None = None,
    encoding: str | None = None,
    dtype: str | torch.dtype | None = None,
    overflow: str | None = None,
    on_conflict: str | None = None,
    verify: bool = False,
    dry_run: bool = False,
    progress: Step | None = None,
) -> MigrationReport:
    """Bring the entries that another system left at `source` into a store; `source` is only read.

    `source_format`: a name of `formats.names()`, `json` for any of the JSON logs, `lmdb` for the LMDB log, or `auto`
    for what is recognised. The target is a store or the path of one; one that does not exist is created as
    `target_format` (`shards`) with `codec` ... `on_conflict` as for `create`, one that exists must have what is given.

    What is missing or damaged in the source is left out and listed by key in `left_out` of the report, and the rest is
    imported. Repeating an interrupted import continues it: an entry that the target has, by key and content, is
    skipped. `verify` then reads the source again and holds every value against what the target decodes to; `dry_run`
    reads the whole source, writes nothing, and says what would come and what is damaged. One entry is held in memory,
    and the `memory` of the target's queue. `progress(done, total, raw_bytes)` counts entries, for `verify` from zero
    again, and may raise to stop.

    Errors: `NotFoundError` (`not_a_store`), `CorruptError` for a damaged index and for what `verify` finds,
    `InvalidInputError` (`invalid_option`), `KeyConflictError`, `LockedError` where the source is being written.
    """
    options = {
        "backend": target_format,
        "codec": codec,
        "key_distance": key_distance,
        "encoding": encoding,
        "dtype": None if dtype is None else arrays.dtype_name(dtype),
        "overflow": overflow,
        "on_conflict": on_conflict,
    }
    with opened(source, target, source_format, options, dry_run=dry_run) as importing:
        report = importing.survey(progress) if dry_run else importing.copy(progress)
        if verify and not dry_run:
            report = importing.verify(report, progress)
    report.raise_differences()
    return report


@contextmanager
def opened(
    source: str | os.PathLike[str],
    target: Store | str | os.PathLike[str],
    source_format: str,
    options: dict[str, Any],
    *,
    dry_run: bool,
) -> Generator[Importing]:
    """The import, ready; a target given as a path is closed again. A dry run creates nothing."""
    path, format = source_path(source, source_format)
    refuse_inside(path, target.path if isinstance(target, Store) else Path(target))
    # What makes the source unreadable as a whole is raised before a target is made.
    first = format.read(path)
    with ExitStack() as stack:
        if isinstance(target, Store):
            require(target, options)
            store = target
        elif dry_run:
            store = open_existing(target, options, "r")
        else:
            store = open_or_create(target, options)
        if store is not None and store is not target:
            stack.enter_context(store)
        yield Importing(path, format, first, store, options)


class Importing:
    """An import that is ready to run: `copy`, then `verify`; or `survey`, which needs no store."""

    def __init__(self, path: Path, format: Format, first: Source, store: Store | None, options: dict[str, Any]) -> None:
        self.path = path
        self.format = format
        self.total = first.total
        self._first = first
        self._store = store
        self._options = options

    def copy(self, progress: Step | None = None) -> MigrationReport:
        """Import; `progress(done, total, raw_bytes)` counts entries."""
        started, store = time.monotonic(), self._made()
        stored = store.info()["stored_bytes"]
        tally, there = _Tally(self.total, progress), 0
        writer = store.writer()
        with writer:
            for pending in self._first.entries:
                entry = tally.load(pending)
                if entry is not None:
                    there += entry.key in store
                    tally.put(writer, entry)
                tally.step()
        stats, info = writer.stats, store.info()
        return self._report(
            tally,
            started,
            migrated=stats["entries"],
            skipped=tally.loaded - stats["entries"],
            conflicts=max(there - stats["duplicates"], 0),
            encoded=stats["entries"],
            stored_bytes=info["stored_bytes"] - stored,
            file_bytes=info["file_bytes"],
        )

    def survey(self, progress: Step | None = None) -> MigrationReport:
        """What `copy` would report: every entry is read, and encoded as the target would, in memory."""
        started = time.monotonic()
        tally = _Tally(self.total, progress)
        counts = dict.fromkeys(("migrated", "skipped", "conflicts", "stored_bytes"), 0)
        for batch in _batches(self._first.entries, tally, self._settings(), None):
            with batch:
                counts["stored_bytes"] += batch.info()["stored_bytes"]
                for entry in batch:
                    there = self._store is not None and entry.key in self._store
                    same = there and cast("Store", self._store)[entry.key].content_id == entry.content_id
                    counts["skipped"] += same
                    counts["conflicts"] += there and not same
                    counts["migrated"] += not there
        before = 0 if self._store is None else self._store.info()["file_bytes"]
        files = before + counts["stored_bytes"]
        return self._report(tally, started, **counts, encoded=counts["migrated"], file_bytes=files, dry_run=True)

    def verify(self, report: MigrationReport, progress: Step | None = None) -> MigrationReport:
        """`report` with what holding the target against the source, read again, found."""
        store, tally = self._made(), _Tally(self.total, progress)
        rule = store.settings["on_conflict"]
        differences: list[Difference] = []
        for batch in _batches(self.format.read(self.path).entries, tally, {"codec": "raw"}, store):
            with batch:
                differences += _differences(batch, store, rule)
        return report.with_differences(tally.loaded, differences)

    def _settings(self) -> dict[str, Any]:
        """Of stores in memory that encode as the target does, as far as they can."""
        had: Any = self._options if self._store is None else self._store.settings
        settings = {name: had[name] for name in ("codec", "key_distance", "dtype", "overflow") if had.get(name)}
        return settings if settings.get("codec", "raw") in _core.codecs("memory") else {"codec": "raw", **settings}

    def _made(self) -> Store:
        if self._store is None:
            raise InvalidInputError("invalid_option", "a dry run has no target to write to or to verify")
        return self._store

    def _report(self, tally: _Tally, started: float, *, conflicts: int = 0, **counts: Any) -> MigrationReport:
        return MigrationReport(
            source=self.path,
            target=None if self._store is None else self._store.path,
            backend=self._options.get("backend") or "shards" if self._store is None else self._store.backend,
            entries=self.total,
            conflicts=conflicts,
            copied=0,
            raw_bytes=tally.raw_bytes,
            seconds=time.monotonic() - started,
            left_out=tuple(tally.left_out),
            notes=self._first.notes,
            **counts,
        )


class _Tally:
    """What became of the entries so far."""

    def __init__(self, total: int, progress: Step | None) -> None:
        self.loaded = 0
        self.raw_bytes = 0
        self.left_out: list[Damage] = []
        self._total = total
        self._done = 0
        self._progress = progress

    def load(self, pending: Pending) -> Imported | None:
        """The entry, or None and a line in `left_out`."""
        try:
            entry = pending.load()
        except LockedError:
            # The source is being written: this is not about one entry.
            raise
        except ActstoreError as error:
            self.left_out.append(Damage(kind=error.kind, message=error.message, key=pending.key))
            return None
        self.loaded += 1
        return entry

    def put(self, writer: Writer, entry: Imported) -> None:
        """Queue the entry; one that no store can hold is left out."""
        try:
            entry.put(writer)
        except (InvalidInputError, LimitExceededError) as error:
            # A failure in the background, which is of another entry and ends the import, is raised again by this.
            writer.flush()
            self.loaded -= 1
            message = error.message if entry.key in error.message else f"entry `{entry.key}`: {error.message}"
            self.left_out.append(Damage(kind=error.kind, message=message, key=entry.key))
        else:
            self.raw_bytes += raw_bytes(entry)

    def step(self) -> None:
        """Count an entry, imported or left out, and show it."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, self.raw_bytes)


def raw_bytes(entry: Imported) -> int:
    """Bytes of the entry's activations."""
    return sum(array.nbytes for array in entry.activations.values())


def _batches(
    entries: Iterable[Pending], tally: _Tally, settings: dict[str, Any], made: Store | None
) -> Iterator[Store]:
    """Stores in memory with the entries, a bounded part of them each, made when those of the store `made` were."""
    pending, more = iter(entries), True
    while more:
        store, begun = stores.create(backend="memory", **settings), tally.raw_bytes
        with store.writer() as writer:
            more = False
            for count, item in enumerate(pending, 1):
                entry = tally.load(item)
                if entry is not None and entry.created is None and made is not None:
                    entry = replace(entry, created=_made_at(made, entry.key))
                if entry is not None:
                    tally.put(writer, entry)
                tally.step()
                if count >= _BATCH_ENTRIES or tally.raw_bytes - begun >= _BATCH_BYTES:
                    more = True
                    break
        yield store


def _made_at(store: Store, key: str) -> float | None:
    """When the entry of `key` that came last was made; the source does not say it, so any time will do."""
    numbered = (f"{key}#{number}" for number in itertools.count(1))
    names = list(itertools.takewhile(store.__contains__, itertools.chain((key,), numbered)))
    return store[names[-1]].created if names else None


def _differences(batch: Store, target: Store, rule: str) -> list[Difference]:
    return cast("list[Difference]", json.loads(_core.compare(batch.core, target.core, None, None, rule, None)))
