"""Migrations that begin or end in a format of an older system."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore import formats
from actstore import store as stores
from actstore.errors import InvalidInputError
from actstore.formats.place import refuse_inside
from actstore.formats.table import AUTO, FAMILIES
from actstore.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from actstore.migration.places import Place
    from actstore.migration.run import Request
    from actstore.reports import MigrationReport

    Step = Callable[[int, int, int], object]

__all__ = ["exchange", "is_exchange"]

_SELECTIONS = ("keys", "layers", "points")
_CONVERSIONS = ("dtype", "overflow")
"""Settings that an export takes too."""


def is_exchange(source: Place, source_format: str | None, target_format: str | None) -> bool:
    """Whether `source` or the target is in a format rather than a store."""
    return target_format in formats.names() or _is_foreign(source, source_format)


def _is_foreign(source: Place, source_format: str | None) -> bool:
    if not isinstance(source, str | os.PathLike):
        return False
    if source_format in formats.names():
        return True
    return source_format in (None, AUTO, *FAMILIES) and formats.format_of(source) is not None


def exchange(
    source: Place, target: Place, request: Request, *, verify: bool, dry_run: bool, progress: Step | None
) -> MigrationReport:
    """Import, export, or both: then through a store in a temporary directory beside the target.

    Errors: `invalid_option` for a selection or a setting that the way has no place for, and those of `import_store` and
    `export_store`.
    """
    outwards, inwards = request.target_format in formats.names(), _is_foreign(source, request.source_format)
    given = {**vars(request), "on_conflict": None if request.on_conflict == "error" else request.on_conflict}
    _refuse(request, [name for name in _SELECTIONS if inwards or name != "keys"], given)
    if not outwards:
        return _import(source, target, request, verify=verify, dry_run=dry_run, progress=progress)
    _refuse(request, ["on_conflict"], given)
    converts = _CONVERSIONS if formats.find(str(request.target_format)).dtypes else ()
    _refuse(request, [name for name in request.options if name not in converts], request.options)
    if isinstance(target, Store):
        message = f"`target_format` is `{request.target_format}`, but the target is a store; give a path"
        raise InvalidInputError("invalid_option", message)
    if inwards:
        return _through_a_store(source, Path(target), request, verify=verify, dry_run=dry_run, progress=progress)
    options: dict[str, Any] = {"verify": verify, "dry_run": dry_run, "progress": progress, **_shape(request)}
    return formats.export_store(source, target, str(request.target_format), keys=request.keys, **options)


def _through_a_store(
    source: Any, target: Path, request: Request, *, verify: bool, dry_run: bool, progress: Step | None
) -> MigrationReport:
    """From one format to another. A dry run only reads the source, as nothing is to be written."""
    refuse_inside(Path(source), target)
    inner, format = replace(request, target_format=None, options={}, shard_size=None), str(request.target_format)
    if dry_run:
        with stores.create(backend="memory") as nothing:
            read = _import(source, nothing, inner, verify=False, dry_run=True, progress=progress)
        return replace(read, target=target, backend=format)
    with _between(target) as between:
        imported = _import(source, between, inner, verify=verify, dry_run=False, progress=None)
        options: dict[str, Any] = {"verify": verify, "progress": progress, **_shape(request)}
        exported = formats.export_store(between, target, format, **options)
    return replace(
        exported,
        source=imported.source,
        entries=imported.entries,
        left_out=(*imported.left_out, *exported.left_out),
        notes=(*imported.notes, *exported.notes),
        seconds=imported.seconds + exported.seconds,
    )


def _shape(request: Request) -> dict[str, Any]:
    """What an export is asked to convert to, and how long to make its files, if anything."""
    given = {**request.options, "shard_size": request.shard_size}
    return {name: given[name] for name in (*_CONVERSIONS, "shard_size") if given.get(name) is not None}


def _refuse(request: Request, names: list[str], given: Any) -> None:
    used = [name for name in names if given[name] is not None]
    if used:
        way = f"from `{request.source_format or AUTO}` to `{request.target_format or AUTO}`"
        instead = "import everything into a store, then migrate what is wanted"
        if request.target_format in formats.names():
            instead = "leave it out, or migrate to a store with it and export that"
        message = f"`{used[0]}` cannot be given {way}; {instead}"
        raise InvalidInputError("invalid_option", message)


def _import(source: Any, target: Place, request: Request, **options: Any) -> MigrationReport:
    settings = {name: value for name, value in request.options.items() if value is not None}
    if request.target_format not in (None, AUTO):
        settings["target_format"] = request.target_format
    elif not isinstance(target, Store) and not Path(target).exists():
        message = f"`{target}` does not exist; say what to create there with `target_format`"
        raise InvalidInputError("invalid_option", message)
    if request.on_conflict != "error":
        settings["on_conflict"] = request.on_conflict
    return formats.import_store(source, target, request.source_format or AUTO, **settings, **options)


@contextmanager
def _between(target: Path) -> Generator[Store]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".actstore-", dir=target.parent) as folder,
        stores.create(Path(folder) / "store") as between,
    ):
        yield between
