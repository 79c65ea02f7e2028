"""The rows of a data set: lines of a JSON file, read one by one, or a data frame."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from actstore.data.templates import key_under
from actstore.errors import CorruptError, InvalidInputError, StorageIoError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

__all__ = ["KEY_FIELD", "FrameRows", "JsonLines", "Row", "Rows", "read_object"]

KEY_FIELD = "activation_key"
"""The field of a row that names its entry; without it, the prompt does."""


class Row(NamedTuple):
    """One row: what errors call it, and its fields."""

    name: str
    fields: dict[str, Any]

    @property
    def prompt(self) -> str | None:
        """Its prompt where that names its entry; None where `activation_key` does. Errors: `malformed`."""
        if isinstance(self.fields.get(KEY_FIELD), str):
            return None
        prompt = self.fields.get("prompt")
        if not isinstance(prompt, str):
            raise CorruptError("malformed", f"{self.name} has no string `prompt`")
        return prompt

    def key(self, template: str) -> str:
        """The key of its entry, its prompt being in `template`. Errors: `malformed`."""
        prompt = self.prompt
        try:
            return self.fields[KEY_FIELD] if prompt is None else key_under(template, prompt)
        except CorruptError as error:
            raise CorruptError(error.kind, f"{self.name}: {error.message}") from None


class Rows(Protocol):
    """Rows in their order, and each of them by its number."""

    def __iter__(self) -> Iterator[Row]: ...
    def __getitem__(self, number: int, /) -> Row: ...


class JsonLines:
    """The lines of a JSON file, blank ones left out; in memory is where each begins.

    A line that is no JSON object is `malformed` when it is read; `lines` goes on after it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._offsets = array("q")

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The number, from 1, and the bytes of each line that is not blank."""
        for number, _, line in self._lines():
            yield number, line

    def parse(self, number: int, line: bytes) -> Row:
        """The row in a line. Errors: `malformed`."""
        return _parsed(f"`{self.path}` line {number}", line)

    def __iter__(self) -> Iterator[Row]:
        offsets = array("q")
        for number, offset, line in self._lines():
            yield self.parse(number, line)
            offsets.append(offset)
        self._offsets = offsets

    def __getitem__(self, number: int, /) -> Row:
        with self.path.open("rb") as file:
            file.seek(self._offsets[number])
            return _parsed(f"row {number} of `{self.path}`", file.readline())

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        try:
            with self.path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, offset, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                    offset += len(line)
        except FileNotFoundError:
            raise StorageIoError("storage_io", f"`{self.path}` is not there; give a file of JSON lines") from None
        except OSError as error:
            raise StorageIoError("storage_io", f"cannot read `{self.path}`: {error.strerror or error}") from None


def _parsed(name: str, line: bytes) -> Row:
    try:
        fields: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptError("malformed", f"{name} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CorruptError("malformed", f"{name} is no JSON object")
    return Row(name, cast("dict[str, Any]", fields))


class FrameRows:
    """The rows of a data frame of pandas or polars, or of any iterable of mappings. Errors: `invalid_option`."""

    def __init__(self, frame: Any) -> None:
        if hasattr(frame, "to_dicts"):
            rows = frame.to_dicts()
        elif hasattr(frame, "to_dict"):
            rows = frame.to_dict("records")
        else:
            rows = frame
        try:
            self._rows = [dict(cast("Mapping[str, Any]", row)) for row in rows]
        except (TypeError, ValueError):
            message = f"`df` is a `{type(frame).__name__}`; give a data frame, or a list of dicts"
            raise InvalidInputError("invalid_option", message) from None

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self._rows)))

    def __getitem__(self, number: int, /) -> Row:
        return Row(f"row {number} of `df`", self._rows[number])


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The one JSON object in `path`. Errors: `malformed`, `storage_io`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise StorageIoError("storage_io", f"cannot read `{path}`: {error.strerror or error}") from None
    return _parsed(f"`{path}`", content).fields
