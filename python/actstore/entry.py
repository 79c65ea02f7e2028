"""One stored entry: its text, tokens and metadata, and its activations, read when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore import _core, arrays
from actstore.errors import InvalidInputError
from actstore.hook_points import canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from actstore.hook_points import PointLike

__all__ = ["Entry", "key_of_ids", "key_of_prompt"]


class Entry:
    """A prompt with its response, token ids, metadata and activations. Stays valid while its store is open.

    Once the entry is replaced or deleted, its activations are what they were or, in `lmdb` and `json`, refused as
    `no_such_key`; they are never another entry's.

    `entry["resid_post.12"]` is a tensor of shape [positions, d]: torch where torch is installed, else NumPy. Hook
    points go by any spelling of `actstore.hook_points`. Nothing of an activation is read before it is asked for.
    """

    __slots__ = ("_document", "_stored")

    def __init__(self, stored: _core.StoredEntry) -> None:
        self._stored = stored
        self._document: dict[str, Any] | None = None

    @property
    def document(self) -> dict[str, Any]:
        """Everything but token ids and activations, as stored: the row that `Store.search` and the table show."""
        if self._document is None:
            self._document = self._stored.document()
        return self._document

    @property
    def key(self) -> str:
        """The name of the entry in its store."""
        return self._stored.key

    @property
    def key_recipe(self) -> str:
        """What the key is: `prompt` (SHA-256 of the prompt), `ids` (of the token ids) or `user` (given)."""
        return self.document["key_recipe"]

    @property
    def content_id(self) -> str:
        """BLAKE3 hex of the content; equal contents have equal ids, whenever they were stored."""
        return self._stored.content_id

    @property
    def prompt(self) -> str | None:
        """Text of the prompt."""
        return self.document["prompt"]

    @property
    def response(self) -> str | None:
        """Text of the response."""
        return self.document["response"]

    @property
    def token_ids(self) -> list[int] | None:
        """Ids of prompt and response, padding left out."""
        return self._stored.token_ids()

    @property
    def prompt_length(self) -> int | None:
        """How many of `token_ids` are the prompt's; None where prompt and response were not told apart."""
        return self.document["prompt_length"]

    @property
    def positions(self) -> list[int] | None:
        """Position of each row of the activations among `token_ids`; None where rows are not tied to tokens."""
        ranges = self.document["positions"]
        return None if ranges is None else [position for start, stop in ranges for position in range(start, stop)]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the writer gave as `metadata`."""
        return self.document["metadata"]

    @property
    def created(self) -> float:
        """When the entry was made, in Unix seconds."""
        return self.document["created"]

    @property
    def points(self) -> list[str]:
        """Hook points of the stored activations, in canonical order."""
        return [name for name, _, _ in self._stored.points()]

    def dtype(self, point: PointLike) -> str:
        """Name of the stored dtype, which NumPy may have to show as raw bits (see `numpy`)."""
        return self._stored.layout(canonical(point), None)[0]

    def shape(self, point: PointLike, positions: str | Sequence[int] = "all") -> tuple[int, ...]:
        """Shape of what `numpy` and `torch` return for the same arguments; reads no activation."""
        return tuple(self._stored.layout(canonical(point), selection(positions))[1])

    def numpy(self, point: PointLike, positions: str | Sequence[int] = "all") -> NDArray[Any]:
        """The activation at `point` as a NumPy array of shape [positions, d], in memory of its own.

        `positions`: `all`, `prompt`, `response`, `last`, or positions in `token_ids`, negative ones from the end of
        what is stored; only their rows are read.
        bfloat16 and float8 are the types of `ml_dtypes` where it is installed, else raw bits in uint16 and uint8:
        `dtype(point)` tells.

        Errors: `point_not_stored`, `unknown_position`, and `CorruptError` where the stored bytes are damaged.
        """
        return arrays.as_numpy(*self._read(point, positions))

    def torch(self, point: PointLike, positions: str | Sequence[int] = "all") -> Tensor:
        """The activation at `point` as a torch tensor on the CPU; arguments and errors as for `numpy`."""
        return arrays.as_torch(*self._read(point, positions))

    def _read(self, point: PointLike, positions: str | Sequence[int]) -> tuple[_core.Rows, str, list[int]]:
        return self._stored.read([canonical(point)], selection(positions))[0]

    def activations(
        self, points: Iterable[PointLike] | None = None, positions: str | Sequence[int] = "all"
    ) -> dict[str, Any]:
        """The arrays at `points`, or at every stored one, by their stored names: read together, in parallel.

        Arguments, arrays and errors are those of `numpy` and `entry[point]`.
        """
        names = self.points if points is None else [canonical(point) for point in points]
        read = self._stored.read(names, selection(positions))
        return {name: arrays.as_array(*found) for name, found in zip(names, read, strict=True)}

    def __getitem__(self, point: PointLike) -> Any:
        return arrays.as_array(*self._read(point, "all"))

    def __contains__(self, point: PointLike) -> bool:
        try:
            return canonical(point) in self.points
        except InvalidInputError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.points)

    def __repr__(self) -> str:
        token_ids = self.token_ids
        tokens = "no" if token_ids is None else f"{len(token_ids):,}"
        return f"Entry({self.key!r}: hook points: {len(self.points)}, token ids: {tokens})"


def key_of_prompt(prompt: str) -> str:
    """The key of an entry with a prompt: the SHA-256 of its UTF-8, in hex."""
    return _core.key_of_prompt(prompt)


def key_of_ids(token_ids: Sequence[int]) -> str:
    """The key of an entry without a prompt: the SHA-256 of `ids:` and the ids as little-endian uint32, in hex."""
    return _core.key_of_ids(token_ids)


def selection(positions: str | Sequence[int]) -> str | list[int]:
    """`positions` as the core takes it: a name, or a list of ints made of any sequence (range, array, tensor)."""
    if isinstance(positions, str):
        return positions
    try:
        return [int(position.__index__()) for position in positions]
    except (AttributeError, TypeError):
        message = f"`positions` is `{positions!r}`; `all`, `prompt`, `response`, `last` or a sequence of ints"
        raise InvalidInputError("unknown_position", message) from None
