"""`migrate SOURCE_FORMAT TARGET_FORMAT --source S --target T`: from store to store, resumable."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.cli.app import FormatOption, command
from actstore.cli.inputs import read_lines
from actstore.cli.output import print_fields, print_json
from actstore.cli.progress import Progress
from actstore.formats import names
from actstore.reports import counted
from actstore.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from actstore.migration import Migration
    from actstore.reports import MigrationReport

_UPDATE_INTERVAL_SECONDS = 0.1


@command
def migrate(
    context: typer.Context,
    source_format: Annotated[
        str, typer.Argument(metavar="SOURCE_FORMAT", help="`auto`, `shards`, `lmdb`, `json` or a format.")
    ],
    target_format: Annotated[str, typer.Argument(metavar="TARGET_FORMAT", help="As SOURCE_FORMAT.")],
    *,
    source: Annotated[Path, typer.Option(help="The store to read.")],
    target: Annotated[Path, typer.Option(help="The store to write; created, or gone on with.")],
    codec: Annotated[str | None, typer.Option(help="Of a new target, such as `archive`; else the source's.")] = None,
    key_distance: Annotated[
        int | None, typer.Option(help="Of `archive`: layers from key to key, 8 by default.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a new `json` target: `text` or `base64`.")] = None,
    dtype: Annotated[str | None, typer.Option(help="`float16` or `bfloat16` to pack to.")] = None,
    overflow: Annotated[str | None, typer.Option(help="Of values beyond it: `error`, `saturate`, `keep`.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Migrate only this entry; repeatable.")] = None,
    keys_from: Annotated[Path | None, typer.Option(help="File of keys to migrate, one a line.")] = None,
    layers: Annotated[str | None, typer.Option(help="`first_half`, `second_half` or numbers such as `4,-1`.")] = None,
    points: Annotated[str | None, typer.Option(help="Hook points, separated by commas.")] = None,
    shard_size: Annotated[int | None, typer.Option(help="Rows a file, to `pt-shards`; 512 by default.")] = None,
    on_conflict: Annotated[
        str, typer.Option(help="For a key with other content: `error`, `skip`, `replace` or `number`.")
    ] = "error",
    verify: Annotated[bool, typer.Option("--verify", help="Then read the target and compare.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate what would be written.")] = False,
    report_format: FormatOption = "text",
) -> None:
    """Bring entries from one store to another.

    To another backend, codec or dtype, all or a part of them, without loss; or from and to the files of older systems,
    of which `import --help` lists the formats.

    Repeat the command to continue an interrupted migration: what the target has is skipped. Exit status 1 where
    `--verify` finds differences.
    """
    from actstore.migration import Request, exchange, is_exchange, opened

    codings = {"codec": codec, "key_distance": key_distance, "encoding": encoding}
    options = {**codings, "dtype": dtype, "overflow": overflow}
    places = None if points is None else points.split(",")
    keys = None if key is None and keys_from is None else [*(key or []), *_read_keys(keys_from)]
    request = Request(source_format, target_format, options, keys, layers, places, on_conflict, shard_size)
    if is_exchange(source, source_format, target_format):
        with followed_phases(shown=context.obj.progress) as phases:
            report = exchange(source, target, request, verify=verify, dry_run=dry_run, progress=phases)
    else:
        with opened(source, target, request, dry_run=dry_run) as migration:
            report = migration.estimate() if dry_run else _run(migration, verify=verify, shown=context.obj.progress)
    if dry_run and report.conflicts and on_conflict == "error":
        typer.echo("warning: the first conflict will end the migration; `--on-conflict` has other rules", err=True)
    print_report(report, target, report_format)


def _read_keys(path: Path | None) -> list[str]:
    return [] if path is None else [key for _, key in read_lines(path)]


def _run(migration: Migration, *, verify: bool, shown: bool) -> MigrationReport:
    with _followed(migration.total, "entries", shown=shown) as follower:
        report = migration.copy(follower)
    if not verify:
        return report
    with _followed(migration.total, "verified", shown=shown) as follower:
        return migration.verify(report, follower)


@contextmanager
def _followed(total: int, unit: str, *, shown: bool) -> Generator[_Follower]:
    """Shows how far a migration or its verification is; Ctrl-C says so too, and how to go on."""
    follower = _Follower(Progress(total, unit, shown=shown))
    try:
        with follower.bar:
            yield follower
    except KeyboardInterrupt:
        message = f"stopped at {follower.done}/{total} {unit}; run the same command again to continue"
        typer.echo(message, err=True)
        raise typer.Exit(130) from None


class _Follower:
    """Shows how far a migration is, not more often than anybody looks."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.done = 0
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int, total: int, raw_bytes: int) -> None:
        self.done = done
        now = time.monotonic()
        if done == total or now - self._shown >= _UPDATE_INTERVAL_SECONDS:
            self._shown = now
            speed = f"{format_bytes(raw_bytes / max(now - self._started, 1e-9))}/s"
            self.bar.update(done, speed if raw_bytes else "")


