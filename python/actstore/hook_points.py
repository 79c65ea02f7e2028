"""Names of places in a forward pass: every spelling a caller may use, and the one that is stored.

Stored are the TransformerLens names, which SAELens and Neuronpedia share, plus `ln_final.hook_out`, `logits` and the
paths of modules. `_TEMPLATES` is the one table of them.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, SupportsIndex, TypeAlias, cast

from actstore.errors import InvalidInputError

__all__ = [
    "LayersLike",
    "PointLike",
    "canonical",
    "choose",
    "expand",
    "parse",
    "select_layers",
    "short",
    "unknown_point",
]

LayerLike: TypeAlias = int | float | SupportsIndex
"""A layer number, a negative one from the end, or a fraction of depth in [0, 1)."""
PointLike: TypeAlias = str | LayerLike | tuple[str, LayerLike]
"""`"resid_post.12"`, `("resid_post", 12)`, `12` (= `resid_post.12`), `blocks.12.hook_resid_post`, a module path."""
LayersLike: TypeAlias = str | LayerLike | Iterable[LayerLike]
"""`"all"`, `"first_half"`, `"second_half"`, `"10,15"`, layers, or an iterable of layers such as a range."""

_TEMPLATES = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn_probs": "blocks.{}.attn.hook_pattern",
    "attn_out": "blocks.{}.attn.hook_out",
    "attn_out_post": "blocks.{}.hook_attn_out",
    "mlp_act": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.mlp.hook_out",
    "mlp_out_post": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
    "final_norm": "ln_final.hook_out",
    "logits": "logits",
}
_ALIASES = {"embeddings": "embed"}
_LAYERED = frozenset(name for name, template in _TEMPLATES.items() if "{}" in template)
_KINDS = {template: name for name, template in _TEMPLATES.items()}
_BLOCK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<hook>.+)", re.ASCII)
_LAYER = re.compile(r"-?\d+", re.ASCII)
_HALVES = ("all", "first_half", "second_half")
_MODULE_PATH = re.compile(r"\w+(\.\w+)+", re.ASCII)


def canonical(point: PointLike, *, layers: int | None = None) -> str:
    """The stored name of `point`.

    `layers` is the number of layers of the model; only a negative layer and a fraction of depth need it, and with it
    a layer beyond the last is refused. A name with a dot that is none of ours is taken as the path of a module.

    Errors: `InvalidInputError` of kind `unknown_point` or `unknown_layer`.
    """
    if isinstance(point, str):
        return _from_text(point, layers)
    if not isinstance(point, tuple):
        return _name("resid_post", point, layers)
    pair = cast("tuple[Any, ...]", point)
    if len(pair) != 2 or not isinstance(pair[0], str):
        raise unknown_point(pair)
    kind = _ALIASES.get(pair[0], pair[0])
    if kind not in _TEMPLATES:
        raise unknown_point(pair[0])
    return _name(kind, pair[1], layers)


def parse(name: str) -> tuple[str, int | None]:
    """(`resid_post`, 12) of a stored name; a module path is its own kind and has no layer."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _KINDS.get(name, name), None
    kind = _KINDS.get(f"blocks.{{}}.{block['hook']}")
    return (name, None) if kind is None else (kind, int(block["layer"]))


def short(name: str) -> str:
    """The short address of a stored name: `resid_post.12`."""
    kind, layer = parse(name)
    return kind if layer is None else f"{kind}.{layer}"


def select_layers(layers: LayersLike, count: int) -> list[int]:
    """The layers, ascending, that `layers` names in a model of `count`.

    `first_half` and `second_half` part the model at `count // 2`. Errors: `unknown_layer`.
    """
    if isinstance(layers, str):
        items = _layers_from_text(layers, count)
    else:
        items = layers if isinstance(layers, Iterable) else [layers]
    selected = sorted({_layer(item, count) for item in items})
    if not selected:
        raise InvalidInputError("unknown_layer", f"no layer is selected; {_existing_layers(count)}")
    return selected


def expand(points: PointLike | Iterable[PointLike], layers: LayersLike, count: int) -> list[str]:
    """Stored names of `points` in a model of `count` layers, each once.

    A point that says no layer, such as `resid_post`, stands for one at each of `layers`; one that says its own is
    taken whatever `layers` is.
    """
    items = [cast("PointLike", points)] if _is_one_point(points) else points
    names: dict[str, None] = {}
    for point in cast("Iterable[PointLike]", items):
        if isinstance(point, str) and point in _LAYERED:
            names.update(dict.fromkeys(_TEMPLATES[point].format(layer) for layer in select_layers(layers, count)))
        else:
            names[canonical(point, layers=count)] = None
    if not names:
        raise InvalidInputError("unknown_point", f"no hook point is given; {_existing_points()}")
    return list(names)


def choose(
    stored: Sequence[str], layers: LayersLike | None = None, points: PointLike | Iterable[PointLike] | None = None
) -> list[str]:
    """Those of the names `stored` that `points` and `layers` name; None names all.

    Negative layers and fractions of depth are of the layers up to the highest that is stored. A point without a layer,
    such as `resid_post`, stands for the stored ones at `layers`.

    Errors: `unknown_layer` and `unknown_point` for what is not stored; they list what is.
    """
    existing = sorted({layer for _, layer in map(parse, stored) if layer is not None})
    at = existing if layers is None else _stored_layers(layers, existing)
    if points is None:
        return [name for name in stored if layers is None or parse(name)[1] in at]
    items = [cast("PointLike", points)] if _is_one_point(points) else list(cast("Iterable[PointLike]", points))
    if not items:
        raise InvalidInputError("unknown_point", f"no hook point is given; {_stored_points(stored)}")
    chosen = {name for point in items for name in _stored_at(point, at, stored)}
    return [name for name in stored if name in chosen]


