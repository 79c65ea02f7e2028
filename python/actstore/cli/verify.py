"""`verify STORE`: reads and checks every byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from actstore.cli.app import FormatOption, command
from actstore.cli.info import StoreArgument
from actstore.cli.output import print_json
from actstore.cli.progress import Progress
from actstore.sizes import format_bytes

if TYPE_CHECKING:
    from actstore.reports import VerifyReport


@command
def verify(context: typer.Context, store: StoreArgument, report_format: FormatOption = "text") -> None:
    """Read and check every byte of a store.

    Exit status 1 if anything is lost, which is then named.
    """
    import actstore

    with actstore.open(store) as opened, Progress(len(opened), "entries", shown=context.obj.progress) as progress:
        report = opened.verify(lambda done, _: progress.update(done))
    if report_format == "json":
        print_json({"path": str(store), **report})
    else:
        _print_text(report)
    if report["damage"]:
        raise typer.Exit(1)


def _print_text(report: VerifyReport) -> None:
    read = f"{report['entries']:,} entries, {report['frames']:,} frames, {format_bytes(report['bytes'])} read"
    if not report["damage"]:
        typer.echo(f"{read}: all good")
        return
    typer.echo(f"{read}: {len(report['damage'])} damaged")
    for damage in report["damage"]:
        typer.echo(f"{damage['kind']}: {damage['message']}")
    lost = sorted({damage["key"] for damage in report["damage"] if damage["key"]})
    if lost:
        typer.echo(f"entries that lost something: {', '.join(f'`{key}`' for key in lost)}")
