"""The application: global options, and how a command's errors become one sentence and an exit status."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal

import typer

from actstore.config import Settings

Format = Literal["text", "json"]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the report.")]

app = typer.Typer(
    name="actstore-cli",
    help="Capture language-model activations and keep them exactly, small and safe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True)
class Options:
    """Options that every command shares."""

    debug: bool
    progress: bool


def _print_version(asked: bool) -> None:
    if asked:
        from actstore import __version__

        typer.echo(f"actstore {__version__}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]  # typer calls it
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress; so does TQDM_DISABLE=1.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version
    context.obj = Options(debug=debug, progress=Settings.from_env().progress and not quiet)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register `function`, whose first parameter is `context`, as the command of its name.

    Exit status: 0, 1 for an error (one sentence on stderr), 2 for wrong usage, 130 after Ctrl-C.
    """

    @wraps(function)
    def run(context: typer.Context, **arguments: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                function(context, **arguments)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if context.obj.debug:
                raise
            typer.echo(f"error: {_sentence(error)}", err=True)
            raise typer.Exit(1) from None

    # `import` is no name that a function can have.
    return app.command(function.__name__.rstrip("_"))(run)


def _show_warning(message: Warning | str, *_: object) -> None:
    typer.echo(f"warning: {message}", err=True)


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
