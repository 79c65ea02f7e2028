"""How many tokens the rows of an input have, and which of them a model cannot read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from actstore.cli.models import token_ids
from actstore.errors import CaptureError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actstore.cli.inputs import Row
    from actstore.cli.models import LoadedModel

_CHUNK = 1000
"""Rows whose token ids are held at once."""


class Length(NamedTuple):
    """Tokens of a row; `response` is None where it is to be generated."""

    prompt: int
    response: int | None

    @property
    def tokens(self) -> int:
        """Those that the model is given."""
        return self.prompt + (self.response or 0)


def measure(loaded: LoadedModel, rows: Sequence[Row], path: Path) -> list[Length]:
    """The length of each of `rows`, which are lines of `path`.

    Errors: `prompt_too_long` for a row beyond the model's context, `invalid_option` for one that has no tokens.
    """
    lengths = [length for start in range(0, len(rows), _CHUNK) for length in _measure(loaded, rows[start:][:_CHUNK])]
    context = loaded.context
    for row, length in zip(rows, lengths, strict=True):
        place = f"`{path}` line {row.number + 1}"
        if 0 in (length.tokens, length.response):
            part, text = ("prompt", row.prompt) if row.response is None else ("response", row.response)
            message = f"{place}: the {part} {text!r} has no tokens; leave the row out, or give one that has"
            raise InvalidInputError("invalid_option", message)
        if context is not None and length.tokens > context:
            message = f"{place} has {length.tokens:,} tokens, more than the {context:,} of the model's context"
            raise CaptureError("prompt_too_long", f"{message}; shorten the row or leave it out")
    return lengths


def _measure(loaded: LoadedModel, rows: Sequence[Row]) -> list[Length]:
    prompts = map(len, token_ids(loaded, [row.prompt for row in rows]))
    if rows[0].response is None:
        return [Length(prompt, None) for prompt in prompts]
    responses = map(len, token_ids(loaded, [row.response or "" for row in rows], add_special_tokens=False))
    return [Length(*both) for both in zip(prompts, responses, strict=True)]
