"""The extension's types: bytes and files, written in Rust. Private; use `actstore` instead."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

from typing_extensions import Buffer

__all__ = [
    "FORMAT_VERSION",
    "ActlogLmdb",
    "Batch",
    "Documents",
    "Entries",
    "LoggedEntry",
    "LoggedLayer",
    "Ring",
    "Rows",
    "Scan",
    "Slot",
    "Store",
    "StoredEntry",
    "Tokens",
    "Writer",
    "__version__",
    "backends",
    "codecs",
    "compare",
    "dtypes",
    "error_kinds",
    "key_of_ids",
    "key_of_prompt",
    "migrate",
    "put_exported",
    "select_positions",
    "unpickle",
]

__version__: str
FORMAT_VERSION: int

_PositionsLike: TypeAlias = str | Sequence[int] | None
_Read: TypeAlias = tuple[Rows, str, list[int]]
"""Rows, their dtype, and their shape."""

def error_kinds() -> list[str]:
    """Every `kind` an error of the core can have."""

def codecs(backend: str) -> list[str]:
    """Names of what a backend can be created with, its default first: codecs, or encodings where it holds text."""

def backends() -> list[str]:
    """Names of the backends."""

def dtypes() -> list[tuple[str, int]]:
    """Name and bytes of an element of each dtype."""

def key_of_prompt(prompt: str) -> str:
    """SHA-256 hex of the UTF-8 prompt."""

def key_of_ids(token_ids: Sequence[int]) -> str:
    """SHA-256 hex of `ids:` plus the ids as little-endian uint32."""

def select_positions(positions: _PositionsLike, tokens: int, prompt_length: int | None) -> list[int]:
    """Ascending positions that a selection names in a sequence; `unknown_position` where it cannot."""

def unpickle(data: Buffer) -> Any:
    """What a pickle says, read as data: nothing is run.

    None, bool, int, float, str, bytes, list, tuple and dict, and arrays of torch and NumPy as NumPy arrays of their own
    memory (bfloat16 as in `actstore.arrays`); numbers of NumPy as Python's, arrays of objects as lists within lists. Of
    other dtypes an array is an `invalid_tensor`. What is named or made beside these is an `untrusted_input`;
    `limit_exceeded` is what has integers of more than 64 bits or would grow beyond a few times its size;
    `unsupported_version` a protocol after 5; `truncated` and `malformed` what is no whole pickle.
    """

def migrate(
    source: Store,
    target: Store,
    keys: Sequence[str] | None,
    points: Sequence[str] | None,
    on_conflict: str,
    progress: Callable[[int, int, int], object] | None = None,
) -> str:
    """Bring entries from one store to another; None is every key and every hook point (stored names).

    JSON: entries, migrated, skipped, conflicts, copied, encoded, raw_bytes, stored_bytes, and file_bytes of the target.
    `progress(done, total, raw_bytes)` counts entries; what it raises stops the migration and is raised, and what was
    done before stays.
    """

def compare(
    source: Store,
    target: Store,
    keys: Sequence[str] | None,
    points: Sequence[str] | None,
    on_conflict: str,
    progress: Callable[[int, int, int], object] | None = None,
) -> str:
    """Hold what `migrate` was to bring against what the target decodes to; arguments are those of `migrate`.

    JSON: a list of {key, message}, empty where all is equal.
    """

@final
class Ring:
    """Recycled, page-aligned staging memory: `slots` slots of `slot_bytes` each."""

    def __new__(cls, slot_bytes: int, slots: int) -> Ring: ...
    @property
    def slot_bytes(self) -> int: ...
    def slots(self) -> list[Slot]:
        """Every slot of the ring once, to lay tensors over them and register them with a device."""

    def acquire(self) -> int:
        """Index of a free slot; waits, without the interpreter, until one is released. The wait counts as stall."""

    def release(self, index: int) -> None:
        """Give a slot back unused."""

    def close(self) -> None:
        """Wake whoever waits; `acquire` fails from now on."""

    @property
    def stall_seconds(self) -> float: ...

@final
class Slot(Buffer):
    """One slot: writable memory of `Ring.slot_bytes` bytes through the buffer protocol."""

    @property
    def index(self) -> int: ...
    def __len__(self) -> int: ...

@final
class Store:
    """An open store of any backend."""

    @staticmethod
    def create(path: str | None, backend: str, settings: str, memory: int) -> Store:
        """Make a store; `path` is None for backends that live in memory.

        `settings`: JSON object with overflow, on_conflict and durability, and, where given, codec (with `archive` also
        key_distance) or encoding, and dtype.
        """

    @staticmethod
    def open(path: str, writable: bool, memory: int) -> Store: ...
    @property
    def path(self) -> str | None: ...
    @property
    def backend(self) -> str: ...
    @property
    def writable(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def settings(self) -> str:
        """JSON object: what `create` was given, plus store_id, format_version and token_convention."""

    def damage(self) -> list[str]:
        """What was found damaged when opening: entries may be missing because of it. Empty for a sound store."""

    def __len__(self) -> int: ...
    def __contains__(self, key: str, /) -> bool: ...
    def keys(self) -> list[str]:
        """Keys in the order of writing; a replaced entry keeps its place."""

    def entry(self, key: str) -> StoredEntry: ...
    def documents(self) -> Documents:
        """Plan reading the document of every entry, in the order of writing."""

    def metadata_stream(self) -> Any:
        """PyCapsule `arrow_array_stream` of one row an entry."""

    def scan(self, point: str, positions: _PositionsLike, keys: list[str] | None) -> Scan:
        """Plan reading a hook point of the entries of these keys, in their order."""

    def gather(self, point: str, keys: Sequence[str], positions: Buffer) -> _Read:
        """Decode the token vector at each position, a buffer of int64, of the entry of each key."""

    def tokens(self, point: str, positions: _PositionsLike, seed: int | None, batch_size: int) -> Tokens:
        """List the token vectors of all entries, in the order of writing or in the shuffled one of `seed`."""

    def delete(self, keys: Sequence[str]) -> int:
        """Durable on return; the number of entries deleted. Missing keys are fine."""

    def writer(self) -> Writer: ...
    def info(self) -> str:
        """JSON: entries, damaged, tokens, raw_bytes, stored_bytes, file_bytes, points.

        Each point: point, dtype, entries, rows, raw_bytes, stored_bytes, nonfinite, saturated, and the number of frames
        by encoding.
        """

    def verify(self, progress: Callable[[int, int], object] | None = None) -> str:
        """Read and check every byte. JSON: entries, frames, bytes, damage as a list of {kind, message, key}.

        `progress(done, total)` counts entries.
        """

    def close(self) -> None: ...

def put_exported(path: str, values: Sequence[tuple[Buffer, Buffer]]) -> None:
    """Put values by key into an LMDB environment, in one durable transaction.

    The environment is a directory with a `data.mdb`, which may be empty. Keys have 1 to 511 bytes, values less than
    2 GiB. `already_open` and `locked` where something else has it open, `storage_full`, `storage_io`.
    """

@final
class ActlogLmdb:
    """An LMDB log of document 000, opened for reading without its lock files; nothing is changed or run.

    `not_a_store` where there is none. What reading finds damaged is `malformed` or `truncated`, and what is written to
    meanwhile `locked`.
    """

    def __new__(cls, path: str) -> ActlogLmdb: ...
    def __len__(self) -> int: ...
    def keys(self) -> list[str]:
        """All keys, in the order of their UTF-8 bytes."""

    def keys_after(self, after: str, most: int) -> list[str]:
        """The first `most` keys after one, which need not be there; after the empty one come all."""

    def get(self, key: str) -> LoggedEntry:
        """Read one entry; `no_such_key`, or an error of `unpickle`."""

    def metadata(self, key: str) -> dict[str, Any] | None:
        """What the metadata environment has under a key; None where either is missing."""

@final
class LoggedEntry:
    """One entry of an `ActlogLmdb`."""

    @property
    def era(self) -> str:
        """V0, V1, V2-none, V2-zstd-a, V2-zstd-b, V2-fallback or BytesCompressor."""

    @property
    def fields(self) -> dict[str, Any]:
        """The entry without its activations, in its order."""

    @property
    def compression(self) -> dict[str, Any] | None:
        """What the entry says of its compression; None in V0 and V1."""

    @property
    def metadata(self) -> dict[str, Any] | None:
        """As `ActlogLmdb.metadata` gives it."""

    @property
    def layers(self) -> list[LoggedLayer | None] | dict[str, LoggedLayer | None] | None:
        """Layers by number; by name in V0, where it is `activations`, and V1, where `layer_<i>` is a generation step.

        None for an entry that has none, and for each layer that was not kept.
        """

@final
class LoggedLayer(Buffer):
    """One layer: its bytes in C order, little-endian, through the buffer protocol; read only."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...

