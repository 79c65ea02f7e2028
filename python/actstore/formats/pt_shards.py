"""`pt-shards`: document 002's tree `{model}/{dataset}/{split}/layer_XX/shard_XXX.pt`, the last token of each example.

Layer i is the output of block i, before the final norm. Shards hold one tensor [rows, d] each and align across layers;
row order is data set order. `metadata.json` of a split says how many rows its last run had, so shards after those are
of an earlier run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actstore import arrays
from actstore.errors import ActstoreError, CorruptError, InvalidInputError
from actstore.formats.as_text import replace_values
from actstore.formats.pt_shards_writing import write
from actstore.formats.reading import first_line, read_json, reading
from actstore.formats.record import CONVENTIONS, Format, Imported, Pending, Source, conventions
from actstore.formats.tree import is_partial
from actstore.hook_points import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from actstore.formats.record import Export

__all__ = ["PT_SHARDS"]

_NAME = "pt-shards"
_SETTINGS = "metadata.json"
_LAYER = re.compile(r"layer_(\d+)", re.ASCII)
_SHARD = re.compile(r"shard_(\d+)\.pt", re.ASCII)
_DEPTH = 3
_ZIP = b"PK\x03\x04"


@dataclass
class _Split:
    """One split: its shards by layer and number, its `metadata.json`, and how many rows each shard has."""

    path: Path
    shards: dict[int, dict[int, Path]]
    settings: dict[str, Any]
    rows: list[int] = field(default_factory=list[int])
    missing: int = 0
    """Rows that the split should have after its shards."""
    notes: list[str] = field(default_factory=list[str])

    @property
    def total(self) -> int:
        """How many rows the split has; those that are missing count as one."""
        return sum(self.rows) + bool(self.missing)

    def name(self, setting: str, level: int) -> str:
        """What `metadata.json` calls the model, data set or split, else what its directory is called."""
        given = self.settings.get(setting)
        return given if isinstance(given, str) and given else self.path.absolute().parts[-1 - level]


def _read(root: Path) -> Source:
    splits = [_counted(_opened(path)) for path in _split_paths(root)]
    models = {split.name("model_name", 2) for split in splits}
    if len(models) > 1:
        listed = ", ".join(f"`{model}`" for model in sorted(models))
        message = (
            f"`{root}` has activations of several models, {listed}, whose keys would be the same; give one's place"
        )
        raise InvalidInputError("invalid_option", message)
    notes = [note for split in splits for note in split.notes]
    entries = (pending for split in splits for pending in _rows(split))
    return Source(sum(split.total for split in splits), entries, tuple(notes))


def _split_paths(root: Path, depth: int = _DEPTH) -> list[Path]:
    """Directories at or below `root` that have layers, in the order of their names."""
    with reading(root):
        folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if is_partial(root):
        return []
    if any(_LAYER.fullmatch(path.name) for path in folders):
        return [root]
    return [split for path in folders for split in _split_paths(path, depth - 1)] if depth else []


def _opened(path: Path) -> _Split:
    settings: object = read_json(path / _SETTINGS) if (path / _SETTINGS).is_file() else {}
    if not isinstance(settings, dict):
        raise CorruptError("malformed", f"`{path / _SETTINGS}` is no object")
    with reading(path):
        layers = _numbered(path, _LAYER)
        shards = {number: _numbered(layer, _SHARD) for number, layer in layers.items()}
    return _Split(path, shards, cast("dict[str, Any]", settings))


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """What `folder` has of this name, by number, in the order of the numbers: 1000 comes after 999."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is not None and int(match[1]) in found:
            raise CorruptError("malformed", f"`{path}` and `{found[int(match[1])]}` have the same number")
        if match is not None:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _counted(split: _Split) -> _Split:
    """`split` with the rows of its shards, those of an earlier run left out."""
    expected = split.settings.get("total_examples")
    wanted = expected if isinstance(expected, int) and not isinstance(expected, bool) and expected >= 0 else None
    count = max((number + 1 for shards in split.shards.values() for number in shards), default=0)
    for number in range(count):
        have = sum(split.rows)
        if have == wanted:
            split.notes.append(
                f"shards from `{number}` on in `{split.path}` are left out: the {wanted:,} examples of `metadata.json` "
                "are complete before them, so they are of an earlier run"
            )
            break
        split.rows.append(_shard_rows(split, number))
        if wanted is not None and have + split.rows[-1] > wanted:
            message = (
                f"shard `{number}` of `{split.path}` ends at row {have + split.rows[-1]:,}, but `total_examples` in "
                f"`{_SETTINGS}` is {wanted:,}; it is of an earlier run, or the file is"
            )
            raise CorruptError("malformed", message)
    split.missing = 0 if wanted is None else wanted - sum(split.rows)
    return split


