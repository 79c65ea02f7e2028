"""Whether what was stored is what the model computed: plain hooks, and comparisons bit for bit.

Nothing here shares code with `actstore.capture`: it is the second opinion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from torch import Tensor, nn

    from actstore.entry import Entry

Steps = dict[str, list["Tensor"]]
"""By hook point, one tensor [batch, tokens, d] for each forward of a generation."""


class PlainHooks:
    """Hooks on a Llama that clone every point on the spot, in a `with` block; `steps` is what they saw."""

    def __init__(self, model: nn.Module) -> None:
        self.steps: Steps = {}
        self._model = cast("Any", model)
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        inner = self._model.model
        self._after(inner.embed_tokens, "hook_embed")
        for layer, block in enumerate(inner.layers):
            name = f"blocks.{layer}"
            self._before(block, f"{name}.hook_resid_pre")
            # In a Llama, the output of a module is what it adds to the residual stream.
            self._after(block.self_attn, f"{name}.attn.hook_out", f"{name}.hook_attn_out")
            self._after(block.mlp, f"{name}.mlp.hook_out", f"{name}.hook_mlp_out")
            self._after(block, f"{name}.hook_resid_post")
        self._after(inner.norm, "ln_final.hook_out")
        self._after(self._model.lm_head, "logits")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, names: Sequence[str], tensor: Tensor) -> None:
        for name in names:
            self.steps.setdefault(name, []).append(tensor.detach().clone())

    def _before(self, module: nn.Module, *names: str) -> None:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(names, args[0] if args else kwargs["hidden_states"])

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, *names: str) -> None:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._keep(names, cast("Any", output)[0] if isinstance(output, tuple) else output)

        self._handles.append(module.register_forward_hook(hook))


def hidden_states_as_steps(hidden_states: Sequence[Sequence[Tensor]]) -> Steps:
    """What `generate` returned as `hidden_states`, under the names of the points that are the same tensors.

    State i is the output of block i - 1, but the last state is after the final norm.
    """
    last = len(hidden_states[0]) - 1
    steps: Steps = {"hook_embed": [states[0] for states in hidden_states]}
    for layer in range(last):
        steps[f"blocks.{layer}.hook_resid_pre"] = [states[layer] for states in hidden_states]
    for layer in range(last - 1):
        steps[f"blocks.{layer}.hook_resid_post"] = [states[layer + 1] for states in hidden_states]
    steps["ln_final.hook_out"] = [states[last] for states in hidden_states]
    return steps


def rows_of(steps: Steps, row: int, mask: Tensor, response_tokens: int) -> dict[str, Tensor]:
    """The rows [tokens, d] of one sequence of a generation: its prompt without padding, then a row a step.

    The last token of the response was never fed back, so it has no row.
    """
    real = mask[row].nonzero()[:, 0]
    return {
        name: torch.cat([tensors[0][row][real], *(step[row] for step in tensors[1:response_tokens])])
        for name, tensors in steps.items()
    }


@dataclass
class Comparison:
    """A count of comparisons, and the names of those that failed."""

    activations: int = 0
    rows: int = 0
    mismatches: list[str] = field(default_factory=list[str])

    def add(self, entry: Entry, expected: Mapping[str, Tensor]) -> None:
        """Compare every expected activation with the stored one, bit for bit."""
        for name, tensor in expected.items():
            self.activations += 1
            self.rows += len(tensor)
            if name not in entry or not same_bits(entry.torch(name), tensor):
                self.mismatches.append(f"entry `{entry.key}`, point `{name}`")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal in dtype, shape and every bit, so that NaN equals itself and 0.0 is not -0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.cpu().contiguous().view(torch.uint8))


def relative_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference at any point, over the largest magnitude at that point."""
    worst = 0.0
    for name, tensor in one.items():
        reference = other[name].float()
        difference = (tensor.float() - reference).abs().max().item()
        worst = max(worst, difference / max(reference.abs().max().item(), 1e-30))
    return worst
