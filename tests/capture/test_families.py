"""Where the points of each family are, and what is refused."""

from typing import Any

import models
import pytest
import torch
from oracle import POINTS, Oracle, same_bits, watch, watch_output
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import actstore
from actstore.capture.families import _FAMILIES, dissect
from actstore.errors import ActstoreError, CaptureError, InvalidInputError

CONTRIBUTIONS = ("attn_out_post", "mlp_out_post")
FIVE_TOKENS = models.padded([5], "left")


def points_of(family: str) -> list[str]:
    return [point for point in POINTS if family != "granite" or point not in CONTRIBUTIONS]


@pytest.mark.parametrize("family", _FAMILIES)
def test_every_point_of_every_family(family: str) -> None:
    config: Any = {"residual_multiplier": 0.5} if family == "granite" else {}
    model = models.tiny(family, **config)
    with actstore.capture(model, points=points_of(family)) as recorder, watch(model) as oracle, torch.no_grad():
        model(**FIVE_TOKENS)
    (entry,) = recorder.store
    for name, (tensor,) in oracle.seen.items():
        if family != "granite" or not name.startswith(CONTRIBUTIONS):
            assert same_bits(entry.torch(name), tensor[0]), name


@pytest.mark.parametrize("family", [family for family in _FAMILIES if family != "granite"])
def test_contributions_add_up(family: str) -> None:
    """`resid_pre + attn_out_post + mlp_out_post == resid_post`, to the rounding of float32: 1e-5 of the largest value.

    Blocks add in an order of their own, hence no equality of bits.
    """
    model = models.tiny(family, layers=3)
    with actstore.capture(model, points=("resid_pre", *CONTRIBUTIONS, "resid_post")) as recorder, torch.no_grad():
        model(**FIVE_TOKENS)
    (entry,) = recorder.store
    for layer in range(3):
        before, after = entry.torch(f"resid_pre.{layer}"), entry.torch(f"resid_post.{layer}")
        added = entry.torch(f"attn_out_post.{layer}") + entry.torch(f"mlp_out_post.{layer}")
        assert (added.abs() > 1e-3).float().mean() > 0.9
        torch.testing.assert_close(before + added, after, rtol=0, atol=1e-5 * float(after.abs().max()))


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
    refusal(InvalidInputError, "unknown_layer", llama, points=["resid_post.2"])
    refusal(InvalidInputError, "unknown_layer", llama, layers=[0, 7])


def test_models_that_are_no_decoder_with_layers() -> None:
    small: Any = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=9, bos_token_id=1, eos_token_id=2))
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=9))
    for model, hint in ((gpt2, "`transformer.h` of `2`"), (BertModel(BertConfig(**small)), "`encoder.layer` of `2`")):
        error = refusal(CaptureError, "unsupported_model", model)
        assert hint in str(error)
        assert "`layers` of `2` blocks" in str(error)
    assert "encoder" in str(refusal(CaptureError, "unsupported_model", t5))
    assert "num_hidden_layers" in str(refusal(CaptureError, "unsupported_model", torch.nn.Linear(2, 2)))


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
