"""Plain forwards: one entry a row, padding left out, labels, positions, and what is refused."""

from functools import partial
from typing import Any

import models
import pytest
import torch
from oracle import same_bits, watch
from torch.multiprocessing.reductions import StorageWeakRef

import actstore
from actstore import Store
from actstore.errors import ActstoreError, CaptureError, InvalidInputError

LENGTHS = [3, 7, 1]


@pytest.fixture(params=["left", "right"])
def batch(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    return models.padded(LENGTHS, request.param)


def ids_of(batch: dict[str, torch.Tensor], row: int) -> list[int]:
    return batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()


def test_rows_are_entries_by_their_ids(llama: Any, batch: dict[str, torch.Tensor]) -> None:
    with actstore.capture(llama) as recorder:
        llama(**batch)
    keys = [actstore.key_of_ids(ids_of(batch, row)) for row in range(3)]
    assert recorder.store.keys() == keys
    for row, entry in enumerate(recorder.store):
        assert entry.token_ids == ids_of(batch, row)
        assert (entry.prompt, entry.response, entry.prompt_length, entry.key_recipe) == (None, None, None, "ids")
        assert entry.positions == list(range(LENGTHS[row]))
        assert entry.metadata == {}
        assert entry.points == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def test_text_is_decoded_but_ids_remain_the_key(llama: Any, tokenizer: Any) -> None:
    ids = tokenizer("<bos>what is it?", return_tensors="pt")["input_ids"]
    with actstore.capture(llama, tokenizer) as recorder:
        llama(input_ids=ids)
    (entry,) = recorder.store
    assert entry.prompt == "<bos>what is it?"
    assert entry.response is None
    assert entry.key == actstore.key_of_ids(ids[0].tolist())
    assert entry.key_recipe == "ids"


def test_labels(llama: Any, tokenizer: Any, batch: dict[str, torch.Tensor]) -> None:
    batch["input_ids"][batch["attention_mask"] == 1] = torch.tensor([ord(char) - 33 for char in "abcdefghijk"])
    with actstore.capture(llama, tokenizer) as recorder:
        recorder.label(
            keys=["a", None, "c"], metadata=[{"row": 0}, None, {"row": [2, None, "x"]}], prompt_lengths=[1, 4, 1]
        )
        llama(**batch)
        recorder.label(prompt_lengths=[2, 2, 0], keys=["d", "e", "f"])
        llama(**batch)
        llama(input_ids=torch.tensor([[5, 6]]))
    first, second, third, fourth, _, sixth, seventh = recorder.store
    assert [first.key, third.key, fourth.key] == ["a", "c", "d"]
    assert (first.key_recipe, second.key_recipe) == ("user", "ids")
    # Of a forward the key is made of every id, wherever its prompt ends.
    assert second.key == actstore.key_of_ids(ids_of(batch, 1))
    assert [entry.metadata for entry in (first, second, third)] == [{"row": 0}, {}, {"row": [2, None, "x"]}]
    assert (first.prompt, first.response, first.prompt_length) == ("a", "bc", 1)
    assert (second.prompt, second.response, second.prompt_length) == ("defg", "hij", 4)
    assert (third.response, sixth.prompt, sixth.response, sixth.prompt_length) == ("", "", "k", 0)
    assert (seventh.metadata, seventh.prompt_length) == ({}, None)
    assert same_bits(second.torch(1, "response"), second.torch(1)[4:])


@pytest.mark.parametrize(
    ("labels", "kind", "part"),
    [
        ({"keys": ["a"]}, "invalid_option", "`keys` labels `1` rows, but the call has `3`"),
        ({"metadata": [{}] * 4}, "invalid_option", "`metadata` labels `4` rows, but the call has `3`"),
        ({"prompt_lengths": []}, "invalid_option", "`prompt_lengths` labels `0` rows, but the call has `3`"),
        (
            {"prompt_lengths": [1, 8, 1]},
            "invalid_option",
            "`prompt_lengths` says `8` for row `1`, which has `7` tokens",
        ),
        ({"prompt_lengths": [-1, 1, 1]}, "invalid_option", "says `-1` for row `0`"),
        ({"prompt_lengths": [1, None, 1]}, "invalid_option", "`prompt_lengths[1]` is `None`"),
        ({"keys": "abc"}, "invalid_option", "`keys` is `'abc'`"),
        ({"keys": [1, 2, 3]}, "invalid_option", "`keys[0]` is `1`"),
        ({"metadata": {"a": 1}}, "invalid_option", "one item a row"),
        ({"metadata": [{"a": {"b": float("nan")}}] * 3}, "invalid_metadata", "`a.b`"),
        ({"metadata": [{"a": object()}] * 3}, "invalid_metadata", "`a`"),
    ],
)
def test_labels_that_cannot_be(
    llama: Any, batch: dict[str, torch.Tensor], labels: dict[str, Any], kind: str, part: str
) -> None:
    with actstore.capture(llama) as recorder:
        llama(**batch)
        with pytest.raises(InvalidInputError) as caught:  # noqa: PT012
            recorder.label(**labels)
            llama(input_ids=batch["input_ids"] + 1, attention_mask=batch["attention_mask"])
        # Labels are for one call, whatever became of it.
        llama(input_ids=batch["input_ids"] + 2, attention_mask=batch["attention_mask"])
    assert caught.value.kind == kind
    assert part in str(caught.value)
    assert len(recorder.store) == 6


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", [[0, 1, 2], [0, 1, 2, 3, 4, 5, 6], [0]]),
        ("prompt", [[0, 1], [0, 1, 2, 3], []]),
        ("response", [[2], [4, 5, 6], [0]]),
        ("last", [[2], [6], [0]]),
        (0, [[0], [0], [0]]),
        ([-1, 0], [[0, 2], [0, 6], [0]]),
    ],
    ids=str,
)
def test_i1_positions_count_real_tokens_on_either_side(
    llama: Any, batch: dict[str, torch.Tensor], positions: Any, expected: list[list[int]]
) -> None:
    with actstore.capture(llama, points=[0, "logits"], positions=positions) as recorder, watch(llama) as oracle:
        recorder.label(prompt_lengths=[2, 4, 0])
        output = llama(**batch)
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].bool()
        assert entry.positions == expected[row]
        assert entry.token_ids == ids_of(batch, row)
        assert same_bits(entry.torch(0), oracle.seen["resid_post.0"][0][row, real][expected[row]])
        assert same_bits(entry.torch("logits"), output.logits.detach()[row, real][expected[row]])


