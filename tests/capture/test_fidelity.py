"""Every point and row that is stored equals what plain hooks saw in the same call, bit for bit."""

from typing import Any

import models
import pytest
import torch
from oracle import ENCODERS, Oracle, points_of, same_bits, watch

import actstore
from actstore.store import Store

DECODERS = ("llama", "qwen3", "gemma2", "mixtral", "gpt2", "gptj", "llama-bfloat16", "gpt2-float16", "demo")
OTHERS = ("bert", "roberta", "bert-bfloat16", "bert-float16")
LENGTHS = {1: [5], 3: [3, 7, 1], 8: [2, 9, 4, 4, 6, 1, 8, 9]}
NEW = 6

Case = tuple[Any, dict[str, torch.Tensor], list[list[int]]]


@pytest.fixture(scope="module", params=[*DECODERS, *OTHERS])
def model(request: pytest.FixtureRequest) -> Any:
    if request.param == "demo":
        return actstore.demo.load()[0]
    family, _, dtype = request.param.partition("-")
    return models.tiny(family, dtype=getattr(torch, dtype or "float32"))


@pytest.fixture(params=["left", "right"])
def side(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=LENGTHS)
def case(model: Any, side: str, request: pytest.FixtureRequest) -> Case:
    lengths = LENGTHS[request.param]
    batch = models.padded(lengths, side)
    if model.config.vocab_size < models.VOCABULARY:
        batch["input_ids"] %= model.config.vocab_size
    columns = [batch["attention_mask"][row].nonzero().flatten().tolist() for row in range(len(lengths))]
    return model, batch, columns


def require_same(store: Store, expected: dict[str, torch.Tensor], key: str) -> None:
    entry = store[key]
    assert sorted(entry.points) == sorted(actstore.hook_points.canonical(name) for name in expected)
    for name, rows in expected.items():
        assert same_bits(entry.torch(name), rows), f"{name} of {key}"


def test_forward(case: Case) -> None:
    model, batch, columns = case
    keys = [f"row {row}" for row in range(len(columns))]
    family = model.config.model_type
    with actstore.capture(model, points=points_of(family)) as recorder, watch(model) as oracle, torch.no_grad():
        recorder.label(keys=keys)
        output = model(**batch, output_hidden_states=True)
    for row, real in enumerate(columns):
        expected = {name: oracle.rows_of_forward(name, real, row) for name in oracle.seen}
        require_same(recorder.store, expected, keys[row])
        entry = recorder.store[keys[row]]
        assert entry.token_ids == batch["input_ids"][row, real].tolist()
        assert entry.positions == list(range(len(real)))
        hidden = [state[row, real] for state in output.hidden_states]
        for layer, state in enumerate(hidden[:-1]):
            assert same_bits(entry.torch(f"resid_pre.{layer}"), state)
            assert layer == 0 or same_bits(entry.torch(f"resid_post.{layer - 1}"), state)
        if family in ENCODERS:
            # No norm behind the last layer, and the embeddings are summed and normed in one module.
            assert same_bits(entry.torch("resid_post.1"), hidden[-1])
            assert same_bits(entry.torch("embed"), hidden[0])
        else:
            assert same_bits(entry.torch("final_norm"), hidden[-1])
        assert same_bits(entry.torch("logits"), output.logits[row, real])


@pytest.mark.parametrize("model", DECODERS, indirect=True)
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"do_sample": True}, {"early": True}], ids=str)
def test_generate(case: Case, options: dict[str, Any]) -> None:
    model, batch, columns = case
    options = {"do_sample": False, "pad_token_id": int(batch["input_ids"].max()), **options}
    eos = None
    if options.pop("early", False):
        # The third token of the first row, so that some rows end early.
        free = model.generate(**batch, max_new_tokens=NEW, eos_token_id=None, **options)
        eos = int(free[0, batch["input_ids"].shape[1] + 2])
    keys = [f"row {row}" for row in range(len(columns))]
    points = points_of(model.config.model_type)
    with actstore.capture(model, points=points) as recorder, watch(model) as oracle:
        torch.manual_seed(1)
        recorder.label(keys=keys)
        made = model.generate(**batch, max_new_tokens=NEW, eos_token_id=eos, **options)
    require_rows(recorder.store, oracle, batch, columns, keys, made, eos)


def require_rows(
    store: Store,
    oracle: Oracle,
    batch: dict[str, torch.Tensor],
    columns: list[list[int]],
    keys: list[str],
    made: torch.Tensor,
    eos: int | None,
) -> None:
    lengths = set()
    for row, real in enumerate(columns):
        response = made[row, batch["input_ids"].shape[1] :].tolist()
        response = response[: response.index(eos) + 1] if eos in response else response
        tokens = len(real) + len(response) - 1
        expected = {name: oracle.rows_of_generation(name, real, row, tokens) for name in oracle.seen}
        assert all(len(rows) == tokens for rows in expected.values())
        require_same(store, expected, keys[row])
        entry = store[keys[row]]
        assert entry.token_ids == batch["input_ids"][row, real].tolist() + response
        assert (entry.prompt_length, entry.positions) == (len(real), list(range(tokens)))
        lengths.add(len(response))
    assert eos is None or min(lengths) < NEW
