"""`import` and `export`: from and to the files of older systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from actstore.cli.app import FormatOption, command
from actstore.cli.migrate import followed_phases, print_report


@command
def import_(
    context: typer.Context,
    source_format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="`auto`, `actlog-lmdb` (or `lmdb`), `actlog-json-v1`, `-v2`, `-v3` (or `json` for any of them), "
            "`capture-h5`, `-npz`, `-pickle`, "
            "`npy-layers` or `pt-shards`.",
        ),
    ],
    *,
    source: Annotated[Path, typer.Option(help="The files to read; they are never changed.")],
    target: Annotated[Path, typer.Option(help="The store to write; created, or gone on with.")],
    backend: Annotated[str | None, typer.Option(help="Of a new store: `shards`, `lmdb` or `json`.")] = None,
    codec: Annotated[str | None, typer.Option(help="Of a new store, such as `archive`.")] = None,
    dtype: Annotated[str | None, typer.Option(help="`float16` or `bfloat16` to pack to.")] = None,
    overflow: Annotated[str | None, typer.Option(help="Of values beyond it: `error`, `saturate`, `keep`.")] = None,
    on_conflict: Annotated[
        str | None, typer.Option(help="Of a new store, for a key with other content, such as `skip`.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Then read both again and compare every value.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read everything and write nothing.")] = False,
    report_format: FormatOption = "text",
) -> None:
    """Bring what an older system wrote into a store.

    What is missing or damaged is named and left out. Repeat the command to continue an interrupted import: what the
    store has is skipped. Exit status 1 where something was left out or differs.
    """
    from actstore.formats import import_store

    options: dict[str, Any] = {"codec": codec, "dtype": dtype, "overflow": overflow, "on_conflict": on_conflict}
    options |= {"target_format": backend, "verify": verify, "dry_run": dry_run}
    with followed_phases(shown=context.obj.progress) as phases:
        report = import_store(source, target, source_format, progress=phases, **options)
    print_report(report, target, report_format)


@command
def export(
    context: typer.Context,
    target_format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="`actlog-lmdb`, `actlog-json-v1`, `-v2`, `-v3`, `capture-h5`, `-npz`, `-pickle`, `npy-layers` or "
            "`pt-shards`.",
        ),
    ],
    *,
    source: Annotated[Path, typer.Option(help="The store to read.")],
    target: Annotated[Path, typer.Option(help="Where the files go.")],
    layers: Annotated[
        int | None, typer.Option(help="How many the model has, for formats that count hidden states.")
    ] = None,
    shard_size: Annotated[int | None, typer.Option(help="Rows a file, of `pt-shards`; 512 by default.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="`float16`, `bfloat16` or `float32`, of `pt-shards`; as it is by default.")
    ] = None,
    overflow: Annotated[str, typer.Option(help="Of values beyond that dtype: `error` or `saturate`.")] = "error",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in this format.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Then read the files and compare every value.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be written, or say what is refused.")
    ] = False,
    report_format: FormatOption = "text",
) -> None:
    """Write a store as the files of an older system.

    They appear when they are complete. Repeat the command to continue an interrupted export. Exit status 1 where the
    format could not hold an entry, or something differs.
    """
    from actstore.formats import export_store

    options: dict[str, Any] = {"layers": layers, "shard_size": shard_size, "dtype": dtype, "overflow": overflow}
    options |= {"overwrite": overwrite, "verify": verify, "dry_run": dry_run}
    with followed_phases(shown=context.obj.progress) as phases:
        report = export_store(source, target, target_format, progress=phases, **options)
    print_report(report, target, report_format)