@contextmanager
def followed_phases(*, shown: bool) -> Generator[Callable[[int, int, int], None]]:
    """Shows how far work is whose length it says itself, and its verification; Ctrl-C as in a migration."""
    with ExitStack() as stack:
        followers: list[_Follower] = []

        def step(done: int, total: int, raw_bytes: int) -> None:
            if not followers or done < followers[-1].done:
                # The end of one phase ends what shows it.
                stack.close()
                unit = "verified" if followers else "entries"
                followers.append(stack.enter_context(_followed(total, unit, shown=shown)))
            followers[-1](done, total, raw_bytes)

        yield step


def print_report(report: MigrationReport, target: Path, report_format: str) -> None:
    """Print what was done; exit status 1 where entries differ or were left out."""
    if report_format == "json":
        print_json({**_plain(asdict(report)), "target": str(target)})
    elif report.dry_run:
        print_fields(_estimated(report, target))
        _print_remarks(report)
    else:
        _print_text(report, target)
    if report.differences or report.left_out:
        raise typer.Exit(1)


def _print_remarks(report: MigrationReport) -> None:
    for damage in report.left_out:
        key, message = damage["key"] or "", damage["message"]
        typer.echo(f"left out: {message}" if key in message else f"left out: `{key}`: {message}")
    for note in report.notes:
        typer.echo(f"note: {note}")


def _print_text(report: MigrationReport, target: Path) -> None:
    for difference in report.differences:
        typer.echo(f"differs: {difference['message']}")
    _print_remarks(report)
    typer.echo(str(report))
    if report.conflicts:
        typer.echo(f"{counted(report.conflicts, 'key was', 'keys were')} there with other content")
    typer.echo(f"in {target} ({report.backend}, {format_bytes(report.file_bytes)})")


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}


def _estimated(report: MigrationReport, target: Path) -> list[tuple[str, str]]:
    if report.backend in names():
        return [
            ("target", f"{target} ({report.backend})"),
            ("to write", f"{report.migrated:,} of {report.entries:,} entries"),
            ("raw", f"{format_bytes(report.raw_bytes)} of values, before what the format adds"),
        ]
    ratio = "" if report.ratio is None else f" (ratio {report.ratio:.3f})"
    return [
        ("target", f"{target} ({report.backend})"),
        ("to migrate", f"{report.migrated:,} of {report.entries:,} entries"),
        ("frames", f"copied of {report.copied:,} entries, encoded of {report.encoded:,}"),
        ("skipped", f"{report.skipped:,}"),
        ("conflicts", f"{report.conflicts:,}"),
        ("raw", f"about {format_bytes(report.raw_bytes)}"),
        ("stored", f"about {format_bytes(report.stored_bytes)}{ratio}"),
        ("files", f"about {format_bytes(report.file_bytes)} afterwards"),
    ]
