"""`reconstruct`: the inference file of a run, from its questions and what was logged."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.cli.app import command
from actstore.cli.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_ROWS_A_STEP = 1000


@command
def reconstruct(
    context: typer.Context,
    *,
    lmdb_path: Annotated[
        Path,
        typer.Option("--lmdb_path", "--lmdb-path", help="A store of any backend, or an old LMDB or JSON log."),
    ],
    output_path: Annotated[Path, typer.Option("--output_path", "--output-path", help="The JSON lines to write.")],
    qa_output_path: Annotated[
        Path | None,
        typer.Option(
            "--qa_output_path",
            "--qa-output-path",
            help="The questions, JSON lines with `prompt`. Left out, every entry becomes a row.",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what became of each row.")] = False,
    prompt_template: Annotated[
        str | None,
        typer.Option(help="What prompts were put into, such as `user: {prompt}`; left out, the known ones are tried."),
    ] = None,
    min_match: Annotated[float, typer.Option(help="The share of rows that must have an entry, at least one.")] = 0.0,
) -> None:
    """Write the inference file that a run did not keep: each question with the answer that was logged.

    Questions without an entry, and what is corrupted, are skipped and counted in the closing line.
    """
    from actstore.pipelines import inference_of_store, reconstruct_inference

    options: dict[str, Any] = {"prompt_template": prompt_template, "verbose": verbose, "say": typer.echo}
    # Either a line a row or progress.
    with _followed(shown=context.obj.progress and not verbose) as step:
        if qa_output_path is None:
            report = inference_of_store(lmdb_path, output_path, progress=step, **options)
        else:
            report = reconstruct_inference(
                qa_output_path, lmdb_path, output_path, min_match=min_match, progress=step, **options
            )
    if not verbose:
        typer.echo(str(report))


@contextmanager
def _followed(*, shown: bool) -> Generator[Callable[[int, int], None]]:
    """Shows how far work is that says itself how long it is."""
    with ExitStack() as stack:
        bars: list[Progress] = []

        def step(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(total, "rows", shown=shown)))
            if done == total or done % _ROWS_A_STEP == 0:
                bars[0].update(done)

        yield step