def _stored_layers(layers: LayersLike, existing: list[int]) -> list[int]:
    given = layers if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)
    try:
        chosen = select_layers(given, existing[-1] + 1 if existing else 0)
    except InvalidInputError:
        chosen = []
    if given in _HALVES:
        chosen = [layer for layer in chosen if layer in existing]
    if not chosen or not set(chosen) <= set(existing):
        message = f"layers `{given}` are not stored; stored are {_listed(existing)}"
        raise InvalidInputError("unknown_layer", message)
    return chosen


def _stored_at(point: PointLike, layers: list[int], stored: Sequence[str]) -> list[str]:
    count = max((layer + 1 for _, layer in map(parse, stored) if layer is not None), default=0)
    try:
        names = expand([point], layers, count)
    except InvalidInputError:
        names = []
    found = [name for name in names if name in stored]
    if not found:
        raise InvalidInputError("unknown_point", f"hook point `{point}` is not stored; {_stored_points(stored)}")
    return found


def _stored_points(stored: Sequence[str]) -> str:
    return f"stored are {_listed([short(name) for name in stored])}"


def _listed(items: Sequence[object], most: int = 20) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return (", ".join(f"`{item}`" for item in items[:most]) or "none") + more


def _is_one_point(points: object) -> bool:
    """Whether `points` is a single point: text, a number, or a pair such as `("resid_post", 12)`."""
    if isinstance(points, tuple):
        pair = cast("tuple[object, ...]", points)
        return len(pair) == 2 and isinstance(pair[0], str) and not isinstance(pair[1], str | tuple)
    return isinstance(points, str) or not isinstance(points, Iterable)


def unknown_point(point: object) -> InvalidInputError:
    """The error for a point that does not exist; lists what does."""
    return InvalidInputError("unknown_point", f"hook point `{point}` does not exist; {_existing_points()}")


@lru_cache(maxsize=4096)
def _from_text(text: str, layers: int | None) -> str:
    kind, dot, rest = text.partition(".")
    kind = _ALIASES.get(kind, kind)
    if kind in _TEMPLATES:
        return _name(kind, _number(rest) if dot else None, layers)
    parsed, layer = parse(text)
    if parsed in _TEMPLATES:
        return text if layer is None else _name(parsed, layer, layers)
    # No module is called `hook_...`: that is a TransformerLens name we do not have.
    if _MODULE_PATH.fullmatch(text) and not any(part.startswith("hook_") for part in text.split(".")):
        return text
    raise unknown_point(text)


def _name(kind: str, layer: object, layers: int | None) -> str:
    if kind in _LAYERED:
        if layer is None:
            raise InvalidInputError("unknown_layer", f"`{kind}` needs a layer, as in `{kind}.0`")
        return _TEMPLATES[kind].format(_layer(layer, layers))
    if layer is not None:
        raise InvalidInputError("unknown_point", f"`{kind}.{layer}` does not exist: `{kind}` belongs to no layer")
    return _TEMPLATES[kind]


def _number(text: str) -> int | str:
    return int(text) if _LAYER.fullmatch(text) else text


def _layer(layer: object, count: int | None) -> int:
    if isinstance(layer, float):
        return _layer_at_depth(layer, count)
    index = getattr(layer, "__index__", None)
    if index is None or isinstance(layer, bool):
        message = f"`{layer}` is no layer; give a number, a negative one from the end or a fraction of depth"
        raise InvalidInputError("unknown_layer", message)
    number = int(index())
    if count is None:
        if number < 0:
            raise InvalidInputError("unknown_layer", f"layer `{number}` can only be found in a model, not in a name")
        return number
    if not -count <= number < count:
        raise InvalidInputError("unknown_layer", f"layer `{number}` does not exist; {_existing_layers(count)}")
    return number % count


def _layer_at_depth(depth: float, count: int | None) -> int:
    if not 0 <= depth < 1:
        message = f"depth `{depth}` does not exist; a fraction of depth is at least `0.0` and below `1.0`"
        raise InvalidInputError("unknown_layer", message)
    if count is None:
        raise InvalidInputError("unknown_layer", f"depth `{depth}` can only be found in a model, not in a name")
    return int(depth * count)


def _layers_from_text(text: str, count: int) -> Iterable[int]:
    parts = {"all": range(count), "first_half": range(count // 2), "second_half": range(count // 2, count)}
    if text in _HALVES:
        return parts[text]
    numbers = [item.strip() for item in text.split(",")]
    if not all(map(_LAYER.fullmatch, numbers)):
        message = f"`{text}` names no layers; `all`, `first_half`, `second_half` or numbers; {_existing_layers(count)}"
        raise InvalidInputError("unknown_layer", message)
    return map(int, numbers)


def _existing_layers(count: int) -> str:
    return f"the model has `{count}` layers, `0` to `{count - 1}`"


def _existing_points() -> str:
    names = (f"`{name}.<layer>`" if name in _LAYERED else f"`{name}`" for name in _TEMPLATES)
    return f"there are {', '.join(names)} and paths of modules"
