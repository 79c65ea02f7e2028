"""Tensors into slots: pieces, alignment, several slots, lanes of devices, and the thread that empties slots."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import same_bits

import actstore
from actstore import _core
from actstore.capture import staging
from actstore.capture.drain import Drain, Filled, Finished, FinishedRow, Piece
from actstore.capture.selection import Tokens, Window, decoding_window, window
from actstore.capture.staging import Stage, Tap
from actstore.errors import ActstoreError, CaptureError, InvalidInputError, LimitExceededError, ReadOnlyError
from actstore.writer import position_ranges

DTYPES = [getattr(torch, name) for name, _ in _core.dtypes()]
SLOT = 512


@dataclass
class Rig:
    """A stage over a small ring, and a store behind it."""

    store: actstore.Store
    writer: _core.Writer
    ring: _core.Ring
    drain: Drain
    stage: Stage

    def begin(self, rows: int) -> _core.Batch:
        self.stage.call += 1
        self.stage.batch = self.writer.begin(rows)
        return self.stage.batch

    def enter(self, kept: Window) -> None:
        assert self.stage.batch is not None
        if kept.kept and kept.layout < 0:
            kept.layout = self.stage.batch.rows(kept.counts)
        self.stage.window, self.stage.tail = kept, kept.tail

    def close(self) -> None:
        self.drain.close()
        self.drain.check()
        self.writer.close()


def rig(slots: int = 4, size: int = SLOT) -> Rig:
    store = actstore.create(None, "memory")
    ring = _core.Ring(size, slots)
    drain = Drain(ring)
    return Rig(store, store.core.writer(), ring, drain, Stage(ring, drain))


@pytest.fixture
def small() -> Iterator[Rig]:
    made = rig()
    yield made
    made.drain.close()


def document(key: str, rows: int) -> str:
    return f'{{"key": "{key}", "key_recipe": "user", "positions": {position_ranges(range(rows))}}}'


def bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Every pattern of bits, NaN payloads and denormals among them."""
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    extra=st.integers(0, 3),
    row=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    steps=st.lists(st.booleans(), max_size=6),
    contiguous=st.booleans(),
    buffered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_taken_is_stored(
    dtype: torch.dtype,
    lengths: list[int],
    extra: int,
    row: tuple[int, ...],
    steps: list[bool],
    contiguous: bool,
    buffered: bool,
    seed: int,
) -> None:
    """Two points of several forwards, kept rows and not, in slots too small for most of them."""
    generator = torch.Generator().manual_seed(seed)
    made = rig()
    if buffered:
        made.stage.lane_of(torch.device("cpu")).is_direct = False
    width, batch = max(lengths) + extra, len(lengths)
    columns = [sorted(torch.randperm(width, generator=generator)[:length].tolist()) for length in lengths]
    chosen = [sorted(torch.randperm(length, generator=generator)[: 1 + seed % length].tolist()) for length in lengths]
    prefill = window(Tokens(width, [list(range(n)) for n in lengths], columns), chosen)
    draft = made.begin(batch)
    taps = [Tap(name, made.stage) for name in ("a.b", "c.d")]
    expected: list[list[list[torch.Tensor]]] = [[[] for _ in range(batch)] for _ in taps]
    for step, tail in [(-1, False), *enumerate(steps)]:
        kept = prefill if step < 0 else decoding_window(batch, kept=True, cached=not tail)
        made.enter(kept)
        shape = (batch, width if step < 0 else width + step if tail else 1, *row)
        for tap, rows in zip(taps, expected, strict=True):
            tensor = bits(shape, dtype, generator)
            tap.take(tensor if contiguous else tensor.transpose(0, 1).contiguous().transpose(0, 1))
            for b in range(batch):
                picked = [columns[b][position] for position in chosen[b]] if step < 0 else [-1]
                rows[b].append(tensor[b, picked].clone())
            # What happens to it afterwards is no matter.
            tensor.zero_()
    made.stage.hand_over()
    counts = [len(positions) + len(steps) for positions in chosen]
    finished: list[FinishedRow] = [
        (b, document(str(b), counts[b]), list(range(counts[b])), counts[b], None) for b in range(batch)
    ]
    made.drain.put(Finished(draft, finished))
    made.close()
    for b in range(batch):
        for tap, rows in zip(taps, expected, strict=True):
            assert same_bits(made.store[str(b)].torch(tap.name), torch.cat(rows[b]))


