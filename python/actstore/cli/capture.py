"""`capture MODEL INPUT --store OUT`: a model over a file of prompts, resumable."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from actstore.arrays import dtype_name
from actstore.cli.app import command
from actstore.cli.inputs import Row, read_rows
from actstore.cli.progress import Progress
from actstore.cli.resume import Run, remaining
from actstore.options import open_existing, open_or_create
from actstore.reports import counted
from actstore.sizes import format_bytes

if TYPE_CHECKING:
    from actstore.capture import Recorder
    from actstore.cli.models import LoadedModel
    from actstore.store import Store


@dataclass(frozen=True)
class _Plan:
    """What to do with the rows."""

    loaded: LoadedModel
    run: Run
    batch_size: int
    input: Path


@command
def capture(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="`.txt` or `.jsonl` file.")],
    *,
    store: Annotated[Path, typer.Option(help="Directory of the store; created, or appended to.")],
    layers: Annotated[str, typer.Option(help="`all`, `first_half`, `second_half` or numbers such as `4,8`.")] = "all",
    points: Annotated[str, typer.Option(help="Hook points, separated by commas.")] = "resid_post",
    positions: Annotated[
        str, typer.Option(help="`all`, `prompt`, `response`, `last` or numbers such as `0,-1`.")
    ] = "all",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a call of the model.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most, greedily.")] = 64,
    backend: Annotated[str | None, typer.Option(help="Of a new store: `shards` (default), `lmdb` or `json`.")] = None,
    codec: Annotated[str | None, typer.Option(help="`planes` (default), `archive`, `zstd` or `raw`.")] = None,
    key_distance: Annotated[
        int | None, typer.Option(help="Of `archive`: layers from key to key, 8 by default.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a `json` store: `text` (default) or `base64`.")] = None,
    dtype: Annotated[str | None, typer.Option(help="`float16` or `bfloat16` to pack to.")] = None,
    model_revision: Annotated[str | None, typer.Option(help="Revision of the model on the Hub.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; with --split it makes the keys.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    response_field: Annotated[
        str | None, typer.Option(help="Field of the response; by default `response`, where there is one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first rows.")] = None,
    padding_side: Annotated[
        Literal["left", "right"] | None,
        typer.Option(help="Of prompts with responses, right by default; generating pads on the left."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as `cuda:1`; the first CUDA device by default, else cpu.")
    ] = None,
) -> None:
    """Capture a model over a file of prompts. MODEL is `demo`, a path, or a name on the Hugging Face Hub.

    INPUT is a `.txt` file with a prompt a line, or a `.jsonl` file of objects with a `prompt`: the model generates, and
    each prompt becomes an entry. Where the objects have a `response` too, nothing is generated: prompt and response are
    tokenized one by one, the response without special tokens, and the model reads both in one forward; the last
    position is then the last token of the response. Other fields of an object go to the metadata of its entry.

    Repeat the command to continue: what is stored is skipped if model, settings and text are the same.
    """
    if (dataset is None) != (split is None):
        raise typer.BadParameter("give both `--dataset` and `--split`, or neither")
    rows = read_rows(input, limit, response_field, split)
    from actstore.cli.models import load_model

    generates = rows[0].response is None
    if generates and padding_side == "right":
        raise typer.BadParameter("generating pads on the left: on the right a model would go on from the padding")
    loaded = load_model(model, model_revision, device)
    loaded.tokenizer.padding_side = padding_side or ("left" if generates else "right")
    asked = {"layers": layers, "points": points, "positions": positions}
    made = {"backend": backend, "codec": codec, "key_distance": key_distance, "encoding": encoding, "dtype": dtype}
    with ExitStack() as stack:
        there = open_existing(store, made)
        stored_dtype = dtype if there is None else stack.enter_context(there).settings["dtype"]
        settings = asked | _resolved(loaded, stored_dtype, max_new_tokens if generates else None)
        plan = _Plan(loaded, Run(settings, dataset, split), batch_size, input)
        todo = remaining(there, rows, plan.run)
        estimate = _estimate(todo, plan, store) if todo else ""
        # What is refused has been refused, and leaves no empty store.
        opened = stack.enter_context(open_or_create(store, made)) if there is None else there
        keys = {plan.run.key(row) for row in rows}
        if len(todo) < len(keys):
            typer.echo(f"skipping {len(keys) - len(todo):,} already stored")
        if todo:
            typer.echo(estimate)
            _capture_remaining(opened, todo, keys, plan, shown=context.obj.progress)
        typer.echo(f"{counted(len(keys), 'entry is', 'entries are')} stored; next: actstore-cli info {opened.path}")
        typer.echo(f"then: actstore-cli show {opened.path} {min(keys)}")


def _resolved(loaded: LoadedModel, stored_dtype: str | None, max_new_tokens: int | None) -> dict[str, Any]:
    """What decides the content of entries besides what to capture, as it is and not as it was asked for."""
    return {
        "model": loaded.name,
        "revision": loaded.revision,
        "model_dtype": dtype_name(loaded.model.dtype),
        "num_layers": loaded.num_layers,
        "stored_dtype": stored_dtype,
        "padding_side": loaded.tokenizer.padding_side,
        "max_new_tokens": max_new_tokens,
    }


def _capture_remaining(store: Store, todo: list[Row], keys: set[str], plan: _Plan, *, shown: bool) -> None:
    """Capture the rows `todo`; `keys` are those of all rows."""
    recorder = _recorder(store, plan)
    try:
        _capture_all(recorder, todo, plan, Progress(len(keys), "prompts", shown=shown, first=len(keys) - len(todo)))
    except KeyboardInterrupt:
        stored = sum(key in store for key in keys)
        typer.echo(f"stopped at {stored}/{len(keys)}; run the same command again to continue", err=True)
        raise typer.Exit(130) from None
    typer.echo(str(recorder.stats))


def _recorder(store: Store | None, plan: _Plan) -> Recorder:
    """What captures to `store`. Errors: for layers, points and positions that do not exist."""
    import actstore

    settings = plan.run.settings
    return actstore.capture(
        plan.loaded.model,
        plan.loaded.tokenizer,
        layers=settings["layers"],
        points=settings["points"].split(","),
        positions=_positions(settings["positions"]),
        store=store,
    )


def _capture_all(recorder: Recorder, rows: list[Row], plan: _Plan, progress: Progress) -> None:
    *first, last = (rows[start : start + plan.batch_size] for start in range(0, len(rows), plan.batch_size))
    with progress:
        with recorder:
            for batch in first:
                _capture_batch(recorder, batch, plan)
                progress.advance(len(batch), _note(recorder))
            _capture_batch(recorder, last, plan)
        # What was captured last counts when it is stored.
        progress.advance(len(last), _note(recorder))


def _positions(text: str) -> str | list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        return text


def _note(recorder: Recorder) -> str:
    stats = recorder.stats
    written = format_bytes(stats.stored_bytes)
    speed = f"{stats.tokens:,} tok  {stats.tokens_per_second:,.0f} tok/s"
    return f"{speed}  {written} written  {stats.stall_ms:.0f} ms stalled"


def _capture_batch(recorder: Recorder, rows: list[Row], plan: _Plan) -> None:
    metadata = [{**plan.run.metadata(row), "batch_size": plan.batch_size} for row in rows]
    # None leaves the key to be that of the prompt.
    keys = None if plan.run.dataset is None else [plan.run.key(row) for row in rows]
    prompts = [row.prompt for row in rows]
    if rows[0].response is None:
        generation = {"max_new_tokens": plan.run.settings["max_new_tokens"], "do_sample": False}
        recorder.generate(prompts, metadata=metadata, keys=keys, batch_size=len(rows), **generation)
        return
    from actstore.cli.models import read_batch

    batch, prompt_lengths = read_batch(plan.loaded, prompts, [row.response or "" for row in rows])
    recorder.label(keys=[plan.run.key(row) for row in rows], metadata=metadata, prompt_lengths=prompt_lengths)
    plan.loaded.forward(batch)


def _estimate(rows: list[Row], plan: _Plan, store: Path) -> str:
    """One line: what the rest will weigh at most, before compression, and what is free where `store` is or will be.

    Errors: those of `measure`, for a row that the model cannot read, and of `_recorder`.
    """
    from actstore.cli.lengths import measure

    _recorder(None, plan)
    settings, lengths = plan.run.settings, measure(plan.loaded, rows, plan.input)
    prompt = sum(length.prompt for length in lengths)
    generated = (settings["max_new_tokens"] or 1) - 1
    response = sum(generated if length.response is None else length.response for length in lengths)
    kept = {"all": prompt + response, "prompt": prompt, "response": response, "last": len(rows)}
    positions = _positions(settings["positions"])
    tokens = kept[positions] if isinstance(positions, str) else len(rows) * len(positions)
    points = plan.loaded.points(settings["points"], settings["layers"])
    size = tokens * plan.loaded.row_bytes(points, settings["stored_dtype"])
    free = shutil.disk_usage(next(place for place in (store, *store.absolute().parents) if place.exists())).free
    what = "to answer" if rows[0].response is None else f"with {'responses' if len(rows) > 1 else 'its response'}"
    about = f"{counted(len(rows), 'prompt', 'prompts')} {what}, at most {counted(tokens, 'row', 'rows')} at "
    about += counted(len(points), "hook point", "hook points")
    return f"{about}: {format_bytes(size)} before compression; {format_bytes(free)} free"
