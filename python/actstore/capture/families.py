"""Where each hook point is in a model.

The list of blocks is found by its structure; what stands inside a block is one line of `_FAMILIES` for each
`model_type`, by the names of the children. The raw output of a module and its contribution to the residual stream are
two points: they are the same tensor unless a norm stands between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from actstore.errors import CaptureError, InvalidInputError
from actstore.hook_points import parse, unknown_point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Anatomy", "Site", "dissect"]

_CONTRIBUTIONS = ("attn_out_post", "mlp_out_post")


@dataclass(frozen=True)
class _Family:
    """Names of children. `attn_norm` and `mlp_norm`: norms between a module and the residual stream, not before it.

    `scale`: field of the config that multiplies both contributions outside a module.
    """

    attn: str = "self_attn"
    mlp: str = "mlp"
    attn_norm: str | None = None
    mlp_norm: str | None = None
    final_norm: str = "norm"
    scale: str | None = None


_FAMILIES = {
    "cohere": _Family(),
    "cohere2": _Family(),
    "gemma": _Family(),
    "gemma2": _Family(attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
    "gemma3_text": _Family(attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
    "glm4": _Family(attn_norm="post_self_attn_layernorm", mlp_norm="post_mlp_layernorm"),
    "granite": _Family(scale="residual_multiplier"),
    "llama": _Family(),
    "ministral3": _Family(),
    "mistral": _Family(),
    "mixtral": _Family(),
    "olmo": _Family(),
    "olmo2": _Family(attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
    "olmo3": _Family(attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
    "phi": _Family(final_norm="final_layernorm"),
    "phi3": _Family(),
    "qwen2": _Family(),
    "qwen3": _Family(),
    "qwen3_moe": _Family(),
    "smollm3": _Family(),
    "stablelm": _Family(),
    "starcoder2": _Family(),
}


@dataclass(frozen=True)
class Site:
    """The tensor of a hook point: what goes into `module`, what comes out of it, or the logits in its output."""

    module: nn.Module
    side: Literal["input", "output", "logits"]


class Anatomy:
    """The parts of a decoder that hook points are found by."""

    def __init__(self, model: nn.Module, config: Any, trunk: nn.Module, blocks: nn.ModuleList) -> None:
        self.model = model
        self.trunk = trunk
        self.blocks = blocks
        self.family_name = str(getattr(config, "model_type", ""))
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self._config = config
        # Of an unknown family the parts with the usual names are safe to give; what reaches the stream is not.
        self._family = _FAMILIES.get(self.family_name, _Family())

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.trunk.get_submodule("embed_tokens").parameters()).device

    def site(self, name: str) -> Site:
        """Where the point with the stored name `name` is. `unknown_point`, with the reason, where it is nowhere."""
        kind, layer = parse(name)
        if layer is not None:
            return self._in_block(name, kind, self.blocks[layer])
        if kind == "logits":
            return self._logits()
        if kind == "embed":
            return Site(self._child(name, self.trunk, "embed_tokens"), "output")
        if kind == "final_norm":
            return Site(self._child(name, self.trunk, self._family.final_norm), "output")
        return Site(self._module(name), "output")

    def has_dropout_on_contributions(self, names: list[str]) -> bool:
        """Whether one of `names` is a contribution that dropout changes outside its module while training."""
        dropouts = (child for block in self.blocks for child in block.children() if isinstance(child, nn.Dropout))
        return any(parse(name)[0] in _CONTRIBUTIONS for name in names) and any(child.p > 0 for child in dropouts)

    def _in_block(self, name: str, kind: str, block: nn.Module) -> Site:
        family = self._family
        if kind in ("resid_pre", "resid_post"):
            return Site(block, "input" if kind == "resid_pre" else "output")
        if kind in _CONTRIBUTIONS:
            self._require_contribution(name)
        children = {
            "attn_out": family.attn,
            "attn_out_post": family.attn_norm or family.attn,
            "mlp_out": family.mlp,
            "mlp_out_post": family.mlp_norm or family.mlp,
        }
        return Site(self._child(name, block, children[kind]), "output")

    def _require_contribution(self, name: str) -> None:
        if self.family_name not in _FAMILIES:
            known = ", ".join(_FAMILIES)
            reason = f"what family `{self.family_name}` adds to the residual stream is not known; it is of {known}"
            raise _no_point(name, reason)
        scale = self._family.scale
        if scale is not None and getattr(self._config, scale) != 1:
            factor = f"`{scale}` = `{getattr(self._config, scale)}`"
            reason = f"the contribution is multiplied by {factor} outside a module; the raw output can be captured"
            raise _no_point(name, reason)

    def _child(self, name: str, parent: nn.Module, child: str) -> nn.Module:
        module = getattr(parent, child, None)
        if not isinstance(module, nn.Module):
            raise _no_point(name, f"`{type(parent).__name__}` has no `{child}`")
        return module

    def _logits(self) -> Site:
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        if head is None:
            raise _no_point("logits", f"`{type(self.model).__name__}` has no output head")
        return Site(self.model, "logits")

    def _module(self, path: str) -> nn.Module:
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            raise unknown_point(path) from None


def dissect(model: nn.Module) -> Anatomy:
    """The anatomy of a decoder; `unsupported_model` where the blocks are not found."""
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config
    count = getattr(config, "num_hidden_layers", None)
    if count is None:
        raise _unsupported(model, "it has no `config.num_hidden_layers`; give a transformers model")
    if getattr(config, "is_encoder_decoder", False):
        raise _unsupported(model, "it is an encoder with a decoder; a decoder alone can be captured")
    candidates = list(_block_lists(model, count))
    if len(candidates) == 1:
        return Anatomy(model, config, *candidates[0])
    lists = [f"`{name}` of `{len(found)}`" for name, found in _module_lists(model)]
    looked_for = f"one list `layers` of `{count}` blocks beside an `embed_tokens`, as in `model.layers`"
    raise _unsupported(model, f"looked for {looked_for}; it has {', '.join(lists[:8]) or 'no list of modules'}")


def _block_lists(model: nn.Module, count: int) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    for name, modules in _module_lists(model):
        parent, _, own_name = name.rpartition(".")
        if own_name == "layers" and len(modules) == count:
            trunk = model.get_submodule(parent)
            if isinstance(getattr(trunk, "embed_tokens", None), nn.Module):
                yield trunk, modules


def _module_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    named = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    return ((name, module) for name, module in named if isinstance(module, nn.ModuleList))


def _no_point(name: str, reason: str) -> InvalidInputError:
    return InvalidInputError("unknown_point", f"this model has no hook point `{name}`: {reason}")


def _unsupported(model: nn.Module, reason: str) -> CaptureError:
    return CaptureError("unsupported_model", f"`{type(model).__name__}` cannot be captured: {reason}")
