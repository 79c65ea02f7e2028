"""Where each hook point is in a model.

The list of blocks is found by its structure, of which there are three kinds; what stands inside a block is one line of
`_FAMILIES` for each `model_type`, by the names of the modules. The raw output of a module and its contribution to the
residual stream are two points: they are the same tensor unless something stands between them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from actstore.errors import CaptureError, InvalidInputError
from actstore.hook_points import parse, unknown_point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Anatomy", "Site", "dissect"]

_CONTRIBUTIONS = ("attn_out_post", "mlp_out_post")
_INNER = ("attn_probs", "mlp_act")
"""Points inside a module, which hooks on modules do not see."""


@dataclass(frozen=True)
class _Family:
    """Names of modules: `blocks`, `embed` and `final_norm` below the trunk, the others below a block.

    `attn` and `mlp` give what attention and MLP computed, with no residual stream in it yet. `after_attn` and
    `after_mlp`: norm or dropout that it passes before it is added to the stream. `scale`: field of the config that
    multiplies both contributions outside a module. `is_encoder`: tokens see those that come later.
    """

    blocks: str = "layers"
    embed: str = "embed_tokens"
    attn: str = "self_attn"
    mlp: str = "mlp"
    after_attn: str | None = None
    after_mlp: str | None = None
    final_norm: str | None = "norm"
    scale: str | None = None
    is_encoder: bool = False


_LLAMA = _Family()
_GPT2 = _Family(blocks="h", embed="wte", attn="attn", final_norm="ln_f")
# `attention` and `output` are no such modules: they add to the stream themselves, and norm it.
_BERT = _Family(
    blocks="encoder.layer",
    embed="embeddings",
    attn="attention.output.dense",
    mlp="output.dense",
    after_attn="attention.output.dropout",
    after_mlp="output.dropout",
    final_norm=None,
    is_encoder=True,
)
_KINDS = (_LLAMA, _GPT2, _BERT)

_GEMMA2 = replace(_LLAMA, after_attn="post_attention_layernorm", after_mlp="post_feedforward_layernorm")

_FAMILIES = {
    "bert": _BERT,
    "camembert": _BERT,
    "codegen": _GPT2,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "electra": _BERT,
    "ernie": _BERT,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "glm4": replace(_LLAMA, after_attn="post_self_attn_layernorm", after_mlp="post_mlp_layernorm"),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": _GPT2,
    "gptj": _GPT2,
    "granite": replace(_LLAMA, scale="residual_multiplier"),
    "llama": _LLAMA,
    "ministral3": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _GEMMA2,
    "olmo3": _GEMMA2,
    "phi": replace(_LLAMA, final_norm="final_layernorm"),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "roberta": _BERT,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "xlm-roberta": _BERT,
}


@dataclass(frozen=True)
class Site:
    """The tensor of a hook point: what goes into `module`, what comes out of it, or the logits in its output."""

    module: nn.Module
    side: Literal["input", "output", "logits"]


class Anatomy:
    """The parts of a decoder or encoder that hook points are found by."""

    def __init__(self, model: nn.Module, config: Any, family: _Family, trunk: nn.Module, blocks: nn.ModuleList) -> None:
        self.model = model
        self.trunk = trunk
        self.blocks = blocks
        self.family_name = str(getattr(config, "model_type", ""))
        self._embed = trunk.get_submodule(family.embed)
        self.context = _context(config, self._embed)
        self.sees_later_tokens = family.is_encoder and not getattr(config, "is_decoder", False)
        self._config = config
        self._family = family

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self._embed.parameters()).device

    def site(self, name: str) -> Site:
        """Where the point with the stored name `name` is. `unknown_point`, with the reason, where it is nowhere."""
        kind, layer = parse(name)
        if layer is not None:
            return self._in_block(name, kind, self.blocks[layer])
        if kind == "logits":
            return self._logits()
        if kind == "embed":
            return Site(self._embed, "output")
        if kind == "final_norm":
            return self._final_norm(name)
        return Site(self._module(name), "output")

    def has_dropout_on_contributions(self, names: list[str]) -> bool:
        """Whether one of `names` is a contribution that dropout changes outside its module while training."""
        dropouts = (child for block in self.blocks for child in block.children() if isinstance(child, nn.Dropout))
        return any(parse(name)[0] in _CONTRIBUTIONS for name in names) and any(child.p > 0 for child in dropouts)

    def _in_block(self, name: str, kind: str, block: nn.Module) -> Site:
        family = self._family
        if kind in ("resid_pre", "resid_post"):
            return Site(block, "input" if kind == "resid_pre" else "output")
        if kind in _INNER:
            raise _no_point(name, "no module gives it; it is only known of data that was imported")
        if kind in _CONTRIBUTIONS:
            self._require_contribution(name)
        children = {
            "attn_out": family.attn,
            "attn_out_post": family.after_attn or family.attn,
            "mlp_out": family.mlp,
            "mlp_out_post": family.after_mlp or family.mlp,
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

    def _final_norm(self, name: str) -> Site:
        if self._family.final_norm is None:
            last = f"no norm is known behind the last layer, whose output is `resid_post.{self.layers - 1}`"
            raise _no_point(name, last)
        return Site(self._child(name, self.trunk, self._family.final_norm), "output")

    def _child(self, name: str, parent: nn.Module, path: str) -> nn.Module:
        try:
            return parent.get_submodule(path)
        except AttributeError:
            raise _no_point(name, f"`{type(parent).__name__}` has no `{path}`") from None

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
    """The anatomy of a decoder or encoder; `unsupported_model` where the blocks are not found."""
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config
    count = getattr(config, "num_hidden_layers", None)
    if count is None:
        raise _unsupported(model, "it has no `config.num_hidden_layers`; give a transformers model")
    if getattr(config, "is_encoder_decoder", False):
        raise _unsupported(model, "it is an encoder with a decoder; give one that is a decoder or an encoder alone")
    family = _FAMILIES.get(str(getattr(config, "model_type", "")))
    # Of an unknown family the parts with the usual names are safe to give; what reaches the stream is not.
    kinds = _KINDS if family is None else (family,)
    candidates = [(kind, *found) for kind in kinds for found in _block_lists(model, kind, count)]
    if len(candidates) == 1:
        return Anatomy(model, config, *candidates[0])
    looked_for = ", ".join(f"`{kind.blocks}` beside `{kind.embed}`" for kind in kinds)
    lists = ", ".join(f"`{name}` of `{len(found)}`" for name, found in [*_module_lists(model)][:8])
    reason = f"looked for one list of `{count}` blocks, {looked_for}; it has {lists or 'no list of modules'}"
    raise _unsupported(model, f"{reason}; supported are {', '.join(_FAMILIES)}, and what is built like them")


def _block_lists(model: nn.Module, kind: _Family, count: int) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    for name, modules in _module_lists(model):
        # Dots in front, so that a model that is itself the trunk looks like one further in.
        path, blocks = f".{name}", f".{kind.blocks}"
        if path.endswith(blocks) and len(modules) == count:
            trunk = model.get_submodule(path.removesuffix(blocks)[1:])
            if isinstance(getattr(trunk, kind.embed, None), nn.Module):
                yield trunk, modules


def _context(config: Any, embed: nn.Module) -> int | None:
    """How many tokens the model has positions for, None where there is no bound."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    # RoBERTa counts from behind the padding's id.
    padding = getattr(getattr(embed, "position_embeddings", None), "padding_idx", None)
    return positions if positions is None or padding is None else positions - padding - 1


def _module_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    named = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    return ((name, module) for name, module in named if isinstance(module, nn.ModuleList))


def _no_point(name: str, reason: str) -> InvalidInputError:
    return InvalidInputError("unknown_point", f"this model has no hook point `{name}`: {reason}")


def _unsupported(model: nn.Module, reason: str) -> CaptureError:
    return CaptureError("unsupported_model", f"`{type(model).__name__}` cannot be captured: {reason}")
