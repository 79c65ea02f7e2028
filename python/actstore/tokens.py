"""Token vectors: the rows of one hook point of many entries, by key and position or batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from actstore import arrays
from actstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import SupportsIndex

    import torch
    from numpy.typing import NDArray

    from actstore import _core

    IndicesLike = SupportsIndex | Sequence[int] | NDArray[Any] | torch.Tensor

__all__ = ["TokenBatch", "gather", "tokens"]


class TokenBatch:
    """Token vectors of one hook point, and which tokens they belong to: row j is that of token `positions[j]` of entry
    `keys[j]`.
    """

    __slots__ = ("_entries", "_numbers", "activations", "positions")

    def __init__(
        self, entries: _core.Entries, activations: Any, numbers: NDArray[Any], positions: NDArray[Any]
    ) -> None:
        self._entries = entries
        self._numbers = numbers
        self.activations = activations
        """Tensor [batch, d] of the stored dtype, on the CPU: torch where torch is installed, else NumPy."""
        self.positions = positions
        """Array [batch] of int64: positions in the `token_ids` of their entries, or numbers of rows where an entry does
        not tie rows to tokens."""

    @property
    def keys(self) -> list[str]:
        """The key of each row's entry."""
        return self._entries.keys(self._numbers.data)

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"TokenBatch({len(self):,} x {self.activations.shape[1]:,})"


def tokens(
    core: _core.Store, point: str, positions: str | list[int], batch_size: int, *, shuffle: bool, seed: int
) -> Iterator[TokenBatch]:
    """The batches of `Store.tokens`. Errors: `invalid_option` at once, the others with the first batch."""
    size = _whole("batch_size", batch_size, 1, 2**31)
    return _batches(core, point, positions, size, _whole("seed", seed, 0, 2**64 - 1) if shuffle else None)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    index = getattr(value, "__index__", None)
    if index is None or isinstance(value, bool) or not least <= int(index()) <= most:
        message = f"`{name}` is `{value!r}`; give a whole number from {least} to {most}"
        raise InvalidInputError("invalid_option", message)
    return int(index())


def _batches(
    core: _core.Store, point: str, positions: str | list[int], batch_size: int, seed: int | None
) -> Iterator[TokenBatch]:
    """Each is read while the one before is used."""
    planned = core.tokens(point, positions, seed, batch_size)
    vectors, entries = planned.vectors(), planned.entries()
    if vectors is None:
        return
    while read := planned.batch():
        batch = _batch(entries, vectors, *read)
        del read
        yield batch
        # The consumer alone decides how long it lives while the next is waited for.
        del batch


def _batch(
    entries: _core.Entries, vectors: tuple[str, int], rows: _core.Rows, numbers: _core.Rows, positions: _core.Rows
) -> TokenBatch:
    at = arrays.as_numpy(positions, "int64", [len(positions) // 8])
    dtype, width = vectors
    activations = arrays.as_array(rows, dtype, [len(at), width])
    return TokenBatch(entries, activations, arrays.as_numpy(numbers, "uint32", at.shape), at)


def gather(core: _core.Store, point: str, keys: Iterable[str], positions: IndicesLike) -> Any:
    """The array of `Store.gather`."""
    names = _names(keys)
    return arrays.as_array(*core.gather(point, names, _indices(positions, len(names)).data))


def _names(keys: Iterable[str]) -> list[str]:
    if isinstance(keys, str):
        message = f"`keys` is the string `{keys}`; give a sequence of keys, one for each vector"
        raise InvalidInputError("invalid_key", message)
    names = list(keys)
    for name in cast("list[object]", names):
        if not isinstance(name, str):
            raise InvalidInputError(
                "invalid_key", f"`{name!r}` among `keys` is a `{type(name).__name__}`, not a string"
            )
    return names


def _indices(positions: IndicesLike, count: int) -> NDArray[Any]:
    """`positions` as int64, one for each of `count` keys; a single one is that of all."""
    import numpy as np

    try:
        given = np.asarray(positions)
        # NumPy has an empty sequence be of floats.
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise TypeError
        whole = given.astype(np.int64)
        if given.ndim > 1 or (whole != given).any():
            raise TypeError
    except (TypeError, ValueError):
        message = f"`positions` is `{positions!r}`; an int, or as many ints as keys"
        raise InvalidInputError("unknown_position", message) from None
    return np.full(count, whole) if whole.ndim == 0 else np.ascontiguousarray(whole)
