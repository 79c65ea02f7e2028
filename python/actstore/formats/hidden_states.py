"""Lists of hidden states as transformers counts them, and the hook points that they are.

Of a model of L layers there are L + 1: the first is the embedding, the i-th the output of layer i - 1, and the last,
which would be that of layer L - 1, comes after the final norm. `resid_post` of layer L - 1 is not among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.errors import InvalidInputError
from actstore.hook_points import canonical, parse

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["count_states", "state_points"]

_EMBED = canonical("embed")
_FINAL_NORM = canonical("final_norm")


def state_points(count: int) -> list[str]:
    """The stored name of each of `count` hidden states."""
    inner = [canonical(("resid_post", layer)) for layer in range(count - 2)]
    return [_EMBED, *inner, _FINAL_NORM][:count] if count != 1 else [_EMBED]


def count_states(points: Collection[str], layers: int | None) -> int:
    """How many hidden states the model has whose entry has these points; `layers` is what is known of the model.

    Without it, and without a final norm, as many as leave the last one empty: nothing is taken for a normed state that
    is none. Errors: `unknown_layer` where the place of the final norm cannot be known, or a layer is beyond the model.
    """
    stored = sorted(layer for kind, layer in map(parse, points) if kind == "resid_post" and layer is not None)
    highest = stored[-1] if stored else -1
    if layers is not None:
        if highest >= layers:
            message = f"`layers` is `{layers}`, but `resid_post.{highest}` is stored; give the layers of the model"
            raise InvalidInputError("unknown_layer", message)
        return layers + 1
    if _FINAL_NORM not in points:
        return highest + 3 if stored else 1
    if stored != list(range(highest + 1)) or not stored:
        message = "which hidden state `final_norm` is depends on the model; give its number of `layers`"
        raise InvalidInputError("unknown_layer", message)
    return highest + 2
