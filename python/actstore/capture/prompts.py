"""Prompts as padded batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["encode"]


def encode(tokenizer: Any, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of `prompts`, padded on the left.

    On the right, a model would go on from the padding. A tokenizer without a padding token will do: the mask says what
    is padding, and the model sees the mask.
    """
    rows: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id or 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, token_ids in enumerate(rows):
        start = width - len(token_ids)
        ids[row, start:] = torch.tensor(token_ids)
        mask[row, start:] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
