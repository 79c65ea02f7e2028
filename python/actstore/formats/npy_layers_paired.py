"""The later form of document 004's files: `<prefix>_<pass>_activations.npz` beside `<prefix>_paired_data.json`.

An archive has `layer_<i>`, [questions, d] each, the state at the last token, and vectors of a number a question; where
it has `run_id` and `question_ids`, they must be those of the JSON, whose `questions` are the records.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from actstore.errors import CorruptError
from actstore.formats import npz
from actstore.formats.as_text import replace_values
from actstore.formats.reading import inside, read_json, reading
from actstore.formats.record import CONVENTIONS, Imported, Pending, conventions
from actstore.hook_points import canonical

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["has_paired", "read_paired"]

_JSON = "_paired_data.json"
_NPZ = "_activations.npz"
_LAYER = re.compile(r"layer_(0|[1-9]\d{0,8})", re.ASCII)
_ID_FIELDS = ("id", "question_id", "qid")


def has_paired(root: Path) -> bool:
    """Whether `root` has such files."""
    return bool(_pairs(root))


def read_paired(root: Path) -> tuple[int, Generator[Pending]]:
    """How many entries there are, `<prefix>_<pass>:<row>` each, and the entries. Errors: `malformed`."""
    opened = [(path, *_document(json)) for path, json in _pairs(root)]
    total = sum(len(questions) for _, _, questions in opened)
    return total, (pending for pair in opened for pending in _entries(*pair))


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Archives, each with its JSON."""
    with reading(root):
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    prefixes = [name.removesuffix(_JSON) for name in names if name.endswith(_JSON)]
    return [
        (inside(root, name, "the name of a file"), inside(root, prefix + _JSON, "the name of a file"))
        for prefix in prefixes
        for name in names
        if name.endswith(_NPZ) and name.startswith(prefix + "_")
    ]


def _document(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    document: Any = read_json(path)
    questions = cast("dict[str, Any]", document).get("questions") if isinstance(document, dict) else None
    if not isinstance(questions, list) or not all(isinstance(one, dict) for one in cast("list[Any]", questions)):
        raise CorruptError("malformed", f"`{path}` has no list of records `questions`")
    return cast("dict[str, Any]", document), cast("list[dict[str, Any]]", questions)


def _entries(path: Path, document: dict[str, Any], questions: list[dict[str, Any]]) -> Generator[Pending]:
    name = path.name.removesuffix(_NPZ)
    _require_aligned(path, document, questions)
    with ExitStack() as stack:
        layers: dict[int, NDArray[Any]] = {}
        vectors: dict[str, NDArray[Any]] = {}
        for member in npz.names(path):
            match = _LAYER.fullmatch(member)
            if match is not None:
                layers[int(match[1])] = stack.enter_context(npz.unpacked(path, member))
            elif member not in ("run_id", "question_ids"):
                vectors[member] = npz.array(path, member)
        for layer, array in layers.items():
            if array.ndim != 2 or len(array) != len(questions):
                message = (
                    f"`layer_{layer}` of `{path}` is {list(array.shape)}, but there are `{len(questions)}` questions"
                )
                raise CorruptError("malformed", message)
        numbers = {member: array for member, array in vectors.items() if array.shape == (len(questions),)}
        for row, question in enumerate(questions):
            fields = {**question, **{member: array[row].item() for member, array in numbers.items()}}
            load = partial(_entry, name, row, fields, document.get("config"), dict(layers))
            yield Pending(f"{name}:{row}", load)


def _require_aligned(path: Path, document: dict[str, Any], questions: list[dict[str, Any]]) -> None:
    """Refuse rows of another run, or in another order, than the records."""
    members = npz.names(path)
    if "run_id" in members and "run_id" in document and npz.texts(path, "run_id") != [document["run_id"]]:
        raise CorruptError("malformed", f"`{path}` has another `run_id` than the JSON beside it")
    field = next((field for field in _ID_FIELDS if all(field in question for question in questions)), None)
    if "question_ids" in members and field is not None and questions:
        ids = [str(question[field]) for question in questions]
        if npz.texts(path, "question_ids") != ids:
            raise CorruptError("malformed", f"`question_ids` of `{path}` are not those of the JSON beside it")


def _entry(name: str, row: int, fields: dict[str, Any], config: Any, layers: dict[int, NDArray[Any]]) -> Imported:
    activations = {canonical(("resid_post", layer)): array[row : row + 1] for layer, array in layers.items()}
    document, as_text = replace_values({**fields, CONVENTIONS: {"run_config": config}})
    known = conventions(
        "npy-layers",
        layer_counting="blocks",
        padding_side="left",
        dtypes=(array.dtype.name for array in activations.values()),
        positions="last",
        **{"pass": name, "row": row},
        **document.pop(CONVENTIONS),
        **({"as_text": as_text} if as_text else {}),
    )
    prompt = fields.get("prompt_text")
    return Imported(
        f"{name}:{row}",
        activations,
        {**document, CONVENTIONS: known},
        prompt if isinstance(prompt, str) else None,
    )
