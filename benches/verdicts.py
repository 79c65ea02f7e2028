"""Who is faster: ratios within a round, over all rounds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    Verdict = Literal["faster", "slower", "not separated", "too few rounds"]

__all__ = ["ROUNDS", "Comparison", "compare"]

ROUNDS = 7
"""Fewer say nothing."""
FASTER = 0.9
AHEAD = 6 / 7


@dataclass(frozen=True)
class Comparison:
    """Time of one divided by that of the other, in the same round."""

    median: float
    least: float
    most: float
    ahead: int
    """Rounds in which the first took less time."""
    rounds: int
    verdict: Verdict

    def document(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.most:.2f}), {self.ahead}/{self.rounds}"


def compare(one: Sequence[float], other: Sequence[float]) -> Comparison:
    """Of two contestants in the same rounds, in the same order."""
    ratios = [mine / theirs for mine, theirs in zip(one, other, strict=True)]
    ahead = sum(ratio < 1 for ratio in ratios)
    behind = sum(ratio > 1 for ratio in ratios)
    middle, needed = median(ratios), AHEAD * len(ratios)
    verdict: Verdict = "not separated"
    if len(ratios) < ROUNDS:
        verdict = "too few rounds"
    elif middle <= FASTER and ahead >= needed:
        verdict = "faster"
    elif middle >= 1 / FASTER and behind >= needed:
        verdict = "slower"
    return Comparison(middle, min(ratios), max(ratios), ahead, len(ratios), verdict)
