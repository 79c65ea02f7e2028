"""Items have the documented fields and say what is padding; they are the same in every process, and read only layers
that were asked for.
"""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import actstore
from actstore.data import ActivationParser, collate
from actstore.errors import InvalidInputError
from allocated import Allocated
from answered import KINDS, Answer, answers, halves, write_log
from processes import run_python

COUNT = 6


def parse(folder: Path, logged: list[Answer], kind: str = "shards", **options: Any) -> ActivationParser:
    write_log(kind, folder / "log", logged)
    labels = halves(len(logged))
    rows = [{"prompt": answer.question, "halu": halu} for answer, halu in zip(logged, labels, strict=True)]
    return ActivationParser(None, None, folder / "log", rows, **options)


def equal(left: Any, right: Any) -> bool:
    """Whether two items, or parts of such, are the same."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return left == right


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_has_every_documented_field(kind: str, tmp_path: Path) -> None:
    logged = answers(COUNT)
    dataset = parse(tmp_path, logged, kind).get_dataset("all", [1, 2, 3, 9])
    assert len(dataset) == COUNT
    for number, answer in enumerate(logged):
        item = dataset[number]
        rows = len(answer.response_states[0])
        assert item["hashkey"] == answer.key
        assert (item["halu"].dtype, item["halu"].shape, item["halu"]) == (torch.float32, (), float(number % 2))
        assert item["input_length"] == 3
        assert item["all_activations"][3] is None
        for place, state in enumerate(item["all_activations"][:3]):
            assert (state.shape, state.dtype) == ((1, 63, 4), torch.float16)
            assert np.array_equal(state[0, :rows].numpy(), answer.response_states[1 + place])
        first, second = item["layer1_idx"], item["layer2_idx"]
        assert first != second
        assert item["layer1_activations"].equal(item["all_activations"][first])
        assert item["layer2_activations"].equal(item["all_activations"][second])


@pytest.mark.parametrize("pad_value", [0.0, -1.5, float("nan")])
def test_h4_padding_is_a_value_that_is_said_with_mask_and_lengths(pad_value: float, tmp_path: Path) -> None:
    dataset = parse(tmp_path, answers(3)).get_dataset("all", [1, 2, 8], pad_length=6, pad_value=pad_value)
    for number, rows in enumerate([4, 5, 6]):
        item = dataset[number]
        assert item["lengths"].tolist() == [rows, rows, 0]
        assert item["mask"].tolist() == [[row < length for row in range(6)] for length in (rows, rows, 0)]
        assert item["pad_value"] is pad_value
        padding = item["all_activations"][1][0, rows:]
        assert torch.equal(torch.nan_to_num(padding), torch.nan_to_num(torch.full_like(padding, pad_value)))
        assert equal(item, dataset[number]) or pad_value != pad_value


def test_longer_answers_are_cut(tmp_path: Path) -> None:
    logged = answers(3)
    item = parse(tmp_path, logged).get_dataset("all", [1, 2], pad_length=2)[0]
    assert (item["lengths"].tolist(), item["mask"].all()) == ([2, 2], True)
    assert np.array_equal(item["all_activations"][0][0].numpy(), logged[0].response_states[1][:2])


def test_hidden_states_and_hook_points_name_layers(tmp_path: Path) -> None:
    parser = parse(tmp_path, answers(2))
    numbered = parser.get_dataset("all", [0, 1, 2, 3, -1])[1]["all_activations"]
    named = parser.get_dataset(
        "all", ["embed", "resid_post.0", ("resid_post", 1), "final_norm", "ln_final.hook_out", "resid_post.2"]
    )[1]["all_activations"]
    assert equal(numbered, named[:5])
    assert not named[5].equal(named[4])


def test_which_hidden_state_the_last_is_is_not_guessed(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "log") as store:
        array = np.ones((2, 4), np.float32)
        store.put(key="k", token_ids=[1, 2], prompt_length=0, activations={3: array, 5: array, "final_norm": array})
    parser = ActivationParser(None, None, tmp_path / "log", [{"activation_key": "k", "halu": 0}])
    with pytest.raises(InvalidInputError, match=r"has some layers only, .*; name hook points") as caught:
        parser.get_dataset("all", [4, 6])[0]
    assert caught.value.kind == "unknown_layer"
    assert parser.get_dataset("all", ["resid_post.3", "final_norm"])[0]["lengths"].tolist() == [2, 2]


def test_fewer_than_two_layers_are_refused(tmp_path: Path) -> None:
    parser = parse(tmp_path, answers(2))
    for layers in ([], [1]):
        with pytest.raises(ValueError, match="layers; an item shows 2 of them") as caught:
            parser.get_dataset("all", layers)
        assert caught.value.kind == "unknown_layer"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"has 0 of the relevant layers, and an item shows 2; it has `hook_embed`"):
        parser.get_dataset("all")[0]
    with pytest.raises(InvalidInputError, match="`pad_length` is `0`"):
        parser.get_dataset("all", [0, 1], pad_length=0)
    dataset = parser.get_dataset("all", [0, 1])
    for index in (2, -3):
        with pytest.raises(IndexError):
            dataset[index]


def views(dataset: Any) -> list[tuple[int, int]]:
    return [(item["layer1_idx"], item["layer2_idx"]) for item in dataset]


def test_h4_views_follow_from_seed_epoch_and_index(tmp_path: Path) -> None:
    """Also in a process of its own, where text hashes otherwise; whatever others draw of the random numbers."""
    parser = parse(tmp_path, answers(40))
    dataset = parser.get_dataset("all", [0, 1, 2, 3])
    first = views(dataset)
    assert views(dataset) == first
    assert len(set(first)) == 12
    dataset.set_epoch(1)
    second = views(dataset)
    assert second != first
    dataset.set_epoch(0)
    assert views(dataset) == first
    script = """
        import pickle, random, sys
        from pathlib import Path

        random.seed(3)
        dataset = pickle.loads(Path(sys.argv[1]).read_bytes())
        print([(item["layer1_idx"], item["layer2_idx"]) for item in dataset])
    """
    (tmp_path / "pickled").write_bytes(pickle.dumps(dataset))
    assert run_python(script, tmp_path / "pickled").strip() == str(first)
    other = ActivationParser(
        None, None, tmp_path / "log", [{"prompt": f"what is {n}?", "halu": n % 2} for n in range(40)], seed=1
    )
    assert views(other.get_dataset("all", [0, 1, 2, 3])) != first


def partial_answers(count: int) -> list[Answer]:
    """Logged with `target_layers="second_half"`: the first two hidden states are None."""
    made = answers(count)
    for answer in made:
        answer.states[:2] = [None, None]  # pyright: ignore[reportCallIssue, reportArgumentType]
    return made


def test_h13_items_without_some_layers_become_a_batch(tmp_path: Path) -> None:
    parser = parse(tmp_path, partial_answers(4), "json v1")
    dataset = parser.get_dataset("all", [1, 2, 3], pad_value=-1.0)
    batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=collate)))
    assert batch["hashkey"] == dataset.keys
    assert batch["all_activations"][0] is None
    assert batch["all_activations"][1].shape == (4, 1, 63, 4)
    assert batch["layer1_activations"].shape == (4, 1, 63, 4)
    assert batch["lengths"].tolist() == [[0, rows, rows] for rows in (4, 5, 6, 7)]
    assert (batch["mask"].shape, batch["halu"].tolist()) == ((4, 3, 63), [0, 1, 0, 1])
    assert (batch["layer1_idx"].tolist(), batch["input_length"].tolist()) == (
        [dataset[n]["layer1_idx"] for n in range(4)],
        [3] * 4,
    )
    whole = parse(tmp_path / "other", answers(4)).get_dataset("all", [1, 2, 3], pad_value=-1.0)
    mixed = collate([dataset[0], whole[1]])
    assert mixed["all_activations"][0][0].eq(-1).all()
    assert mixed["all_activations"][0][1].equal(whole[1]["all_activations"][0])
    assert mixed["mask"][:, 0].sum(1).tolist() == [0, 5]


def test_whole_items_become_a_batch_as_torch_does_it(tmp_path: Path) -> None:
    dataset = parse(tmp_path, answers(4)).get_dataset("all", [1, 2, 3])
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    own = collate([dataset[number] for number in range(4)])
    assert equal(batch["all_activations"], own["all_activations"])
    assert equal(batch["mask"], own["mask"])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["shards", "lmdb", "old lmdb", "json v2"])
def test_h14_workers_read_what_the_process_itself_reads(kind: str, method: str, tmp_path: Path) -> None:
    logged = answers(COUNT)
    parser = parse(tmp_path, logged, kind)
    dataset = parser.get_dataset("all", [1, 2, 3])
    expected = [dataset[number] for number in range(COUNT)]
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context(method),
        persistent_workers=True,
    )
    assert equal(list(loader), expected)
    dataset.set_epoch(1)
    again = list(loader)
    assert equal(again, [dataset[number] for number in range(COUNT)])
    assert views(again) != views(expected)


def test_nothing_is_held_between_items(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dataset = parse(tmp_path, answers(30)).get_dataset("all", [1, 2])
    allocated = Allocated(monkeypatch)
    for item in dataset:
        del item
    assert allocated.peak <= 4


def damage_layer(path: Path, layer_bytes: bytes) -> None:
    """Change a byte of every place of the store's files that has `layer_bytes`."""
    found = 0
    for file in path.rglob("*"):
        if file.is_file() and layer_bytes in (content := file.read_bytes()):
            file.write_bytes(content.replace(layer_bytes, bytes([layer_bytes[0] ^ 1]) + layer_bytes[1:]))
            found += 1
    assert found