@final
class Rows(Buffer):
    """Decoded rows: writable memory through the buffer protocol, used again once nothing views it any more."""

    def __len__(self) -> int:
        """Bytes."""

@final
class Documents:
    """The documents of all entries, window by window."""

    def window(self) -> list[dict[str, Any]]:
        """The next documents, as `StoredEntry.document` gives them, while the core reads on; none at the end."""

@final
class Scan:
    """One hook point of many entries, window by window."""

    def window(self) -> list[tuple[str, _Read]]:
        """(key, what was read) of the next entries that have the point, while the core reads on; none at the end.

        Where no entry has it: the `point_not_stored` error of the first one.
        """

@final
class Tokens:
    """The token vectors at one hook point of a whole store, in one order."""

    def vectors(self) -> tuple[str, int] | None:
        """(dtype, d) of each vector; None where there are none."""

    def entries(self) -> Entries:
        """The entries that have vectors; holding them holds no vectors."""

    def batch(self) -> tuple[Rows, Rows, Rows] | None:
        """The next vectors, while the core reads on; None at the end.

        With them, of each one, the number of its entry, as uint32, and its position, as int64.
        """

@final
class Entries:
    """The entries that token vectors are of, by number."""

    def keys(self, entries: Buffer) -> list[str]:
        """The keys of entries by their numbers, a buffer of uint32."""

