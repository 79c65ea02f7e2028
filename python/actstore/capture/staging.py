"""The open slot of the ring: tensors of hooks are copied into it, full slots go to the drain.

`Tap.take` runs thousands of times a second, so it does its work in line. It never waits for a device; it waits for
one thing, a free slot.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

from actstore.arrays import dtype_name
from actstore.capture.drain import Filled
from actstore.errors import ActstoreError, CaptureError, InvalidInputError, LimitExceededError

if TYPE_CHECKING:
    from torch import Tensor

    from actstore import _core
    from actstore.capture.drain import Drain, Piece
    from actstore.capture.selection import Window

__all__ = ["Stage", "Tap"]

_ALIGNMENT = 64
_PORTABLE = 1
"""`cudaHostRegisterPortable`: pinned for every device."""


class _Views(dict[torch.dtype, "Tensor"]):
    """The memory of an open slot, as values of each dtype."""

    def __init__(self, memory: Tensor) -> None:
        super().__init__({torch.uint8: memory})

    def __missing__(self, dtype: torch.dtype) -> Tensor:
        view = self[dtype] = self[torch.uint8].view(dtype)
        return view


class _Lane:
    """How tensors of one device get into a slot.

    Those on the CPU are copied straight into it. Those of a device are gathered in a buffer there, by the stream that
    computes them, so that nothing that happens to them later can change what is stored; a full buffer crosses over on a
    stream of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_direct = device.type == "cpu"
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def producer(self) -> torch.cuda.Stream | None:
        """The stream that the model computes on just now."""
        return None if self.side is None else torch.cuda.current_stream(self.device)

    def buffer(self, size: int) -> Tensor:
        """Memory of the device to gather a slot in."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def cross(self, buffer: Tensor, slot: Tensor, producer: torch.cuda.Stream | None) -> torch.cuda.Event | None:
        """Copy a buffer into a slot; the event says when it has arrived, None that it has."""
        if self.side is None or producer is None:
            slot.copy_(buffer)
            return None
        self.side.wait_stream(producer)
        with torch.cuda.stream(self.side):
            slot.copy_(buffer, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)
            arrived.record(self.side)
        # The allocator must not reuse the buffer while the copy reads it.
        buffer.record_stream(self.side)
        return arrived


class Stage:
    """The open slot, and where the forward pass under way stands. Used by the model thread alone."""

    def __init__(self, ring: _core.Ring, drain: Drain) -> None:
        self.call = 0
        self.batch: _core.Batch | None = None
        self.window: Window | None = None
        self.tail = False
        self.fired = 0
        self.size = ring.slot_bytes
        self.offset = 0
        self.pieces: list[Piece] = []
        self.lane: _Lane | None = None
        self.producer: torch.cuda.Stream | None = None
        self.views: dict[torch.dtype, Tensor] = {}
        self._ring = ring
        self._drain = drain
        self._slots = {slot.index: torch.frombuffer(slot, dtype=torch.uint8) for slot in ring.slots()}
        self._slot_views = {index: _Views(slot) for index, slot in self._slots.items()}
        self._slot = -1
        self._lanes: dict[torch.device, _Lane] = {}
        self._pinned: list[Tensor] = []

    def lane_of(self, device: torch.device) -> _Lane:
        """The lane of `device`. With the first of CUDA the ring is pinned, once."""
        if device not in self._lanes:
            self._lanes[device] = _Lane(device)
            if device.type == "cuda" and not self._pinned:
                self._pin()
        return self._lanes[device]

    def open(self, lane: _Lane) -> None:
        """Hand over what is filled and wait for a free slot."""
        self.hand_over()
        self._drain.check()
        try:
            self._slot = self._ring.acquire()
        except ActstoreError:
            self._drain.check()
            raise
        self.views = self._slot_views[self._slot] if lane.is_direct else _Views(lane.buffer(self.size))
        self.producer = lane.producer()
        self.lane = lane

    def has_moved(self) -> bool:
        """Whether the model computes on another stream than the open slot was filled by."""
        return self.lane is not None and self.lane.producer() != self.producer

    def hand_over(self) -> None:
        """Give the open slot to the drain. Without one, nothing happens."""
        if self.lane is None or self.batch is None:
            return
        arrived = None
        if not self.lane.is_direct:
            slot, buffer = self._slots[self._slot], self.views[torch.uint8]
            arrived = self.lane.cross(buffer[: self.offset], slot[: self.offset], self.producer)
        self._drain.put(Filled(self._ring, self.batch, self._slot, self.pieces, arrived))
        self._forget()

    def drop(self) -> None:
        """Give the open slot back unused."""
        if self._slot >= 0:
            self._ring.release(self._slot)
        self._forget()

    def close(self) -> None:
        """Unpin the ring, which no copy may still be filling."""
        while self._pinned:
            _require_success("unpin", _cuda_runtime().cudaHostUnregister(self._pinned.pop().data_ptr()))

    def _forget(self) -> None:
        self._slot = -1
        self.offset = 0
        self.pieces = []
        self.lane = None
        self.producer = None
        self.views = {}

    def _pin(self) -> None:
        for slot in self._slots.values():
            status = _cuda_runtime().cudaHostRegister(slot.data_ptr(), slot.numel(), _PORTABLE)
            _require_success("pin", status)
            self._pinned.append(slot)


def _cuda_runtime() -> Any:
    return cast("Any", torch.cuda).cudart()


def _require_success(action: str, status: Any) -> None:
    if int(status) != 0:
        message = f"CUDA cannot {action} the staging memory (error `{int(status)}`); an eighth of `memory` is staged"
        raise LimitExceededError("limit_exceeded", message)


class Tap:
    """What the hook of one hook point calls. What it learns of a tensor it keeps for those that look the same."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self._stage = stage
        self._call = 0
        self._window: Window | None = None
        self._shape: torch.Size | None = None
        self._dtype = torch.uint8
        self._itemsize = 1
        self._row_shape: tuple[int, ...] = ()
        self._row_bytes = 0
        self._lane: _Lane | None = None
        self._index: Tensor | None = None
        self._out_shape: tuple[int, ...] = ()
        self._out_stride: tuple[int, ...] = ()
        self._bytes = 0
        self._point = -1

    def take(self, tensor: Tensor) -> None:
        """Copy the kept rows of `tensor` into the open slot."""
        stage = self._stage
        stage.fired += 1
        if tensor.requires_grad:
            tensor = tensor.detach()
        if stage.tail:
            tensor = tensor[:, -1:]
        window = stage.window
        is_known = window is self._window and tensor.shape == self._shape and tensor.dtype is self._dtype
        if window is None or not is_known:
            window = self._meet(tensor)
        if not window.kept:
            return
        start = stage.offset
        end = start + self._bytes
        has_moved = stage.producer is not None and stage.has_moved()
        if has_moved or stage.lane is not self._lane or end > stage.size:
            self._spread(tensor, window)
            return
        out = stage.views[self._dtype].as_strided(self._out_shape, self._out_stride, start // self._itemsize)
        if self._index is None:
            out.copy_(tensor)
        else:
            torch.index_select(tensor.reshape(-1, self._out_shape[1]), 0, self._index, out=out)
        stage.pieces.append((self._point, window.layout, 0, window.kept, start))
        stage.offset = (end + _ALIGNMENT - 1) & -_ALIGNMENT

    def _meet(self, tensor: Tensor) -> Window:
        """Learn a tensor that does not look like the last one."""
        stage, window = self._stage, self._stage.window
        if window is None or stage.batch is None:
            reason = f"`{self.name}` was computed outside a call of it; call the model itself, not a part of it"
            raise CaptureError("unsupported_model", f"the captured model was not called: {reason}")
        dtype, row_shape = tensor.dtype, self._row_shape_of(tensor, window)
        if self._call != stage.call:
            self._declare(stage.batch, dtype, row_shape)
        elif (dtype, row_shape) != (self._dtype, self._row_shape):
            change = f"from {self._dtype} `{list(self._row_shape)}` to {dtype} `{list(row_shape)}`"
            raise InvalidInputError("invalid_tensor", f"a row of `{self.name}` changed {change} within one call")
        self._window, self._shape = window, tensor.shape
        self._lane = stage.lane_of(tensor.device)
        self._index = window.index(tensor.device)
        self._out_shape = tuple(tensor.shape) if self._index is None else (window.kept, math.prod(row_shape))
        self._out_stride = tuple(math.prod(self._out_shape[axis + 1 :]) for axis in range(len(self._out_shape)))
        self._bytes = window.kept * self._row_bytes
        return window

    def _row_shape_of(self, tensor: Tensor, window: Window) -> tuple[int, ...]:
        shape = tuple(tensor.shape)
        if shape[:2] == window.shape:
            return shape[2:]
        # Routers and experts see the tokens of all rows in one dimension.
        if len(shape) == 2 and shape[0] == math.prod(window.shape):
            return shape[1:]
        tokens = f"a call of `{window.shape[0]}` rows of `{window.shape[1]}` tokens"
        raise CaptureError("rows_not_tokens", f"`{self.name}` has shape `{list(shape)}` in {tokens}")

    def _declare(self, batch: _core.Batch, dtype: torch.dtype, row_shape: tuple[int, ...]) -> None:
        row_bytes = math.prod(row_shape) * dtype.itemsize
        if not 0 < row_bytes <= self._stage.size:
            message = f"a row of `{self.name}` has `{row_bytes}` bytes; from `1` to `{self._stage.size}` can be staged"
            raise LimitExceededError("limit_exceeded", message)
        self._point = batch.point(self.name, dtype_name(dtype), row_shape)
        self._call = self._stage.call
        self._dtype, self._itemsize = dtype, dtype.itemsize
        self._row_shape, self._row_bytes = row_shape, row_bytes

    def _spread(self, tensor: Tensor, window: Window) -> None:
        """Copy what does not fit into the open slot, in as many pieces as it takes."""
        stage, lane = self._stage, self._stage.lane_of(tensor.device)
        width = self._row_bytes // self._itemsize
        rows = tensor.reshape(-1, width)
        first = 0
        while first < window.kept:
            if stage.lane is not lane or stage.offset + self._row_bytes > stage.size or stage.has_moved():
                stage.open(lane)
            count = min(window.kept - first, (stage.size - stage.offset) // self._row_bytes)
            start = stage.offset // self._itemsize
            out = stage.views[self._dtype].as_strided((count, width), (width, 1), start)
            if self._index is None:
                out.copy_(rows[first : first + count])
            else:
                torch.index_select(rows, 0, self._index[first : first + count], out=out)
            stage.pieces.append((self._point, window.layout, first, count, stage.offset))
            stage.offset = (stage.offset + count * self._row_bytes + _ALIGNMENT - 1) & -_ALIGNMENT
            first += count
