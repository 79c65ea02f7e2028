"""Generations: prefill and steps are one entry a row; what has no row a token is refused before any token."""

import inspect
import re
from typing import Any

import models
import pytest
import torch
from oracle import same_bits, watch
from transformers import DynamicCache, GenerationConfig, StaticCache, StoppingCriteria, StoppingCriteriaList

import actstore
from actstore.capture.generation import Request
from actstore.errors import CaptureError, InvalidInputError

PROMPTS = ["what is it?", "who", "why not today"]
NEW = 5


def first_stop(model: Any, batch: dict[str, torch.Tensor], after: int) -> int:
    """The token that row 0 makes at step `after`, to be used as the end of rows."""
    free = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    return int(free[0, batch["input_ids"].shape[1] + after])


def responses_of(made: torch.Tensor, width: int, eos: int | None) -> list[list[int]]:
    rows = made[:, width:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts(llama: Any, tokenizer: Any, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "padding_side", side)
    eos = first_stop(llama, tokenizer(PROMPTS[:2], return_tensors="pt", padding=True), 2)
    with actstore.capture(llama, tokenizer) as recorder:
        texts = recorder.generate(
            PROMPTS, metadata=[{"n": n} for n in range(3)], batch_size=2, max_new_tokens=NEW, eos_token_id=eos
        )
    store = recorder.store
    assert store.keys() == [actstore.key_of_prompt(prompt) for prompt in PROMPTS]
    for row, entry in enumerate(store):
        ids = tokenizer(PROMPTS[row])["input_ids"]
        assert (entry.prompt, entry.response, entry.key_recipe) == (PROMPTS[row], texts[row], "prompt")
        assert (entry.prompt_length, entry.metadata) == (len(ids), {"n": row})
        assert entry.token_ids is not None
        assert entry.token_ids[: len(ids)] == ids
        assert tokenizer.decode(entry.token_ids[len(ids) :], skip_special_tokens=True) == texts[row]
        assert entry.shape(0) == (len(entry.token_ids) - 1, 32)
        assert same_bits(entry.torch(0, "response"), entry.torch(0)[len(ids) :])
    lengths = [len(entry.token_ids or ()) - (entry.prompt_length or 0) for entry in store]
    assert lengths[0] <= 3


def test_prompts_without_a_padding_token(llama: Any) -> None:
    tokenizer = models.byte_tokenizer()
    with actstore.capture(llama, tokenizer) as recorder:
        texts = recorder.generate(PROMPTS, max_new_tokens=2, keys=["a", None, "c"])
    tokenizer.pad_token = None
    with actstore.capture(llama, tokenizer) as second:
        assert second.generate(PROMPTS, max_new_tokens=2) == texts
    assert recorder.store.keys() == ["a", actstore.key_of_prompt("who"), "c"]
    for entry, other in zip(recorder.store, second.store, strict=True):
        assert same_bits(entry.torch(1), other.torch(1))


def test_bad_prompts(llama: Any, tokenizer: Any) -> None:
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("what is it?", {}, "`prompts`"),
        (("what", None), {}, "`prompts[1]` is `None`"),
        (["what", 3], {}, "`prompts[1]` is `3`"),  # type: ignore[list-item]
        (PROMPTS, {"batch_size": 0}, "`batch_size` is `0`"),
        (PROMPTS, {"keys": ["a"]}, "`keys` labels `1` rows, but the call has `3`"),
        (PROMPTS, {"metadata": [{}, {}]}, "`metadata` labels `2` rows"),
    ]
    with actstore.capture(llama, tokenizer) as recorder:
        for prompts, options, part in calls:
            with pytest.raises(InvalidInputError) as caught:
                recorder.generate(prompts, max_new_tokens=1, **options)
            assert caught.value.kind == "invalid_option"
            assert part in str(caught.value)
        recorder.label(keys=["a", "b", "c"])
        with pytest.raises(InvalidInputError, match="give labels to `generate`"):
            recorder.generate(PROMPTS, max_new_tokens=1)
    assert len(recorder.store) == 0
    with actstore.capture(llama) as recorder, pytest.raises(InvalidInputError, match="needs a tokenizer"):
        recorder.generate(PROMPTS)
    with actstore.capture(llama, tokenizer) as recorder:
        for prompts, part in ((["a", ""], "row `1` of the batch has `0` tokens"), ([""], "without `input_ids`")):
            with pytest.raises(CaptureError, match=re.escape(part)):
                recorder.generate(prompts)


def test_no_prompts(llama: Any, tokenizer: Any) -> None:
    with actstore.capture(llama, tokenizer) as recorder:
        assert recorder.generate([], max_new_tokens=1) == []


