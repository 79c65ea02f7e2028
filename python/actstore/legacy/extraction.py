"""What a logger keeps of a model's hidden states: which of them, and the rows of which tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from actstore.config import SEQUENCE_MODES, TARGET_LAYERS
from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

    Step = list[Tensor]

__all__ = ["Extraction", "States", "whole"]

States = list[Any]
"""Hidden states by number, each an array or tensor [1, tokens, d], or None where it is not kept."""


@dataclass(frozen=True)
class Extraction:
    """Which hidden states are kept, and of which tokens.

    `target_layers`: `all`, `first_half`, `second_half`, or numbers of hidden states, negative ones from the end. They
    count as transformers does: 0 is the embedding, and the last comes after the final norm. The halves part at half
    their number. `sequence_mode`: `all`, `prompt` or `response`.

    Errors: `unknown_layer`, `invalid_option`.
    """

    target_layers: str | Sequence[int]
    sequence_mode: str

    def __post_init__(self) -> None:
        if isinstance(self.target_layers, str):
            if self.target_layers not in TARGET_LAYERS:
                message = f"`target_layers` is `{self.target_layers}`; one of {_listed(TARGET_LAYERS)}, or a list"
                raise InvalidInputError("unknown_layer", message)
        else:
            given: Any = self.target_layers
            listed = given if hasattr(given, "__iter__") else [given]
            numbers = [whole("target_layers", number, "unknown_layer") for number in listed]
            object.__setattr__(self, "target_layers", numbers)
        if self.sequence_mode not in SEQUENCE_MODES:
            message = f"`sequence_mode` is `{self.sequence_mode}`; one of {_listed(SEQUENCE_MODES)}"
            raise InvalidInputError("invalid_option", message)

    @property
    def config(self) -> dict[str, Any]:
        """What an entry's `logging_config` says."""
        return {"target_layers": self.target_layers, "sequence_mode": self.sequence_mode}

    def of_outputs(self, outputs: Any, prompt_length: int, trim_position: int | None) -> States:
        """Of what `generate` returned for one prompt; a row is the state at its token.

        The last token that was generated has no row, for it was never fed to the model; so a response of one token has
        none at all. `trim_position`: how many tokens of the response to keep.

        Errors: `invalid_tensor` for what is no generation of one prompt with `output_hidden_states`, `unknown_position`
        where its prompt does not have `prompt_length` tokens.
        """
        prompt, *decoded = _steps(outputs)
        rows = prompt[0].shape[1]
        if rows != prompt_length:
            message = f"`input_length` is `{prompt_length}`, but `model_outputs` has `{rows}` states of the prompt"
            raise InvalidInputError("unknown_position", message)
        decoded = decoded[:trim_position]
        first = slice(0) if self.sequence_mode == "response" else slice(None)
        steps = [] if self.sequence_mode == "prompt" else decoded
        kept = self._kept(len(prompt))
        return [
            _joined([prompt[index][:, first], *(step[index] for step in steps)]) if index in kept else None
            for index in range(len(prompt))
        ]

    def of_states(self, states: States, prompt_length: int | None) -> States:
        """Of hidden states that are ready. Their rows are those that `sequence_mode` names, and stay.

        Errors: `unknown_position` where there cannot be as many.
        """
        kept = self._kept(len(states)) if states else set[int]()
        for state in states:
            rows = None if state is None else state.shape[-2]
            if rows is None or prompt_length is None or self._may_have(rows, prompt_length):
                continue
            message = (
                f"`all_layers_activations` has `{rows}` rows, but `sequence_mode` is `{self.sequence_mode}` and "
                f"`input_length` is `{prompt_length}`; say what they are in the entry's `logging_config`"
            )
            raise InvalidInputError("unknown_position", message)
        return [state if index in kept else None for index, state in enumerate(states)]

    def _kept(self, count: int) -> set[int]:
        """The numbers to keep of `count` hidden states. Errors: `unknown_layer`."""
        if isinstance(self.target_layers, str):
            parts = {"first_half": range(count // 2), "second_half": range(count // 2, count)}
            return set(parts.get(self.target_layers, range(count)))
        for number in self.target_layers:
            if not -count <= number < count:
                message = f"`target_layers` has `{number}`; there are `{count}` hidden states, 0 is the embedding"
                raise InvalidInputError("unknown_layer", message)
        return {number % count for number in self.target_layers}

    def _may_have(self, rows: int, prompt_length: int) -> bool:
        return {"all": rows >= prompt_length, "prompt": rows == prompt_length, "response": True}[self.sequence_mode]


def whole(name: str, value: Any, kind: str = "invalid_option") -> int:
    """`value` as an int; anything that is none is an `InvalidInputError` of `kind` that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidInputError(kind, f"`{name}` has `{value!r}`; give whole numbers")
    return int(value.__index__())


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(f"`{choice}`" for choice in choices)


def _steps(outputs: Any) -> list[Step]:
    """The hidden states of each forward of a generation, the prompt's first."""
    given: Any = (
        cast("Mapping[str, Any]", outputs).get("hidden_states")
        if isinstance(outputs, Mapping)
        else getattr(outputs, "hidden_states", None)
    )
    forwards: Sequence[Any] = cast("Sequence[Any]", given) if isinstance(given, list | tuple) else ()
    if not forwards or not all(isinstance(step, list | tuple) for step in forwards):
        message = (
            "`model_outputs` has no hidden states of a generation; "
            "call `generate` with `output_hidden_states=True, return_dict_in_generate=True`"
        )
        raise InvalidInputError("invalid_tensor", message)
    steps = [list(step) for step in cast("Sequence[Sequence[Tensor]]", forwards)]
    for number, step in enumerate(steps):
        _check_step(number, step, len(steps[0]))
    return steps


def _check_step(number: int, step: Step, count: int) -> None:
    rows = step[0].shape[1:2] if number == 0 and step else (1,)
    shapes = [tuple(state.shape) for state in step]
    if len(step) != count or not count or any(len(s) != 3 or s[0] != 1 or s[1:2] != rows for s in shapes):
        message = (
            f"forward `{number}` in `model_outputs` has `{len(step)}` hidden states of shapes `{shapes[:2]}`; "
            f"`{count}` of `[1, tokens, d]` are logged, one prompt at a time, and one token a step after the prompt"
        )
        raise InvalidInputError("invalid_tensor", message)


def _joined(parts: list[Tensor]) -> Tensor:
    import torch

    # In the host's memory, for the device's is the model's.
    return torch.cat([part.detach() for part in parts], dim=1).cpu()
