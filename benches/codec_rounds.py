"""The rounds in which all codecs take turns, and what they say."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Task = Callable[[int], float]
    """Given a number that is another each time; the seconds it took."""

__all__ = ["Series", "rounds"]


@dataclass
class Series:
    """Seconds of one contestant at one task, round by round."""

    seconds: list[float] = field(default_factory=list)

    def against(self, other: Series) -> dict[str, float]:
        """How many times as fast as `other`, within each round."""
        factors = [theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True)]
        return {"median": median(factors), "min": min(factors), "max": max(factors)}

    def rate(self, raw: int) -> dict[str, float]:
        """Gigabytes of raw bytes a second."""
        return {"gb_s": raw / median(self.seconds) / 1e9, "best_gb_s": raw / min(self.seconds) / 1e9}


def rounds(tasks: dict[str, Task], count: int) -> dict[str, Series]:
    """Runs every task in each round, in an order drawn anew: once to warm up after the others, and once that counts."""
    order, series, chance = list(tasks), {name: Series() for name in tasks}, random.Random(0)
    for number in range(count):
        chance.shuffle(order)
        for name in order:
            tasks[name](2 * number)
            series[name].seconds.append(tasks[name](2 * number + 1))
    return series
