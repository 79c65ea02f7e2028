"""The thread that empties filled slots and finishes entries, in the order in which the model thread asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from actstore import _core

__all__ = ["Drain", "Filled", "Finished", "FinishedRow", "Piece"]

Piece = tuple[int, int, int, int, int]
"""(point, layout, first row, rows, offset in the slot), as `Batch.take` wants it."""
FinishedRow = tuple[int, str, list[int], int, list[int] | None]
"""(row, document, token ids, captured, select), as `Batch.finish` wants it."""


class _Job(Protocol):
    def run(self) -> None: ...
    def abandon(self) -> None: ...


@dataclass(frozen=True)
class Filled:
    """A slot to be emptied into a batch, once the device has filled it."""

    ring: _core.Ring
    batch: _core.Batch
    slot: int
    pieces: list[Piece]
    arrived: torch.cuda.Event | None

    def run(self) -> None:
        """Empty the slot; it is free again whatever happens."""
        if self.arrived is not None:
            self.arrived.synchronize()
        self.batch.take(self.ring, self.slot, self.pieces)

    def abandon(self) -> None:
        """Wait until the device has left the slot alone. The ring is closed, nobody waits for the slot."""
        if self.arrived is not None:
            self.arrived.synchronize()


@dataclass(frozen=True)
class Finished:
    """The rows of a batch, all captured, to be queued as entries."""

    batch: _core.Batch
    rows: list[FinishedRow]

    def run(self) -> None:
        """Queue them."""
        for row in self.rows:
            self.batch.finish(*row)

    def abandon(self) -> None:
        """Leave them; they are never visible."""


class Drain:
    """Runs jobs in order. The first failure is kept, and what comes after it is abandoned."""

    def __init__(self, ring: _core.Ring) -> None:
        self.failure: BaseException | None = None
        self._ring = ring
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # A daemon, so that a recorder that is never left cannot keep the interpreter from ending.
        self._thread = Thread(target=self._run, name="actstore-drain", daemon=True)
        self._thread.start()

    def put(self, job: _Job) -> None:
        """Queue a job; returns at once."""
        self._jobs.put(job)

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Return when every job is done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self.failure is None:
                    job.run()
                else:
                    job.abandon()
            except BaseException as error:
                if self.failure is None:
                    self.failure = error
                    # Wakes the model thread, should it wait for a slot that will not come back.
                    self._ring.close()
