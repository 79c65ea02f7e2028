"""Every spelling of a hook point and of a selection of layers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.errors import InvalidInputError
from actstore.hook_points import canonical, expand, parse, select_layers, short

STORED = {
    "embed": "hook_embed",
    "embeddings": "hook_embed",
    "resid_pre.5": "blocks.5.hook_resid_pre",
    "attn_probs.5": "blocks.5.attn.hook_pattern",
    "attn_out.5": "blocks.5.attn.hook_out",
    "attn_out_post.5": "blocks.5.hook_attn_out",
    "mlp_act.5": "blocks.5.mlp.hook_post",
    "mlp_out.5": "blocks.5.mlp.hook_out",
    "mlp_out_post.5": "blocks.5.hook_mlp_out",
    "resid_post.5": "blocks.5.hook_resid_post",
    "final_norm": "ln_final.hook_out",
    "logits": "logits",
}


@pytest.mark.parametrize(("spelling", "stored"), STORED.items())
def test_short_and_stored_names(spelling: str, stored: str) -> None:
    assert canonical(spelling) == canonical(stored) == stored
    assert short(stored) == ("embed" if spelling == "embeddings" else spelling)


def test_other_spellings() -> None:
    stored = "blocks.12.hook_resid_post"
    assert canonical(12) == canonical(("resid_post", 12)) == canonical(np.int64(12)) == stored
    assert canonical(-1, layers=13) == canonical(("resid_post", -1), layers=13) == stored
    assert canonical("resid_post.-1", layers=13) == stored
    assert canonical(0.5, layers=24) == canonical(("resid_post", 0.5), layers=24) == stored
    assert canonical(0.999, layers=13) == stored
    assert canonical(0.0, layers=13) == canonical(0)
    assert canonical("blocks.12.hook_resid_post", layers=13) == stored


def test_module_paths_are_stored_as_they_are() -> None:
    for path in ("model.layers.3.self_attn.q_proj", "layers.3", "blocks.3.mlp.gate", "lm_head.linear"):
        assert canonical(path) == short(path) == path
        assert parse(path) == (path, None)


@pytest.mark.parametrize("point", ["resid_post", "resid_post.x", "resid_post.1.5", "resid_post.", ("resid_post", None)])
def test_a_layer_that_is_no_number(point: object) -> None:
    refused("unknown_layer", point)


@pytest.mark.parametrize(
    "point",
    [
        *("", "resid", "residual", "hook_embed.3", "embed.3", "logits.0", "a b.c", "résid_post.3"),
        *("blocks.5.hook_z", "ln_final.hook_normalized"),
        *(("resid", 3), ("resid_post", 3, 4), (3, "resid_post"), ("logits", 0)),
    ],
)
def test_points_that_do_not_exist(point: object) -> None:
    message = refused("unknown_point", point)
    assert "`resid_post.<layer>`" in message or "belongs to no layer" in message


def test_layers_that_do_not_exist() -> None:
    for point in ("resid_post.40", 40, -33, ("mlp_out", 32), "blocks.32.hook_resid_post"):
        message = refused("unknown_layer", point, layers=32)
        assert "the model has `32` layers, `0` to `31`" in message
    for depth in (1.0, -0.1, float("nan")):
        assert "fraction of depth" in refused("unknown_layer", depth, layers=32)
    for point in (-1, 0.5, True, None, b"resid_post.3"):
        refused("unknown_layer", point)


def test_layers() -> None:
    assert select_layers("all", 5) == [0, 1, 2, 3, 4]
    assert select_layers("first_half", 5) == [0, 1]
    assert select_layers("second_half", 5) == [2, 3, 4]
    assert select_layers(3, 5) == select_layers(-2, 5) == select_layers("3", 5) == select_layers(0.6, 5) == [3]
    assert select_layers("3, 0,-1", 5) == select_layers([3, 0, -1, 4], 5) == [0, 3, 4]
    assert select_layers(range(1, 4), 5) == select_layers(np.arange(1, 4), 5) == [1, 2, 3]
    assert select_layers((0.25, 0.75, 0), 4) == [0, 1, 3]
    for layers in (5, -6, [0, 5], "7", "half", "", "1-3", "0.5", [], 1.0, ["0"], None, "all,3"):
        with pytest.raises(InvalidInputError) as caught:
            select_layers(layers, 5)  # pyright: ignore[reportArgumentType]
        assert caught.value.kind == "unknown_layer"
        assert "`" in str(caught.value)


def test_points_over_layers() -> None:
    names = expand(("resid_post", "mlp_out.0", "embed", 2, "resid_post.2", "a.b"), [1, 2], 4)
    assert names == [
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_post",
        "blocks.0.mlp.hook_out",
        "hook_embed",
        "a.b",
    ]
    assert expand("logits", "all", 4) == ["logits"]
    assert expand(-1, "all", 4) == ["blocks.3.hook_resid_post"]
    assert expand([("mlp_out", 0.5)], "all", 4) == ["blocks.2.mlp.hook_out"]
    with pytest.raises(InvalidInputError, match="no hook point is given") as caught:
        expand([], "all", 4)
    assert caught.value.kind == "unknown_point"
    with pytest.raises(InvalidInputError, match="no layer is selected") as caught:
        expand(["resid_post"], "first_half", 1)
    assert caught.value.kind == "unknown_layer"


@given(st.sampled_from(["resid_pre", "attn_out", "attn_out_post", "mlp_out", "mlp_out_post"]), st.integers(0, 200))
def test_names_come_back(kind: str, layer: int) -> None:
    name = canonical((kind, layer))
    assert parse(name) == (kind, layer)
    assert canonical(short(name)) == canonical(name) == canonical((kind, layer - 201), layers=201) == name


@given(st.text(max_size=30))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = canonical(text)
    except InvalidInputError:
        return
    assert canonical(name) == name
    assert name.isascii()
    assert name.isprintable()


def refused(kind: str, point: object, layers: int | None = None) -> str:
    with pytest.raises(InvalidInputError) as caught:
        canonical(point, layers=layers)  # pyright: ignore[reportArgumentType]
    assert caught.value.kind == kind
    message = str(caught.value)
    assert not message.endswith(".")
    assert message[0] == "`" or message[0].islower()
    return message


def test_a_pair_is_one_point() -> None:
    assert expand(("resid_post", 1), "all", 4) == ["blocks.1.hook_resid_post"]
    assert len(expand(("resid_post", "mlp_out"), "all", 4)) == 8
    assert expand((("resid_post", 1), ("mlp_out", -1)), "all", 4) == [
        "blocks.1.hook_resid_post",
        "blocks.3.mlp.hook_out",
    ]