@pytest.mark.parametrize("tensor", [torch.zeros(2, 3, 4), torch.zeros(6, 4), torch.zeros(2, 3)])
def test_pieces_are_aligned_and_within_their_slot(small: Rig, tensor: torch.Tensor) -> None:
    taken: list[list[Piece]] = []
    small.begin(2)
    small.drain.put = lambda job: taken.append(job.pieces) or small.ring.release(job.slot)  # type: ignore[assignment]
    small.enter(Window((2, 3), [3, 3], None, tail=False))
    tap = Tap("a.b", small.stage)
    for _ in range(40):
        tap.take(tensor)
    small.stage.hand_over()
    size = 4 if tensor.ndim == 2 and tensor.shape[0] == 2 else 16
    for pieces in taken:
        end = 0
        for _, _, _, rows, offset in pieces:
            assert offset % 64 == 0
            assert offset >= end
            end = offset + rows * size
            assert end <= SLOT
    assert sum(piece[3] for pieces in taken for piece in pieces) == 40 * 6
    # A piece that does not fit is split rather than moved to the next slot, so that slots are full.
    assert len(taken) <= -(-40 * (128 if size == 16 else 64) // SLOT)


def test_shapes_that_are_no_rows(small: Rig) -> None:
    small.begin(2)
    small.enter(Window((2, 3), [3, 3], None, tail=False))
    for shape in ((3, 2, 4), (2, 4, 4), (1, 3, 4), (5, 4), (6,), (2, 1, 4)):
        with pytest.raises(CaptureError) as caught:
            Tap("a.b", small.stage).take(torch.zeros(shape))
        assert caught.value.kind == "rows_not_tokens"
        assert f"`a.b` has shape `{list(shape)}` in a call of `2` rows of `3` tokens" in str(caught.value)


def test_rows_that_change_within_a_call(small: Rig) -> None:
    small.begin(2)
    small.enter(Window((2, 3), [3, 3], None, tail=False))
    tap = Tap("a.b", small.stage)
    tap.take(torch.zeros(2, 3, 4))
    for other in (torch.zeros(2, 3, 5), torch.zeros(2, 3, 4, dtype=torch.bfloat16), torch.zeros(2, 3, 2, 2)):
        with pytest.raises(InvalidInputError) as caught:
            tap.take(other)
        assert caught.value.kind == "invalid_tensor"
        assert "within one call" in str(caught.value)
    # The next call may be another: a model that was moved to bfloat16, say.
    small.stage.drop()
    small.begin(2)
    small.enter(Window((2, 3), [3, 3], None, tail=False))
    tap.take(torch.zeros(2, 3, 4, dtype=torch.bfloat16))


def test_rows_that_cannot_be_staged(small: Rig) -> None:
    small.begin(1)
    small.enter(Window((1, 2), [2], None, tail=False))
    Tap("a.b", small.stage).take(torch.zeros(1, 2, SLOT // 4))
    for size in (SLOT // 4 + 1, 0):
        with pytest.raises(LimitExceededError, match=f"`{4 * size}` bytes") as caught:
            Tap("a.b", small.stage).take(torch.zeros(1, 2, size))
        assert caught.value.kind == "limit_exceeded"
    with pytest.raises(InvalidInputError) as refused:
        Tap("a.b", small.stage).take(torch.zeros(1, 2, 3, dtype=torch.complex64))
    assert refused.value.kind == "invalid_tensor"


def test_a_dropped_slot_is_free_again(small: Rig) -> None:
    """More calls than slots, none of them finished."""
    tap = Tap("a.b", small.stage)
    for _ in range(20):
        small.begin(1)
        small.enter(Window((1, 1), [1], None, tail=False))
        tap.take(torch.ones(1, 1, 4))
        small.stage.drop()


def test_the_first_failure_wakes_and_stays(small: Rig) -> None:
    """The model thread waits for the last slot when the drain fails."""

    class Failing:
        def run(self) -> None:
            time.sleep(0.2)
            raise OSError("the device is gone")

        def abandon(self) -> None:
            raise OSError("a second failure, of no interest")

    small.begin(1)
    small.enter(Window((1, 1), [1], None, tail=False))
    for _ in range(4):
        small.ring.acquire()
    small.drain.put(Failing())
    small.drain.put(Failing())
    event = mock.Mock()
    small.drain.put(Filled(small.ring, small.writer.begin(1), 0, [], event))
    tap = Tap("a.b", small.stage)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            tap.take(torch.zeros(1, 1, 4))
    small.drain.put(Finished(small.writer.begin(1), [(0, "no document", [], 0, None)]))
    small.drain.close()
    assert str(small.drain.failure) == "the device is gone"
    # Its memory may be freed only once no copy into it is under way.
    event.synchronize.assert_called_once_with()


def test_a_closed_ring_is_an_error(small: Rig) -> None:
    small.begin(1)
    small.enter(Window((1, 1), [1], None, tail=False))
    small.ring.close()
    with pytest.raises(ReadOnlyError) as caught:
        Tap("a.b", small.stage).take(torch.zeros(1, 1, 4))
    assert caught.value.kind == "closed"
    assert isinstance(caught.value, ActstoreError)


def test_a_buffer_crosses_after_the_producer_and_before_the_event() -> None:
    """The order of what is queued for a CUDA device, where there is none to try it on."""
    calls = mock.Mock()
    with (
        mock.patch.object(torch.cuda, "Stream", calls.Stream),
        mock.patch.object(torch.cuda, "Event", calls.Event),
        mock.patch.object(torch.cuda, "stream", calls.stream),
    ):
        calls.stream.return_value = mock.MagicMock()
        lane = staging._Lane(torch.device("cuda", 0))
        arrived = lane.cross(calls.buffer, calls.slot, calls.producer)
    side = calls.Stream.return_value
    assert arrived is calls.Event.return_value
    names = [call[0] for call in calls.mock_calls if "__" not in call[0]]
    assert names == [
        "Stream",
        "Stream().wait_stream",
        "stream",
        "slot.copy_",
        "Event",
        "Event().record",
        "buffer.record_stream",
    ]
    side.wait_stream.assert_called_once_with(calls.producer)
    calls.slot.copy_.assert_called_once_with(calls.buffer, non_blocking=True)
    calls.Event.return_value.record.assert_called_once_with(side)
    calls.buffer.record_stream.assert_called_once_with(side)


def test_the_ring_is_pinned_once_and_released(small: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above; and where CUDA pins no more, that is said, and what is pinned already is released."""
    runtime = mock.Mock()
    runtime.cudaHostRegister.side_effect = [0, 0, 2, *[0] * 9]
    runtime.cudaHostUnregister.return_value = 0
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "Stream", mock.Mock())
    with pytest.raises(LimitExceededError, match="CUDA cannot pin the staging memory") as caught:
        small.stage.lane_of(torch.device("cuda", 0))
    assert caught.value.kind == "limit_exceeded"
    small.stage.close()
    assert runtime.cudaHostUnregister.call_count == 2
    runtime.reset_mock()
    other = rig()
    for device in (0, 1, 0):
        other.stage.lane_of(torch.device("cuda", device))
    other.stage.close()
    other.close()
    registered = [call.args[0] for call in runtime.cudaHostRegister.mock_calls]
    released = [call.args[0] for call in runtime.cudaHostUnregister.mock_calls]
    assert len(set(registered)) == len(registered) == 4
    assert all(call.args[1:] == (SLOT, 1) for call in runtime.cudaHostRegister.mock_calls)
    assert sorted(released) == sorted(registered)


def test_another_stream_opens_another_slot(small: Rig) -> None:
    """What two streams compute must not wait in one buffer, of which only one stream's part would be waited for."""
    lane = small.stage.lane_of(torch.device("cpu"))
    lane.producer = mock.Mock(return_value="first")  # type: ignore[method-assign]
    draft = small.begin(1)
    small.enter(Window((1, 1), [1], None, tail=False))
    filled: list[Any] = []
    small.drain.put = filled.append  # type: ignore[method-assign]
    tap = Tap("a.b", small.stage)
    for stream in ("first", "first", "second"):
        lane.producer.return_value = stream
        tap.take(torch.zeros(1, 1, 4))
    small.stage.hand_over()
    assert [len(job.pieces) for job in filled] == [2, 1]
    del draft
