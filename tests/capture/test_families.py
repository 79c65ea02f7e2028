"""Where the points of each family are, and what is refused."""

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from oracle import ENCODERS, POINTS, Oracle, points_of, same_bits, watch, watch_output
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomModel,
    DistilBertConfig,
    DistilBertModel,
    T5Config,
    T5ForConditionalGeneration,
)

import actstore
from actstore.capture.families import _FAMILIES, dissect
from actstore.errors import ActstoreError, CaptureError, InvalidInputError

CONTRIBUTIONS = ("attn_out_post", "mlp_out_post")
FIVE_TOKENS = models.padded([5], "left")
LOOKED_FOR = "`layers` beside `embed_tokens`, `h` beside `wte`, `encoder.layer` beside `embeddings`"


@pytest.mark.parametrize("family", _FAMILIES)
def test_every_point_of_every_family(family: str) -> None:
    config: Any = {"residual_multiplier": 0.5} if family == "granite" else {}
    model = models.tiny(family, **config)
    with actstore.capture(model, points=points_of(family)) as recorder, watch(model) as oracle, torch.no_grad():
        model(**FIVE_TOKENS)
    (entry,) = recorder.store
    for name in map(actstore.hook_points.short, entry.points):
        assert same_bits(entry.torch(name), oracle.seen[name][0][0]), name


@pytest.mark.parametrize("family", [family for family in _FAMILIES if family not in ("granite", *ENCODERS)])
def test_contributions_add_up(family: str) -> None:
    """`resid_pre + attn_out_post + mlp_out_post == resid_post`, to the rounding of float32: 1e-5 of the largest value.

    Blocks add in an order of their own, hence no equality of bits.
    """
    require_sums(models.tiny(family))


def test_contributions_of_gpt2_add_up_under_dropout() -> None:
    """It has its dropout inside the modules."""
    require_sums(models.tiny("gpt2", resid_pdrop=0.5).train())


def require_sums(model: Any) -> None:
    with actstore.capture(model, points=("resid_pre", *CONTRIBUTIONS, "resid_post")) as recorder, torch.no_grad():
        model(**FIVE_TOKENS)
    (entry,) = recorder.store
    for layer in range(2):
        before, after = entry.torch(f"resid_pre.{layer}"), entry.torch(f"resid_post.{layer}")
        added = entry.torch(f"attn_out_post.{layer}") + entry.torch(f"mlp_out_post.{layer}")
        assert (added.abs() > 1e-3).float().mean() > (0.6 if model.training else 0.9)
        torch.testing.assert_close(before + added, after, rtol=0, atol=1e-5 * float(after.abs().max()))


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("training", [False, True])
def test_contributions_of_an_encoder_add_up_before_each_norm(family: str, training: bool) -> None:
    """`norm(norm(resid_pre + attn_out_post) + mlp_out_post) == resid_post`; dropout is in what is added."""
    model = models.tiny(family, hidden_dropout_prob=0.5).train(training)
    points = ("resid_pre", "attn_out", "mlp_out", *CONTRIBUTIONS, "resid_post")
    with actstore.capture(model, points=points) as recorder, torch.no_grad():
        model(**FIVE_TOKENS)
    (entry,) = recorder.store
    for layer, block in enumerate(model.base_model.encoder.layer):
        at = {point: entry.torch(f"{point}.{layer}") for point in points}
        with torch.no_grad():
            middle = block.attention.output.LayerNorm(at["resid_pre"] + at["attn_out_post"])
            after = block.output.LayerNorm(middle + at["mlp_out_post"])
        torch.testing.assert_close(after, at["resid_post"], rtol=0, atol=1e-5)
        for raw, added in (("attn_out", "attn_out_post"), ("mlp_out", "mlp_out_post")):
            zeros = (at[added] == 0).float().mean()
            assert 0.3 < zeros < 0.7 if training else same_bits(at[raw], at[added])


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_encoder_without_a_head(side: str) -> None:
    """What sentence encoders are."""
    model = models.tiny("bert").base_model
    batch = models.padded([3, 7, 1], side)
    kinds = torch.arange(7).expand(3, 7) % 2
    with actstore.capture(model, points=["embed", "resid_post"]) as recorder, torch.no_grad():
        output = model(**batch, token_type_ids=kinds, output_hidden_states=True)
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].bool()
        assert entry.token_ids == batch["input_ids"][row, real].tolist()
        for name, state in zip(("embed", "resid_post.0", "resid_post.1"), output.hidden_states, strict=True):
            assert same_bits(entry.torch(name), state[row, real]), name
        assert same_bits(entry.torch("resid_post.1"), output.last_hidden_state[row, real])


