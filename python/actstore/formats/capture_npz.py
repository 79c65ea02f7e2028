"""`capture-npz`: document 001's trees with an `.npz` an entry: `metadata`, JSON text, and `layer_<i>_<kind>` arrays."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.errors import CorruptError
from actstore.formats import npz
from actstore.formats.capture_files import Captured, Kind, checked
from actstore.formats.capture_tree import capture_format

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CAPTURE_NPZ", "NPZ"]

_MEMBER = re.compile(r"(layer_\d+)_(\w+)", re.ASCII)
_METADATA = "metadata"


def _load(path: Path) -> Captured:
    metadata: Any = {}
    layers: dict[str, dict[str, Any]] = {}
    for name in npz.names(path):
        match = _MEMBER.fullmatch(name)
        if name == _METADATA:
            metadata = _metadata(path)
        elif match is None:
            message = f"`{path}` has the member `{name[:100]}`, which is neither `{_METADATA}` nor `layer_<i>_<kind>`"
            raise CorruptError("malformed", message)
        else:
            # The layer ends after its number: kinds have underscores of their own.
            layers.setdefault(match[1], {})[match[2]] = npz.array(path, name)
    return checked({"metadata": metadata, "layers": layers}, f"`{path}`")


def _metadata(path: Path) -> Any:
    """The JSON text, which the program kept as a pickled array of one object and we keep as an array of text."""
    listed = npz.texts(path, _METADATA)
    try:
        (text,) = listed
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CorruptError("malformed", f"`{_METADATA}` of `{path}` is no JSON text") from None


def _save(path: Path, data: Captured, compression: bool) -> None:
    arrays = {f"{layer}_{kind}": array for layer, kinds in data["layers"].items() for kind, array in kinds.items()}
    # Text of its own dtype needs no pickle, and the program's reader takes it alike.
    named = {_METADATA: np.array([json.dumps(data["metadata"])]), **arrays}
    with path.open("wb") as file:
        (np.savez_compressed if compression else np.savez)(file, allow_pickle=False, **named)


NPZ = Kind("capture-npz", (".npz", ".npz"), (b"PK\x03\x04",), _load, _save)
CAPTURE_NPZ = capture_format(NPZ)
