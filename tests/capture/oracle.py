"""Plain synchronous hooks, a clone on the spot, and what the store must hold if they are right.

Where a point is in a model is written down here a second time, by hand, so that a mistake in the families is seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

POINTS = (
    "embed",
    "resid_pre",
    "attn_out",
    "attn_out_post",
    "mlp_out",
    "mlp_out_post",
    "resid_post",
    "final_norm",
    "logits",
)
_POST_NORMS = {
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo3": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}


@dataclass
class Oracle:
    """What plain hooks saw: at each point a tensor a forward."""

    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> "Oracle":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def forget(self) -> None:
        self.seen.clear()

    def rows_of_forward(self, name: str, columns: list[int], row: int) -> Tensor:
        (tensor,) = self.seen[name]
        return tensor[row, columns]

    def rows_of_generation(self, name: str, columns: list[int], row: int, tokens: int) -> Tensor:
        """Rows of the prompt from the first forward, then the last column of each other one, `tokens` in all."""
        prefill, *steps = self.seen[name]
        return torch.cat([prefill[row, columns], *(step[row, -1:] for step in steps)])[:tokens]


def watch(model: Any) -> Oracle:
    """Plain hooks at every point of `model`."""
    oracle = Oracle()
    base = model.model
    first, second = _POST_NORMS.get(model.config.model_type, ("self_attn", "mlp"))
    norm = base.final_layernorm if model.config.model_type == "phi" else base.norm
    watch_output(oracle, "embed", base.embed_tokens)
    watch_output(oracle, "final_norm", norm)
    watch_output(oracle, "logits", model, lambda output: output.logits)
    for layer, block in enumerate(base.layers):
        _before(oracle, f"resid_pre.{layer}", block)
        watch_output(oracle, f"attn_out.{layer}", block.self_attn)
        watch_output(oracle, f"mlp_out.{layer}", block.mlp)
        watch_output(oracle, f"attn_out_post.{layer}", getattr(block, first))
        watch_output(oracle, f"mlp_out_post.{layer}", getattr(block, second))
        watch_output(oracle, f"resid_post.{layer}", block)
    return oracle


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def watch_output(oracle: Oracle, name: str, module: nn.Module, pick: Callable[[Any], Tensor] = _first) -> None:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        oracle.seen.setdefault(name, []).append(pick(output).detach().clone())

    oracle.handles.append(module.register_forward_hook(hook))


def _before(oracle: Oracle, name: str, module: nn.Module) -> None:
    def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = args[0] if args else kwargs["hidden_states"]
        oracle.seen.setdefault(name, []).append(tensor.detach().clone())

    oracle.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and bits: NaN equals itself, zeros of two signs differ."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
