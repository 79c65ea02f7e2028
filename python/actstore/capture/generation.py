"""Calls of `generate`: what was asked for, and what cannot be captured one entry a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from actstore.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

__all__ = ["Request", "sequences_of"]

_POSITIONAL = ("inputs", "generation_config", "logits_processor", "stopping_criteria")


def _is_set(value: Any, batch: int) -> bool:
    del batch
    return bool(value)


def _is_above_one(value: Any, batch: int) -> bool:
    del batch
    return value > 1


def _is_per_row(value: Any, batch: int) -> bool:
    return batch > 1 and len(value) > 0


_REFUSED: dict[str, tuple[Callable[[Any, int], bool], str]] = {
    "num_beams": (_is_above_one, "beams move rows about; set `num_beams=1`"),
    "num_return_sequences": (_is_above_one, "one entry a row; repeat the prompt instead, with keys of your own"),
    "assistant_model": (_is_set, "rejected guesses have rows but no tokens; leave it out"),
    "prompt_lookup_num_tokens": (_is_set, "rejected guesses have rows but no tokens; leave it out"),
    "assistant_early_exit": (_is_set, "rejected guesses have rows but no tokens; leave it out"),
    "use_mtp": (_is_set, "rejected guesses have rows but no tokens; leave it out"),
    "prefill_chunk_size": (_is_set, "a prompt is captured in one forward; leave it out"),
    "stop_strings": (_is_per_row, "where each row ended cannot be told; generate one prompt at a time"),
    "stopping_criteria": (_is_per_row, "where each row ended cannot be told; generate one prompt at a time"),
    "guidance_scale": (
        lambda value, _: value != 1,
        "each step runs a second forward, without the prompt; leave it out",
    ),
    "penalty_alpha": (_is_set, "contrastive search runs candidates that have no tokens; leave it out"),
    "dola_layers": (_is_set, "its decoding loop is not known; leave it out"),
    "custom_generate": (_is_set, "its decoding loop is not known; leave it out"),
    "constraints": (_is_set, "constrained search uses beams, which move rows about; leave it out"),
    "force_words_ids": (_is_set, "constrained search uses beams, which move rows about; leave it out"),
    "token_healing": (_is_set, "it rewrites the prompt; leave it out"),
    "inputs_embeds": (lambda value, _: value is not None, "rows without token ids; pass `input_ids`"),
    "past_key_values": (lambda value, _: has_past(value), "the rows of the cached tokens are lost; start without"),
    # What later versions of transformers call it.
    "cache": (lambda value, _: has_past(value), "the rows of the cached tokens are lost; start without"),
    "cache_implementation": (lambda value, _: value == "paged", "continuous batching mixes rows; leave it out"),
}
_UNCOMPILED_CACHES = ("dynamic", "dynamic_full", "offloaded", "quantized")


class Request:
    """The arguments of a call of `generate`, over the generation config of the model."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._given = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
        self._configs = (self._given.get("generation_config"), getattr(model, "generation_config", None))

    @property
    def ids(self) -> Tensor:
        """The token ids. Errors: `unsupported_generation` without them."""
        for name in ("inputs", "input_ids"):
            ids = self._given.get(name)
            if isinstance(ids, torch.Tensor) and ids.ndim == 2 and not ids.is_floating_point() and ids.shape[1]:
                return ids
        message = "`generate` was called without `input_ids` of shape [batch, tokens]; pass them"
        raise CaptureError("unsupported_generation", message)

    @property
    def mask(self) -> Tensor | None:
        """The attention mask, if one was given."""
        return self._given.get("attention_mask")

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a row."""
        eos = self.option("eos_token_id")
        if eos is None:
            return frozenset()
        return frozenset(int(token) for token in torch.as_tensor(eos).reshape(-1))

    def option(self, name: str) -> Any:
        """The value that `generate` will use: of the call, else of the config given, else of the model's."""
        if name in self._given:
            return self._given[name]
        values = (getattr(config, name, None) for config in self._configs)
        return next((value for value in values if value is not None), None)

    def require_supported(self) -> None:
        """Refuse, before any token, what would not give one row a token. Errors: `unsupported_generation`."""
        ids_given = any(isinstance(self._given.get(name), torch.Tensor) for name in ("inputs", "input_ids"))
        batch = self.ids.shape[0] if ids_given else 1
        for name, (is_refused, reason) in _REFUSED.items():
            value = self.option(name)
            if value is not None and is_refused(value, batch):
                shown = f"{name}={value}" if isinstance(value, (str, int, float)) else name
                raise CaptureError("unsupported_generation", f"`{shown}` cannot be captured: {reason}")
        if self.ids.is_cuda and self._is_compiled():
            message = (
                "a static cache cannot be captured: compiled steps run no hooks; pass `disable_compile=True` as well"
            )
            raise CaptureError("unsupported_generation", message)

    def _is_compiled(self) -> bool:
        """Whether `generate` compiles decoding steps, on devices where it does."""
        given = (self.option(name) for name in ("past_key_values", "cache"))
        is_static = self.option("cache_implementation") not in (None, *_UNCOMPILED_CACHES)
        is_static = is_static or any(getattr(cache, "is_compileable", False) for cache in given)
        return bool(is_static and not self.option("disable_compile"))


def has_past(cache: Any) -> bool:
    """Whether a cache holds keys and values of earlier tokens."""
    length = getattr(cache, "get_seq_length", None)
    return bool(cache) if length is None else int(length()) > 0


def sequences_of(result: Any) -> Tensor:
    """Prompts and responses, padding and all, of what `generate` returned."""
    return result if isinstance(result, torch.Tensor) else result.sequences
