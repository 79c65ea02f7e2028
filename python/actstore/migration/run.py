"""A migration that is ready to run: both stores open, what goes over chosen."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actstore import _core, formats
from actstore import store as stores
from actstore.errors import InvalidInputError
from actstore.hook_points import choose
from actstore.migration.places import MEMORY, open_source, open_target, refuse_same
from actstore.reports import MigrationReport

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from actstore.hook_points import LayersLike, PointLike
    from actstore.migration.places import Place
    from actstore.reports import Difference
    from actstore.store import Store

    Step = Callable[[int, int, int], object]

__all__ = ["Migration", "Request", "opened"]

_RULES = ("error", "skip", "replace", "number")
_SAMPLE_ENTRIES = 16
_SAMPLE_BYTES = 64 << 20


@dataclass(frozen=True)
class Request:
    """The arguments of `migrate` that say what goes where and becomes what; `options` are those of `create`.

    Errors: `invalid_option` for a `shard_size` where files have none.
    """

    source_format: str | None
    target_format: str | None
    options: Mapping[str, Any]
    keys: str | Iterable[str] | None = None
    layers: LayersLike | None = None
    points: PointLike | Iterable[PointLike] | None = None
    on_conflict: str = "error"
    shard_size: int | None = None

    def __post_init__(self) -> None:
        to = self.target_format
        if self.shard_size is not None and not (to in formats.names() and formats.find(to).has_shards):
            message = f"`shard_size` is for the format `pt-shards`, not for `{to}`; leave it out"
            raise InvalidInputError("invalid_option", message)


@contextmanager
def opened(source: Place, target: Place, request: Request, *, dry_run: bool = False) -> Generator[Migration]:
    """The migration, ready; stores given as paths are closed again. A dry run creates and locks nothing."""
    if request.on_conflict not in _RULES:
        rules = ", ".join(f"`{rule}`" for rule in _RULES)
        raise InvalidInputError("invalid_option", f"`on_conflict` is `{request.on_conflict}`; one of {rules}")
    with ExitStack() as stack:
        from_store = open_source(stack, source, request.source_format)
        refuse_same(from_store, target)
        # Before the target is made: what is refused leaves nothing behind.
        keys, points = _keys(from_store, request.keys), _points(from_store, request)
        place = open_target(stack, from_store, target, request.target_format, request.options, dry_run=dry_run)
        yield Migration(from_store, place.store, place.backend, place.settings, keys, points, request.on_conflict)


def _keys(source: Store, keys: str | Iterable[str] | None) -> list[str] | None:
    if keys is None:
        return None
    try:
        listed: list[object] = [keys] if isinstance(keys, str) else list(keys)
    except TypeError:
        raise InvalidInputError("invalid_option", f"`keys` is `{keys!r}`; give strings") from None
    wrong = [key for key in listed if not isinstance(key, str)]
    if wrong:
        raise InvalidInputError("invalid_option", f"`keys` has `{wrong[0]!r}`; give strings")
    chosen = list(dict.fromkeys(cast("list[str]", listed)))
    for key in chosen:
        if key not in source:
            source[key]  # raises what a missing key, or a damaged store, asks for
    return chosen


def _points(source: Store, request: Request) -> list[str] | None:
    if request.layers is None and request.points is None:
        return None
    stored = dict.fromkeys(point["point"] for point in source.info()["points"])
    return choose(list(stored), request.layers, request.points)


@dataclass(frozen=True)
class Migration:
    """What goes from `source` to `target`. `target` is None, and only `estimate` possible, where it is not made yet.

    `keys` and `points` are None where all go; `settings` are those of the target, as `create` takes them.
    """

    source: Store
    target: Store | None
    backend: str
    settings: Mapping[str, Any]
    keys: list[str] | None
    points: list[str] | None
    on_conflict: str

    @property
    def total(self) -> int:
        """How many entries there are to migrate, those that the target has included."""
        return len(self.source) if self.keys is None else len(self.keys)

    def copy(self, progress: Step | None = None) -> MigrationReport:
        """Migrate; `progress(done, total, raw_bytes)` counts entries."""
        started = time.monotonic()
        counts = self._migrate(self._made(), self.keys, progress)
        return self._report(counts, time.monotonic() - started)

    def verify(self, report: MigrationReport, progress: Step | None = None) -> MigrationReport:
        """`report` with what holding the target against the source found."""
        found = _core.compare(self.source.core, self._made().core, self.keys, self.points, self.on_conflict, progress)
        differences = cast("list[Difference]", json.loads(found))
        return replace(report, verified=report.entries - len(differences), differences=tuple(differences))

    def estimate(self) -> MigrationReport:
        """What `copy` would report: entries are counted, sizes scaled from a few that go to a temporary store."""
        started = time.monotonic()
        survey = self._survey()
        sampled = _spread(survey.todo)
        with self._temporary() as store:
            empty = store.info()["file_bytes"]
            counts = self._migrate(store, [key for key, _ in sampled], None)
        # Entries without activations weigh what their number says.
        weights = (sum(raw for _, raw in survey.todo), sum(raw for _, raw in sampled))
        scale = weights[0] / weights[1] if weights[1] else len(survey.todo) / max(len(sampled), 1)
        for name in ("raw_bytes", "stored_bytes"):
            counts[name] = round(counts[name] * scale)
        before = empty if self.target is None else self.target.info()["file_bytes"]
        counts["file_bytes"] = before + round((counts["file_bytes"] - empty) * scale)
        copied = round(counts["copied"] / max(len(sampled), 1) * len(survey.todo))
        counts |= {"entries": self.total, "migrated": len(survey.todo), "copied": copied}
        counts |= {"encoded": len(survey.todo) - copied, "skipped": survey.skipped, "conflicts": survey.conflicts}
        return self._report(counts, time.monotonic() - started, dry_run=True)

    def _made(self) -> Store:
        if self.target is None:
            raise InvalidInputError("invalid_option", "a dry run has no target to write to or to verify")
        return self.target

    def _migrate(self, target: Store, keys: list[str] | None, progress: Step | None) -> dict[str, int]:
        summary = _core.migrate(self.source.core, target.core, keys, self.points, self.on_conflict, progress)
        return cast("dict[str, int]", json.loads(summary))

    def _report(self, counts: dict[str, Any], seconds: float, *, dry_run: bool = False) -> MigrationReport:
        target = None if self.target is None else self.target.path
        places = {"source": self.source.path, "target": target, "backend": self.backend}
        return MigrationReport(**places, **counts, seconds=seconds, dry_run=dry_run)

    @contextmanager
    def _temporary(self) -> Generator[Store]:
        with tempfile.TemporaryDirectory(prefix="actstore-") as folder:
            path = None if self.backend == MEMORY else Path(folder) / "sample"
            with stores.create(path, self.backend, **self.settings) as store:
                yield store

    def _survey(self) -> _Survey:
        sizes = dict(_core.dtypes())
        survey = _Survey([])
        for key in self.source.keys() if self.keys is None else self.keys:
            entry = self.source.core.entry(key)
            chosen = [point for point in entry.points() if self.points is None or point[0] in self.points]
            if self.target is not None and key in self.target:
                same = self._has(self.target, key, entry.content_id)
                # Of content that changes on its way only migrating tells whether it is the target's.
                changes = self.points is not None or "dtype" in self.settings
                survey.conflicts += not (same or changes)
                if same or changes or self.on_conflict == "skip":
                    survey.skipped += 1
                    continue
            survey.todo.append((key, sum(math.prod(shape) * sizes[dtype] for _, dtype, shape in chosen)))
        return survey

    def _has(self, target: Store, key: str, content_id: str) -> bool:
        """Whether the target has this content, under its key or where `number` would have put it."""
        numbered = (f"{key}#{number}" for number in itertools.count(1)) if self.on_conflict == "number" else ()
        names = itertools.takewhile(target.__contains__, itertools.chain((key,), numbered))
        return any(target.core.entry(name).content_id == content_id for name in names)


@dataclass
class _Survey:
    """Keys to migrate with the bytes of their activations, and how many need no migrating."""

    todo: list[tuple[str, int]]
    skipped: int = 0
    conflicts: int = 0


def _spread(todo: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """A few entries from all over the list, as many as make a small sample."""
    for count in range(min(_SAMPLE_ENTRIES, len(todo)), 1, -1):
        sample = [todo[(2 * index + 1) * len(todo) // (2 * count)] for index in range(count)]
        if sum(raw for _, raw in sample) <= _SAMPLE_BYTES:
            return sample
    return todo[:1]
