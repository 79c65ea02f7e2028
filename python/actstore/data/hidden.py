"""Which hook points are the hidden states of an entry, counted as transformers counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.errors import InvalidInputError
from actstore.formats.hidden_states import count_states, state_points
from actstore.formats.record import conventions_of
from actstore.hook_points import canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.data.logs import Recorded
    from actstore.hook_points import PointLike

__all__ = ["DEFAULT_LAYERS", "hidden_state_points", "wanted_points"]


DEFAULT_LAYERS = tuple(range(16, 30))


def hidden_state_points(entry: Recorded) -> list[str | None]:
    """The hook point of each hidden state, None for one that is not stored. The output of the last block is none.

    Errors: `unknown_layer` where how many layers the model has cannot be known.
    """
    count = conventions_of(entry.metadata).get("hidden_states")
    if not isinstance(count, int):
        try:
            count = count_states(entry.points, None)
        except InvalidInputError:
            message = (
                f"entry `{entry.key}` has some layers only, so which hidden state `final_norm` is cannot be known; "
                "name hook points, such as `resid_post.12`"
            )
            raise InvalidInputError("unknown_layer", message) from None
    stored = set(entry.points)
    return [name if name in stored else None for name in state_points(count)]


def wanted_points(entry: Recorded, layers: Sequence[PointLike]) -> list[str | None]:
    """The hook point of each of `layers`, hidden states by number or hook points by name; None where not stored."""
    if any(isinstance(layer, int) for layer in layers):
        states = hidden_state_points(entry)
        return [_state(states, layer) if isinstance(layer, int) else _named(entry, layer) for layer in layers]
    return [_named(entry, layer) for layer in layers]


def _state(states: list[str | None], number: int) -> str | None:
    return states[number] if -len(states) <= number < len(states) else None


def _named(entry: Recorded, layer: PointLike) -> str | None:
    name = canonical(layer)
    return name if name in entry.points else None
