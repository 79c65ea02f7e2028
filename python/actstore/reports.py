"""What a store says of itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from actstore.errors import CorruptError
from actstore.sizes import format_bytes

_NAMED_KEYS = 3


class PointInfo(TypedDict):
    """What a store holds at one hook point in one dtype. `encodings`: frames by how they are stored."""

    point: str
    dtype: str
    entries: int
    rows: int
    raw_bytes: int
    stored_bytes: int
    nonfinite: int
    saturated: int
    encodings: dict[str, int]


class StoreInfo(TypedDict):
    """What a store holds. `stored_bytes`: the activations encoded; `file_bytes`: all files, none of a memory store.

    `damaged`: entries that are stored but cannot be read, so that they are counted nowhere else.
    """

    entries: int
    damaged: int
    tokens: int
    raw_bytes: int
    stored_bytes: int
    file_bytes: int
    points: list[PointInfo]


class Damage(TypedDict):
    """One thing that `verify` found damaged; `key` is the entry it belongs to, where one can be named."""

    kind: str
    message: str
    key: str | None


class VerifyReport(TypedDict):
    """What `verify` read, and all the damage in it."""

    entries: int
    frames: int
    bytes: int
    damage: list[Damage]


class Difference(TypedDict):
    """An entry that is not in the target of a migration as it is in the source; `key` is that of the source."""

    key: str
    message: str


@dataclass(frozen=True)
class MigrationReport:
    """What a migration, an import or an export did, or with `dry_run` would do, sizes then being estimates.

    Of `entries`, those `migrated` were written and those `skipped` were left out, because the target has them or
    because `on_conflict` is `skip`. `conflicts`: keys that the target had with other content. Of the entries written,
    the frames of those `copied` went over as they are stored; those `encoded` were decoded first. `raw_bytes`: their
    activations in the target before compressing; `stored_bytes`: after; `file_bytes`: all files of the target, of a
    store in memory 0. `verified`: entries found equal afterwards, None where nobody looked; `differences`: the others.

    Of an import or an export, `backend` may be the name of a format. `left_out`: entries, or parts of the source, that
    could not be read, or that the format cannot hold. `notes`: what else is not as it was. Of an import into a store
    with `on_conflict="skip"`, conflicts are among the `skipped` and not counted.
    """

    source: Path | None
    target: Path | None
    backend: str
    entries: int
    migrated: int
    skipped: int
    conflicts: int
    copied: int
    encoded: int
    raw_bytes: int
    stored_bytes: int
    file_bytes: int
    seconds: float
    verified: int | None = None
    differences: tuple[Difference, ...] = ()
    dry_run: bool = False
    left_out: tuple[Damage, ...] = ()
    notes: tuple[str, ...] = ()

    def with_differences(self, compared: int, differences: Sequence[Difference]) -> "MigrationReport":
        """The report with what comparing `compared` entries found."""
        return replace(self, verified=compared - len(differences), differences=tuple(differences))

    def raise_differences(self) -> None:
        """Raise `CorruptError` of kind `checksum`, naming the first entries, where verification found differences."""
        if self.differences:
            named = ", ".join(f"`{difference['key']}`" for difference in self.differences[:_NAMED_KEYS])
            message = (
                f"{len(self.differences)} of {self.entries} entries differ after migrating, such as {named}: "
                f"{self.differences[0]['message']}"
            )
            raise CorruptError("checksum", message)

    @property
    def ratio(self) -> float | None:
        """How many times smaller the frames are than their activations; None where nothing was stored."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f" (ratio {self.ratio:.3f})"
        speed = format_bytes(self.raw_bytes / max(self.seconds, 1e-9))
        there = f" and {self.skipped:,} skipped" if self.skipped else ""
        parts = [
            f"{counted(self.migrated, 'entry', 'entries')} migrated{there}",
            f"{format_bytes(self.raw_bytes)} raw",
            f"{format_bytes(self.stored_bytes)} stored{ratio}",
            f"{self.seconds:.1f} s",
            f"{speed}/s",
        ]
        if self.left_out:
            parts.insert(1, f"{len(self.left_out):,} left out")
        if self.verified is not None:
            parts.append(f"{self.verified:,} verified")
        return ", ".join(parts)


def counted(number: int, one: str, many: str) -> str:
    """`1 key`, `2,000 keys`."""
    return f"{number:,} {one if number == 1 else many}"