def test_h8_an_item_reads_its_layers_and_no_other(tmp_path: Path) -> None:
    """A damaged layer is noticed only where it is read."""
    states = np.random.default_rng(0).standard_normal((5, 4, 64)).astype(np.float32)
    with actstore.create(tmp_path / "log", codec="raw") as store:
        store.put(key="k", token_ids=range(4), prompt_length=0, activations=dict(enumerate(states)))
    damage_layer(tmp_path / "log", states[3].tobytes()[:64])
    parser = ActivationParser(None, None, tmp_path / "log", [{"activation_key": "k", "halu": 0}])
    item = parser.get_dataset("all", [2, 3, 5])[0]
    assert np.array_equal(item["all_activations"][2][0, :4].numpy(), states[4])
    with pytest.raises(actstore.ActstoreError) as caught:
        parser.get_dataset("all", [2, 4])[0]
    assert caught.value.kind == "checksum"


def test_h21_a_store_that_moves_is_read_where_it_is(tmp_path: Path) -> None:
    """No copy of the activations is made beside it, for which its path would count."""
    logged = answers(COUNT)
    first = list(parse(tmp_path, logged).get_dataset("all", [1, 2]))
    files = sorted(path.name for path in (tmp_path / "log").rglob("*"))
    (tmp_path / "log").rename(tmp_path / "moved")
    rows = [{"prompt": answer.question, "halu": halu} for answer, halu in zip(logged, halves(COUNT), strict=True)]
    again = list(ActivationParser(None, None, tmp_path / "moved", rows).get_dataset("all", [1, 2]))
    assert equal(again, first)
    assert sorted(path.name for path in (tmp_path / "moved").rglob("*")) == files


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    array = torch.randn(3, 4).bfloat16()
    with actstore.create(tmp_path / "log") as store:
        store.put(key="k", token_ids=range(3), prompt_length=0, activations={0: array, 1: array})
    parser = ActivationParser(None, None, tmp_path / "log", [{"activation_key": "k", "halu": 0}])
    item = parser.get_dataset("all", [1, "resid_post.1"], pad_length=4)[0]
    assert item["layer1_activations"].dtype == torch.bfloat16
    assert item["layer1_activations"][0, :3].equal(array)
