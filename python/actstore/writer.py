"""Storing arrays that did not come from a hook."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, cast

from actstore import arrays
from actstore.errors import ActstoreError, InvalidInputError
from actstore.hook_points import canonical
from actstore.metadata import dump_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from actstore import _core
    from actstore.arrays import Array
    from actstore.hook_points import PointLike

    # A mapping is invariant in its keys, so a dict of strings is none of any spelling.
    Activations = Mapping[str, Array] | Mapping[int, Array] | Mapping[PointLike, Array]

__all__ = ["Writer", "WriterStats", "position_ranges"]

_LARGEST_TOKEN_ID = 2**32 - 1


class WriterStats(TypedDict):
    """Counts of one writer so far."""

    entries: int
    duplicates: int
    rejected: int
    tokens: int
    raw_bytes: int
    stored_bytes: int
    commits: int
    syncs: int
    queue_bytes: int
    queue_peak_bytes: int
    wait_seconds: float


class Writer:
    """A writing session of a store: entries are encoded in parallel and committed in groups, in the background.

    A `with` block commits on leaving; what was put before an exception is committed too, and the exception is raised
    again. The first failure in the background is raised by every later call and by leaving the block. From
    `Store.writer`; safe to use from several threads.
    """

    __slots__ = ("_core",)

    def __init__(self, core: _core.Writer) -> None:
        self._core = core

    def put(
        self,
        *,
        activations: Activations,
        prompt: str | None = None,
        response: str | None = None,
        token_ids: Sequence[int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        key: str | None = None,
        prompt_length: int | None = None,
        positions: Iterable[int] | Iterable[Sequence[int]] | None = None,
        created: float | None = None,
    ) -> None:
        """Queue one entry; the arrays are copied before this returns, which waits where the queue is full.

        `activations`: NumPy arrays or torch tensors by hook point, usually of shape [positions, d]. `token_ids`: of
        prompt and response, without padding; `prompt_length`: how many of them are the prompt's. `positions`: the
        position of each row, as ints or as (start, stop) ranges; left out, rows are tied to tokens where every
        activation has as many rows as there are tokens. `metadata`: what JSON can hold. `key`: SHA-256 of the prompt
        by default, without a prompt that of the token ids. `created`: when it was made, Unix seconds; by default now.

        Errors: `InvalidInputError` for what cannot be stored exactly, `KeyConflictError` where the key is stored with
        other content (see `create`), `WriterFailedError` after a failure in the background.
        """
        ids = None if token_ids is None else _token_ids(token_ids)
        encoded = [_encode(canonical(point), array) for point, array in activations.items()]
        rows = {shape[0] if shape else 1 for _, _, shape, _ in encoded}
        document = {
            "key": _text("key", key),
            "key_recipe": "user" if key is not None else "prompt" if prompt is not None else "ids",
            "prompt": _text("prompt", prompt),
            "response": _text("response", response),
            "prompt_length": None if prompt_length is None else _prompt_length(prompt_length, ids),
            "positions": position_ranges(positions) if positions is not None else _default_ranges(ids, rows),
            "metadata": _metadata(metadata),
            "created": time.time() if created is None else created,
        }
        self._core.put(dump_json(document), ids, encoded)

    def flush(self) -> None:
        """Return when everything put before is durable."""
        self._core.flush()

    def close(self) -> None:
        """Commit what was put, end the threads, raise the first failure. Closing twice is fine."""
        self._core.close()

    @property
    def stats(self) -> WriterStats:
        """What the writer did so far; `wait_seconds` is how long callers waited for the queue."""
        return cast("WriterStats", json.loads(self._core.stats()))

    def __del__(self) -> None:
        """Close a writer that nobody closed; the interpreter shows what that raises."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ActstoreError as failure:
            if error is None:
                raise
            error.add_note(f"closing the writer failed as well: {failure}")


def _encode(name: str, array: object) -> tuple[str, str, list[int], memoryview]:
    return name, *arrays.encode(name, array)


def _text(name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InvalidInputError("invalid_metadata", f"`{name}` is a `{type(value).__name__}`, not a string")


def _prompt_length(value: Any, ids: list[int] | None) -> int:
    try:
        length = int(value.__index__())
    except (AttributeError, TypeError):
        message = f"`prompt_length` is a `{type(value).__name__}`, not an int"
        raise InvalidInputError("invalid_metadata", message) from None
    if length < 0 or (ids is not None and length > len(ids)):
        tokens = "" if ids is None else f" of `{len(ids)}` tokens"
        raise InvalidInputError("invalid_metadata", f"`prompt_length` is `{length}`{tokens}")
    return length


def _metadata(metadata: object) -> dict[str, Any]:
    if metadata is None or isinstance(metadata, Mapping):
        return dict(cast("Mapping[str, Any]", metadata or {}))
    raise InvalidInputError("invalid_metadata", f"`metadata` is a `{type(metadata).__name__}`, not a mapping")


def _token_ids(token_ids: Any) -> list[int]:
    try:
        ids = [token_id.__index__() for token_id in _plain(token_ids)]
    except (AttributeError, TypeError):
        message = f"`token_ids` is a `{type(token_ids).__name__}` that is no flat sequence of ints"
        raise InvalidInputError("invalid_tensor", message) from None
    for token_id in ids:
        if not 0 <= token_id <= _LARGEST_TOKEN_ID:
            raise InvalidInputError("invalid_tensor", f"token id `{token_id}` does not fit 32 bits without sign")
    return ids


def _plain(numbers: Any) -> Any:
    """Python numbers of an array, a tensor or any sequence."""
    return numbers.tolist() if hasattr(numbers, "tolist") else numbers


def _default_ranges(ids: list[int] | None, rows: set[int]) -> list[list[int]] | None:
    return [[0, len(ids)]] if ids is not None and rows == {len(ids)} else None


def position_ranges(positions: Iterable[Any]) -> list[list[int]]:
    """[start, stop] of each run of consecutive positions, in the order given: ints or (start, stop) ranges."""
    ranges: list[list[int]] = []
    try:
        for item in _plain(positions):
            start, stop = (item.__index__(), item.__index__() + 1) if hasattr(item, "__index__") else _bounds(item)
            if start < 0:
                raise ValueError
            if ranges and ranges[-1][1] == start:
                ranges[-1][1] = stop
            else:
                ranges.append([start, stop])
    except (AttributeError, TypeError, ValueError):
        message = f"`positions` is `{positions!r}`; give ints from 0 or (start, stop) ranges"
        raise InvalidInputError("unknown_position", message) from None
    return ranges


def _bounds(item: Any) -> tuple[int, int]:
    if isinstance(item, range):
        if item.step != 1:
            raise ValueError(item)
        return item.start, item.stop
    start, stop = item
    return start.__index__(), stop.__index__()
