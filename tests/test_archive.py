"""`codec="archive"`: layers given the layer below, through everything that writes and reads a store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.errors import InvalidInputError
from actstore.store import Store

LAYERS = 9
WIDTH = 96


def stream(seed: int, rows: int, dtype: Any) -> list[np.ndarray]:
    """A residual stream: each layer adds a little to the one below; with values of every odd kind in a corner."""
    noise = np.random.default_rng(seed)
    scales = np.exp(np.random.default_rng(7).normal(size=WIDTH))
    values = noise.normal(size=(rows, WIDTH)) * scales
    layers: list[np.ndarray] = []
    for _ in range(LAYERS):
        values = values + noise.normal(size=(rows, WIDTH)) * scales * 0.2
        layer = values.astype(dtype)
        layer[0, :6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 6e-8]
        layers.append(layer)
    return layers


def put(store: Store, entries: int, dtype: Any = np.float16) -> dict[str, list[np.ndarray]]:
    expected = {f"k{number}": stream(number, 40 + 30 * number, dtype) for number in range(entries)}
    with store.writer() as writer:
        for key, layers in expected.items():
            activations = {f"resid_post.{layer}": rows for layer, rows in enumerate(layers)}
            rows = len(layers[0])
            writer.put(key=key, activations=activations, token_ids=range(rows), positions=range(rows))
    return expected


@pytest.fixture(params=["shards", "lmdb", "memory"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    path = None if request.param == "memory" else tmp_path / "archive"
    with actstore.create(path, request.param, codec="archive", key_distance=4) as store:
        yield store


def encodings(store: Store) -> list[dict[str, int]]:
    return [point["encodings"] for point in store.info()["points"]]


def test_every_bit_comes_back_whole_by_position_and_by_layer(archive: Store) -> None:
    expected = put(archive, 4)
    for key, layers in expected.items():
        entry = archive[key]
        for layer, rows in enumerate(layers):
            assert entry.numpy(f"resid_post.{layer}").tobytes() == rows.tobytes()
            some = entry.numpy(f"resid_post.{layer}", [len(rows) - 1, 0, 17, 17])
            assert some.tobytes() == rows[[len(rows) - 1, 0, 17, 17]].tobytes()
    scanned = dict(archive.scan("resid_post.7"))
    assert {key: np.asarray(rows).tobytes() for key, rows in scanned.items()} == {
        key: layers[7].tobytes() for key, layers in expected.items()
    }
    assert archive.verify()["damage"] == []


def test_info_shows_what_is_in_use(archive: Store) -> None:
    put(archive, 4)
    used = encodings(archive)
    assert ["archive" in point for point in used] == [layer % 4 != 0 for layer in range(LAYERS)]
    assert [set(used[layer]) for layer in (0, 4, 8)] == [{"planes"}] * 3
    assert archive.settings["codec"] == "archive"
    assert archive.settings["key_distance"] == 4


def test_it_is_smaller_than_planes(tmp_path: Path) -> None:
    sizes: dict[str, int] = {}
    for codec in ("planes", "archive"):
        with actstore.create(tmp_path / codec, codec=codec) as store:
            put(store, 8)
            sizes[codec] = store.info()["stored_bytes"]
    assert sizes["archive"] < 0.95 * sizes["planes"]


def test_a_store_that_is_opened_again_goes_on_with_its_models(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "store", codec="archive") as store:
        expected = put(store, 2)
        before = encodings(store)[5]["archive"]
    with actstore.open(tmp_path / "store", "a") as store:
        with store.writer() as writer:
            for number in range(2, 5):
                # Too few rows to learn from.
                layers = expected[f"k{number}"] = stream(number, 9, np.float16)
                writer.put(key=f"k{number}", activations={f"resid_post.{i}": rows for i, rows in enumerate(layers)})
        assert encodings(store)[5]["archive"] == before + 3
        for key, layers in expected.items():
            assert store[key].numpy("resid_post.8").tobytes() == layers[8].tobytes()


def test_what_the_layer_below_says_nothing_about_is_as_with_planes(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    with actstore.create(tmp_path / "store", codec="archive") as store:
        layers = {f"attn_out.{layer}": noise.normal(size=(200, WIDTH)).astype(np.float16) for layer in range(3)}
        store.put(key="k", activations={**layers, "logits": noise.normal(size=(200, 7)).astype(np.float32)})
        assert all("archive" not in used for used in encodings(store))


def test_migrating_to_an_archive_and_back(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "planes") as store:
        put(store, 3)
    actstore.migrate(
        tmp_path / "planes", tmp_path / "archive", target_format="shards", codec="archive", key_distance=2, verify=True
    )
    actstore.migrate(tmp_path / "archive", tmp_path / "copy", target_format="lmdb", verify=True)
    actstore.migrate(
        tmp_path / "copy", tmp_path / "part", target_format="shards", codec="zstd", layers=[1, 5], verify=True
    )
    with actstore.open(tmp_path / "copy") as copy, actstore.open(tmp_path / "planes") as planes:
        assert copy.settings["key_distance"] == 2, "a target has what its source has"
        assert [entry.content_id for entry in copy] == [entry.content_id for entry in planes]
        with actstore.open(tmp_path / "part") as part:
            for key in planes.keys():  # noqa: SIM118  # a store iterates over entries
                assert part[key].numpy("resid_post.5").tobytes() == planes[key].numpy("resid_post.5").tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "archive", "key_distance": 0}, "`key_distance` is `0`: a number of layers from 1 to 1024"),
        ({"codec": "archive", "key_distance": -3}, "`key_distance` is `-3`: a number of layers from 1 to 1024"),
        ({"codec": "archive", "key_distance": "8"}, "`key_distance` is `'8'`; give a number of layers"),
        ({"codec": "archive", "key_distance": True}, "`key_distance` is `True`; give a number of layers"),
        (
            {"key_distance": 8},
            "`key_distance` is `8`, but codec `planes` encodes every layer alone: leave it out, or choose `archive`",
        ),
    ],
)
def test_a_key_distance_that_makes_no_sense_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        actstore.create(tmp_path / "store", **options)
    assert (caught.value.kind, caught.value.message) == ("invalid_option", message)
    assert not (tmp_path / "store").exists()


def test_a_store_keeps_its_key_distance(tmp_path: Path) -> None:
    actstore.create(tmp_path / "store", codec="archive", key_distance=3).close()
    model, tokenizer = actstore.demo.load()
    recorder = actstore.capture(model, tokenizer, store=tmp_path / "store", codec="archive", key_distance=2)
    with pytest.raises(InvalidInputError, match=r"`key_distance` is `2`, but the store .* was created with `3`"):
        recorder.__enter__()


def test_a_captured_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, tokenizer = actstore.demo.load()
    prompts = [f"What is the capital of country number {number}?" for number in range(8)]
    stores: dict[str, Store] = {}
    for codec in ("planes", "archive"):
        path = tmp_path / codec
        points = ["embed", "resid_post", "mlp_out"]
        with actstore.capture(model, tokenizer, points=points, store=path, codec=codec) as recorder:
            recorder.generate(prompts, max_new_tokens=8)
        stores[codec] = actstore.open(path)
    planes, archive = stores["planes"], stores["archive"]
    assert [entry.content_id for entry in archive] == [entry.content_id for entry in planes]
    used = {point["point"]: point["encodings"] for point in archive.info()["points"]}
    assert "archive" in used["blocks.2.hook_resid_post"]
    assert archive.verify()["damage"] == []
    for entry in archive:
        for point in entry.points:
            assert entry.numpy(point).tobytes() == planes[entry.key].numpy(point).tobytes()