def test_points_that_an_encoder_lacks() -> None:
    model = models.tiny("bert", layers=3)
    error = refusal(InvalidInputError, "unknown_point", model, points=["final_norm"])
    assert "no norm is known behind the last layer, whose output is `resid_post.2`" in str(error)
    error = refusal(InvalidInputError, "unknown_point", model.base_model, points=["logits"])
    assert "`BertModel` has no output head" in str(error)
    refusal(InvalidInputError, "unknown_layer", model, points=["resid_post.3"])


def test_an_encoder_does_not_generate() -> None:
    """Not even where transformers would let it."""
    headless, encoder = models.tiny("bert").base_model, causal_bert(is_decoder=False)
    for model, part in ((headless, "`BertModel` has no `generate`"), (encoder, "`BertLMHeadModel` is an encoder")):
        with actstore.capture(model, models.byte_tokenizer()) as recorder:
            with pytest.raises(CaptureError, match="call the model itself") as caught:
                recorder.generate(["a"], max_new_tokens=2)
            assert caught.value.kind == "unsupported_generation"
            assert part in str(caught.value)
            model(**FIVE_TOKENS)
        assert len(recorder.store) == 1


def test_bert_as_a_decoder_generates() -> None:
    batch = models.padded([3, 5], "left")
    model = causal_bert(is_decoder=True)
    with actstore.capture(model, points=points_of("bert")) as recorder, watch(model) as oracle:
        model.generate(**batch, max_new_tokens=4)
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        for name in oracle.seen:
            rows = oracle.rows_of_generation(name, real, row, len(real) + 3)
            assert same_bits(entry.torch(name), rows), name


def causal_bert(*, is_decoder: bool) -> Any:
    config = models.tiny("bert").config
    config.is_decoder = is_decoder
    return AutoModelForCausalLM.from_config(config).eval()


def test_feed_forward_in_chunks_is_refused() -> None:
    """The rows of a chunk are not those of the call."""
    model = models.tiny("bert", chunk_size_feed_forward=2)
    batch = models.padded([6], "left")
    with actstore.capture(model, points=["mlp_out"]) as recorder, pytest.raises(CaptureError) as caught:
        model(**batch)
    assert caught.value.kind == "rows_not_tokens"
    assert "`blocks.0.mlp.hook_out` has shape `[1, 2, 32]`" in str(caught.value)
    with actstore.capture(model) as recorder:
        model(**batch)
    assert len(recorder.store) == 1


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_the_longest_prompt(family: str) -> None:
    """Some families count positions from behind the padding's id, and have as many fewer."""
    model = models.tiny(family)
    ids = torch.arange(64).reshape(1, 64)
    with actstore.capture(model) as recorder, torch.no_grad():
        model(ids)
        with pytest.raises(CaptureError, match="`65` tokens, more than the `64`") as caught:
            model(torch.ones(1, 65, dtype=torch.long))
    assert caught.value.kind == "prompt_too_long"
    assert len(recorder.store) == 1


