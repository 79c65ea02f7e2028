"""Where a migration comes from and goes to: formats, and the settings of a new target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore import _core
from actstore import store as stores
from actstore.errors import InvalidInputError, NotFoundError, ReadOnlyError
from actstore.formats import names
from actstore.formats.place import place_in, refuse_inside
from actstore.migration.strangers import found_instead_of_a_store, refuse_taken
from actstore.options import open_existing, require
from actstore.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from contextlib import ExitStack

    Place = Store | str | os.PathLike[str]

MEMORY = "memory"
_AUTO = "auto"
_SETTINGS = ("codec", "key_distance", "encoding", "dtype", "overflow", "on_conflict", "durability")


@dataclass(frozen=True)
class Target:
    """The store to write to, or what it would be if it were made: `settings` as `create` takes them."""

    store: Store | None
    backend: str
    settings: Mapping[str, Any]


def open_source(stack: ExitStack, source: Place, source_format: str | None) -> Store:
    """The store to read; one given as a path is closed by `stack`."""
    named = _format("source_format", source_format, source)
    store = source if isinstance(source, Store) else stack.enter_context(_open(_path("source", source)))
    if store.closed:
        raise ReadOnlyError("closed", "the source is closed; open it again")
    _check_format("source_format", named, store)
    return store


def _path(option: str, place: str | os.PathLike[str]) -> Path:
    try:
        return Path(place).absolute()
    except TypeError:
        message = f"`{option}` is `{place!r}`; give a path or an open store"
        raise InvalidInputError("invalid_option", message) from None


def _open(path: Path) -> Store:
    try:
        return stores.open(path)
    except NotFoundError as error:
        raise NotFoundError(error.kind, f"`{path}` {found_instead_of_a_store(path)}") from None


def open_target(
    stack: ExitStack,
    source: Store,
    target: Place,
    target_format: str | None,
    options: Mapping[str, Any],
    *,
    dry_run: bool,
) -> Target:
    """The store to write, created where there is none; a dry run only says what would be."""
    named = _format("target_format", target_format, target)
    if isinstance(target, Store):
        return _existing(target, named, options)
    store = open_existing(target, {}, "r" if dry_run else "a")
    if store is not None:
        return _existing(stack.enter_context(store), named, options)
    if named is None:
        message = f"`{target}` does not exist; say what to create there with `target_format`: {_on_disk()}"
        raise InvalidInputError("invalid_option", message)
    settings = _new_settings(source, named, options)
    if dry_run:
        refuse_taken(Path(target))
        return Target(None, named, settings)
    return Target(stack.enter_context(stores.create(target, named, **settings)), named, settings)


def _existing(store: Store, named: str | None, options: Mapping[str, Any]) -> Target:
    _check_format("target_format", named, store)
    require(store, options)
    had = store.settings
    return Target(store, store.backend, {name: had[name] for name in _SETTINGS if had[name] is not None})


def refuse_same(source: Store, target: Place) -> None:
    """Refuse a target that is the source, before it is opened a second time, or that would be written into it."""
    path = target.path if isinstance(target, Store) else _path("target", target)
    below = place_in(source.path, path)
    if target is source or below == Path():
        place = "in memory" if source.path is None else f"`{source.path}`"
        message = f"source and target are the same store, {place}; give another target"
        raise InvalidInputError("invalid_option", message)
    refuse_inside(source.path, path)


def _format(option: str, value: str | None, place: Place) -> str | None:
    """The backend that is named, if one is."""
    if value is None or value == _AUTO:
        return None
    if value not in _core.backends():
        known = ", ".join(f"`{name}`" for name in names())
        message = f"unknown `{option}` `{value}`; one of `{_AUTO}`, {_on_disk()}, {known}"
        raise InvalidInputError("invalid_option", message)
    if value == MEMORY and not isinstance(place, Store):
        message = f"`{option}` is `{MEMORY}`, a store without a path; pass it open, from `actstore.create`"
        raise InvalidInputError("invalid_option", message)
    return value


def _check_format(option: str, named: str | None, store: Store) -> None:
    if named is not None and named != store.backend:
        place = "the store in memory" if store.path is None else f"`{store.path}`"
        message = f"`{option}` is `{named}`, but {place} is a store of format `{store.backend}`; say that, or `{_AUTO}`"
        raise InvalidInputError("invalid_option", message)


def _on_disk() -> str:
    return ", ".join(f"`{name}`" for name in _core.backends() if name != MEMORY)


def _new_settings(source: Store, backend: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, and else what the source has, as far as the backend offers it."""
    had = source.settings
    settings = {name: had[name] for name in ("dtype", "overflow", "on_conflict", "durability")}
    if options.get("codec") is None and options.get("encoding") is None:
        kept = {name: had[name] for name in ("codec", "encoding") if had[name] in _core.codecs(backend)}
        settings |= kept | ({"key_distance": had["key_distance"]} if "codec" in kept else {})
    settings |= {name: value for name, value in options.items() if value is not None}
    return {name: value for name, value in settings.items() if value is not None}
