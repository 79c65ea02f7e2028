"""`demo`: the embedded model answers questions, and everything captured is compared with what it computed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.cli.app import command
from actstore.cli.output import print_table
from actstore.cli.progress import Progress
from actstore.errors import AlreadyExistsError
from actstore.sizes import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from actstore.capture import CaptureStats, Recorder
    from actstore.cli.fidelity import Comparison
    from actstore.demo import Question
    from actstore.store import Store

_QUESTIONS = 60
_BATCH_SIZE = 20
_MAX_NEW_TOKENS = 16
_POINTS = (
    "embed",
    "resid_pre",
    "attn_out",
    "attn_out_post",
    "mlp_out",
    "mlp_out_post",
    "resid_post",
    "final_norm",
    "logits",
)
_TOLERANCE = 0.05
"""Largest difference allowed from an unpadded forward, over the largest value at the point: in bf16, padding and cached
decoding round otherwise, by about 2^-8 a step."""


@dataclass
class _Seen:
    """What plain hooks saw of one sequence, and what `generate` returned."""

    token_ids: list[int]
    by_hooks: dict[str, Tensor]
    by_hidden_states: dict[str, Tensor]


@dataclass
class _Result:
    """One padding side: what was captured, and how it compares."""

    side: str
    store: Path
    stats: CaptureStats
    hooks: Comparison
    hidden_states: Comparison
    difference: float = 0.0
    right: dict[str, list[bool]] = field(default_factory=dict[str, list[bool]])
    """Of each group of questions, whether each was answered right."""


@command
def demo(
    context: typer.Context,
    store: Annotated[
        Path | None, typer.Option(help="New directory for the stores; a temporary one by default.")
    ] = None,
) -> None:
    """Capture a tiny model, read it back, compare every bit.

    One of the stores then goes through every other format and back, and is compared again.
    """
    import actstore
    from actstore.cli.models import quiet_transformers
    from actstore.cli.round_trip import carry, print_round_trip

    if store is not None and store.exists() and any(store.iterdir()):
        raise AlreadyExistsError("store_exists", f"`{store}` is not empty; give a new directory")
    directory = store or Path(tempfile.mkdtemp(prefix="actstore-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    model, tokenizer = actstore.demo.load()
    asked = actstore.demo.questions()[:_QUESTIONS]
    with quiet_transformers(), Progress(2 * len(asked), "questions", shown=context.obj.progress) as progress:
        run = _Run(model, tokenizer, asked, progress)
        results = [run.capture(side, directory / side) for side in ("left", "right")]
    _report(results)
    trip = carry(results[0].store, directory / "migrated")
    print_round_trip(trip)
    _report_stores([result.store for result in results], asked[0].id)
    if trip.mismatches or any(result.hooks.mismatches or result.hidden_states.mismatches for result in results):
        raise typer.Exit(1)
    if max(result.difference for result in results) > _TOLERANCE:
        raise typer.Exit(1)


class _Run:
    """The model, its questions, and where to show how far it is."""

    def __init__(self, model: Any, tokenizer: Any, asked: list[Question], progress: Progress) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._asked = asked
        self._progress = progress

    def capture(self, side: str, path: Path) -> _Result:
        """Answer every question in batches padded on `side`, into a store at `path`, and compare what it holds."""
        import actstore
        from actstore.cli.fidelity import Comparison

        self._tokenizer.padding_side = side
        seen: dict[str, _Seen] = {}
        with actstore.capture(self._model, self._tokenizer, points=_POINTS, store=path) as recorder:
            for start in range(0, len(self._asked), _BATCH_SIZE):
                batch = self._asked[start : start + _BATCH_SIZE]
                seen |= self._answer(recorder, batch, side)
                self._progress.advance(len(batch), f"padded on the {side}")
        result = _Result(side, path, recorder.stats, Comparison(), Comparison())
        with actstore.open(path) as store:
            self._compare(store, seen, result)
        return result

    def _answer(self, recorder: Recorder, batch: list[Question], side: str) -> dict[str, _Seen]:
        """Generate for one batch, captured by us and by plain hooks in the same call."""
        from actstore.cli.fidelity import PlainHooks, hidden_states_as_steps, rows_of

        prompts = [question.prompt(self._tokenizer) for question in batch]
        encoded = self._tokenizer(prompts, return_tensors="pt", padding=True)
        mask = encoded["attention_mask"]
        # transformers would restart the positions of a response behind padding on the right.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        recorder.label(keys=[question.id for question in batch], metadata=[_metadata(q, side) for q in batch])
        with PlainHooks(self._model) as hooks:
            output = self._model.generate(
                **encoded,
                position_ids=positions,
                max_new_tokens=_MAX_NEW_TOKENS,
                do_sample=False,
                output_hidden_states=True,
                return_dict_in_generate=True,
            )
        states = hidden_states_as_steps(output.hidden_states)
        seen: dict[str, _Seen] = {}
        for row, question in enumerate(batch):
            prompt = encoded["input_ids"][row][mask[row].bool()].tolist()
            response = self._up_to_end(output.sequences[row][mask.shape[1] :].tolist())
            rows = (rows_of(steps, row, mask, len(response)) for steps in (hooks.steps, states))
            seen[question.id] = _Seen(prompt + response, *rows)
        return seen

    def _up_to_end(self, token_ids: list[int]) -> list[int]:
        """A response with its end of text, if it has one, and without the padding behind that."""
        end = self._tokenizer.eos_token_id
        return token_ids[: token_ids.index(end) + 1] if end in token_ids else token_ids

    def _compare(self, store: Store, seen: dict[str, _Seen], result: _Result) -> None:
        from actstore.cli.fidelity import relative_difference

        for question in self._asked:
            entry, expected = store[question.id], seen[question.id]
            result.hooks.add(entry, expected.by_hooks)
            result.hidden_states.add(entry, expected.by_hidden_states)
            if entry.token_ids != expected.token_ids or set(entry) != set(expected.by_hooks):
                result.hooks.mismatches.append(f"entry `{question.id}`, token ids or names of points")
            unpadded = self._forward(expected.token_ids[:-1])
            stored = {name: entry.torch(name) for name in entry}
            result.difference = max(result.difference, relative_difference(stored, unpadded))
            response = self._tokenizer.decode(expected.token_ids[entry.prompt_length :], skip_special_tokens=True)
            result.right.setdefault(question.group, []).append(response.strip() == question.reply)

    def _forward(self, token_ids: list[int]) -> dict[str, Tensor]:
        """Every point of one plain forward of a whole sequence, alone and without padding."""
        import torch

        from actstore.cli.fidelity import PlainHooks

        with torch.inference_mode(), PlainHooks(self._model) as hooks:
            self._model(input_ids=torch.tensor([token_ids]), use_cache=False)
        return {name: steps[0][0] for name, steps in hooks.steps.items()}


def _metadata(question: Question, side: str) -> dict[str, Any]:
    return {
        "model": "demo",
        "padding_side": side,
        "question": question.question,
        "answer": question.reply,
        "kind": question.kind,
        "group": question.group,
    }


def _report(results: list[_Result]) -> None:
    rows = [
        ("entries", *(f"{result.stats.entries:,}" for result in results)),
        ("tokens", *(f"{result.stats.tokens:,}" for result in results)),
        ("raw", *(format_bytes(result.stats.raw_bytes) for result in results)),
        ("stored", *(format_bytes(result.stats.stored_bytes) for result in results)),
        ("ratio", *(f"{result.stats.ratio:.3f}" for result in results)),
        ("GB/s", *(f"{result.stats.gigabytes_per_second:.3f}" for result in results)),
        ("tokens/s", *(f"{result.stats.tokens_per_second:,.0f}" for result in results)),
        ("stall", *(f"{result.stats.stall_ms:.0f} ms" for result in results)),
    ]
    print_table(("captured while generating", *(f"padded on the {result.side}" for result in results)), rows)
    for result in results:
        typer.echo(f"padded on the {result.side}:")
        _report_comparison("plain hooks in the same calls", result.hooks)
        _report_comparison("output_hidden_states of the same calls", result.hidden_states)
        verdict = "within" if result.difference <= _TOLERANCE else "BEYOND"
        typer.echo(f"  largest difference from unpadded forwards: {result.difference:.4f} of the largest value,"
                   f" {verdict} the tolerance of {_TOLERANCE}")  # fmt: skip
    answers = ", ".join(f"{sum(right)}/{len(right)} {group}" for group, right in results[0].right.items())
    typer.echo(f"answered right, padded on the left: {answers}")


def _report_stores(stores: list[Path], example_key: str) -> None:
    for store in stores:
        typer.echo(f"store: {store}")
    first = stores[0]
    for number, arguments in enumerate((f"info {first}", f"show {first} {example_key}", f"verify {first}")):
        typer.echo(f"{'     ' if number else 'next:'} actstore-cli {arguments}")


def _report_comparison(against: str, comparison: Comparison) -> None:
    if comparison.mismatches:
        typer.echo(f"  MISMATCH with {against}: {len(comparison.mismatches)}, first {comparison.mismatches[0]}")
    else:
        counts = f"{comparison.activations:,} activations, {comparison.rows:,} rows"
        typer.echo(f"  equal bit for bit to {against}: {counts}")