@pytest.mark.parametrize("positions", ["response", "prompt", 3, [0, -4]])
def test_positions_that_a_row_lacks(llama: Any, batch: dict[str, torch.Tensor], positions: Any) -> None:
    with actstore.capture(llama, positions=positions) as recorder:
        error = refused(InvalidInputError, "unknown_position", lambda: llama(**batch))
        assert len(recorder.store) == 0
    if isinstance(positions, str):
        assert "label" in str(error)


@pytest.mark.parametrize("positions", ["some", "", [], 1.5, ["0"], None, True, {"a": 1}])
def test_positions_that_do_not_exist(llama: Any, positions: Any) -> None:
    error = refused(InvalidInputError, "unknown_position", lambda: actstore.capture(llama, positions=positions))
    assert "`response`" in str(error)


def test_arguments_by_position_and_masks_of_other_types(llama: Any, batch: dict[str, torch.Tensor]) -> None:
    ids, mask = batch.values()
    with actstore.capture(llama, on_conflict="error") as recorder, torch.no_grad():
        llama(ids, mask)
        llama(ids, attention_mask=mask.bool())
        llama(input_ids=ids, attention_mask=mask.float())
        llama(ids, mask, return_dict=False)
    assert (len(recorder.store), recorder.stats.duplicates) == (3, 9)