def test_embed_of_gpt2_has_no_positions_yet() -> None:
    model = models.tiny("gpt2").transformer
    with actstore.capture(model, points=["embed", "resid_pre.0", "final_norm"]) as recorder, torch.no_grad():
        state = model(**FIVE_TOKENS).last_hidden_state
    (entry,) = recorder.store
    embedded = model.wte.weight.detach()[FIVE_TOKENS["input_ids"][0]]
    assert same_bits(entry.torch("embed"), embedded)
    assert same_bits(entry.torch("resid_pre.0"), embedded + model.wpe.weight.detach()[:5])
    assert same_bits(entry.torch("final_norm"), state[0])


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_unknown_families_of_each_structure(family: str) -> None:
    model = models.tiny(family)
    points = [point for point in points_of(family) if point not in CONTRIBUTIONS]
    with watch(model) as oracle, torch.no_grad():
        model(**FIVE_TOKENS)
    model.config.model_type = "novel"
    error = refusal(InvalidInputError, "unknown_point", model, points=["attn_out_post"])
    assert "family `novel`" in str(error)
    with actstore.capture(model, points=points) as recorder, torch.no_grad():
        model(**FIVE_TOKENS)
    (entry,) = recorder.store
    for name in map(actstore.hook_points.short, entry.points):
        assert same_bits(entry.torch(name), oracle.seen[name][0][0]), name


def test_contributions_scaled_outside_a_module_are_refused() -> None:
    model = models.tiny("granite", residual_multiplier=0.22)
    for point in CONTRIBUTIONS:
        error = refusal(InvalidInputError, "unknown_point", model, points=[point])
        assert "`residual_multiplier` = `0.22`" in str(error)
    assert actstore.capture(models.tiny("granite", residual_multiplier=1.0), points=CONTRIBUTIONS).points


def test_contributions_of_an_unknown_family_are_refused() -> None:
    model = models.tiny("llama")
    model.config.model_type = "lamma"
    error = refusal(InvalidInputError, "unknown_point", model, points="mlp_out_post.0")
    assert "family `lamma`" in str(error)
    assert actstore.capture(model, points=[point for point in POINTS if point not in CONTRIBUTIONS]).points


def test_contributions_under_active_dropout_are_refused() -> None:
    model = models.tiny("phi3", resid_pdrop=0.1)
    with actstore.capture(model, points=CONTRIBUTIONS) as recorder:
        model(**FIVE_TOKENS)
        model.train()
        with pytest.raises(CaptureError, match=r"call `model.eval\(\)`") as caught:
            model(**FIVE_TOKENS)
        assert caught.value.kind == "unsupported_model"
    assert len(recorder.store) == 1
    with actstore.capture(model, points=["attn_out", "mlp_out", "resid_post"]) as recorder:
        model(**FIVE_TOKENS)
    assert len(recorder.store) == 1


def test_parts_that_an_unknown_family_calls_otherwise() -> None:
    model = models.tiny("llama")
    model.config.model_type = "lamma"
    model.model.layers[1].feed_forward = model.model.layers[1].mlp
    del model.model.layers[1].mlp
    error = refusal(InvalidInputError, "unknown_point", model, points=["mlp_out"])
    assert "`blocks.1.mlp.hook_out`: `LlamaDecoderLayer` has no `mlp`" in str(error)
    assert actstore.capture(model, points=["mlp_out.0", "attn_out"]).points


def test_modules_that_give_no_tensor() -> None:
    model = models.tiny("llama")
    model.model.norm = Untensored(model.model.norm)
    with actstore.capture(model, points=["final_norm"]) as recorder:
        with pytest.raises(CaptureError, match=r"`ln_final\.hook_out` cannot be captured: it gives a `dict`") as caught:
            model(**FIVE_TOKENS)
        assert caught.value.kind == "unsupported_model"
    assert len(recorder.store) == 0


class Untensored(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, state: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"state": self.inner(state)}


def test_a_model_without_a_head_has_no_logits() -> None:
    model = models.tiny("llama").model
    error = refusal(InvalidInputError, "unknown_point", model, points=["logits"])
    assert "no output head" in str(error)
    with actstore.capture(model, points=["final_norm"]) as recorder, torch.no_grad():
        state = model(**FIVE_TOKENS).last_hidden_state
    assert same_bits(next(iter(recorder.store)).torch("final_norm"), state[0])


