"""The extension's types: bytes and files, written in Rust. Private; use `actstore` instead."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

from typing_extensions import Buffer

__version__: str
FORMAT_VERSION: int

PositionsLike: TypeAlias = str | Sequence[int] | None

def error_kinds() -> list[str]:
    """Every `kind` an error of the core can have."""

def codecs() -> list[str]: ...
def backends() -> list[str]: ...
def dtypes() -> list[tuple[str, int]]:
    """Name and bytes of an element of each dtype."""

def key_of_prompt(prompt: str) -> str:
    """SHA-256 hex of the UTF-8 prompt."""

def key_of_ids(token_ids: Sequence[int]) -> str:
    """SHA-256 hex of `ids:` plus the ids as little-endian uint32."""

def select_positions(positions: PositionsLike, tokens: int, prompt_length: int | None) -> list[int]:
    """Ascending positions that a selection names in a sequence; `unknown_position` where it cannot."""

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
        """Gives a slot back unused."""
    def close(self) -> None:
        """Wakes whoever waits; `acquire` fails from now on."""
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
        """`settings`: JSON object with codec, dtype, overflow, on_conflict, durability. `path` is None for `memory` only."""
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
    def __contains__(self, key: str) -> bool: ...
    def keys(self) -> list[str]:
        """Keys in the order of writing; a replaced entry keeps its place."""
    def entry(self, key: str) -> StoredEntry: ...
    def documents(self) -> list[str]:
        """The metadata document of each entry, as JSON text, in the order of `keys`. See `Writer.put`."""
    def metadata_stream(self) -> Any:
        """PyCapsule `arrow_array_stream` of one row an entry."""
    def read(self, requests: Sequence[tuple[StoredEntry, str, PositionsLike, Buffer]]) -> None:
        """Decodes each (entry, hook point, positions) into its writable buffer, in parallel, without the interpreter."""
    def delete(self, keys: Sequence[str]) -> int:
        """Durable on return; the number of entries deleted. Missing keys are fine."""
    def writer(self) -> Writer: ...
    def info(self) -> str:
        """JSON: entries, damaged, tokens, raw_bytes, stored_bytes, file_bytes, points: [{point, dtype, entries, rows, raw_bytes, stored_bytes, nonfinite, saturated, encodings: {name: frames}}]."""
    def verify(self, progress: Callable[[int, int], object] | None = None) -> str:
        """Reads and checks every byte. JSON: entries, frames, bytes, damage: [{kind, message, key}]. `progress(done, total)` in entries."""
    def close(self) -> None: ...

@final
class StoredEntry:
    """One stored entry; its activations are read on demand."""

    @property
    def key(self) -> str: ...
    @property
    def content_id(self) -> str: ...
    def document(self) -> str:
        """JSON object: key, key_recipe, prompt, response, prompt_sha256, prompt_length, positions, metadata, created."""
    def token_ids(self) -> list[int] | None: ...
    def points(self) -> list[tuple[str, str, list[int]]]:
        """(hook point, dtype, shape) in the canonical order."""
    def layout(self, point: str, positions: PositionsLike) -> tuple[str, list[int], int]:
        """(dtype, shape, bytes) of what `Store.read` will write for this selection."""

@final
class Writer:
    """A writing session: bounded queue, parallel encoding, one committer. The first failure is kept and raised by every later call."""

    def put(
        self,
        document: str,
        token_ids: Sequence[int] | None,
        activations: Sequence[tuple[str, str, Sequence[int], Buffer]],
    ) -> None:
        """Queues a whole entry. `document`: JSON object with key (str or null), prompt, response, prompt_length, positions
        (list of [start, stop) of the stored rows, or null where rows are not tied to tokens), metadata (object), created (Unix seconds).
        Each activation is (hook point, dtype, shape, C-order bytes); the bytes are copied before the call returns."""
    def begin(self, rows: int) -> Batch:
        """Drafts for the `rows` rows of one model call."""
    def flush(self) -> None:
        """Returns when everything put before is durable."""
    def close(self) -> None:
        """Commits what is complete, joins the threads, raises the first failure."""
    def stats(self) -> str:
        """JSON: entries, duplicates, rejected, tokens, raw_bytes, stored_bytes, commits, syncs, queue_bytes, queue_peak_bytes, wait_seconds."""

@final
class Batch:
    """The entries that one model call fills, one a batch row. Not visible until finished; dropped if never finished."""

    def point(self, name: str, dtype: str, row_shape: Sequence[int]) -> int:
        """Index of a hook point in this batch, declared at its first firing. `row_shape` is the shape of one row: `[d]`."""
    def rows(self, counts: Sequence[int]) -> int:
        """Index of a row layout: a forward's selected rows, batch row by batch row: `counts[b]` rows belong to batch row b."""
    def take(self, ring: Ring, slot: int, pieces: Sequence[tuple[int, int, int, int, int]]) -> None:
        """Copies pieces out of a filled slot into the drafts, then releases the slot. A piece is
        (point, layout, first_row, rows, offset): `rows` rows of the layout from `first_row` on lie at byte `offset` of the slot.
        May wait for the queue, without the interpreter; releases the slot also on failure."""
    def finish(
        self, row: int, document: str, token_ids: Sequence[int], captured: int, select: Sequence[int] | None
    ) -> None:
        """Queues batch row `row` as an entry. Every point must have exactly `captured` rows, else `rows_not_tokens`;
        `select` keeps only these rows, in this order. `document` as in `Writer.put`; its positions must be as many as the rows kept."""
    def reject(self, row: int) -> None:
        """Drops a draft and counts it as rejected."""
