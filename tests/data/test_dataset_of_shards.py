"""Document 002's trees in datasets: rows, labels and text stay together, and nothing larger than a row is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actstore
from actstore.data import ActivationDataset, ActivationParser
from actstore.errors import NotFoundError
from actstore.formats import import_store
from allocated import Allocated
from old_trees import SETTINGS, residuals, write_split

LAYERS = ["resid_post.0", "resid_post.1"]


def imported(root: Path, layers: list[list[torch.Tensor]], **settings: Any) -> Path:
    """The store of a tree with these shards."""
    total = sum(map(len, layers[0]))
    write_split(root / "tree", layers, {**SETTINGS, "total_examples": total, **settings})
    import_store(root / "tree", root / "store")
    return root / "store"


def rows_of(count: int) -> list[dict[str, Any]]:
    """Labels by row of the split: true for the rows that 3 divides."""
    return [{"activation_key": f"SP_test:EM:{row}", "halu": row % 3 == 0} for row in range(count)]


def dataset_of(store: Path, count: int, **options: Any) -> ActivationDataset:
    parser = ActivationParser(None, None, store, rows_of(count), positions="all", **options)
    return parser.get_dataset("all", LAYERS, pad_length=1)


def split(tensor: torch.Tensor, size: int = 4) -> list[torch.Tensor]:
    return [part.clone() for part in tensor.split(size)]


def test_e1_rows_that_a_crashed_run_never_wrote_are_no_items(tmp_path: Path) -> None:
    store = imported(tmp_path, [split(residuals(layer, 8)) for layer in range(2)], total_examples=10)
    dataset = dataset_of(store, 10)
    assert [item["hashkey"] for item in dataset] == [f"SP_test:EM:{row}" for row in range(8)]
    with pytest.raises(NotFoundError, match="8 of 10 rows"):
        dataset_of(store, 10, min_match=1.0)


def test_e2_rows_of_an_earlier_run_are_no_items(tmp_path: Path) -> None:
    layers = [[*split(residuals(layer, 4)), residuals(8 + layer, 4)] for layer in range(2)]
    dataset = dataset_of(imported(tmp_path, layers, total_examples=4), 8)
    assert [item["hashkey"] for item in dataset] == [f"SP_test:EM:{row}" for row in range(4)]


def test_e3_labels_stay_with_their_rows_past_999_shards(tmp_path: Path) -> None:
    layers = [[torch.full((1, 3), number + layer / 2) for number in range(1002)] for layer in range(2)]
    dataset = dataset_of(imported(tmp_path, layers), 1002)
    for row in (0, 99, 100, 101, 999, 1000, 1001):
        item = dataset[row]
        assert (item["all_activations"][0][0, 0, 0], item["halu"]) == (row, float(row % 3 == 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_e4_items_have_the_dtype_of_the_tree(dtype: torch.dtype, tmp_path: Path) -> None:
    layers = [split(residuals(layer, 6, dtype)) for layer in range(2)]
    for row, item in enumerate(dataset_of(imported(tmp_path, layers), 6)):
        for layer, state in enumerate(item["all_activations"]):
            assert state.dtype == dtype
            assert state[0].equal(residuals(layer, 6, dtype)[row : row + 1])


def test_e5_an_item_keeps_nothing_larger_than_itself_alive(tmp_path: Path) -> None:
    """Not the sequence that its last token is of, either."""
    with actstore.create(tmp_path / "store") as store:
        array = np.ones((500, 8), np.float32)
        store.put(key="SP_test:EM:0", token_ids=range(500), prompt_length=400, activations={0: array, 1: array})
    parser = ActivationParser(None, None, tmp_path / "store", rows_of(1), positions="last")
    item = parser.get_dataset("all", LAYERS, pad_length=1)[0]
    for state in item["all_activations"]:
        assert state.untyped_storage().nbytes() == 8 * 4


def test_e6_a_row_leads_back_to_its_text_and_token(tmp_path: Path) -> None:
    """And the last token is that of the response, whose text says so."""
    with actstore.create(tmp_path / "store") as store:
        array = np.arange(12, dtype=np.float32).reshape(6, 2)
        named = {"dataset": "SP_test", "split": "EM", "row": 0}
        activations = {0: array, 1: array}
        store.put(
            key="SP_test:EM:0",
            prompt="a prompt",
            response=" its end",
            token_ids=[5, 6, 7, 8, 9, 4],
            prompt_length=4,
            activations=activations,
            metadata=named,
        )
    parser = ActivationParser(None, None, tmp_path / "store", rows_of(1), positions="last")
    _, entry, states, input_length = parser.get_activations(0)
    assert (entry.prompt, entry.response, entry.metadata, input_length) == ("a prompt", " its end", named, 4)
    state = states[1]
    assert state is not None
    assert state[0].tolist() == [[10, 11]]
    item = parser.get_dataset("all", LAYERS, pad_length=1)[0]
    assert item["all_activations"][0].tolist() == [[[10, 11]]]


def test_e7_labels_lie_beside_rows_of_which_one_at_a_time_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layers = [split(residuals(layer, 64), 32) for layer in range(2)]
    store = imported(tmp_path, layers)
    allocated = Allocated(monkeypatch)
    sizes: list[int] = []
    for item in dataset_of(store, 64):
        sizes += [state.untyped_storage().nbytes() for state in item["all_activations"]]
    assert set(sizes) == {3 * 2}
    assert allocated.peak <= 4
