"""The hooks of one recorder on one model: they tell calls apart and bring tensors to the stage."""

from __future__ import annotations

import functools
import inspect
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

import torch

from actstore.capture.calls import ForwardCall, GenerationCall
from actstore.capture.generation import Request, has_past, sequences_of
from actstore.capture.labels import Labels
from actstore.capture.prompts import encode
from actstore.capture.selection import read_tokens
from actstore.capture.staging import Tap
from actstore.errors import CaptureError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from actstore.capture.calls import Call, Sink
    from actstore.capture.families import Anatomy, Site
    from actstore.capture.selection import Tokens

__all__ = ["Session"]

_ABSENT = object()
_MARK = "_is_captured_by_actstore"
_CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")


class Session:
    """Hooks at `sites`, and on the model itself; `generate` is wrapped. From `attach` to `detach`."""

    def __init__(self, anatomy: Anatomy, sites: dict[str, Site], sink: Sink) -> None:
        self.labels: Labels | None = None
        self._anatomy = anatomy
        self._model = anatomy.model
        self._sites = sites
        self._sink = sink
        self._logits: Tap | None = None
        self._needs_eval = anatomy.has_dropout_on_contributions(list(sites))
        self._names = tuple(inspect.signature(self._model.forward).parameters)
        self._call: Call | None = None
        self._generation: GenerationCall | None = None
        self._thread = 0
        self._handles: list[RemovableHandle] = []
        self._replaced: list[tuple[str, Any]] = []
        self._original: Callable[..., Any] | None = None

    def attach(self) -> None:
        """Register every hook and wrap `generate`. Errors: `unsupported_model` if the model is being captured."""
        if _MARK in vars(self._model):
            reason = "it is being captured already; leave that block first"
            raise CaptureError("unsupported_model", f"`{type(self._model).__name__}` cannot be captured: {reason}")
        self._replace(_MARK, True)
        self._handles.append(self._model.register_forward_pre_hook(self._before, with_kwargs=True))
        for name, site in self._sites.items():
            self._hook(Tap(name, self._sink.stage), site)
        self._handles.append(self._model.register_forward_hook(self._after, with_kwargs=True, always_call=True))
        self._original = getattr(self._model, "generate", None)
        if self._original is not None:
            self._replace("generate", functools.wraps(self._original)(lambda *a, **k: self.generate(*a, **k)[0]))
        for name in _CONTINUOUS:
            if hasattr(self._model, name):
                self._replace(name, functools.partial(_refuse_continuous, name))

    def detach(self) -> None:
        """Remove every hook, restore `generate`, drop the call in progress."""
        while self._handles:
            self._handles.pop().remove()
        attributes = vars(self._model)
        while self._replaced:
            name, earlier = self._replaced.pop()
            if earlier is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = earlier
        self._abort()

    def generate(self, *args: Any, **kwargs: Any) -> tuple[Any, list[str | None]]:
        """Call the `generate` of the model; what it returned, and the text of each response."""
        self._require_free()
        labels = self._take_labels()
        original = self._require_generate()
        request = Request(self._model, args, kwargs)
        request.require_supported()
        if labels.prompt_lengths is not None:
            raise InvalidInputError("invalid_option", "`prompt_lengths` labels a forward; `generate` knows its own")
        tokens = self._read(request.ids, request.mask, request.option("pad_token_id"))
        labels.require(len(tokens.ids))
        self._call = self._generation = call = GenerationCall(self._sink, tokens, labels)
        try:
            result = original(*args, **kwargs)
            call.finish(sequences_of(result), request.eos_ids)
            self._call = None
        finally:
            self._generation = None
            self._abort()
        return result, call.responses

    def generate_texts(self, labels: Labels, generation: dict[str, Any]) -> list[str]:
        """Generate for the prompts of `labels`, one batch; the text of each response."""
        if self._sink.tokenizer is None:
            raise InvalidInputError("invalid_option", "`generate` needs a tokenizer; give one to `actstore.capture`")
        batch = encode(self._sink.tokenizer, labels.prompts or (), self._anatomy.device)
        self.labels = labels
        _, responses = self.generate(**batch, **generation)
        return [response or "" for response in responses]

    def _require_generate(self) -> Callable[..., Any]:
        name = type(self._model).__name__
        if self._original is None:
            raise CaptureError("unsupported_generation", f"`{name}` has no `generate`; call the model itself")
        if self._anatomy.sees_later_tokens:
            reason = "each new token changes the rows of all before it; call the model itself on whole sequences"
            raise CaptureError("unsupported_generation", f"`{name}` is an encoder: {reason}")
        return self._original

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        del model
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if self._generation is not None and self._thread == get_ident():
            is_prefill = self._generation.begin_forward(named["input_ids"])
            # For its own use `generate` has the last logits computed alone.
            if is_prefill and self._logits is not None and "logits_to_keep" in kwargs:
                return args, {**kwargs, "logits_to_keep": 0}
            return None
        self._require_free()
        self._begin_forward(named)
        return None

    def _begin_forward(self, named: dict[str, Any]) -> None:
        labels = self._take_labels()
        ids = named.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
            message = (
                "rows need tokens, but the model was called without `input_ids` of shape [batch, tokens]; pass them"
            )
            raise CaptureError("rows_not_tokens", message)
        # The second is what later versions of transformers call it.
        if any(has_past(named.get(name)) for name in ("past_key_values", "cache")):
            message = "a forward that continues a cache has the rows of a part of its tokens; use `generate`"
            raise CaptureError("unsupported_generation", message)
        packed = next((name for name in _PACKED if named.get(name) is not None), None)
        if packed is not None:
            message = f"`{packed}` packs several sequences into a row; give one sequence a row"
            raise CaptureError("rows_not_tokens", message)
        if self._logits is not None and not _keeps_all(named.get("logits_to_keep", 0)):
            message = "`logits_to_keep` leaves out logits that are to be captured; leave it out"
            raise InvalidInputError("invalid_option", message)
        tokens = self._read(ids, named.get("attention_mask"), None)
        labels.require(len(tokens.ids))
        self._call = ForwardCall(self._sink, tokens, labels)

    def _after(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        del model, args
        call = self._call
        if call is None or self._thread != get_ident():
            return
        if output is None:
            # The forward raised. A generation ends where `generate` raises.
            if self._generation is None:
                self._abort()
            return
        if self._logits is not None:
            self._logits.take(_logits_of(output, kwargs))
        if isinstance(call, ForwardCall):
            call.finish()
            self._call = None
        else:
            call.leave()

    def _read(self, ids: Tensor, mask: Any, pad_id: object) -> Tokens:
        """The tokens of a call; `pad_id` is the padding that the call itself names."""
        if self._needs_eval and self._model.training:
            reason = "dropout changes contributions outside a module while training; call `model.eval()`"
            raise CaptureError("unsupported_model", f"`{type(self._model).__name__}` cannot be captured: {reason}")
        if mask is not None and not isinstance(mask, torch.Tensor):
            message = f"`attention_mask` is a `{type(mask).__name__}`; give a tensor of shape [batch, tokens]"
            raise CaptureError("missing_attention_mask", message)
        tokens = read_tokens(ids, mask, self._pad_id(pad_id))
        context, longest = self._anatomy.context, max(tokens.lengths)
        if context is not None and longest > context:
            message = f"a prompt has `{longest}` tokens, more than the `{context}` of the model's context"
            raise CaptureError("prompt_too_long", message)
        self._thread = get_ident()
        return tokens

    def _pad_id(self, of_call: object) -> int | None:
        """The padding token of the tokenizer, else of the call, else of the model."""
        model = self._model
        holders = (self._sink.tokenizer, getattr(model, "generation_config", None), getattr(model, "config", None))
        of_tokenizer, *of_model = (getattr(holder, "pad_token_id", None) for holder in holders)
        return next((pad_id for pad_id in (of_tokenizer, of_call, *of_model) if isinstance(pad_id, int)), None)

    def _take_labels(self) -> Labels:
        labels, self.labels = self.labels or Labels(), None
        return labels

    def _require_free(self) -> None:
        """No other call may be under way; one that an exception ended is dropped."""
        if self._call is not None and (self._generation is not None or self._thread != get_ident()):
            message = "the model was called while another call of it is captured; make one call at a time"
            raise CaptureError("unsupported_model", message)
        self._abort()

    def _abort(self) -> None:
        call, self._call, self._generation = self._call, None, None
        if call is not None:
            call.abort()

    def _replace(self, name: str, value: object) -> None:
        attributes = vars(self._model)
        self._replaced.append((name, attributes.get(name, _ABSENT)))
        attributes[name] = value

    def _hook(self, tap: Tap, site: Site) -> None:
        take = tap.take
        if site.side == "logits":
            self._logits = tap
        elif site.side == "input":

            def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                take(args[0] if args else kwargs["hidden_states"])

            self._handles.append(site.module.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_module: nn.Module, _args: Any, output: Any) -> None:
                take(output if isinstance(output, torch.Tensor) else _first(tap.name, output))

            self._handles.append(site.module.register_forward_hook(after))


def _first(name: str, output: object) -> Tensor:
    kind = type(output).__name__
    items = cast("Sequence[object]", output) if isinstance(output, (tuple, list)) else (output,)
    if not items or not isinstance(items[0], torch.Tensor):
        raise CaptureError("unsupported_model", f"`{name}` cannot be captured: it gives a `{kind}`")
    return items[0]


def _logits_of(output: object, kwargs: dict[str, Any]) -> Tensor:
    kind = type(output).__name__
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple):
        # The loss comes first where there is one.
        logits = cast("tuple[object, ...]", output)[0 if kwargs.get("labels") is None else 1]
    if not isinstance(logits, torch.Tensor):
        raise CaptureError("unsupported_model", f"`logits` cannot be captured: a `{kind}` has none")
    return logits


def _keeps_all(logits_to_keep: Any) -> bool:
    return isinstance(logits_to_keep, int) and logits_to_keep == 0


def _refuse_continuous(name: str, *_args: Any, **_kwargs: Any) -> None:
    message = f"`{name}` cannot be captured: continuous batching mixes rows; use `generate`"
    raise CaptureError("unsupported_generation", message)
