"""The object that `actstore.capture` gives. Importing this does not import torch; making a recorder does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.capture.labels import Labels
from actstore.capture.stats import CaptureStats
from actstore.errors import InvalidInputError, ReadOnlyError
from actstore.hook_points import expand

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from torch import nn

    from actstore.capture.target import Target
    from actstore.capture.wiring import Plan, Wiring
    from actstore.hook_points import LayersLike, PointLike
    from actstore.store import Store

__all__ = ["Recorder"]


class Recorder:
    """Turns the calls of a model into entries, in a `with` block that is entered once. From `actstore.capture`.

    A call whose rows cannot be told from its tokens raises `CaptureError`: `missing_attention_mask` for a padded batch
    without a mask, `prompt_too_long`, `unsupported_generation` (before any token) for beams, several sequences a
    prompt, chunked prefill and the like, `rows_not_tokens` for the rest. Entries are stored in the background; the
    first failure there is raised by every later call and by leaving the block. Make one call at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        target: Target,
        *,
        layers: LayersLike,
        points: PointLike | Iterable[PointLike],
        positions: str | int | Iterable[int],
    ) -> None:
        from actstore.capture.families import dissect
        from actstore.capture.selection import parse_positions
        from actstore.capture.wiring import Plan

        anatomy = dissect(model)
        sites = {name: anatomy.site(name) for name in expand(points, layers, anatomy.layers)}
        self.points: list[str] = list(sites)
        """Stored names of the hook points that are captured."""
        self._plan: Plan | None = Plan(anatomy, sites, parse_positions(positions), tokenizer)
        self._target = target
        self._store: Store | None = None
        self._wiring: Wiring | None = None
        self._stats = CaptureStats()

    @property
    def store(self) -> Store:
        """The store. One given as a path is open for writing inside the block, and for reading after it."""
        if self._store is None:
            raise ReadOnlyError("closed", "the recorder was not entered; use it in a `with` block")
        return self._store

    @property
    def stats(self) -> CaptureStats:
        """What was captured and stored so far."""
        return self._stats if self._wiring is None else self._wiring.stats()

    def label(
        self,
        keys: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> None:
        """Label the rows of the next call, one item a row.

        `keys` stand instead of those made of prompts or token ids. `metadata`: what JSON can hold. `prompt_lengths`:
        how many tokens of each row of a plain forward are its prompt's; a row without has no response.

        Errors: `invalid_metadata`, and `invalid_option`: for items of a wrong type here, for a wrong count in the call.
        """
        self._open_wiring().session.labels = Labels.of(keys, metadata, prompt_lengths)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        keys: Sequence[str | None] | None = None,
        batch_size: int = 8,
        **generation: Any,
    ) -> list[str]:
        """Generate for `prompts`, batch by batch, each prompt an entry; the text of each response.

        `prompts` are final: a chat template has been applied, if there is one. They are tokenized as the tokenizer does
        by default and padded on the left. An entry's key is the SHA-256 of its prompt, or what `keys` gives.
        `generation` goes to `model.generate`.
        """
        session = self._open_wiring().session
        if session.labels is not None:
            raise InvalidInputError("invalid_option", "`label` labels a call of the model; give labels to `generate`")
        if batch_size < 1:
            raise InvalidInputError("invalid_option", f"`batch_size` is `{batch_size}`; it is at least `1`")
        labels = Labels.of(keys, metadata, prompts=prompts)
        labels.require(len(prompts))
        starts = range(0, len(prompts), batch_size)
        batches = (labels.rows(slice(start, start + batch_size)) for start in starts)
        return [text for batch in batches for text in session.generate_texts(batch, generation)]

    def __enter__(self) -> Self:
        from actstore.capture.wiring import Wiring

        if self._plan is None or self._store is not None:
            raise ReadOnlyError("closed", "a recorder is entered once; call `actstore.capture` again")
        self._store = self._target.open()
        try:
            self._wiring = Wiring(self._plan, self._store, self._target.memory)
            self._wiring.attach()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = self._close()
        if failure is None or failure is error:
            return
        if error is None:
            raise failure
        error.add_note(f"and while entries were being stored: {failure}")

    def _close(self) -> BaseException | None:
        """Ends the block; its first failure. Neither the model nor the ring is held any longer."""
        wiring, self._plan = self._wiring, None
        failure = None
        if wiring is not None:
            failure = wiring.close()
            self._stats = wiring.stats()
            self._wiring = None
        if self._store is not None:
            try:
                self._store = self._target.settle(self._store)
            except BaseException as error:
                failure = failure or error
        return failure

    def _open_wiring(self) -> Wiring:
        if self._wiring is None:
            raise ReadOnlyError("closed", "the recorder is not open; use it inside its `with` block")
        return self._wiring
