"""`npy-layers`: document 004's directories, one for each pass over the questions.

A pass has `metadata.json`, a list of records, and either `activations_layer_XX.npy`, [questions, tokens, d] for each
block, or, as the program really wrote them, `activations.npz` with `activations`, [layers, questions, d], one token a
question, and `layer_indices`. Its later form is read as well, see `npy_layers_paired`. `run_config.json` lies beside
the passes or in the directory itself.
"""

from __future__ import annotations

import itertools
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from actstore.errors import ActstoreError, CorruptError
from actstore.formats import npz
from actstore.formats.as_text import replace_values
from actstore.formats.npy_layers_paired import has_paired, read_paired
from actstore.formats.npy_layers_writing import write
from actstore.formats.reading import map_npy, read_json, reading
from actstore.formats.record import CONVENTIONS, Format, Imported, Pending, Source, conventions
from actstore.hook_points import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.formats.record import Export

__all__ = ["NPY_LAYERS"]

_NAME = "npy-layers"
_RECORDS = "metadata.json"
_LENGTHS = "lengths.npy"
_RUN = "run_config.json"
_NPZ = "activations.npz"
_LAYER = re.compile(r"activations_layer_(\d+)\.npy", re.ASCII)
_MOST_LAYERS = 4096
"""No model has as many: an array of width 0 that says so takes no bytes."""


@dataclass(frozen=True)
class _Pass:
    """One pass: its records, and how its arrays are opened for as long as they are used."""

    path: Path
    name: str
    run: Any
    records: list[dict[str, Any]]
    arrays: Callable[[], Any]
    positions: str


def _read(root: Path) -> Source:
    passes, damaged = _passes(root)
    total, more = read_paired(root)
    if damaged and not passes and not total:
        # Of the source as a whole there is nothing to read.
        damaged[0].load()
    notes = [
        f"the program that wrote `{passed.path / _NPZ}` took the token at the number of real tokens less one, in "
        "batches padded on the left: of each batch only the longest prompts have their last token"
        for passed in passes
        if passed.positions == "unverified"
    ]
    entries = itertools.chain((pending for passed in passes for pending in _entries(passed)), damaged, more)
    return Source(total + len(damaged) + sum(len(passed.records) for passed in passes), entries, tuple(notes))


def _passes(root: Path) -> tuple[list[_Pass], list[Pending]]:
    """The passes, and those that are damaged, each one part of the source that says its error."""
    passes: list[_Pass] = []
    damaged: list[Pending] = []
    for path in _pass_paths(root):
        try:
            passes.append(_opened(root, path))
        except ActstoreError as error:
            damaged.append(Pending(path.absolute().name, partial(_refuse, error)))
    return passes, damaged


def _refuse(error: ActstoreError) -> Imported:
    raise error


def _pass_paths(root: Path) -> list[Path]:
    with reading(root):
        if not root.is_dir():
            return []
        return [path for path in (root, *sorted(path for path in root.iterdir() if path.is_dir())) if _is_pass(path)]


def _is_pass(path: Path) -> bool:
    return (path / _RECORDS).is_file() and ((path / _NPZ).is_file() or bool(_layers(path)))


def _layers(path: Path) -> dict[int, Path]:
    """The files of the layers by number, in the order of the numbers."""
    found = {int(match[1]): file for file in path.iterdir() if (match := _LAYER.fullmatch(file.name)) is not None}
    return dict(sorted(found.items()))


def _opened(root: Path, path: Path) -> _Pass:
    records: Any = read_json(path / _RECORDS)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in cast("list[Any]", records)):
        raise CorruptError("malformed", f"`{path / _RECORDS}` is no list of records")
    run = next((read_json(place / _RUN) for place in (path, root) if (place / _RUN).is_file()), None)
    listed, name = cast("list[dict[str, Any]]", records), path.absolute().name
    # As the program's own readers do, the `.npz` first.
    if (path / _NPZ).is_file():
        layers = _npz_layers(path / _NPZ, listed)
        return _Pass(path, name, run, listed, partial(_npz_arrays, path / _NPZ, layers), "unverified")
    mapped = _mapped(path, listed)
    lengths = _lengths(path, mapped, len(listed))
    positions = "padded" if lengths is None else "real tokens"
    return _Pass(path, name, run, listed, partial(_trimmed, mapped, lengths), positions)


def _mapped(path: Path, records: list[dict[str, Any]]) -> dict[int, NDArray[Any]]:
    mapped: dict[int, NDArray[Any]] = {}
    for layer, file in _layers(path).items():
        array = mapped[layer] = map_npy(file)
        if array.ndim != 3:
            raise CorruptError("malformed", f"`{file}` is an array {list(array.shape)}, not `[questions, tokens, d]`")
        _require_aligned(file, len(array), records)
    return mapped


