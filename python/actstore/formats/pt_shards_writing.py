"""Writing document 002's tree, so that its own loader runs on it."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from actstore import _core
from actstore.errors import InvalidInputError
from actstore.formats.as_text import as_values
from actstore.formats.conversion import CONVERTIBLE, convert
from actstore.formats.record import CONVENTIONS, conventions_of
from actstore.formats.tree import file_name, is_begun
from actstore.hook_points import canonical, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from actstore.entry import Entry
    from actstore.formats.record import Export
    from actstore.formats.tree import Tree

__all__ = ["write"]

_SORTED_BY_NAME = 1000
"""Most shards whose names, of three digits, sort as their numbers do."""


class _Place(NamedTuple):
    """Which split an entry belongs to."""

    model: str
    dataset: str
    split: str

    @property
    def path(self) -> str:
        """Where the split lies in the tree."""
        return "/".join(file_name(name) for name in (self.model.replace("/", "_"), self.dataset, self.split))


def write(export: Export, replaces: Callable[[Path], bool] | None) -> None:
    """Write the `resid_post` of the last token of every entry, a tree for each model, data set and split.

    The rows of a split are in the order of `row`, where every entry has one, else in that of the store; each shard has
    `shard_size` of them exactly, the last what is left.
    Errors: `invalid_metadata` where an entry does not say its split, `invalid_tensor` where entries differ.
    """
    groups: defaultdict[_Place, list[str]] = defaultdict(list)
    for key in export.keys:
        groups[_place(export.store[key])].append(key)
    paths = {place.path: place for place in groups}
    if len(paths) != len(groups):
        raise InvalidInputError("invalid_metadata", "two models have the same directory; export them to two places")
    # Everything is checked before anything is written.
    checked = [(path, paths[path], *_checked(export, path, groups[paths[path]])) for path in sorted(paths, key=_parts)]
    left = _left(export, [path for path, *_ in checked])
    trees = {path: export.tree(export.target / path, replaces) for path in left}
    for tree in trees.values():
        tree.begin()
    # Other exports may lie beside them.
    export.places = [export.target / path for path, *_ in checked]
    for path, place, keys, layers in checked:
        if path not in trees:
            _count(export, keys, layers)
            continue
        with trees[path] as tree:
            _write_split(export, tree, place, keys, layers)


def _left(export: Export, paths: list[str]) -> list[str]:
    """The splits to write: all, or of an interrupted export of the same those that are not in their place.

    Splits are begun in the order of `paths`, all before the first is written, and come to their places in that order.
    So where the last one was begun, one that is in its place and not begun is done.
    """
    begun = [path for path in paths if is_begun(export.target / path, export.identity)]
    if paths[-1:] != begun[-1:]:
        return paths
    return [path for path in paths if path in begun or not (export.target / path).exists()]


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split("/"))


def _place(entry: Entry) -> _Place:
    metadata = entry.metadata
    names = [metadata.get(name) for name in _Place._fields]
    for field, name in zip(_Place._fields, names, strict=True):
        if not isinstance(name, str) or not name:
            message = (
                f"entry `{entry.key}` has the `{field}` `{name}` in its metadata; `pt-shards` needs `model`, `dataset` "
                "and `split`, which `capture` records with `--dataset` and `--split`"
            )
            raise InvalidInputError("invalid_metadata", message)
    return _Place(*(str(name) for name in names))


def _checked(export: Export, path: str, keys: list[str]) -> tuple[list[str], list[int]]:
    """The keys in the order of their rows, and the layers that every entry has alike."""
    numbers: list[Any] = [export.store[key].metadata.get("row") for key in keys]
    if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        keys = [key for _, key in sorted(zip(numbers, keys, strict=True))]
        if sorted(numbers) != list(range(len(keys))):
            export.note(
                f"rows of `{path}` are missing or named twice, so that its row i need not be that of another split"
            )
    first = _layout(export, export.store[keys[0]])
    for key in keys:
        entry = export.store[key]
        if _layout(export, entry) != first:
            message = f"entry `{key}` has other layers, dtypes or widths than `{keys[0]}`; a shard holds one of each"
            if export.dtype is None:
                message += ", and `dtype` makes one dtype of several"
            raise InvalidInputError("invalid_tensor", message)
        for point in entry.points:
            if parse(point)[0] != "resid_post":
                export.note(f"`{point}` is left out, the format has residual streams alone")
    if not first:
        raise InvalidInputError(
            "invalid_tensor", f"entry `{keys[0]}` has no `resid_post`, which `pt-shards` is made of"
        )
    if export.layers is not None and max(first) >= export.layers:
        message = (
            f"`layers` is `{export.layers}`, but `resid_post.{max(first)}` is stored; give the layers of the model"
        )
        raise InvalidInputError("unknown_layer", message)
    return keys, list(first)


def _layout(export: Export, entry: Entry) -> dict[int, tuple[str, int]]:
    """dtype, as it goes out, and width of the residual stream at each layer."""
    layout: dict[int, tuple[str, int]] = {}
    for kind, layer in map(parse, entry.points):
        if kind == "resid_post" and layer is not None:
            point = canonical((kind, layer))
            shape = entry.shape(point)
            if len(shape) != 2 or not shape[0]:
                message = f"`{point}` of entry `{entry.key}` has the shape {list(shape)}, not `[positions, d]`"
                raise InvalidInputError("invalid_tensor", message)
            layout[layer] = (_dtype(export, entry, point), shape[1])
    return layout


def _dtype(export: Export, entry: Entry, point: str) -> str:
    stored = entry.dtype(point)
    if export.dtype not in (None, stored) and stored not in CONVERTIBLE:
        message = f"`{point}` of entry `{entry.key}` is {stored}, which is not converted to `{export.dtype}`"
        raise InvalidInputError("invalid_tensor", message)
    return export.dtype or stored


def _write_split(export: Export, tree: Tree, place: _Place, keys: list[str], layers: list[int]) -> None:
    settings = _settings(export, place, keys, layers)
    tree.put("metadata.json", lambda: json.dumps(settings, indent=2).encode())
    remaining, number = iter(keys), 0
    while chunk := list(islice(remaining, export.shard_size)):
        for layer in layers:
            with tree.file(f"layer_{layer:02d}/shard_{number:03d}.pt") as path:
                if path is not None:
                    _save(export, chunk, canonical(("resid_post", layer)), path)
        number += 1
        _count(export, chunk, layers)
    if number > _SORTED_BY_NAME:
        least = -(-len(keys) // _SORTED_BY_NAME)
        export.note(
            f"`{place.path}` has {number:,} shards a layer, which loaders that sort by name, as document 002's does, "
            f"take in another order; with a `shard_size` from {least:,} they do not"
        )


def _count(export: Export, keys: list[str], layers: list[int]) -> None:
    points, sizes = [canonical(("resid_post", layer)) for layer in layers], dict(_core.dtypes())
    for key in keys:
        entry = export.store[key]
        export.wrote(key, points, sum(entry.shape(point)[1] * sizes[_dtype(export, entry, point)] for point in points))


def _save(export: Export, keys: list[str], point: str, path: Path) -> None:
    """Save a tensor of memory of its own: a view would bring all of what it views."""
    import torch

    one_each = all(export.store[key].shape(point)[0] == 1 for key in keys)
    rows = export.store.scan(point, "all" if one_each else "last", keys=keys)
    torch.save(_converted(export, keys, point, torch.cat([torch.as_tensor(row) for _, row in rows])), path)


def _converted(export: Export, keys: list[str], point: str, values: torch.Tensor) -> torch.Tensor:
    """`values`, a row of each of `keys`, in the dtype asked for; what that costs is refused or noted."""
    if export.dtype is None:
        return values
    converted, beyond, rounded = convert(values, export.dtype)
    if beyond.any() and export.overflow == "error":
        row = int(beyond.any(1).int().argmax())
        message = (
            f"entry `{keys[row]}` has `{values[row][beyond[row]][0].item():g}` at `{point}`, which is beyond "
            f"{export.dtype}; the `overflow` `saturate` makes it the largest value, or choose another `dtype`"
        )
        raise InvalidInputError("float16_overflow", message)
    if rounded:
        export.note(f"values were rounded to {export.dtype}", rounded)
    if beyond.any():
        export.note(f"values beyond {export.dtype} became its largest", int(beyond.count_nonzero()))
    return converted


def _model_layers(entry: Entry) -> int | None:
    """How many layers the model has, where `capture` recorded it."""
    run: Any = entry.metadata.get("run")
    return cast("dict[str, Any]", run).get("num_layers") if isinstance(run, dict) else None


def _settings(export: Export, place: _Place, keys: list[str], layers: list[int]) -> dict[str, Any]:
    entry = export.store[keys[0]]
    known = conventions_of(entry.metadata)
    said: Any = as_values({CONVENTIONS: known}, known.get("as_text"))[CONVENTIONS].get("settings")
    had = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    counted = len(layers) if layers == list(range(len(layers))) else None
    fields = {
        "model_name": place.model,
        "dataset_name": place.dataset,
        "load_in_4bit": had.get("load_in_4bit", False),
        "split": place.split,
        "total_examples": len(keys),
        "shard_size": export.shard_size,
        "batch_size": had.get("batch_size", entry.metadata.get("batch_size", 1)),
        "hidden_dim": entry.shape(canonical(("resid_post", layers[0])))[1],
        "num_layers": export.layers or had.get("num_layers", _model_layers(entry) or counted),
    }
    return fields | {name: value for name, value in had.items() if name not in fields}
