"""A store carried through every other format and back: nothing may be lost on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from actstore.cli.output import print_table
from actstore.sizes import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.reports import MigrationReport
    from actstore.store import Store

_STATIONS = ("lmdb", "json", "shards")


@dataclass
class RoundTrip:
    """Where a store went, and what of it is not what it was."""

    reports: list[MigrationReport] = field(default_factory=list["MigrationReport"])
    entries: int = 0
    fields: int = 0
    """Compared, of documents and of their metadata."""
    mismatches: list[str] = field(default_factory=list[str])


def carry(store: Path, directory: Path) -> RoundTrip:
    """Migrate the store to each station in turn, below `directory`, and compare what arrives with what set out."""
    import actstore

    trip, place = RoundTrip(), store
    for station in _STATIONS:
        target = directory / station
        trip.reports.append(actstore.migrate(place, target, target_format=station))
        place = target
    with actstore.open(store) as first, actstore.open(place) as last:
        _compare(first, last, trip)
    return trip


def _compare(first: Store, last: Store, trip: RoundTrip) -> None:
    if first.keys() != last.keys():
        trip.mismatches.append("keys, or their order")
        return
    for key, before, after in zip(first.keys(), first.metadata(), last.metadata(), strict=True):
        trip.entries += 1
        if first[key].content_id != last[key].content_id:
            trip.mismatches.append(f"content id of entry `{key}`")
        arrived = _fields(after)
        for name, value in _fields(before).items():
            trip.fields += 1
            if arrived.get(name) != value:
                trip.mismatches.append(f"`{name}` of entry `{key}`")


def _fields(document: dict[str, Any]) -> dict[str, str]:
    """Every field of a document by its path, spelled so that 1, 1.0 and true differ."""
    own = {name: repr(value) for name, value in document.items() if name != "metadata"}
    return own | {f"metadata.{name}": repr(value) for name, value in document["metadata"].items()}


def print_round_trip(trip: RoundTrip) -> None:
    """A row for each station, and the verdict."""
    rows = [
        (f"to {report.backend}", f"{report.migrated:,}", format_bytes(report.file_bytes),
         f"{report.raw_bytes / max(report.seconds, 1e-9) / 1e6:,.0f}")
        for report in trip.reports
    ]  # fmt: skip
    print_table(("round trip of the first store", "entries", "files", "MB/s"), rows)
    if trip.mismatches:
        typer.echo(f"MISMATCH after the round trip: {len(trip.mismatches)}, first {trip.mismatches[0]}")
    else:
        typer.echo(f"equal after the round trip: {trip.entries:,} content ids, {trip.fields:,} fields of metadata")
