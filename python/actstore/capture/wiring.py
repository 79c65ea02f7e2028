"""What a block is made of, from hooks to writer: built on entering, taken apart in order on leaving."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from actstore import _core
from actstore.capture.calls import Sink
from actstore.capture.drain import Drain
from actstore.capture.session import Session
from actstore.capture.staging import Stage
from actstore.capture.stats import CaptureStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from actstore.capture.families import Anatomy, Site
    from actstore.capture.selection import Positions
    from actstore.store import Store

__all__ = ["Plan", "Wiring"]

_SLOT_BYTES = 4 << 20
_FEWEST_SLOTS, _MOST_SLOTS = 4, 32
_COUNTS = ("entries", "duplicates", "rejected", "tokens", "raw_bytes", "stored_bytes", "queue_peak_bytes")


class Plan:
    """What to capture. `memory`: bytes, of which an eighth stages activations."""

    def __init__(self, anatomy: Anatomy, sites: dict[str, Site], positions: Positions, tokenizer: Any) -> None:
        self.anatomy = anatomy
        self.sites = sites
        self.positions = positions
        self.tokenizer = tokenizer


class Wiring:
    """Writer, ring, drain and session of one block."""

    def __init__(self, plan: Plan, store: Store, memory: int) -> None:
        self._entered = time.perf_counter()
        self._writer = store.core.writer()
        slots = min(max(memory // 8 // _SLOT_BYTES, _FEWEST_SLOTS), _MOST_SLOTS)
        self._ring = _core.Ring(_SLOT_BYTES, slots)
        self._drain = Drain(self._ring)
        self._stage = Stage(self._ring, self._drain)
        sink = Sink(self._writer, self._stage, self._drain, len(plan.sites), plan.positions, plan.tokenizer)
        self.session = Session(plan.anatomy, plan.sites, sink)
        self._devices = {parameter.device for parameter in plan.anatomy.model.parameters()}

    def attach(self) -> None:
        """Set the hooks. Where the ring has to be pinned for a device, that is done first: it waits for the device."""
        for device in self._devices:
            self._stage.lane_of(device)
        self.session.attach()

    def stats(self) -> CaptureStats:
        """What was done so far."""
        counts: dict[str, Any] = json.loads(self._writer.stats())
        return CaptureStats(
            **{name: counts[name] for name in _COUNTS},
            seconds=time.perf_counter() - self._entered,
            stall_ms=self._ring.stall_seconds * 1e3,
        )

    def close(self) -> BaseException | None:
        """Remove the hooks, commit what is complete, end the threads; the first failure of the block."""
        steps: tuple[Callable[[], None], ...] = (
            self.session.detach,
            self._drain.close,
            self._drain.check,
            self._writer.close,
            self._ring.close,
            self._stage.close,
        )
        failures: list[BaseException] = []
        for step in steps:
            try:
                step()
            except BaseException as error:
                failures.append(error)
        return failures[0] if failures else None