def test_generate_of_the_model_itself(llama: Any, tokenizer: Any) -> None:
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    with actstore.capture(llama, tokenizer) as recorder:
        recorder.label(metadata=[{"n": n} for n in range(3)])
        made = llama.generate(**batch, max_new_tokens=NEW, do_sample=False)
        assert list(inspect.signature(llama.generate).parameters)[:2] == ["inputs", "generation_config"]
    assert torch.equal(made, llama.generate(**batch, max_new_tokens=NEW, do_sample=False))
    for row, entry in enumerate(recorder.store):
        ids = tokenizer(PROMPTS[row])["input_ids"]
        # The text that was fed is not known, so the ids of the prompt are the key.
        assert (entry.key, entry.key_recipe) == (actstore.key_of_ids(ids), "ids")
        assert (entry.prompt, entry.metadata) == (PROMPTS[row], {"n": row})
        assert entry.response == tokenizer.decode(made[row, -NEW:], skip_special_tokens=True)


@pytest.mark.parametrize("how", ["dict", "positional", "config", "model config", "output"])
def test_ways_to_call(llama: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = models.padded([3, 6], "left")
    ids, mask = batch.values()
    eos = first_stop(llama, batch, 1)
    with actstore.capture(llama) as recorder, watch(llama) as oracle:
        if how == "dict":
            made = llama.generate(**batch, max_new_tokens=NEW, eos_token_id=[eos, 3000])
        elif how == "positional":
            made = llama.generate(ids, GenerationConfig(max_new_tokens=NEW, eos_token_id=eos), attention_mask=mask)
        elif how == "config":
            config = GenerationConfig(max_new_tokens=NEW, eos_token_id=eos, pad_token_id=models.PAD)
            made = llama.generate(inputs=ids, attention_mask=mask, generation_config=config)
        elif how == "model config":
            monkeypatch.setattr(llama.generation_config, "eos_token_id", eos)
            made = llama.generate(ids, attention_mask=mask, max_new_tokens=NEW)
        else:
            output = llama.generate(
                **batch,
                max_new_tokens=NEW,
                eos_token_id=torch.tensor([eos]),
                return_dict_in_generate=True,
                output_logits=True,
            )
            made = output.sequences
            assert len(output.logits) == made.shape[1] - ids.shape[1]
    responses = responses_of(made, ids.shape[1], eos)
    assert len(responses[0]) == 2
    for row, entry in enumerate(recorder.store):
        real = mask[row].nonzero().flatten().tolist()
        assert entry.token_ids == ids[row, real].tolist() + responses[row]
        tokens = len(real) + len(responses[row]) - 1
        assert same_bits(entry.torch(1), oracle.rows_of_generation("resid_post.1", real, row, tokens))


def test_without_an_end_every_token_counts(llama: Any) -> None:
    """A padding token in a response is a token like any other; only an end ends."""
    batch = models.padded([3, 6], "left")
    made = llama.generate(**batch, max_new_tokens=NEW)
    with actstore.capture(llama) as recorder:
        llama.generate(**batch, max_new_tokens=NEW, pad_token_id=int(made[0, 7]))
    assert [len(entry.token_ids or ()) for entry in recorder.store] == [3 + NEW, 6 + NEW]


def wanted(positions: str | int | list[int], prompt: int, response: int) -> list[int]:
    """The positions that have a row: all but that of the last token, which is never fed back."""
    rows = list(range(prompt + response - 1))
    if isinstance(positions, str):
        return {"all": rows, "prompt": rows[:prompt], "response": rows[prompt:], "last": rows[-1:]}[positions]
    return sorted(rows[position] for position in ([positions] if isinstance(positions, int) else positions))


@pytest.mark.parametrize("positions", ["all", "prompt", "response", "last", 1, 3, [2, 0], [0, -1, -2]], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("new", [1, NEW])
def test_positions(llama: Any, positions: str | int | list[int], side: str, new: int) -> None:
    batch = models.padded([3, 6] if positions != 3 or new > 1 else [4, 6], side)
    eos = first_stop(llama, batch, 2)
    recorder = actstore.capture(llama, points=["resid_post", "embed", "logits"], positions=positions)
    with recorder, watch(llama) as oracle:
        made = llama.generate(**batch, max_new_tokens=new, eos_token_id=eos)
    responses = responses_of(made, 6, eos)
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        assert entry.positions == wanted(positions, len(real), len(responses[row]))
        assert entry.token_ids == batch["input_ids"][row, real].tolist() + responses[row]
        for name in ("resid_post.0", "resid_post.1", "embed", "logits"):
            rows = oracle.rows_of_generation(name, real, row, len(real) + len(responses[row]) - 1)
            assert same_bits(entry.torch(name), rows[entry.positions]), name


@pytest.mark.parametrize("positions", [3, [0, -5]])
def test_positions_that_a_row_lacks(llama: Any, positions: int | list[int]) -> None:
    """Found out once the first row has ended; no row of the call is stored."""
    batch = models.padded([3, 6], "left")
    with actstore.capture(llama, positions=positions) as recorder:
        with pytest.raises(InvalidInputError, match="of `3` tokens") as caught:
            llama.generate(**batch, max_new_tokens=1)
        assert caught.value.kind == "unknown_position"
        llama.generate(**models.padded([7, 7], "left"), max_new_tokens=1)
    assert len(recorder.store) == 2


class Never(StoppingCriteria):
    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        del scores
        return torch.zeros(len(input_ids), dtype=torch.bool)


REFUSED: dict[str, Any] = {
    "num_beams": 2,
    "num_return_sequences": 2,
    "prompt_lookup_num_tokens": 2,
    "prefill_chunk_size": 2,
    "stop_strings": ["x"],
    "stopping_criteria": StoppingCriteriaList([Never()]),
    "guidance_scale": 1.5,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "custom_generate": "somebody/something",
    "token_healing": True,
    "inputs_embeds": torch.zeros(2, 6, 32),
    "cache_implementation": "paged",
    "use_mtp": True,
    "assistant_early_exit": 1,
    "force_words_ids": [[3]],
    "constraints": [object()],
}


@pytest.mark.parametrize(
    ("option", "through"),
    [(option, "arguments") for option in (*REFUSED, "assistant_model", "past_key_values")]
    + [(option, "config") for option in ("num_beams", "prefill_chunk_size", "stop_strings", "guidance_scale")],
)
def test_refused_before_any_token(llama: Any, option: str, through: str) -> None:
    batch = models.padded([3, 6], "left")
    if option in ("assistant_model", "past_key_values"):
        value = llama if option == "assistant_model" else llama(**batch, use_cache=True).past_key_values
    else:
        value = REFUSED[option]
    settings = {option: value} if through == "arguments" else {"generation_config": GenerationConfig(**{option: value})}
    with actstore.capture(llama) as recorder, watch(llama) as oracle:
        llama(**batch)
        oracle.forget()
        with pytest.raises(CaptureError) as caught:
            llama.generate(**batch, max_new_tokens=NEW, **settings)
        assert not oracle.seen
    assert caught.value.kind == "unsupported_generation"
    assert str(caught.value).startswith(f"`{option}")
    assert "cannot be captured: " in str(caught.value)
    assert len(recorder.store) == 2


def test_what_is_per_row_is_fine_for_one_row(llama: Any, tokenizer: Any) -> None:
    batch = tokenizer(["what is it?"], return_tensors="pt")
    third = tokenizer.decode(llama.generate(**batch, max_new_tokens=NEW)[0, -3])
    with actstore.capture(llama, tokenizer) as recorder:
        stopping = StoppingCriteriaList([Never()])
        llama.generate(**batch, max_new_tokens=2, stopping_criteria=stopping)
        recorder.label(keys=["stopped"])
        made = llama.generate(**batch, max_new_tokens=NEW, stop_strings=[third], tokenizer=tokenizer)
    assert recorder.store["stopped"].token_ids == made[0].tolist()


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_defaults_spelled_out_are_fine(llama: Any) -> None:
    batch = models.padded([3, 6], "left")
    with actstore.capture(llama) as recorder:
        llama.generate(
            **batch,
            max_new_tokens=2,
            num_beams=1,
            num_return_sequences=1,
            prefill_chunk_size=None,
            guidance_scale=1.0,
            stopping_criteria=StoppingCriteriaList(),
            past_key_values=DynamicCache(config=llama.config),
            cache_implementation=None,
        )
    assert len(recorder.store) == 2


def test_a_static_cache(llama: Any) -> None:
    batch = models.padded([3, 6], "left")
    with actstore.capture(llama) as recorder, watch(llama) as oracle:
        llama.generate(**batch, max_new_tokens=NEW, cache_implementation="static")
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        rows = oracle.rows_of_generation("resid_post.1", real, row, len(real) + NEW - 1)
        assert same_bits(entry.torch(1), rows)


def test_calls_that_cannot_be_told_from_tokens(llama: Any) -> None:
    ids = torch.tensor([[models.PAD, 2, 3], [4, 5, 6]])
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("missing_attention_mask", {"input_ids": ids}, "pass `attention_mask`"),
        ("missing_attention_mask", {"input_ids": ids, "attention_mask": torch.ones(2, 4)}, "`[2, 4]`"),
        ("unsupported_generation", {}, "`input_ids`"),
        ("unsupported_generation", {"input_ids": ids[0]}, "[batch, tokens]"),
        ("prompt_too_long", {"input_ids": torch.ones(1, 65, dtype=torch.long)}, "`65` tokens, more than the `64`"),
    ]
    with actstore.capture(llama) as recorder:
        for kind, arguments, part in calls:
            with pytest.raises(CaptureError) as caught:
                llama.generate(**arguments, max_new_tokens=1)
            assert caught.value.kind == kind
            assert part in str(caught.value)
        recorder.label(prompt_lengths=[1, 1])
        with pytest.raises(InvalidInputError, match="`prompt_lengths` labels a forward"):
            llama.generate(ids + 1, attention_mask=torch.ones_like(ids), max_new_tokens=1)
        for name in ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"):
            with pytest.raises(CaptureError, match="continuous batching") as caught:
                getattr(llama, name)([[1, 2]])
            assert caught.value.kind == "unsupported_generation"
    assert len(recorder.store) == 0
    assert "generate_batch" not in vars(llama)


def test_a_second_forward_inside_a_generation_is_refused(llama: Any) -> None:
    """A row more than there are tokens, whatever made it, and nothing of the call is stored."""
    batch = models.padded([3, 3], "left")

    def again(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        llama(input_ids=ids[:, -1:])
        return scores

    def wider(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        llama(input_ids=ids[:1])
        return scores

    with actstore.capture(llama) as recorder:
        llama.generate(**batch, max_new_tokens=1)
        for processor, part in ((again, "`3` tokens were generated in `6` forwards"), (wider, "ids of shape `[1, 3]`")):
            with pytest.raises(CaptureError) as caught:
                llama.generate(**batch, max_new_tokens=3, logits_processor=[processor])
            assert caught.value.kind == "rows_not_tokens"
            assert part in str(caught.value)
        recorder.label(keys=["a", "b"])
        llama.generate(**batch, max_new_tokens=1)
    assert len(recorder.store) == 4


def test_a_generation_without_a_token_is_refused(llama: Any) -> None:
    """A `generate` of somebody's own, which makes nothing."""
    llama.generate = torch.clone
    try:
        with actstore.capture(llama) as recorder, pytest.raises(CaptureError, match="`0` tokens") as caught:
            llama.generate(torch.tensor([[1, 2]]))
    finally:
        del llama.generate
    assert caught.value.kind == "rows_not_tokens"
    assert len(recorder.store) == 0


def test_labels_for_another_number_of_rows(llama: Any) -> None:
    with actstore.capture(llama) as recorder:
        recorder.label(keys=["a"])
        with pytest.raises(InvalidInputError, match="`keys` labels `1` rows, but the call has `2`") as caught:
            llama.generate(**models.padded([3, 6], "left"), max_new_tokens=1)
        assert caught.value.kind == "invalid_option"
    assert len(recorder.store) == 0


def test_prompts_of_one_token(llama: Any) -> None:
    """The prefill looks like a step, and what is kept of it differs."""
    batch = models.padded([1, 1], "left")
    with actstore.capture(llama, positions="response") as recorder, watch(llama) as oracle:
        llama.generate(**batch, max_new_tokens=NEW)
    for row, entry in enumerate(recorder.store):
        assert entry.positions == list(range(1, NEW))
        assert same_bits(entry.torch(1), oracle.rows_of_generation("resid_post.1", [0], row, NEW)[1:])


@pytest.mark.parametrize(("positions", "rows"), [("prompt", 9), (0, 2), ("response", 2 * (NEW - 1))])
def test_what_is_not_wanted_is_never_copied(llama: Any, positions: str | int, rows: int) -> None:
    with actstore.capture(llama, positions=positions) as recorder:
        llama.generate(**models.padded([3, 6], "left"), max_new_tokens=NEW)
    assert recorder.stats.queue_peak_bytes == recorder.stats.raw_bytes == rows * 2 * 32 * 4


def test_compiled_steps_are_told(llama: Any) -> None:
    """They are refused on CUDA alone; here it is only seen that they would be."""
    ids = torch.tensor([[1, 2]])
    static = StaticCache(config=llama.config, max_cache_len=8)
    for options in ({"cache_implementation": "static"}, {"past_key_values": static}):
        assert Request(llama, (ids,), options)._is_compiled()
        assert not Request(llama, (ids,), {**options, "disable_compile": True})._is_compiled()
    for options in ({}, {"cache_implementation": "dynamic"}, {"past_key_values": DynamicCache(config=llama.config)}):
        assert not Request(llama, (ids,), options)._is_compiled()


def test_a_model_that_cannot_generate() -> None:
    model = models.tiny("llama").model
    with actstore.capture(model, models.byte_tokenizer()) as recorder:
        with pytest.raises(CaptureError, match="has no `generate`") as caught:
            recorder.generate(["a"])
        assert caught.value.kind == "unsupported_generation"
        model(**models.padded([3], "left"))
    assert len(recorder.store) == 1
