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
GPT2_LIKE = ("codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gptj")
ENCODERS = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")


def points_of(family: str) -> tuple[str, ...]:
    """The points that a model of `family` has, Granite with a multiplier as is usual."""
    lacks = {"granite": ("attn_out_post", "mlp_out_post"), **dict.fromkeys(ENCODERS, ("final_norm",))}.get(family, ())
    return tuple(point for point in POINTS if point not in lacks)


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
    """Plain hooks at every point of `model`, which has a head."""
    oracle = Oracle()
    watch_output(oracle, "logits", model, lambda output: output.logits)
    if model.config.model_type in ENCODERS:
        _watch_encoder(oracle, model.base_model)
    elif model.config.model_type in GPT2_LIKE:
        _watch_gpt2(oracle, model.transformer)
    else:
        _watch_decoder(oracle, model.model, model.config.model_type)
    return oracle


def _watch_decoder(oracle: Oracle, base: Any, family: str) -> None:
    first, second = _POST_NORMS.get(family, ("self_attn", "mlp"))
    watch_output(oracle, "embed", base.embed_tokens)
    watch_output(oracle, "final_norm", base.final_layernorm if family == "phi" else base.norm)
    for layer, block in enumerate(base.layers):
        _watch_block(oracle, layer, block)
        watch_output(oracle, f"attn_out.{layer}", block.self_attn)
        watch_output(oracle, f"mlp_out.{layer}", block.mlp)
        watch_output(oracle, f"attn_out_post.{layer}", getattr(block, first))
        watch_output(oracle, f"mlp_out_post.{layer}", getattr(block, second))


def _watch_gpt2(oracle: Oracle, base: Any) -> None:
    watch_output(oracle, "embed", base.wte)
    watch_output(oracle, "final_norm", base.ln_f)
    for layer, block in enumerate(base.h):
        _watch_block(oracle, layer, block)
        for point in ("attn_out", "attn_out_post"):
            watch_output(oracle, f"{point}.{layer}", block.attn)
        for point in ("mlp_out", "mlp_out_post"):
            watch_output(oracle, f"{point}.{layer}", block.mlp)


def _watch_encoder(oracle: Oracle, base: Any) -> None:
    """Dropout does nothing in eval mode; where it does, `test_families` has a test."""
    watch_output(oracle, "embed", base.embeddings.LayerNorm)
    for layer, block in enumerate(base.encoder.layer):
        _watch_block(oracle, layer, block)
        for point in ("attn_out", "attn_out_post"):
            watch_output(oracle, f"{point}.{layer}", block.attention.output.dense)
        for point in ("mlp_out", "mlp_out_post"):
            watch_output(oracle, f"{point}.{layer}", block.output.dense)


def _watch_block(oracle: Oracle, layer: int, block: nn.Module) -> None:
    _before(oracle, f"resid_pre.{layer}", block)
    watch_output(oracle, f"resid_post.{layer}", block)


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