def _shard_rows(split: _Split, number: int) -> int:
    """Rows of a shard, from the first layer that has it whole."""
    failure: ActstoreError = CorruptError("missing_file", f"shard `{number}` of `{split.path}` is in no layer")
    for shards in split.shards.values():
        if number not in shards:
            continue
        try:
            return len(_tensor(shards[number]))
        except ActstoreError as error:
            failure = error
    raise failure


def _tensor(path: Path) -> torch.Tensor:
    """The tensor [rows, d] in `path`, mapped. Nothing but tensors is made of the file, and none beyond its bytes."""
    import torch

    with reading(path):
        with path.open("rb") as file:
            size = file.seek(0, 2)
        try:
            tensor: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise CorruptError("malformed", f"`{path}` is no file of a tensor alone: {first_line(error)}") from None
    if not isinstance(tensor, torch.Tensor):
        raise CorruptError("malformed", f"`{path}` holds a `{type(tensor).__name__}`, not a tensor")
    if tensor.ndim != 2 or tensor.layout != torch.strided or not tensor.is_contiguous():
        raise CorruptError("malformed", f"`{path}` holds a tensor {list(tensor.shape)}, not a contiguous `[rows, d]`")
    if tensor.numel() * tensor.element_size() > size:
        message = f"`{path}` has {size:,} bytes, too few for its tensor {list(tensor.shape)} of {tensor.dtype}"
        raise CorruptError("truncated", message)
    return tensor


def _rows(split: _Split) -> Iterator[Pending]:
    row = 0
    for number, count in enumerate(split.rows):
        shard = _Shard(split, number, count)
        for index in range(count):
            yield Pending(_key(split, row), partial(shard.entry, index, row))
            row += 1
    if split.missing:
        # However many: what says so is a number in a file.
        yield Pending(_key(split, row), partial(_refuse_missing, split, row))


def _refuse_missing(split: _Split, first: int) -> Imported:
    counted = first + split.missing
    message = f"`{split.path}` has {first:,} rows, but `total_examples` counts {counted:,}; the run did not end"
    raise CorruptError("missing_file", message)


def _key(split: _Split, row: int) -> str:
    return f"{split.name('dataset_name', 1)}:{split.name('split', 0)}:{row}"


class _Shard:
    """The tensors of one shard at every layer, opened when the first of its rows is loaded."""

    def __init__(self, split: _Split, number: int, rows: int) -> None:
        self._split = split
        self._number = number
        self._rows = rows
        self._tensors: dict[str, torch.Tensor] | None = None

    def entry(self, index: int, row: int) -> Imported:
        """The entry of the row at `index` of the shard, which is `row` of the split."""
        if self._tensors is None:
            self._tensors = self._opened()
        split = self._split
        named = {"model": split.name("model_name", 2), "dataset": split.name("dataset_name", 1)}
        held, as_text = replace_values({CONVENTIONS: {"settings": split.settings}})
        known = conventions(
            _NAME,
            layer_counting="blocks",
            padding_side="left",
            dtypes=(arrays.dtype_name(tensor.dtype) for tensor in self._tensors.values()),
            positions="last",
            **held[CONVENTIONS],
            **({"as_text": as_text} if as_text else {}),
        )
        return Imported(
            _key(split, row),
            {point: tensor[index : index + 1] for point, tensor in self._tensors.items()},
            {**named, "split": split.name("split", 0), "row": row, CONVENTIONS: known},
        )

    def _opened(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for layer, shards in self._split.shards.items():
            path = shards.get(self._number)
            if path is None:
                name = f"shard_{self._number:03d}.pt"
                raise CorruptError("missing_file", f"layer `{layer}` of `{self._split.path}` has no `{name}`")
            tensor = tensors[canonical(("resid_post", layer))] = _tensor(path)
            if len(tensor) != self._rows:
                message = f"`{path}` has {len(tensor):,} rows, but the shard has {self._rows:,} in another layer"
                raise CorruptError("malformed", message)
        return tensors


def _recognises(root: Path) -> bool:
    try:
        splits = _split_paths(root)
        shards = [path for split in splits[:1] for layer in _numbered(split, _LAYER).values() for path in _first(layer)]
    except (ActstoreError, OSError):
        return False
    return bool(shards) and all(_is_zip(path) for path in shards[:1])


def _first(layer: Path) -> list[Path]:
    return [path for path in _numbered(layer, _SHARD).values() if path.is_file()][:1]


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _write(export: Export) -> None:
    write(export, _recognises if export.overwrite else None)


PT_SHARDS = Format(_NAME, _recognises, _read, _write, ("float16", "bfloat16", "float32"), has_shards=True)
