"""What the three kinds of activation files of document 001 have in common.

Each holds `metadata`, a dict, and `layers`: by the names `layer_<i>` and, within, `hidden_states` [tokens, d],
`attention_weights` [heads, tokens, tokens] and `mlp_activations` [tokens, d], an array each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from actstore.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Captured", "Kind", "checked", "layer_number"]

Captured = dict[str, Any]
"""`{"metadata": {...}, "layers": {"layer_5": {"hidden_states": array, ...}}}`."""

_LAYER = re.compile(r"layer_(0|[1-9]\d{0,8})", re.ASCII)
_NAME = re.compile(r"\w{1,100}", re.ASCII)
_NUMBERS = "fiub"


@dataclass(frozen=True)
class Kind:
    """One kind of files: the `name` of its format, its suffixes uncompressed and compressed, its reader and its writer.

    `magics`: what its files begin with. `load` raises what is damaged, unsafe or too large; `save` takes whether to
    compress.
    """

    name: str
    suffixes: tuple[str, str]
    magics: tuple[bytes, ...]
    load: Callable[[Path], Captured]
    save: Callable[[Path, Captured, bool], None]

    def suffix(self, *, compression: bool) -> str:
        """Of a file with or without compression."""
        return self.suffixes[compression]


def layer_number(name: object) -> int | None:
    """The layer of a name such as `layer_5`; None for another name."""
    match = _LAYER.fullmatch(name) if isinstance(name, str) else None
    return None if match is None else int(match[1])


def checked(data: object, what: str) -> Captured:
    """`data` where it has the structure of a captured entry; `what` it is, for errors. Errors: `malformed`."""
    fields = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    metadata, layers = fields.get("metadata", {}), fields.get("layers")
    if not isinstance(metadata, dict) or not isinstance(layers, dict):
        raise CorruptError("malformed", f"{what} has no `layers` by name, or no fields as `metadata`")
    for layer, arrays in cast("dict[Any, Any]", layers).items():
        if layer_number(layer) is None or not isinstance(arrays, dict):
            raise CorruptError("malformed", f"{what} has the layer `{str(layer)[:100]}`, which is no `layer_<number>`")
        for kind, array in cast("dict[Any, Any]", arrays).items():
            named = isinstance(kind, str) and _NAME.fullmatch(kind)
            if not named or not isinstance(array, np.ndarray) or not _is_numbers(cast("NDArray[Any]", array)):
                message = f"{what} has `{str(kind)[:100]}` at `{layer}`, which is no array of numbers with a plain name"
                raise CorruptError("malformed", message)
    return {"metadata": metadata, "layers": layers}


def _is_numbers(array: NDArray[Any]) -> bool:
    # bfloat16 and float8 of `ml_dtypes` are of kind `V`.
    return array.ndim > 0 and (array.dtype.kind in _NUMBERS or array.dtype.name.startswith(("bfloat16", "float8")))
