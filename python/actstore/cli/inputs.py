"""The input of `capture`: a text file with a prompt a line, or JSON lines."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESERVED = ("model", "revision", "dataset", "split", "row", "input_sha256", "run", "batch_size")
"""Metadata that `capture` writes itself, so that no field of an input may have these names."""


@dataclass(frozen=True)
class Row:
    """One line of the input: its number from 0, its text, and its other fields."""

    number: int
    prompt: str
    response: str | None
    metadata: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Identity of the text."""
        return hashlib.sha256(json.dumps([self.prompt, self.response]).encode()).hexdigest()


def read_rows(path: Path, limit: int | None, response_field: str | None = None, split: str | None = None) -> list[Row]:
    """The first `limit` rows of a `.txt` or `.jsonl` file, blank lines left out.

    `response_field`: what holds the response of each row; by default `response`, which all rows have or none. A field
    that is called as the `split` is then most likely the response, so it is not taken for metadata.

    Errors: `InvalidInputError` of kind `invalid_option` that names the line, also where only some rows have a response.
    """
    if path.suffix not in (".txt", ".jsonl"):
        message = f"`{path}` is no input; give a `.txt` file with a prompt a line, or a `.jsonl` file"
        raise InvalidInputError("invalid_option", message)
    if path.suffix == ".txt" and response_field is not None:
        message = f"`{path}` has prompts alone and no field `{response_field}`; give a `.jsonl` file"
        raise InvalidInputError("invalid_option", message)
    rows = list(islice(_rows(path, response_field), limit))
    if not rows:
        raise InvalidInputError("invalid_option", f"`{path}` has no prompts")
    without = next((row.number for row in rows if (row.response is None) != (rows[0].response is None)), None)
    if without is not None:
        message = f"`{path}` line {without + 1}: either every row has a `response` or none has"
        raise InvalidInputError("invalid_option", message)
    unread = next(
        (row for row in rows if row.response is None and isinstance(row.metadata.get(split or ""), str)), None
    )
    if unread is not None:
        message = (
            f"`{path}` line {unread.number + 1} has no `response`, but a field `{split}`, as the split is called; read "
            f"it with `--response-field {split}`, or give the split another name to have the model generate"
        )
        raise InvalidInputError("invalid_option", message)
    return rows


def _rows(path: Path, response_field: str | None) -> Iterator[Row]:
    for number, text in read_lines(path):
        yield Row(number, text, None, {}) if path.suffix == ".txt" else _from_json(path, number, text, response_field)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file with their numbers from 0, blank ones left out.

    Errors: `InvalidInputError` of kind `invalid_option` where it cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines):
                text = line.rstrip("\n")
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InvalidInputError("invalid_option", f"cannot read `{path}`: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError("invalid_option", f"`{path}` is not UTF-8: {error.reason}") from None


def _from_json(path: Path, number: int, text: str, response_field: str | None) -> Row:
    place = f"`{path}` line {number + 1}"
    try:
        parsed: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInputError("invalid_option", f"{place} is not JSON: {error.msg}") from None
    if not isinstance(parsed, dict):
        raise InvalidInputError("invalid_option", f"{place} is no JSON object")
    fields = cast("dict[str, Any]", parsed)
    prompt, response = _texts(place, fields, response_field)
    taken = [name for name in RESERVED if name in fields]
    if taken:
        raise InvalidInputError("invalid_option", f"{place} has the field `{taken[0]}`, which `capture` writes itself")
    return Row(number, prompt, response, fields)


def _texts(place: str, fields: dict[str, Any], response_field: str | None) -> tuple[str, str | None]:
    """Take the prompt and the response, if there is one, out of `fields`."""
    field, names = response_field or "response", ", ".join(f"`{name}`" for name in fields) or "none"
    prompt, response = fields.pop("prompt", None), fields.pop(field, None)
    missing = response is None and response_field is not None
    if not isinstance(prompt, str) or not isinstance(response, str | None) or missing:
        wanted = f"`prompt` and `{field}`" if response_field else "a `prompt`, and a `response` if any,"
        raise InvalidInputError("invalid_option", f"{place} needs {wanted} that are strings; its fields: {names}")
    for name, text in (("prompt", prompt), (field, response)):
        if text is not None and not _is_unicode(text):
            message = f"{place} has a `{name}` that is not valid Unicode: it has a lone surrogate"
            raise InvalidInputError("invalid_option", message)
    if response == "":
        message = (
            f"{place} has an empty `{field}`, so that its last token would be the prompt's; leave the row out, or the "
            "field in every row to have the model generate"
        )
        raise InvalidInputError("invalid_option", message)
    return prompt, response


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