def _require_aligned(file: Path, questions: int, records: list[dict[str, Any]]) -> None:
    if questions != len(records):
        message = (
            f"`{file}` has `{questions}` questions, but `{_RECORDS}` beside it has `{len(records)}`; which belong "
            "together cannot be known"
        )
        raise CorruptError("malformed", message)


def _lengths(path: Path, mapped: dict[int, NDArray[Any]], count: int) -> list[int] | None:
    """Real tokens of each question, where the arrays say so."""
    if not (path / _LENGTHS).is_file():
        return None
    lengths = map_npy(path / _LENGTHS)
    most = min(array.shape[1] for array in mapped.values())
    if (
        lengths.shape != (count,)
        or lengths.dtype.kind not in "iu"
        or (count and not 0 <= lengths.min() <= lengths.max() <= most)
    ):
        raise CorruptError("malformed", f"`{path / _LENGTHS}` is no array of `{count}` lengths up to `{most}`")
    return [int(length) for length in lengths]


@contextmanager
def _trimmed(mapped: dict[int, NDArray[Any]], lengths: list[int] | None) -> Generator[Callable[[int], dict[int, Any]]]:
    """`[tokens, d]` of a question at each layer, the padding on the left cut off where the lengths are known."""

    def rows(question: int) -> dict[int, Any]:
        return {
            layer: array[question] if lengths is None else array[question, array.shape[1] - lengths[question] :]
            for layer, array in mapped.items()
        }

    yield rows


def _npz_layers(path: Path, records: list[dict[str, Any]]) -> list[int]:
    """The layers of an `activations.npz`, whose shape fits its records."""
    try:
        with npz.member(path, "activations") as (file, size):
            _, shape, _ = npz.layout(file, path, "activations", size)
    except KeyError:
        raise CorruptError("malformed", f"`{path}` has no `activations`") from None
    if len(shape) != 3 or shape[0] > _MOST_LAYERS:
        raise CorruptError("malformed", f"`activations` of `{path}` is {list(shape)}, not `[layers, questions, d]`")
    _require_aligned(path, shape[1], records)
    try:
        values = npz.array(path, "layer_indices")
    except KeyError:
        return list(range(shape[0]))
    layers = [int(value) for value in values.reshape(-1)] if values.dtype.kind in "iu" else []
    if values.shape != (shape[0],) or len(set(layers)) != shape[0] or min(layers, default=0) < 0:
        raise CorruptError("malformed", f"`layer_indices` of `{path}` are no numbers of its `{shape[0]}` layers")
    return layers


@contextmanager
def _npz_arrays(path: Path, layers: list[int]) -> Generator[Callable[[int], dict[int, Any]]]:
    """`[1, d]` of a question at each layer. The array is unpacked to a temporary file, as it is by layer."""
    with npz.unpacked(path, "activations") as array:
        yield lambda question: {layer: array[index, question : question + 1] for index, layer in enumerate(layers)}


def _entries(passed: _Pass) -> Generator[Pending]:
    with passed.arrays() as rows:
        for number, record in enumerate(passed.records):
            yield Pending(f"{passed.name}:{number}", partial(_entry, passed, rows, number, record))


def _entry(passed: _Pass, rows: Callable[[int], dict[int, Any]], number: int, record: dict[str, Any]) -> Imported:
    activations = {canonical(("resid_post", layer)): array for layer, array in rows(number).items()}
    fields, as_text = replace_values({**record, CONVENTIONS: {"run_config": passed.run}})
    run = fields.pop(CONVENTIONS)
    prompt, response = record.get("prompt_text"), record.get("output_text")
    known = conventions(
        _NAME,
        layer_counting="blocks",
        padding_side="left",
        dtypes=(array.dtype.name for array in activations.values()),
        positions=passed.positions,
        **{"pass": passed.name, "row": number, **run},
        **({"as_text": as_text} if as_text else {}),
    )
    return Imported(
        f"{passed.name}:{number}",
        activations,
        {**fields, CONVENTIONS: known},
        prompt if isinstance(prompt, str) else None,
        response if isinstance(response, str) else None,
    )


def _recognises(root: Path) -> bool:
    try:
        paths = _pass_paths(root)
        return has_paired(root) or (bool(paths) and all(_begins_as_list(path / _RECORDS) for path in paths[:1]))
    except (ActstoreError, OSError):
        return False


def _begins_as_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"[")


def _write(export: Export) -> None:
    write(export, _recognises if export.overwrite else None)


NPY_LAYERS = Format(_NAME, _recognises, _read, _write)
