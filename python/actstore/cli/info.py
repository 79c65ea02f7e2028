"""`info STORE`: what is in a store, its sizes, and the ratio at each hook point."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.cli.app import FormatOption, command
from actstore.cli.output import print_fields, print_json, print_table
from actstore.sizes import format_bytes

if TYPE_CHECKING:
    from actstore.reports import PointInfo, StoreInfo
    from actstore.store import Store

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Directory of the store.")]


@command
def info(context: typer.Context, store: StoreArgument, report_format: FormatOption = "text") -> None:
    """Show what a store holds, and its size.

    Entries, tokens, and the encodings and the ratio of each hook point.
    """
    import actstore

    del context
    with actstore.open(store) as opened:
        report = opened.info()
        if report_format == "json":
            identity = {"path": str(store), "backend": opened.backend, "settings": opened.settings}
            print_json({**identity, **report, "damage": opened.damage})
        else:
            _print_text(opened, report)


def _print_text(store: Store, report: StoreInfo) -> None:
    settings = store.settings
    option = "encoding" if settings["codec"] is None else "codec"
    fields = [
        ("store", f"{store.path} ({store.backend}, format {settings['format_version']})"),
        (option, f"{settings[option]}{_distance(settings)}, dtype {settings['dtype'] or 'as captured'}"),
        ("entries", f"{report['entries']:,}" + (f" and {report['damaged']:,} damaged" if report["damaged"] else "")),
        ("tokens", f"{report['tokens']:,}"),
        ("raw", format_bytes(report["raw_bytes"])),
        ("stored", f"{format_bytes(report['stored_bytes'])} (ratio {_ratio(report)})"),
        ("files", format_bytes(report["file_bytes"])),
    ]
    print_fields([*fields, *(("damage", message) for message in store.damage)])
    if report["points"]:
        columns = ("hook point", "dtype", "entries", "rows", "raw", "stored", "ratio", "NaN/Inf", "encodings")
        print_table(columns, map(_row, report["points"]), left=2)


def _distance(settings: dict[str, Any]) -> str:
    distance = settings["key_distance"]
    return "" if distance is None else f", a key layer every {distance}"


def _row(point: PointInfo) -> tuple[str, ...]:
    return (
        point["point"],
        point["dtype"],
        f"{point['entries']:,}",
        f"{point['rows']:,}",
        format_bytes(point["raw_bytes"]),
        format_bytes(point["stored_bytes"]),
        _ratio(point),
        f"{point['nonfinite']:,}",
        ", ".join(f"{name} {frames:,}" for name, frames in point["encodings"].items()),
    )


def _ratio(sizes: StoreInfo | PointInfo) -> str:
    return f"{sizes['raw_bytes'] / sizes['stored_bytes']:.3f}" if sizes["stored_bytes"] else "-"