def test_gradients_pass_and_inference_mode_works(llama: Any, batch: dict[str, torch.Tensor]) -> None:
    with actstore.capture(llama, points=["resid_post", "logits"]) as recorder:
        loss = llama(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        with torch.inference_mode():
            llama(**batch)
        llama(**batch, labels=batch["input_ids"], return_dict=False)[0].backward()
    assert llama.lm_head.weight.grad is not None
    llama.zero_grad()
    assert (len(recorder.store), recorder.stats.duplicates) == (3, 6)


def test_calls_of_one_shape_and_other_masks(llama: Any) -> None:
    batches = [models.padded([3, 5], side, seed=seed) for seed, side in enumerate(("left", "right", "left"))]
    batches.append({"input_ids": batches[0]["input_ids"] % 200 + 9, "attention_mask": torch.ones(2, 5)})
    with actstore.capture(llama) as recorder, watch(llama) as oracle:
        for batch in batches:
            llama(**batch)
    for index, entry in enumerate(recorder.store):
        call, row = divmod(index, 2)
        tensor = oracle.seen["resid_post.1"][call][row]
        assert same_bits(entry.torch(1), tensor[batches[call]["attention_mask"][row].bool()])


def test_e5_i2_the_last_row_alone_is_copied_and_no_sequence_stays(llama: Any, batch: dict[str, torch.Tensor]) -> None:
    sequences: list[StorageWeakRef] = []

    def remember(_module: Any, _args: Any, output: torch.Tensor) -> None:
        sequences.append(StorageWeakRef(output.untyped_storage()))

    with actstore.capture(llama, positions="last") as recorder, torch.inference_mode():
        hook = llama.model.layers[0].register_forward_hook(remember)
        llama(**batch)
        hook.remove()
        assert [sequence.expired() for sequence in sequences] == [True]
    assert recorder.stats.queue_peak_bytes == 3 * 2 * 32 * 4
    for entry in recorder.store:
        assert entry.torch(0).untyped_storage().nbytes() == 32 * 4


def test_c6_a_mean_over_the_rows_of_an_entry_is_over_its_tokens(llama: Any, batch: dict[str, torch.Tensor]) -> None:
    """As if its row had been alone in the batch: no row is of padding, and no token sees any."""
    with actstore.capture(llama) as recorder:
        llama(**batch)
    with watch(llama) as oracle, torch.inference_mode():
        for row in range(3):
            llama(input_ids=torch.tensor([ids_of(batch, row)]))
    for entry, alone in zip(recorder.store, oracle.seen["resid_post.1"], strict=True):
        assert torch.allclose(entry.torch(1).mean(0), alone[0].mean(0), atol=1e-5)


def test_what_happens_after_the_hook_changes_nothing(llama: Any) -> None:
    """The tensor that a hook saw is overwritten at once, and again by the module behind."""
    batch = models.padded([4, 4], "left")
    seen: list[torch.Tensor] = []

    def spoil(_module: Any, _args: Any, output: torch.Tensor) -> None:
        seen.append(output.clone())
        output.fill_(float("nan"))

    with actstore.capture(llama, points=["embed", "resid_pre.0"]) as recorder, torch.no_grad():
        hook = llama.model.embed_tokens.register_forward_hook(spoil)
        llama(**batch)
        hook.remove()
    for row, entry in enumerate(recorder.store):
        assert same_bits(entry.torch("embed"), seen[0][row])
        assert entry.torch("resid_pre.0").isnan().all()


def test_stored_before_stays(llama: Any) -> None:
    """Each refusal leaves earlier entries as they were, and later calls work."""
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    pads = torch.tensor([[models.PAD, 2, 3], [4, 5, 6]])
    cached = llama(input_ids=ids, use_cache=True).past_key_values
    embeds = llama.model.embed_tokens(ids).detach()
    refusals: list[tuple[str, dict[str, Any], str]] = [
        ("missing_attention_mask", {"input_ids": pads}, f"token `{models.PAD}`"),
        ("missing_attention_mask", {"input_ids": pads.flip(1)}, "pass `attention_mask`"),
        ("missing_attention_mask", {"input_ids": ids, "attention_mask": torch.ones(2, 1, 3, 3)}, "`[2, 1, 3, 3]`"),
        ("missing_attention_mask", {"input_ids": ids, "attention_mask": torch.ones(2, 5)}, "`[2, 5]`"),
        ("missing_attention_mask", {"input_ids": ids, "attention_mask": {"full": torch.ones(2, 3)}}, "`dict`"),
        ("rows_not_tokens", {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 0], [1, 1, 1]])}, "row `0`"),
        ("rows_not_tokens", {"inputs_embeds": embeds}, "`input_ids`"),
        ("rows_not_tokens", {"input_ids": ids, "cu_seq_lens_q": torch.tensor([0, 2, 3])}, "`cu_seq_lens_q`"),
        ("unsupported_generation", {"input_ids": ids, "past_key_values": cached}, "use `generate`"),
        ("unsupported_generation", {"input_ids": ids, "cache": cached}, "use `generate`"),
        ("prompt_too_long", {"input_ids": torch.ones(1, 65, dtype=torch.long)}, "`65` tokens, more than the `64`"),
    ]
    with actstore.capture(llama, points=["resid_post", "logits"]) as recorder, watch(llama) as oracle:
        llama(input_ids=ids)
        before = {name: tensors[0] for name, tensors in oracle.seen.items()}
        for kind, arguments, part in refusals:
            error = refused(CaptureError, kind, partial(llama, **arguments))
            assert part in str(error)
        error = refused(InvalidInputError, "invalid_option", lambda: llama(input_ids=ids, logits_to_keep=1))
        assert "`logits_to_keep`" in str(error)
        oracle.forget()
        llama(input_ids=ids + 1)
    store = recorder.store
    assert len(store) == 4
    require(store, ids, before)
    require(store, ids + 1, {name: tensors[0] for name, tensors in oracle.seen.items()})


def test_the_padding_of_the_tokenizer_comes_first(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([[7, 2, 3], [4, 5, models.PAD]])
    tokenizer = models.byte_tokenizer()
    tokenizer.pad_token_id = 7
    with actstore.capture(llama, tokenizer) as recorder:
        error = refused(CaptureError, "missing_attention_mask", lambda: llama(input_ids=ids))
        assert "token `7`" in str(error)
        llama(input_ids=ids.flip(0)[:1])
    monkeypatch.setattr(llama.config, "pad_token_id", None)
    monkeypatch.setattr(llama.generation_config, "pad_token_id", None)
    # Nobody knows of any padding.
    with actstore.capture(llama) as recorder:
        llama(input_ids=ids)
        with pytest.raises(CaptureError, match="token `7`"):
            llama.generate(ids, max_new_tokens=1, pad_token_id=7)
    assert len(recorder.store) == 2


def require(store: Store, ids: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    for row, token_ids in enumerate(ids.tolist()):
        entry = store[actstore.key_of_ids(token_ids)]
        for name in ("resid_post.0", "resid_post.1", "logits"):
            assert same_bits(entry.torch(name), tensors[name][row])


def refused(of: type[ActstoreError], kind: str, call: Any) -> ActstoreError:
    with pytest.raises(of) as caught:
        call()
    message = str(caught.value)
    assert caught.value.kind == kind, message
    assert not message.endswith(".")
    assert message[0] == "`" or message[0].islower()
    return caught.value
