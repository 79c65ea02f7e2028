"""What the caller says of the rows of a call, and the documents of the entries made of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from actstore import _core
from actstore.errors import InvalidInputError
from actstore.metadata import dump_json
from actstore.writer import position_ranges

__all__ = ["Labels", "Text"]


@dataclass(frozen=True)
class Labels:
    """Labels of the rows of one call, one item a row; None where the caller gave none."""

    keys: Sequence[str | None] | None = None
    metadata: Sequence[Mapping[str, Any] | None] | None = None
    prompt_lengths: Sequence[int] | None = None
    prompts: Sequence[str] | None = None

    @staticmethod
    def of(keys: object, metadata: object, prompt_lengths: object = None, prompts: object = None) -> Labels:
        """Labels of checked types. Errors: `invalid_option`, `invalid_metadata`."""
        documents = cast("list[Mapping[str, Any] | None] | None", _items("metadata", metadata, Mapping, "a dict"))
        for document in documents or ():
            dump_json(document or {})
        return Labels(
            cast("list[str | None] | None", _items("keys", keys, str, "a string")),
            documents,
            cast("list[int] | None", _items("prompt_lengths", prompt_lengths, int, "an int", optional=False)),
            cast("list[str] | None", _items("prompts", prompts, str, "a string", optional=False)),
        )

    def rows(self, rows: slice) -> Labels:
        """The labels of some of the rows."""
        return Labels(*(None if items is None else items[rows] for items in self._all()))

    def _all(self) -> tuple[Sequence[Any] | None, ...]:
        return self.keys, self.metadata, self.prompt_lengths, self.prompts

    def require(self, rows: int) -> None:
        """Check that there is a label for each of `rows` rows. Errors: `invalid_option`."""
        for name, items in zip(("keys", "metadata", "prompt_lengths", "prompts"), self._all(), strict=True):
            if items is not None and len(items) != rows:
                message = f"`{name}` labels `{len(items)}` rows, but the call has `{rows}`"
                raise InvalidInputError("invalid_option", message)

    def prompt_length(self, row: int, tokens: int) -> int | None:
        """The labelled length of the prompt of `row`, which has `tokens` tokens. Errors: `invalid_option`."""
        if self.prompt_lengths is None:
            return None
        length = self.prompt_lengths[row]
        if not 0 <= length <= tokens:
            message = f"`prompt_lengths` says `{length}` for row `{row}`, which has `{tokens}` tokens"
            raise InvalidInputError("invalid_option", message)
        return length

    def document(self, row: int, text: Text, token_ids: list[int], positions: list[int]) -> str:
        """The metadata document of `row`, stored at `positions`; see `Batch.finish` of the core."""
        key = None if self.keys is None else self.keys[row]
        recipe = "user" if key is not None else "ids" if self.prompts is None else "prompt"
        if recipe == "ids":
            key = _core.key_of_ids(token_ids[: text.key_length])
        return dump_json(
            {
                "key": key,
                "key_recipe": recipe,
                "prompt": text.prompt if self.prompts is None else self.prompts[row],
                "response": text.response,
                "prompt_length": text.prompt_length,
                "positions": position_ranges(positions),
                "metadata": {} if self.metadata is None else dict(self.metadata[row] or {}),
                "created": time.time(),
            }
        )


@dataclass(frozen=True)
class Text:
    """Prompt and response of a row; `key_length`: how many of its ids its key is made of, None for all."""

    prompt: str | None
    response: str | None
    prompt_length: int | None
    key_length: int | None


def _items(name: str, value: object, of: type, what: str, *, optional: bool = True) -> list[object] | None:
    if value is None:
        return None
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise InvalidInputError("invalid_option", f"`{name}` is `{value!r}`; give a list with one item a row")
    items = list(cast("Sequence[object]", value))
    for row, item in enumerate(items):
        if not isinstance(item, of) and not (optional and item is None):
            raise InvalidInputError("invalid_option", f"`{name}[{row}]` is `{item!r}`; give {what}")
    return items
