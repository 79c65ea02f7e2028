"""One call of the model on its way into the store: which rows its forwards keep, and the entries they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from actstore.capture.drain import Finished
from actstore.capture.labels import Text
from actstore.capture.selection import decoding_window, lists, select, window
from actstore.errors import CaptureError

if TYPE_CHECKING:
    from torch import Tensor

    from actstore import _core
    from actstore.capture.drain import Drain, FinishedRow
    from actstore.capture.labels import Labels
    from actstore.capture.selection import Positions, Tokens, Window
    from actstore.capture.staging import Stage

__all__ = ["Call", "ForwardCall", "GenerationCall", "Sink"]


@dataclass(frozen=True)
class Sink:
    """Where the calls of a recorder go, and what is the same for all of them. `points`: how many are captured."""

    writer: _core.Writer
    stage: Stage
    drain: Drain
    points: int
    positions: Positions
    tokenizer: Any

    def text(self, token_ids: list[int], *, special: bool) -> str | None:
        """The text of ids; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return cast("str", self.tokenizer.decode(token_ids, skip_special_tokens=not special))


class Call:
    """A batch of drafts that the forwards of one call fill, one a row of `tokens`."""

    def __init__(self, sink: Sink, tokens: Tokens, labels: Labels) -> None:
        sink.drain.check()
        self.tokens = tokens
        self._labels = labels
        self._sink = sink
        self._batch = sink.writer.begin(len(tokens.ids))
        sink.stage.call += 1
        sink.stage.batch = self._batch

    def enter(self, kept: Window) -> None:
        """A forward begins, of which `kept` is kept."""
        if kept.layout < 0 and kept.kept:
            kept.layout = self._batch.rows(kept.counts)
        stage = self._sink.stage
        stage.window, stage.tail, stage.fired = kept, kept.tail, 0

    def leave(self) -> None:
        """The forward is over. Errors: `rows_not_tokens` unless every hook point fired once."""
        stage, points = self._sink.stage, self._sink.points
        stage.window = None
        if stage.fired != points:
            message = f"`{points}` hook points fired `{stage.fired}` times in one forward, each must fire once"
            raise CaptureError("rows_not_tokens", message)

    def abort(self) -> None:
        """Drop the drafts; nothing of them will ever be visible."""
        self._sink.stage.drop()
        self._sink.stage.batch = self._sink.stage.window = None

    def _finish(self, rows: list[FinishedRow]) -> None:
        stage = self._sink.stage
        stage.hand_over()
        self._sink.drain.put(Finished(self._batch, rows))
        stage.batch = stage.window = None


class ForwardCall(Call):
    """One forward: everything about its rows is known before it runs."""

    def __init__(self, sink: Sink, tokens: Tokens, labels: Labels) -> None:
        self._prompt_lengths = [labels.prompt_length(row, length) for row, length in enumerate(tokens.lengths)]
        self._positions = [
            select(sink.positions, length, prompt_length)
            for length, prompt_length in zip(tokens.lengths, self._prompt_lengths, strict=True)
        ]
        super().__init__(sink, tokens, labels)
        self.enter(window(tokens, self._positions))

    def finish(self) -> None:
        """Queue the rows as entries."""
        self.leave()
        rows: list[FinishedRow] = []
        for row, (ids, positions) in enumerate(zip(self.tokens.ids, self._positions, strict=True)):
            length = self._prompt_lengths[row]
            prompt = self._sink.text(ids[:length], special=True)
            response = None if length is None else self._sink.text(ids[length:], special=False)
            document = self._labels.document(row, Text(prompt, response, length, None), ids, positions)
            rows.append((row, document, ids, len(positions), None))
        self._finish(rows)


class GenerationCall(Call):
    """Prefill and decoding steps; how long each row is, its tokens tell at the end.

    Of the prompt, what is known to be wanted is kept on the device. Steps keep a column for every row, also of rows
    that have ended: telling them apart would mean waiting for the device at every step.
    """

    def __init__(self, sink: Sink, tokens: Tokens, labels: Labels) -> None:
        super().__init__(sink, tokens, labels)
        self.responses: list[str | None] = []
        self._forwards = 0
        wanted = sink.positions
        shortest = min(tokens.lengths)
        self._of_prompt = wanted == "prompt" or (isinstance(wanted, list) and all(0 <= p < shortest for p in wanted))
        keep = wanted if self._of_prompt else "response" if wanted == "response" else "all"
        self._kept_of_prompt: list[list[int]] = [
            [] if keep == "response" else select(keep, length, length) for length in tokens.lengths
        ]
        self._prefill = window(tokens, self._kept_of_prompt)
        self._step: Window | None = None

    def begin_forward(self, ids: Tensor) -> bool:
        """The next forward begins; whether it is the prefill. Errors: `rows_not_tokens` where `ids` is not next."""
        batch, width = len(self.tokens.ids), self.tokens.width + self._forwards
        cached = self._forwards > 0 and ids.shape[1] == 1
        if tuple(ids.shape) != (batch, 1 if cached else width):
            message = f"forward `{self._forwards}` has ids of shape `{list(ids.shape)}`, not `{[batch, width]}`"
            raise CaptureError("rows_not_tokens", f"{message}, nor one column of it")
        if not self._forwards:
            self.enter(self._prefill)
        else:
            if self._step is None or self._step.tail == cached:
                self._step = decoding_window(batch, kept=not self._of_prompt, cached=cached)
            self.enter(self._step)
        self._forwards += 1
        return self._forwards == 1

    def finish(self, sequences: Tensor, eos_ids: frozenset[int]) -> None:
        """Queue the rows as entries, each cut where it ended. `sequences`: what `generate` made, padding and all."""
        responses: list[list[int]] = lists(sequences[:, self.tokens.width :])
        self._require_forwards(len(responses[0]), sequences.device.type)
        rows = [
            self._row(row, prompt_ids, response[: _length(response, eos_ids)])
            for row, (prompt_ids, response) in enumerate(zip(self.tokens.ids, responses, strict=True))
        ]
        self._finish(rows)

    def _require_forwards(self, new_tokens: int, device: str) -> None:
        # On Metal transformers learns one step late that every row has ended, and drops the last step.
        late = device == "mps" and self._forwards == new_tokens + 1
        if not new_tokens or (self._forwards != new_tokens and not late):
            message = f"`{new_tokens}` tokens were generated in `{self._forwards}` forwards; each takes one"
            raise CaptureError("rows_not_tokens", message)

    def _row(self, row: int, prompt_ids: list[int], response_ids: list[int]) -> FinishedRow:
        prompt_length = len(prompt_ids)
        captured = positions = self._kept_of_prompt[row]
        if not self._of_prompt:
            captured = [*captured, *range(prompt_length, prompt_length + self._forwards - 1)]
            # The last token was never fed back, so it has no row.
            positions = select(self._sink.positions, prompt_length + len(response_ids) - 1, prompt_length)
        chosen = None if positions == captured else [position - captured[0] for position in positions]
        response = self._sink.text(response_ids, special=False)
        self.responses.append(response)
        prompt = self._sink.text(prompt_ids, special=True) if self._labels.prompts is None else None
        text = Text(prompt, response, prompt_length, prompt_length)
        ids = prompt_ids + response_ids
        return row, self._labels.document(row, text, ids, positions), ids, len(captured), chosen


def _length(response: list[int], eos_ids: frozenset[int]) -> int:
    """Tokens up to the first that ends the row, which counts; what follows is padding."""
    return next((count for count, token in enumerate(response, 1) if token in eos_ids), len(response))
