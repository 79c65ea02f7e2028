"""Creating, opening, reading and writing stores."""

from __future__ import annotations

import html
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from actstore import _core
from actstore.arrays import dtype_name
from actstore.entry import Entry, selection
from actstore.errors import ActstoreError, InvalidInputError
from actstore.hook_points import canonical
from actstore.metadata import MetadataTable, search
from actstore.reports import counted
from actstore.scan import scan
from actstore.sizes import format_bytes, parse_bytes
from actstore.tokens import gather, tokens
from actstore.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    import torch

    from actstore.hook_points import PointLike
    from actstore.reports import StoreInfo, VerifyReport
    from actstore.tokens import IndicesLike, TokenBatch
    from actstore.writer import Activations

__all__ = ["Store", "create", "open"]

Mode = Literal["r", "a"]


def create(
    path: str | os.PathLike[str] | None = None,
    backend: str = "shards",
    *,
    codec: str | None = None,
    key_distance: int | None = None,
    encoding: str | None = None,
    dtype: str | torch.dtype | None = None,
    overflow: str = "error",
    on_conflict: str = "error",
    durability: str = "commit",
    memory: int | str = "1 GiB",
) -> Store:
    """Create a store, open for reading and writing.

    `path` is a new or empty directory; None for the backend `memory` alone. `backend`: `shards` (small, fast, safest),
    `lmdb`, `json` (for people to read) or `memory`. `codec`: `planes` (small, the default), `archive` (smallest:
    layers given the layer below), `zstd` or `raw` (fastest), all lossless. `key_distance`, for `archive`: every so many
    layers one is encoded alone (8 by default), so that reading a layer decodes no more of them. For `json` there is
    `encoding` instead: `text` (numbers, the default) or `base64`. `dtype`: None keeps each
    activation's own, `float16` or `bfloat16` packs to it, and `overflow` then says what becomes of an activation with
    finite values beyond its range: `error`, `saturate` or `keep` (it keeps its dtype).
    `on_conflict`, for a key that is stored with other content: `error`, `skip`, `replace` or `number` (`key#1`).
    `durability`: `commit` syncs every commit, `interval` every 2 s at most. `memory` bounds the writer's queue, and
    what reading keeps for later.

    Errors: `AlreadyExistsError` where something is already, `InvalidInputError` of kind `invalid_option`.
    """
    options = {
        "codec": codec,
        "key_distance": key_distance,
        "encoding": encoding,
        "dtype": None if dtype is None else dtype_name(dtype),
        "overflow": overflow,
        "on_conflict": on_conflict,
        "durability": durability,
    }
    optional = ("codec", "key_distance", "encoding", "dtype")
    settings = {name: value for name, value in options.items() if value is not None or name not in optional}
    for name, value in settings.items():
        is_number = name == "key_distance"
        wanted = "a number of layers" if is_number else "a string"
        if isinstance(value, bool) or not isinstance(value, int if is_number else str):
            raise InvalidInputError("invalid_option", f"`{name}` is `{value!r}`; give {wanted}")
    size = parse_bytes("memory", memory)
    place = None if path is None else os.fspath(path)
    return Store(_core.Store.create(place, backend, json.dumps(settings), size), size)


def open(path: str | os.PathLike[str], mode: Mode = "r", *, memory: int | str = "1 GiB") -> Store:
    """Open the store at `path`, of whichever backend it is.

    `mode`: `r` reads, beside a writer too, what is committed at this moment, and of `lmdb` what is committed when it
    is called; `a` reads and writes, one writer at a time. `memory` bounds the writer's queue and what reading keeps for
    later, in bytes or as `"1 GiB"`. A damaged store opens with mode `r`, with a warning where opening meets the damage:
    what is not lost reads. One of `lmdb` whose pages are damaged does not open.

    Errors: `NotFoundError` of kind `not_a_store`, `LockedError` where another writer is, `UnsupportedVersionError`,
    `CorruptError`.
    """
    if mode not in ("r", "a"):
        raise InvalidInputError("invalid_option", f"`mode` is `{mode!r}`; one of `r`, `a`")
    size = parse_bytes("memory", memory)
    store = Store(_core.Store.open(os.fspath(path), mode == "a", size), size)
    if store.damage:
        warnings.warn(f"`{store.path}` is damaged: {store.damage[0]}", stacklevel=2)
    return store


