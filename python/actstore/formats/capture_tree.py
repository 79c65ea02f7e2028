"""Document 001's trees: `activations/`, `metadata/<name>_metadata.json` and `responses/<name>_response.txt`.

Layer i is the output of block i: its `hidden_states` are `resid_post`, its `mlp_activations` the input of the down
projection, its `attention_weights` the probabilities. The names of the files are the keys.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from actstore import arrays
from actstore.errors import ActstoreError, CorruptError, InvalidInputError
from actstore.formats.as_text import replace_values
from actstore.formats.capture_files import layer_number
from actstore.formats.capture_writing import POINTS, write
from actstore.formats.reading import inside, read_json, reading
from actstore.formats.record import CONVENTIONS, Format, Imported, Pending, Source, conventions
from actstore.hook_points import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from actstore.formats.capture_files import Captured, Kind
    from actstore.formats.record import Export

__all__ = ["SUFFIXES", "capture_format", "response_of"]

SUFFIXES = (".npz", ".h5", ".pkl", ".pkl.gz")
_RECORD = "_metadata.json"
_RESPONSE = "_response.txt"
_FIRST_FILES = 16


def capture_format(kind: Kind) -> Format:
    """The format of trees with activation files of this kind."""
    return Format(kind.name, partial(_recognises, kind), partial(_read, kind), partial(_write, kind))


def _read(kind: Kind, root: Path) -> Source:
    with reading(root):
        found, notes = _files(root)
        mine = {name: path for name, path in found.items() if path.name.endswith(kind.suffixes)}
        missing = [name for name in _records(root) if name not in found and _is_of(kind, root, name)]
    if len(mine) < len(found):
        notes.append(f"`{len(found) - len(mine)}` files of other formats in `{root / 'activations'}` are left out")
    pending = [Pending(name, partial(_load, kind, root, name, path)) for name, path in mine.items()]
    pending += [Pending(name, partial(_refuse, root, name)) for name in missing]
    return Source(len(pending), sorted(pending, key=lambda one: one.key), tuple(notes))


def _files(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The activation files by the name that their records have too, and what is said of those left out."""
    found: dict[str, Path] = {}
    notes: list[str] = []
    for path in sorted((root / "activations").iterdir()):
        suffix = next((suffix for suffix in reversed(SUFFIXES) if path.name.endswith(suffix)), None)
        if suffix is None or path.name.startswith("."):
            continue
        name = path.name.removesuffix(suffix)
        if name in found:
            # The program opened the uncompressed file before it wrote the compressed one.
            left, path = sorted((found[name], path), key=lambda one: one.stat().st_size)
            notes.append(f"`{left}` is left out: `{path.name}` beside it is of the same entry")
        found[name] = path
    return found, notes


def _records(root: Path) -> Iterator[str]:
    folder = root / "metadata"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return (name.removesuffix(_RECORD) for name in names if name.endswith(_RECORD))


def _is_of(kind: Kind, root: Path, name: str) -> bool:
    """Whether the record of an entry without activations says that they were of this kind, or cannot be read."""
    try:
        record = _record(root, name)
    except ActstoreError:
        return True
    return str((record or {}).get("activation_file")).endswith(kind.suffixes)


def _refuse(root: Path, name: str) -> Imported:
    record = _record(root, name) or {}
    message = f"the activations `{record.get('activation_file')}` of entry `{name}` of `{root}` are not there"
    raise CorruptError("missing_file", message)


def _record(root: Path, name: str) -> dict[str, Any] | None:
    path = inside(root, f"metadata/{name}{_RECORD}", "the name of a record")
    if not path.is_file():
        return None
    record: Any = read_json(path)
    if not isinstance(record, dict):
        raise CorruptError("malformed", f"`{path}` is no object")
    return cast("dict[str, Any]", record)


def response_of(root: Path, name: str) -> str | None:
    """The text in `responses/`. Errors: `malformed`, `unsafe_path`."""
    path = inside(root, f"responses/{name}{_RESPONSE}", "the name of a response")
    with reading(path):
        try:
            return path.read_bytes().decode() if path.is_file() else None
        except UnicodeDecodeError:
            raise CorruptError("malformed", f"`{path}` is no UTF-8 text") from None


def _load(kind: Kind, root: Path, name: str, path: Path) -> Imported:
    captured = kind.load(inside(root, f"activations/{path.name}", "the name of a file"))
    record = _record(root, name)
    inner = dict(captured["metadata"])
    prompt = inner.pop("prompt", None)
    responses = ((record or {}).get("response"), inner.get("response"), response_of(root, name))
    response = next((text for text in responses if isinstance(text, str)), None)
    if inner.get("response") == response:
        inner.pop("response", None)
    activations, batched = _activations(captured, path)
    fields = {name: value for name, value in (record or {}).items() if name not in ("response", "activation_file")}
    had = None if record is None else list(record)
    model = inner.get("model")
    fields |= {"model": model} if "model" not in fields and isinstance(model, str) else {}
    fields, as_text = replace_values({**fields, CONVENTIONS: {"metadata": inner}})
    known = conventions(
        kind.name,
        layer_counting="blocks",
        padding_side=None,
        dtypes=[arrays.encode(point, array)[0] for point, array in activations.items()],
        record=had,
        compression=path.name.endswith(kind.suffixes[1]) if kind.suffixes[0] != kind.suffixes[1] else True,
        batch_axis=batched,
        **fields.pop(CONVENTIONS),
        **({"as_text": as_text} if as_text else {}),
    )
    return Imported(name, activations, {**fields, CONVENTIONS: known}, _text(prompt), response)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _activations(captured: Captured, path: Path) -> tuple[dict[str, NDArray[Any]], bool]:
    """The arrays by hook point, and whether all had an axis of length 1, of the batch, before theirs."""
    listed = {
        (cast("int", layer_number(layer)), kind): array
        for layer, kinds in captured["layers"].items()
        for kind, array in kinds.items()
    }
    known = {(kind, array.ndim, array.shape[0]) for (_, kind), array in listed.items() if kind in POINTS}
    batched = bool(known) and all(POINTS[kind][1] + 1 == ndim and size == 1 for kind, ndim, size in known)
    for kind, ndim, _ in known:
        if not batched and ndim != POINTS[kind][1]:
            message = f"`{path}` has `{kind}` of `{ndim}` axes, not of `{POINTS[kind][1]}`"
            raise CorruptError("malformed", message)
    return {
        _point(layer, kind): array[0] if batched and kind in POINTS else array
        for (layer, kind), array in listed.items()
    }, batched


def _point(layer: int, kind: str) -> str:
    try:
        return canonical((POINTS[kind][0], layer) if kind in POINTS else f"layer_{layer}.{kind}")
    except InvalidInputError:
        raise CorruptError("malformed", f"`{kind}` of layer `{layer}` is no name of activations") from None


def _recognises(kind: Kind, root: Path) -> bool:
    if not (root / "metadata").is_dir():
        return False
    try:
        names = (path for path in sorted((root / "activations").iterdir()) if path.name.endswith(kind.suffixes))
        return any(_begins(path, kind.magics) for _, path in zip(range(_FIRST_FILES), names, strict=False))
    except OSError:
        return False


def _begins(path: Path, magics: tuple[bytes, ...]) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8).startswith(magics)


def _write(kind: Kind, export: Export) -> None:
    write(kind, export, partial(_recognises, kind) if export.overwrite else None)
