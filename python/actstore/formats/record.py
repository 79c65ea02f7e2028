"""What a format is, what it gives on the way in, and what it gets on the way out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from actstore.entry import key_of_prompt
from actstore.formats.tree import DryTree, Tree
from actstore.reports import Damage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from actstore.arrays import Array
    from actstore.errors import ActstoreError
    from actstore.store import Store
    from actstore.writer import Writer

__all__ = ["CONVENTIONS", "Export", "Format", "Imported", "Pending", "Source", "conventions", "conventions_of"]

CONVENTIONS = "imported_from"
"""The field of an entry's metadata that says what it was imported from, and by which conventions that counts."""


@dataclass(frozen=True)
class Imported:
    """One entry as a store takes it: the arguments of `Writer.put`, activations by the stored names of their points."""

    key: str
    activations: Mapping[str, Array]
    metadata: Mapping[str, Any]
    prompt: str | None = None
    response: str | None = None
    token_ids: Sequence[int] | None = None
    prompt_length: int | None = None
    positions: Sequence[tuple[int, int]] | None = None
    created: float | None = None

    def put(self, writer: Writer) -> None:
        """Queue the entry. Errors: those of `Writer.put`."""
        # A key that is the prompt's is not given, so that the entry says that it is.
        of_prompt = isinstance(self.prompt, str) and self.key == key_of_prompt(self.prompt)
        writer.put(
            key=None if of_prompt else self.key,
            prompt=self.prompt,
            response=self.response,
            token_ids=self.token_ids,
            prompt_length=self.prompt_length,
            positions=self.positions,
            metadata=self.metadata,
            activations=self.activations,
            created=self.created,
        )


class Pending(NamedTuple):
    """An entry that a source lists; `load` reads it, or raises the `ActstoreError` that says what is wrong with it."""

    key: str
    load: Callable[[], Imported]


@dataclass(frozen=True)
class Source:
    """What lies in a tree: how many entries, each key once, in their order; `notes` say what was passed over and why.

    `entries` can be gone through once; nothing of an activation is read before its entry is loaded.
    """

    total: int
    entries: Iterable[Pending]
    notes: tuple[str, ...] = ()


@dataclass
class Export:
    """What the format of that name writes and where, and what it says about it.

    `layers`: how many the model has; None where nobody said. `shard_size`: rows a file. `dtype`: what activations are
    converted to, None for what they are, and `overflow` what becomes of finite values beyond it: `error` or `saturate`.
    `overwrite`: whether an earlier export in the place may be removed. `dry_run`: whether nothing is written. A format
    puts its files into what `tree` gives, and calls `wrote` for each entry, in the order in which it reads them again,
    so that `written` has the hook points of each by its key; what it cannot hold it says to `note`, and an entry that
    it cannot hold at all it leaves out. `places`: the trees that the export consists of, in that order: `target`, but
    where a format says otherwise.
    """

    store: Store
    keys: list[str]
    format: str
    target: Path
    layers: int | None
    shard_size: int
    dtype: str | None
    overflow: str
    overwrite: bool
    dry_run: bool
    progress: Callable[[int, int, int], object] | None = None
    raw_bytes: int = 0
    written: dict[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])
    notes: dict[str, int] = field(default_factory=dict[str, int])
    left_out: list[Damage] = field(default_factory=list[Damage])
    places: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.places = [self.target]

    @cached_property
    def identity(self) -> str:
        """Digest of what is exported and how: of equal ones the files are equal."""
        how = [self.format, self.layers, self.shard_size, self.dtype, self.overflow]
        digest = hashlib.sha256(json.dumps(how).encode())
        for key in self.keys:
            digest.update(json.dumps([key, self.store[key].content_id]).encode())
        return digest.hexdigest()

    def tree(self, place: Path, replaces: Callable[[Path], bool] | None) -> Tree:
        """The tree that grows to be `place`; in a dry run one of which nothing is written. Errors: `store_exists`."""
        return (DryTree if self.dry_run else Tree)(place, self.identity, replaces)

    def wrote(self, key: str, points: Iterable[str], raw_bytes: int) -> None:
        """Count an entry, of which the files have the activations at `points`, and show it."""
        # Of points that are the same for many entries, as most are, the names are held once.
        self.written[key] = tuple(map(intern, points))
        self.raw_bytes += raw_bytes
        self._show()

    def leave_out(self, key: str, error: ActstoreError) -> None:
        """Count an entry that the format cannot hold, for the reason in `error`."""
        self.left_out.append(Damage(kind=error.kind, message=error.message, key=key))
        self._show()

    def _show(self) -> None:
        if self.progress is not None:
            self.progress(len(self.written) + len(self.left_out), len(self.keys), self.raw_bytes)

    def note(self, sentence: str, count: int = 1) -> None:
        """Say once, with a count, what entries lose in this format."""
        self.notes[sentence] = self.notes.get(sentence, 0) + count


@dataclass(frozen=True)
class Format:
    """A layout for exchange. `recognises` looks at the content of a path; `read` opens nothing for writing.

    `dtypes`: what activations may be converted to on their way out, for a format that leaves the choice.
    `has_shards`: whether how many rows go into a file is a choice too.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Source]
    write: Callable[[Export], None]
    dtypes: tuple[str, ...] = ()
    has_shards: bool = False


def conventions_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What `conventions` gave the entry with this metadata; nothing where it was not imported."""
    known = metadata.get(CONVENTIONS)
    return cast("dict[str, Any]", known) if isinstance(known, dict) else {}


def conventions(
    format: str, *, layer_counting: str | None, padding_side: str | None, dtypes: Iterable[str], **more: Any
) -> dict[str, Any]:
    """The value of `imported_from`.

    `layer_counting`: `hidden_states` where 0 is the embedding and the last is after the final norm, `blocks` where i is
    the output of block i, None where the source does not say which layers it has. Every system that actstore replaces
    kept the state *at* a token.
    """
    return {
        "format": format,
        "layer_counting": layer_counting,
        "token_convention": "at",
        "padding_side": padding_side,
        "dtypes": sorted(set(dtypes)),
        **more,
    }
