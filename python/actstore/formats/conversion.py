"""Values in the dtype that an export was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["CONVERTIBLE", "Converted", "convert"]

CONVERTIBLE = ("float16", "bfloat16", "float32", "float64")
"""Stored dtypes that become another; the same as a store packs."""


class Converted(NamedTuple):
    """Values in their new dtype, and what became of them.

    `beyond`: where a finite value was beyond the dtype, which has its largest one there. `rounded`: how many others are
    not what they were. NaN and infinities stay what they are.
    """

    values: torch.Tensor
    beyond: torch.Tensor
    rounded: int


def convert(values: torch.Tensor, dtype: str) -> Converted:
    """`values`, of a `CONVERTIBLE` dtype, rounded to the nearest of `dtype`."""
    import torch

    target: torch.dtype = getattr(torch, dtype)
    nearest = values.to(target)
    beyond = nearest.isinf() & values.isfinite()
    limit = torch.finfo(target).max
    converted = torch.where(beyond, nearest.clamp(-limit, limit), nearest)
    changed = (converted.to(values.dtype) != values) & ~values.isnan() & ~beyond
    return Converted(converted, beyond, int(changed.count_nonzero()))
