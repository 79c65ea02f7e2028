"""`ActivationStorage` of document 001, and the bugs of the original."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.errors import InvalidInputError, NotFoundError, UntrustedInputError
from actstore.formats import import_store
from actstore.legacy import ActivationStorage
from old_trees import captured, write_captured
from pickles import STOP, call, named, text
from processes import python

FORMATS = ["npz", "h5", "pickle"]


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    arrays = [
        {
            (layer, kind): (a.dtype.name, a.shape, a.tobytes())
            for layer, kinds in one["layers"].items()
            for kind, a in kinds.items()
        }
        for one in (left, right)
    ]
    return left["metadata"] == right["metadata"] and arrays[0] == arrays[1]


def save(storage: ActivationStorage, data: dict[str, Any], question_id: str = "q_1") -> str:
    return storage.save_activation_data(question_id, {"question": "Why? " * 50}, "Because.", data)


@pytest.mark.parametrize("compression", [True, False])
@pytest.mark.parametrize("save_format", FORMATS)
def test_c1_c2_what_is_saved_is_loaded_in_the_format_asked_for(
    save_format: str, compression: bool, tmp_path: Path
) -> None:
    if save_format == "h5":
        pytest.importorskip("h5py")
    storage = ActivationStorage(tmp_path / "own", save_format=save_format, compression=compression)
    path = save(storage, captured())
    suffix = {"npz": ".npz", "h5": ".h5", "pickle": ".pkl.gz" if compression else ".pkl"}[save_format]
    assert path.endswith(suffix)
    assert same(storage.load_activation_data(path), captured())
    stats = storage.get_storage_stats()
    assert (stats["save_format"], stats["compression_enabled"]) == (save_format, compression)
    with actstore.create(backend="memory") as store:
        report = import_store(tmp_path / "own", store, f"capture-{save_format}", verify=True)
        assert (report.migrated, report.notes) == (1, ())


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".pkl", ".pkl.gz"])
def test_the_originals_files_are_loaded_and_listed(suffix: str, tmp_path: Path) -> None:
    if suffix == ".h5":
        pytest.importorskip("h5py")
    names = write_captured(tmp_path / "activation_data", suffix)
    storage = ActivationStorage(tmp_path / "activation_data")
    listed = storage.list_stored_activations()
    # Their paths began where the program was started.
    assert [item["activation_file"] for item in listed] == [
        str(tmp_path / "activation_data" / "activations" / (name + suffix)) for name in names
    ]
    for number, item in enumerate(listed):
        assert same(storage.load_activation_data(item["activation_file"]), captured(number))
        assert (item["model_name"], item["question"], item["timestamp"]) == ("test-model", "Why?", "20250725_101112")
    assert storage.get_storage_stats()["total_activation_files"] == 3


def test_c2_nothing_is_made_before_the_first_save(tmp_path: Path) -> None:
    storage = ActivationStorage(tmp_path / "own")
    assert storage.list_stored_activations() == []
    assert storage.get_storage_stats()["total_activation_files"] == 0
    assert list(tmp_path.iterdir()) == []


def test_c3_a_compressed_pickle_is_one_file(tmp_path: Path) -> None:
    storage = ActivationStorage(tmp_path, save_format="pickle")
    path = save(storage, captured())
    assert [str(file) for file in (tmp_path / "activations").iterdir()] == [path]


def test_c4_saves_in_the_same_second_are_all_kept(tmp_path: Path) -> None:
    storage = ActivationStorage(tmp_path)
    long = "x" * 60
    with ThreadPoolExecutor(4) as pool:
        saves = [pool.submit(save, storage, captured(number), f"{long}{number}") for number in range(12)]
    paths = [saved.result() for saved in saves]
    assert len(set(paths)) == 12
    for number, path in enumerate(paths):
        assert same(storage.load_activation_data(path), captured(number))
    listed = storage.list_stored_activations()
    assert {item["question_id"] for item in listed} == {f"{long}{number}" for number in range(12)}
    assert {item["activation_file"] for item in listed} == set(paths)


def test_c4_paths_hold_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(ActivationStorage("here"), captured())
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    storage = ActivationStorage("../here")
    (item,) = storage.list_stored_activations()
    record = json.loads(Path(item["metadata_file"]).read_text())
    assert same(storage.load_activation_data(item["activation_file"]), captured())
    assert same(storage.load_activation_data(record["activation_file"]), captured())


def test_records_have_their_fields_in_order(tmp_path: Path) -> None:
    path = Path(save(ActivationStorage(tmp_path), captured(), "a/b ?"))
    assert path.name.startswith("a_b___")
    record = json.loads((tmp_path / "metadata" / f"{path.stem}_metadata.json").read_text())
    fields = ["question_id", "question_data", "response", "timestamp", "activation_file", "config"]
    assert list(record) == fields
    assert record["config"] == {
        "target_layers": [5, 10],
        "capture_attention_weights": True,
        "capture_hidden_states": True,
        "capture_mlp_activations": True,
        "model_name": "test-model",
    }
    assert (tmp_path / "responses" / f"{path.stem}_response.txt").read_text() == "Because."


def test_tensors_of_torch_and_numbers_of_numpy(tmp_path: Path) -> None:
    import torch

    rows = torch.ones(2, 3, dtype=torch.bfloat16)
    data = {"metadata": {"n": np.int64(3)}, "layers": {"layer_0": {"hidden_states": rows}}}
    storage = ActivationStorage(tmp_path)
    loaded = storage.load_activation_data(save(storage, data))
    assert loaded["metadata"] == {"n": 3}
    assert loaded["layers"]["layer_0"]["hidden_states"].dtype == np.float32


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"metadata": {"a": object()}, "layers": {}}, "invalid_metadata"),
        ({"layer_5": np.ones((2, 2))}, "invalid_tensor"),
        ({"layers": {"layer_5": np.ones((2, 2))}}, "invalid_tensor"),
        ({"layers": {"fifth": {"hidden_states": np.ones((2, 2))}}}, "invalid_tensor"),
        ({"layers": {"layer_5": {"hidden_states": [1, 2]}}}, "invalid_tensor"),
        ({"layers": {"layer_5": {"../x": np.ones((2, 2))}}}, "invalid_tensor"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(data: Any, kind: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        save(ActivationStorage(tmp_path / "own"), data)
    assert caught.value.kind == kind
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"`save_format` is `zarr`; one of `npz`") as unknown:
        ActivationStorage(tmp_path, save_format="zarr")
    assert unknown.value.kind == "invalid_option"
    storage = ActivationStorage(tmp_path)
    with pytest.raises(NotFoundError, match="is not there") as absent:
        storage.load_activation_data("nothing.npz")
    assert absent.value.kind == "no_such_key"
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InvalidInputError, match="is no file of activations") as other:
        storage.load_activation_data("x.txt")
    assert other.value.kind == "invalid_option"
    (tmp_path / "x.pkl").write_bytes(call(named("os", "system"), text("touch escaped")) + STOP)
    with pytest.raises(UntrustedInputError, match=r"x\.pkl") as gadget:
        storage.load_activation_data("x.pkl")
    assert gadget.value.kind == "untrusted_input"


def test_a_record_that_cannot_be_read_is_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "x_metadata.json").write_text("{")
    (item,) = ActivationStorage(tmp_path).list_stored_activations()
    assert "is not JSON" in item["error"]


def test_the_package_does_not_import_it() -> None:
    script = "import sys, actstore; assert not {'actstore.legacy', 'h5py'} & set(sys.modules)"
    assert python(script).returncode == 0


def test_files_that_the_original_reads(tmp_path: Path) -> None:
    """Its reader took the JSON text of `metadata` by `item()`, and pickles whole."""
    path = save(ActivationStorage(tmp_path), captured())
    with np.load(path, allow_pickle=True) as file:
        assert json.loads(file["metadata"].item()) == captured()["metadata"]
    path = save(ActivationStorage(tmp_path, save_format="pickle", compression=False), captured())
    assert same(pickle.loads(Path(path).read_bytes()), captured())
