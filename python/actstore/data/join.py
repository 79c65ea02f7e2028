"""Rows of a data set, their labels and their entries, brought together by key and counted."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from actstore.data.templates import best_template
from actstore.data.unreadable import UNREADABLE
from actstore.errors import CorruptError, InvalidInputError, NotFoundError
from actstore.reports import Damage, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from actstore.data.logs import Log
    from actstore.data.rows import Row, Rows

__all__ = [
    "JoinReport",
    "Joined",
    "Labels",
    "check_share",
    "join",
    "parallel_labels",
    "require_matches",
    "split_by_key",
]

TEST_SHARE = 0.2


class Labels(NamedTuple):
    """What an evaluation said of a row: whether the model abstained, and whether it hallucinated."""

    abstained: bool
    halu: bool


class Joined(NamedTuple):
    """A row that has an entry: the row's number, the entry's key, its label, and its split where the row says it."""

    number: int
    key: str
    halu: bool
    split: str | None


@dataclass(frozen=True)
class JoinReport:
    """What became of the rows.

    Of `rows`, those `matched` have an entry and those `unmatched` have none. Of the matched, `duplicates` name the
    entry of an earlier row, `abstained` have no answer to judge, `empty` have no activations at the positions asked
    for, and those `damaged` cannot be read; all of these are left out, and `used` are left. `differing`: used rows
    whose `generation` is not the response of their entry. `template`: what the prompts were put into, None where every
    row names its entry itself.
    """

    rows: int
    matched: int
    duplicates: int
    abstained: int
    empty: int
    used: int
    differing: int
    damaged: tuple[Damage, ...]
    template: str | None

    @property
    def unmatched(self) -> int:
        """Rows without an entry."""
        return self.rows - self.matched

    @property
    def match_rate(self) -> float:
        """The share of rows that have an entry; 1 where there are no rows."""
        return self.matched / self.rows if self.rows else 1.0

    def __str__(self) -> str:
        under = "" if self.template is None else f" under the prompt template `{self.template!r}`"
        left_out = {"duplicates": self.duplicates, "abstained": self.abstained, "empty": self.empty}
        left_out |= {"damaged": len(self.damaged)}
        lost = ", ".join(f"{number:,} {name}" for name, number in left_out.items())
        return (
            f"{self.matched:,} of {counted(self.rows, 'row', 'rows')} matched ({self.match_rate:.1%}){under}; "
            f"{self.unmatched:,} unmatched, {lost}; {self.used:,} used, {self.differing:,} of them differing"
        )


@dataclass
class _Join:
    """Where a join stands; `report` when it is through."""

    log: Log
    template: str | None
    positions: str
    used: list[Joined] = field(default_factory=list[Joined])
    rows: int = 0
    matched: int = 0
    duplicates: int = 0
    abstained: int = 0
    empty: int = 0
    differing: int = 0
    damaged: list[Damage] = field(default_factory=list[Damage])
    _seen: set[str] = field(default_factory=set[str])

    def add(self, number: int, row: Row, labels: Labels) -> None:
        """Count a row, and keep it if there is something to be learned from it."""
        key = row.key(self.template or "{prompt}")
        self.rows += 1
        if key not in self.log:
            return
        self.matched += 1
        if key in self._seen:
            self.duplicates += 1
            return
        self._seen.add(key)
        if labels.abstained:
            self.abstained += 1
            return
        try:
            self._use(number, key, row, labels.halu)
        except UNREADABLE as error:
            if error.kind == "unknown_position":
                raise
            self.damaged.append(Damage(kind=error.kind, message=error.message, key=key))

    def _use(self, number: int, key: str, row: Row, halu: bool) -> None:
        if self.log.rows(key, self.positions) == 0:
            self.empty += 1
            return
        generation = row.fields.get("generation")
        if isinstance(generation, str) and generation != self.log.fields(key).get("response"):
            self.differing += 1
        split = row.fields.get("split")
        self.used.append(Joined(number, key, halu, split if isinstance(split, str) else None))

    @property
    def report(self) -> JoinReport:
        """What became of the rows so far."""
        return JoinReport(
            self.rows,
            self.matched,
            self.duplicates,
            self.abstained,
            self.empty,
            len(self.used),
            self.differing,
            tuple(self.damaged),
            self.template,
        )


def join(
    rows: Rows, labels: Callable[[int, Row], Labels], log: Log, template: str | None, positions: str
) -> tuple[list[Joined], JoinReport]:
    """The rows that have an entry to learn from, in their order, and what became of the others.

    `template`: None tries the known ones and takes that under which most rows match. Errors: `malformed` for a row that
    is none, `unknown_position` for entries that do not say where `positions` are.
    """
    state = _Join(log, template or best_template(_prompts(rows), log), positions)
    for number, row in enumerate(rows):
        state.add(number, row, labels(number, row))
    return state.used, state.report


def _prompts(rows: Rows) -> Iterator[str]:
    return (prompt for row in rows if (prompt := row.prompt) is not None)


def require_matches(matched: int, rows: int, least: float, tried: Sequence[str], place: object) -> None:
    """Refuse a join in which fewer than the share `least` of the rows match, or none does. Errors: `no_such_key`."""
    if not rows or (matched and matched >= least * rows):
        return
    templates = ", ".join(f"`{template!r}`" for template in tried)
    asked = f"the share {least:g} is asked for" if matched else "at least one must"
    message = (
        f"{matched:,} of {rows:,} rows have an entry in `{place}`, but {asked}; prompt templates tried: "
        f"{templates or 'none, rows name their entries'}; give `prompt_template`{' or `min_match`' if matched else ''}"
    )
    raise NotFoundError("no_such_key", message)


def check_share(name: str, share: Any) -> float:
    """`share`, if it is one. Errors: `invalid_option`."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise InvalidInputError("invalid_option", f"`{name}` is `{share!r}`; give a share from 0 to 1")
    return float(share)


def parallel_labels(evaluation: dict[str, Any], place: object) -> tuple[list[bool], list[bool]]:
    """`abstantion` and `halu_test_res`, spelled so, of an evaluation: a truth value a row. Errors: `malformed`."""
    abstained, halu = (_truths(evaluation, name, place) for name in ("abstantion", "halu_test_res"))
    if len(abstained) != len(halu):
        message = f"`{place}` has `abstantion` for {len(abstained):,} rows and `halu_test_res` for {len(halu):,}"
        raise CorruptError("malformed", message)
    return abstained, halu


def _truths(evaluation: dict[str, Any], name: str, place: object) -> list[bool]:
    given = evaluation.get(name)
    values = cast("list[Any]", given) if isinstance(given, list) else [None]
    if not all(value in (True, False) for value in values):
        raise CorruptError("malformed", f"`{place}` has no list `{name}` of truth values, one for each row")
    return [bool(value) for value in values]


def split_by_key(joined: Sequence[Joined], seed: int) -> list[str]:
    """`train` or `test` for each row: of each label a fifth is for testing.

    Which ones follows from the seed and their keys alone, whatever the order of the rows. What a row says counts first.
    """
    splits = [item.split or "train" for item in joined]
    groups: dict[bool, list[int]] = defaultdict(list)
    for place, item in enumerate(joined):
        if item.split is None:
            groups[item.halu].append(place)
    for places in groups.values():
        places.sort(key=lambda place: hashlib.sha256(f"{seed}:{joined[place].key}".encode()).digest())
        for place in places[: round(TEST_SHARE * len(places))]:
            splits[place] = "test"
    return splits
