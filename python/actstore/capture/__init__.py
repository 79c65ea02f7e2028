"""Capturing: hooks on a model that turn its forwards into entries of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.arrays import dtype_name
from actstore.capture.recorder import Recorder
from actstore.capture.stats import CaptureStats
from actstore.capture.target import Target

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    import torch
    from torch import nn

    from actstore.hook_points import LayersLike, PointLike
    from actstore.store import Store

__all__ = ["CaptureStats", "Recorder", "capture"]


def capture(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    layers: LayersLike = "all",
    points: PointLike | Iterable[PointLike] = ("resid_post",),
    positions: str | int | Iterable[int] = "all",
    store: Store | str | os.PathLike[str] | None = None,
    backend: str | None = None,
    codec: str | None = None,
    key_distance: int | None = None,
    encoding: str | None = None,
    dtype: str | torch.dtype | None = None,
    overflow: str | None = None,
    on_conflict: str | None = None,
    durability: str | None = None,
    memory: int | str = "1 GiB",
) -> Recorder:
    """Capture what `model`, a transformers decoder or BERT-type encoder, computes inside the result's `with` block.

    Every row of a batch becomes an entry, for `model(**batch)` as for `model.generate(**batch)`: rows of activations
    equal real tokens, with padding left out by `attention_mask`. Of a generation the last token has no row, as it is
    never fed back. Leaving the block commits; after an exception too, but for the call in progress, which is dropped.

    `tokenizer` gives entries their text and is needed for `Recorder.generate`. `points`: any spelling of a hook point
    (`"resid_post"`, `"attn_out.5"`, `12`, `"blocks.5.hook_mlp_out"`, a module's path); those without a layer are taken
    at each of `layers` (`"all"`, `"first_half"`, `"second_half"`, ints, negative ints, ranges, fractions of depth).
    `positions`: `all`, `prompt`, `response`, `last`, or positions in the sequence, negative ones from its end; the end
    of a generation is the last token that has a row. `store`: an open store, a path (created, or appended to), or
    None, which keeps the entries in memory. The other options and their defaults are those of `actstore.create`; of a
    store that exists they may be left out, but not differ. An eighth of `memory` stages activations (16 MiB to
    128 MiB).

    Errors: `InvalidInputError` for layers, points, positions and options that do not exist, `CaptureError` of kind
    `unsupported_model` where no blocks are found. What a call may raise: see `Recorder`.
    """
    options = {
        "backend": backend,
        "codec": codec,
        "key_distance": key_distance,
        "encoding": encoding,
        "dtype": None if dtype is None else dtype_name(dtype),
        "overflow": overflow,
        "on_conflict": on_conflict,
        "durability": durability,
    }
    target = Target(store, {name: value for name, value in options.items() if value is not None}, memory)
    return Recorder(model, tokenizer, target, layers=layers, points=points, positions=positions)
