"""On a CUDA device: the same bits as plain hooks, and no waiting for the device inside a forward."""

from collections.abc import Iterator
from typing import Any

import models
import pytest
import torch
from oracle import POINTS, same_bits, watch

import actstore
from actstore import _core
from actstore.capture.drain import Drain
from actstore.capture.staging import Stage

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="left out: torch finds no CUDA device here"),
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    return models.tiny("gemma2", dtype=getattr(torch, request.param)).cuda()


@pytest.fixture(params=["left", "right"])
def batch(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in models.padded([3, 7, 1], request.param).items()}


@pytest.fixture
def strict(model: Any) -> Iterator[None]:
    """Waiting for the device between the first block and the last norm is an error."""

    def forbid(*_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def allow(*_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    hooks = [
        model.model.layers[0].register_forward_pre_hook(forbid, prepend=True),
        model.model.norm.register_forward_hook(allow, always_call=True),
    ]
    yield
    allow()
    for hook in hooks:
        hook.remove()


@pytest.mark.usefixtures("strict")
def test_forward(model: Any, batch: dict[str, torch.Tensor]) -> None:
    with actstore.capture(model, points=POINTS) as recorder, watch(model) as oracle, torch.no_grad():
        model(**batch)
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        for name in oracle.seen:
            assert same_bits(entry.torch(name), oracle.rows_of_forward(name, real, row).cpu()), name


@pytest.mark.usefixtures("strict")
def test_generate(model: Any, batch: dict[str, torch.Tensor]) -> None:
    with actstore.capture(model, points=POINTS) as recorder, watch(model) as oracle:
        made = model.generate(**batch, max_new_tokens=6, do_sample=False)
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        assert entry.token_ids == [*batch["input_ids"][row, real].tolist(), *made[row, -6:].tolist()]
        for name in oracle.seen:
            expected = oracle.rows_of_generation(name, real, row, len(real) + 5).cpu()
            assert same_bits(entry.torch(name), expected), name


def test_what_happens_after_the_hook_changes_nothing(model: Any, batch: dict[str, torch.Tensor]) -> None:
    seen: list[torch.Tensor] = []

    def spoil(_module: Any, _args: Any, output: torch.Tensor) -> None:
        torch.cuda._sleep(10_000_000)
        seen.append(output.clone())
        output.fill_(float("nan"))

    with actstore.capture(model, points=["embed"]) as recorder, torch.no_grad():
        hook = model.model.embed_tokens.register_forward_hook(spoil)
        for shift in range(8):
            model(input_ids=(batch["input_ids"] + shift) % 250, attention_mask=batch["attention_mask"])
        hook.remove()
    for index, entry in enumerate(recorder.store):
        call, row = divmod(index, 3)
        assert same_bits(entry.torch("embed"), seen[call][row, batch["attention_mask"][row].bool()].cpu())


def test_another_stream(model: Any, batch: dict[str, torch.Tensor]) -> None:
    stream = torch.cuda.Stream()
    with actstore.capture(model, points=POINTS) as recorder, watch(model) as oracle, torch.no_grad():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(**batch)
        torch.cuda.synchronize()
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        for name in oracle.seen:
            assert same_bits(entry.torch(name), oracle.rows_of_forward(name, real, row).cpu()), name


def test_many_slots() -> None:
    """Several times what the ring holds."""
    model = models.tiny("llama", layers=4, hidden_size=1024, max_position_embeddings=4096).cuda()
    batch = {name: tensor.cuda() for name, tensor in models.padded([3000, 1000], "left").items()}
    recorder = actstore.capture(model, points=["resid_pre", "resid_post"], memory="512 MiB")
    with recorder, watch(model) as oracle, torch.no_grad():
        model(**batch)
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        for layer in range(4):
            for name in (f"resid_pre.{layer}", f"resid_post.{layer}"):
                assert same_bits(entry.torch(name), oracle.rows_of_forward(name, real, row).cpu()), name


def test_the_ring_is_pinned_once_and_released() -> None:
    ring = _core.Ring(1 << 20, 2)
    drain = Drain(ring)
    stage = Stage(ring, drain)
    for _ in range(2):
        stage.lane_of(torch.device("cuda", 0))
    assert all(slot.is_pinned() for slot in stage._slots.values())
    stage.close()
    assert not any(slot.is_pinned() for slot in stage._slots.values())
    drain.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="left out: needs two CUDA devices")
def test_layers_on_two_devices() -> None:
    from accelerate import dispatch_model

    model = models.tiny("llama", layers=4)
    placed = {
        "model.embed_tokens": 0,
        "model.layers.0": 0,
        "model.layers.1": 0,
        "model.layers.2": 1,
        "model.layers.3": 1,
    }
    model: Any = dispatch_model(model, {**placed, "model.norm": 1, "model.rotary_emb": 0, "lm_head": 1})
    batch = {name: tensor.cuda(0) for name, tensor in models.padded([3, 7], "left").items()}
    with actstore.capture(model, points=POINTS) as recorder, watch(model) as oracle:
        model.generate(**batch, max_new_tokens=4)
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        for name, tensors in oracle.seen.items():
            oracle.seen[name] = [tensor.cpu() for tensor in tensors]
            assert same_bits(entry.torch(name), oracle.rows_of_generation(name, real, row, len(real) + 3)), name