def test_module_paths(llama: Any) -> None:
    path = "model.layers.1.self_attn.q_proj"
    with actstore.capture(llama, points=[path, "model.layers.0.mlp"]) as recorder, watch(llama) as oracle:
        watch_output(oracle, path, llama.get_submodule(path))
        llama(**FIVE_TOKENS)
    (entry,) = recorder.store
    assert same_bits(entry.torch(path), oracle.seen[path][0][0])
    assert same_bits(entry.torch("model.layers.0.mlp"), oracle.seen["mlp_out.0"][0][0])


def test_module_paths_with_other_shapes() -> None:
    """Heads in a dimension of their own; tokens of all rows in one dimension."""
    model = models.tiny("qwen3_moe")
    norm, router = "model.layers.0.self_attn.q_norm", "model.layers.1.mlp.gate"
    batch = models.padded([3, 5], "left")
    with actstore.capture(model, points=[norm, router]) as recorder, Oracle() as oracle:
        for path in (norm, router):
            watch_output(oracle, path, model.get_submodule(path))
        model(**batch)
    first, second = recorder.store
    assert same_bits(first.torch(norm), oracle.seen[norm][0][0, 2:])
    assert first.shape(norm) == (3, 4, 8)
    assert same_bits(second.torch(router), oracle.seen[router][0].reshape(2, 5, -1)[1])


def test_points_that_a_model_lacks(llama: Any) -> None:
    for point in ("resid_mid.0", "resid_pst.0", "model.layers.9.mlp", "model.layers.0.mixer", "nothing"):
        error = refusal(InvalidInputError, "unknown_point", llama, points=[point])
        assert f"`{point}`" in str(error)
        assert "`resid_post.<layer>`" in str(error)
    for point in ("attn_probs.0", "mlp_act.0"):
        assert "known of data that was imported" in str(
            refusal(InvalidInputError, "unknown_point", llama, points=[point])
        )
    refusal(InvalidInputError, "unknown_layer", llama, points=["resid_post.2"])
    refusal(InvalidInputError, "unknown_layer", llama, layers=[0, 7])


def test_models_whose_blocks_are_not_found() -> None:
    bloom = BloomModel(BloomConfig(n_layer=2, hidden_size=8, n_head=2, vocab_size=9))
    distilled = DistilBertModel(DistilBertConfig(n_layers=2, dim=8, n_heads=2, hidden_dim=8, vocab_size=9))
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=9))
    for model, hint in ((bloom, "`h` of `2`"), (distilled, "`transformer.layer` of `2`")):
        error = refusal(CaptureError, "unsupported_model", model)
        assert f"one list of `2` blocks, {LOOKED_FOR}; it has {hint}" in str(error)
        assert all(family in str(error) for family in _FAMILIES)
    assert "encoder with a decoder" in str(refusal(CaptureError, "unsupported_model", t5))
    assert "num_hidden_layers" in str(refusal(CaptureError, "unsupported_model", torch.nn.Linear(2, 2)))


def test_the_guide_names_every_family() -> None:
    guide = (Path(__file__).parents[2] / "docs/guide.md").read_text()
    assert [family for family in _FAMILIES if f"`{family}`" not in guide] == []


def test_the_language_model_inside_a_larger_one() -> None:
    """The list of blocks is found by what stands beside it, with a second list of the same length elsewhere."""

    class Larger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            language = models.tiny("llama")
            language.model.decoys = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
            self.config = type("Config", (), {"text_config": language.config})()
            self.vision = torch.nn.ModuleDict(
                {"layers": torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])}
            )
            self.language_model = language.model

    anatomy = dissect(Larger())
    assert anatomy.layers == 2
    assert anatomy.family_name == "llama"


def refusal(of: type[ActstoreError], kind: str, model: Any, **options: Any) -> ActstoreError:
    with pytest.raises(of) as caught:
        actstore.capture(model, **options)
    assert caught.value.kind == kind
    assert not str(caught.value).endswith(".")
    return caught.value
