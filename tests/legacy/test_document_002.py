"""Every Python snippet of document 002, on what `capture` and `export pt-shards` make; only paths are changed."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import actstore
from actstore.cli import app

PAIRS = [("What colour is grass?", "Red."), ("Is ice cold?", "No, it is warm."), ("Why?", "Who knows?")]


def produce(folder: Path, *, capture: tuple[str, ...] = (), export: tuple[str, ...] = ()) -> None:
    """`Activations/` of two splits, made by the commands that a user types, with these options more."""
    calls: list[list[str]] = []
    for split in ("EM", "Neutral"):
        rows = [{"prompt": prompt, "response": f"{response} {split}"} for prompt, response in PAIRS]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        named = ["--positions", "last", "--dataset", "SP_test", "--split", split, *capture]
        calls.append(["capture", "demo", str(folder / f"{split}.jsonl"), "--store", str(folder / "acts"), *named])
    target = ["--target", str(folder / "Activations"), "--shard-size", "2", "--verify"]
    calls.append(["export", "pt-shards", "--source", str(folder / "acts"), *target, *export])
    for call in calls:
        result = CliRunner().invoke(app, call)
        assert result.exit_code == 0, result.output


def test_metadata_has_the_fields_of_the_old_program_in_its_order(tmp_path: Path) -> None:
    produce(tmp_path, capture=("--layers", "1,2", "--batch-size", "2"))
    text = (tmp_path / "Activations" / "demo" / "SP_test" / "Neutral" / "metadata.json").read_text()
    assert text == json.dumps(
        {
            "model_name": "demo",
            "dataset_name": "SP_test",
            "load_in_4bit": False,
            "split": "Neutral",
            "total_examples": 3,
            "shard_size": 2,
            "batch_size": 2,
            "hidden_dim": 128,
            "num_layers": 4,
        },
        indent=2,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_shards_have_the_dtype_that_was_asked_for(dtype: str, tmp_path: Path) -> None:
    produce(tmp_path, export=("--dtype", dtype, "--overflow", "saturate"))
    shards = list((tmp_path / "Activations").rglob("shard_*.pt"))
    assert len(shards) == 2 * 4 * 2
    assert {torch.load(shard).dtype for shard in shards} == {getattr(torch, dtype)}


def test_the_loader_of_section_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    produce(tmp_path)
    monkeypatch.chdir(tmp_path)

    def load_activations(base_path, layer_idx):  # pyright: ignore
        path = Path(base_path)  # pyright: ignore
        layer_dir = path / f"layer_{layer_idx:02d}"
        shard_files = sorted(layer_dir.glob("shard_*.pt"))
        for shard_file in shard_files:
            yield torch.load(shard_file)

    base_path = "Activations/demo/SP_test/EM"
    with open(f"{base_path}/metadata.json", "r") as f:  # noqa: PTH123, UP015
        meta = json.load(f)
    layer_idx = 2
    all_activations = []
    for shard in load_activations(base_path, layer_idx):  # pyright: ignore
        all_activations.append(shard)  # pyright: ignore
    full_tensor = torch.cat(all_activations, dim=0)  # pyright: ignore

    assert [len(shard) for shard in all_activations] == [2, 1]  # pyright: ignore
    assert list(full_tensor.shape) == [meta["total_examples"], meta["hidden_dim"]] == [3, 128]
    with actstore.open("acts") as store:
        for row in range(3):
            entry = store[f"SP_test:EM:{row}"]
            # E6: the row is that of the last token of the response, and no other is kept.
            assert entry.token_ids is not None
            assert entry.positions == [len(entry.token_ids) - 1]
            assert entry.torch("resid_post.2")[0].equal(full_tensor[row])