class Store:
    """Entries by key, in a directory or in memory. From `create` or `open`; a context manager that closes it.

    A mapping of keys to entries that iterates over entries, in the order of writing. Every call may be made from any
    thread and lets the others run. After `close` calls raise `ReadOnlyError` of kind `closed`. A store opened with
    mode `r` pickles as its path, for the workers of a data loader.
    """

    def __init__(self, core: _core.Store, memory: int) -> None:
        self._core = core
        self._memory = memory

    @property
    def core(self) -> _core.Store:
        """The store of the Rust core that this one wraps; private to the package."""
        return self._core

    @property
    def path(self) -> Path | None:
        """Where the store lies, from the root; None for one in memory."""
        return None if self._core.path is None else Path(self._core.path)

    @property
    def backend(self) -> str:
        """`shards`, `lmdb`, `json` or `memory`."""
        return self._core.backend

    @property
    def mode(self) -> Mode:
        """`r` for a store that can only be read, else `a`."""
        return "a" if self._core.writable else "r"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._core.closed

    @property
    def damage(self) -> list[str]:
        """What was found damaged when the store was opened, so that entries may be missing; `verify` finds all."""
        return self._core.damage()

    @property
    def settings(self) -> dict[str, Any]:
        """What `create` was given, plus `store_id`, `format_version` and `token_convention`."""
        return cast("dict[str, Any]", json.loads(self._core.settings()))

    def __len__(self) -> int:
        return len(self._core)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self._core

    def __getitem__(self, key: str) -> Entry:
        return Entry(self._core.entry(key))

    def __iter__(self) -> Iterator[Entry]:
        return (self[key] for key in self.keys())

    def keys(self) -> list[str]:
        """Every key, in the order of writing; a replaced entry keeps its place."""
        return self._core.keys()

    def metadata(self) -> MetadataTable:
        """The metadata of every entry, as Arrow and as dicts."""
        return MetadataTable(self._core)

    def search(self, predicate: Callable[[dict[str, Any]], object] | None = None, /, **fields: object) -> list[str]:
        """Keys of the entries whose fields equal `fields` and whose document `predicate` accepts, in store order.

        A field is one of the document (`prompt`, `response`, `key`, ...; see `MetadataTable`), else one of its
        `metadata`; an entry that lacks it does not match. Reads no activation.
        """
        return search(self.metadata(), predicate, fields)

    def scan(
        self,
        point: PointLike,
        positions: str | Sequence[int] = "all",
        *,
        keys: Iterable[str] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Iterate over (key, array [positions, d]) of every entry that has `point`, in the order of writing.

        Made for stores larger than memory: about 8 MiB are held, or two activations where those are larger, and the
        next part is decoded in parallel while this one is used. `positions` and the arrays are as for `Entry.numpy`
        and `entry[point]`. `keys` are the entries to read, in their order, such as the result of `search`; None for
        those that there are now, less any that are deleted before they are read.

        Errors: `point_not_stored` where no entry has the point, `unknown_position` where one lacks the selection.
        """
        return scan(self._core, canonical(point), selection(positions), None if keys is None else list(keys))

    def tokens(
        self,
        point: PointLike,
        positions: str | Sequence[int] = "all",
        batch_size: int = 4096,
        shuffle: bool = False,
        seed: int = 0,
    ) -> Iterator[TokenBatch]:
        """Iterate over the token vectors at `point` of every entry that has it, `batch_size` at a time.

        A `TokenBatch` has `activations`, a tensor [batch, d] of the stored dtype, and tells the token of each row:
        `positions` and `keys`. The last batch has what is left. `positions` is as for `Entry.numpy`.

        The order is that of writing, or with `shuffle` a pseudo-random permutation of all vectors, which `seed` (0 to
        2**64 - 1) and their number determine. It does not depend on `batch_size` or on threads, and is the same on
        every machine. The entries are those that there are when the first batch is asked for; one that is replaced or
        deleted later gives what it was or is refused as `no_such_key`.

        Memory: three batches, 8 MiB, and of each entry its key and 128 bytes. With `shuffle` all vectors are held
        decoded where a quarter of the store's `memory`, which all such iterators share, has room for them; else each
        batch is read by itself, more slowly.
        The next batch is read in parallel while this one is used.

        Errors: `point_not_stored` where no entry has the point, `unknown_position` where one lacks the selection,
        `invalid_tensor` where one is no [positions, d] or has another dtype or d than the others, `invalid_option`.
        """
        return tokens(self._core, canonical(point), selection(positions), batch_size, shuffle=shuffle, seed=seed)

    def gather(self, point: PointLike, keys: Iterable[str], positions: IndicesLike) -> Any:
        """The vectors at `point` of n tokens, `positions[j]` of entry `keys[j]`: a tensor [n, d] of the stored dtype.

        In the order asked for; a token may be asked for again. `positions` are ints, an array or a tensor, positions in
        the `token_ids` of their entries, negative ones from the end of what is stored; a single int is that of every
        entry, so -1 gathers the last tokens. Reads the frames that hold the tokens, each once, in parallel.

        Errors: `no_such_key`, `point_not_stored`, `unknown_position` where a position is not stored, `invalid_tensor`
        where an entry is no [positions, d] there or has another dtype or d than the first, `invalid_option` where there
        are no keys or not as many positions.
        """
        return gather(self._core, canonical(point), keys, positions)

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
    ) -> None:
        """Store one entry, durable on return. Arguments and errors are those of `Writer.put`, the way for many."""
        with self.writer() as writer:
            writer.put(
                activations=activations,
                prompt=prompt,
                response=response,
                token_ids=token_ids,
                metadata=metadata,
                key=key,
                prompt_length=prompt_length,
                positions=positions,
            )

    def writer(self) -> Writer:
        """A writing session for many entries, to be used as a context manager."""
        return Writer(self._core.writer())

    def delete(self, keys: str | Iterable[str]) -> int:
        """Delete entries, durably on return; how many there were. Keys that are not stored are fine."""
        return self._core.delete([keys] if isinstance(keys, str) else list(keys))

    def info(self) -> StoreInfo:
        """Counts and sizes, in all and by hook point; reads no activation."""
        return cast("StoreInfo", json.loads(self._core.info()))

    def verify(self, progress: Callable[[int, int], object] | None = None) -> VerifyReport:
        """Read and check every stored byte; damage is reported, not raised. `progress(done, total)` counts entries."""
        return cast("VerifyReport", json.loads(self._core.verify(progress)))

    def close(self) -> None:
        """Close the store; entries taken from it cannot be read any more. Closing twice is fine."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None or self.mode != "r":
            message = "only a store opened with mode `r` can be pickled; writers and memory stay in their process"
            raise TypeError(message)
        return _reopen, (str(self.path), self._memory)

    def __repr__(self) -> str:
        place = "in memory" if self.path is None else repr(str(self.path))
        return f"Store({place}: {', '.join(self._summary())})"

    def _repr_html_(self) -> str:
        place = "in memory" if self.path is None else html.escape(str(self.path))
        cells = "".join(f"<td>{html.escape(item)}</td>" for item in self._summary())
        return f"<table><tr><th>{place}</th>{cells}</tr></table>"

    def _summary(self) -> list[str]:
        if self.closed:
            return ["closed"]
        try:
            info = self.info()
        except ActstoreError as error:
            return [error.message]
        points = {point["point"] for point in info["points"]}
        size = format_bytes(info["file_bytes"] or info["stored_bytes"])
        counts = [counted(info["entries"], "entry", "entries"), counted(len(points), "hook point", "hook points")]
        return [*counts, size, self.backend, *(["damaged"] if self.damage else [])]


def _reopen(path: str, memory: int) -> Store:
    return open(path, memory=memory)