@final
class StoredEntry:
    """One stored entry; its activations are read on demand."""

    @property
    def key(self) -> str: ...
    @property
    def content_id(self) -> str: ...
    def document(self) -> dict[str, Any]:
        """Its fields: key, key_recipe, prompt, response, prompt_sha256, prompt_length, positions, metadata, created."""

    def token_ids(self) -> list[int] | None: ...
    def points(self) -> list[tuple[str, str, list[int]]]:
        """(hook point, dtype, shape) in the canonical order."""

    def layout(self, point: str, positions: _PositionsLike) -> tuple[str, list[int]]:
        """(dtype, shape) of what `read` gives for this selection."""

    def read(self, points: Sequence[str], positions: _PositionsLike) -> list[_Read]:
        """Decode the selected rows at each of the points, in parallel."""

@final
class Writer:
    """A writing session: bounded queue, parallel encoding, one committer.

    The first failure is kept and raised by every later call.
    """

    def put(
        self,
        document: str,
        token_ids: Sequence[int] | None,
        activations: Sequence[tuple[str, str, Sequence[int], Buffer]],
    ) -> None:
        """Queue a whole entry.

        `document`: JSON object with key (str or null), key_recipe, prompt, response, prompt_length, positions (list of
        [start, stop) of the stored rows, or null where rows are not tied to tokens), metadata (object) and created
        (Unix seconds). Each activation is (hook point, dtype, shape, C-order bytes); the bytes are copied before the
        call returns.
        """

    def begin(self, rows: int) -> Batch:
        """Drafts for the `rows` rows of one model call."""

    def flush(self) -> None:
        """Return when everything put before is durable."""

    def close(self) -> None:
        """Commit what is complete, join the threads, raise the first failure."""

    def stats(self) -> str:
        """JSON: entries, duplicates, rejected, tokens, raw_bytes, stored_bytes, commits, syncs, queue_bytes,
        queue_peak_bytes, wait_seconds.
        """

@final
class Batch:
    """The entries that one model call fills, one a batch row. Not visible until finished, dropped if never finished."""

    def point(self, name: str, dtype: str, row_shape: Sequence[int]) -> int:
        """Index of a hook point in this batch, declared at its first firing. `row_shape`, of one row, is `[d]`."""

    def rows(self, counts: Sequence[int]) -> int:
        """Index of a row layout: a forward's selected rows, batch row by batch row, `counts[b]` of batch row b."""

    def take(self, ring: Ring, slot: int, pieces: Sequence[tuple[int, int, int, int, int]]) -> None:
        """Copy pieces out of a filled slot into the drafts, then release the slot, also on failure.

        A piece is (point, layout, first_row, rows, offset): `rows` rows of the layout from `first_row` on lie at byte
        `offset` of the slot. May wait for the queue, without the interpreter.
        """

    def finish(
        self, row: int, document: str, token_ids: Sequence[int], captured: int, select: Sequence[int] | None
    ) -> None:
        """Queue batch row `row` as an entry; `document` as in `Writer.put`.

        Every point must have exactly `captured` rows, else `rows_not_tokens`; `select` keeps only these rows, in this
        order. The document's positions must be as many as the rows kept.
        """

    def reject(self, row: int) -> None:
        """Drop a draft and count it as rejected."""
