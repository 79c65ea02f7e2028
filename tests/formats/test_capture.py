"""`capture-npz`, `capture-h5`, `capture-pickle`: document 001's trees, in and out."""

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.errors import ActstoreError, InvalidInputError
from actstore.formats import capture_h5, export_store, format_of, import_store, npz
from actstore.store import Store
from old_trees import capture_record, captured, save_captured, write_captured
from pickles import STOP, call, named, text

POINTS = {"hidden_states": "resid_post", "attention_weights": "attn_probs", "mlp_activations": "mlp_act"}
TREES = {
    "npz": ("capture-npz", ".npz", True),
    "npz plain": ("capture-npz", ".npz", False),
    "h5": ("capture-h5", ".h5", True),
    "h5 plain": ("capture-h5", ".h5", False),
    "pickle": ("capture-pickle", ".pkl.gz", True),
    "pickle plain": ("capture-pickle", ".pkl", False),
}


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest) -> tuple[str, str, bool]:
    if request.param.startswith("h5"):
        pytest.importorskip("h5py")
    return TREES[request.param]


def memory(source: Path, format: str = "auto") -> tuple[Store, Any]:
    store = actstore.create(backend="memory", codec="raw")
    return store, import_store(source, store, format, verify=True)


def test_every_entry_comes_in_with_its_record(tree: tuple[str, str, bool], tmp_path: Path) -> None:
    format, suffix, compression = tree
    names = write_captured(tmp_path / "old", suffix, compression=compression)
    assert format_of(tmp_path / "old").name == format  # pyright: ignore[reportOptionalMemberAccess]
    store, report = memory(tmp_path / "old")
    assert (store.keys(), report.verified, report.left_out) == (names, 3, ())
    for number, name in enumerate(names):
        entry, data = store[name], captured(number)
        assert (entry.prompt, entry.response) == (f"prompt {number}", f"answer {number}")
        record = capture_record(f"q_20240125_143022_{number}", name, "")
        for field in ("question_id", "question_data", "timestamp", "config"):
            assert entry.metadata[field] == record[field]
        assert entry.metadata["model"] == "test-model"
        known = entry.metadata["imported_from"]
        assert (known["format"], known["layer_counting"], known["dtypes"]) == (format, "blocks", ["float32"])
        assert known["metadata"]["capture_layers"] == [5, 10]
        for layer in (5, 10):
            for kind, point in POINTS.items():
                values = data["layers"][f"layer_{layer}"][kind]
                assert entry.numpy(f"{point}.{layer}").tobytes() == values.tobytes()
                assert entry.shape(f"{point}.{layer}") == values.shape


def test_what_comes_in_goes_out_the_same(tree: tuple[str, str, bool], tmp_path: Path) -> None:
    format, suffix, compression = tree
    names = write_captured(tmp_path / "old", suffix, compression=compression)
    store, _ = memory(tmp_path / "old")
    report = export_store(store, tmp_path / "new", format, verify=True)
    assert (report.migrated, report.verified, report.notes) == (3, 3, ())
    for name in names:
        old, new = (
            json.loads((tmp_path / at / "metadata" / f"{name}_metadata.json").read_text()) for at in ("old", "new")
        )
        assert new.pop("activation_file") == f"activations/{name}{suffix}"
        old.pop("activation_file")
        assert new == old
        assert list(new) == list(old)
        assert (tmp_path / "new" / "responses" / f"{name}_response.txt").read_text() == old["response"]
        assert [path.name for path in (tmp_path / "new" / "activations").glob(f"{name}.*")] == [name + suffix]
    again, _ = memory(tmp_path / "new")
    assert [entry.metadata for entry in again] == [entry.metadata for entry in store]


def test_entries_of_our_own_go_out(tree: tuple[str, str, bool], tmp_path: Path) -> None:
    format = tree[0]
    store = actstore.create(backend="memory")
    rows = np.arange(6, dtype=np.float16).reshape(2, 3)
    store.put(key="a/b", prompt="one two", response="r", activations={3: rows, "embed": rows}, metadata={"model": "m"})
    store.put(key="plain", activations={3: rows})
    report = export_store(store, tmp_path / "new", format, verify=True)
    assert (report.verified, report.notes) == (2, ("`hook_embed` is left out, the format has no place for it (1 x)",))
    again, _ = memory(tmp_path / "new")
    first, second = again
    assert (second.key, first.key[:4], first.prompt, first.response) == ("plain", "a_b_", "one two", "r")
    assert first.numpy("resid_post.3").tolist() == rows.tolist()
    assert first.dtype("resid_post.3") == "float16"
    assert first.metadata["question_data"] == {"id": "a/b", "question": "one two", "model": "m"}
    assert first.metadata["config"]["target_layers"] == [3]


def test_bfloat16_goes_out_as_float32(tmp_path: Path) -> None:
    import ml_dtypes

    store = actstore.create(backend="memory")
    store.put(key="k", activations={0: np.full((2, 3), 1e30, ml_dtypes.bfloat16)})
    report = export_store(store, tmp_path / "new", "capture-npz", verify=True)
    assert report.notes == ("bfloat16 is written as float32, the format has no bfloat16; every value is kept (1 x)",)


def test_c1_kinds_with_underscores_stay_whole(tmp_path: Path) -> None:
    write_captured(tmp_path / "old", ".npz", 1)
    store, _ = memory(tmp_path / "old")
    (entry,) = store
    assert sorted(entry.points) == sorted(
        f"blocks.{layer}.{hook}"
        for layer in (5, 10)
        for hook in ("hook_resid_post", "attn.hook_pattern", "mlp.hook_post")
    )


def test_c3_the_empty_file_beside_a_compressed_pickle_is_no_entry(tmp_path: Path) -> None:
    names = write_captured(tmp_path / "old", ".pkl.gz", 2)
    assert (tmp_path / "old" / "activations" / f"{names[0]}.pkl").stat().st_size == 0
    store, report = memory(tmp_path / "old")
    assert store.keys() == names
    assert len(report.notes) == 2
    assert "is left out: `" in report.notes[0]
    export_store(store, tmp_path / "new", "capture-pickle")
    assert all(path.stat().st_size for path in (tmp_path / "new").rglob("*") if path.is_file())


def test_c3_npz_written_here_needs_no_pickle(tmp_path: Path) -> None:
    names = write_captured(tmp_path / "old", ".npz", 1)
    store, _ = memory(tmp_path / "old")
    export_store(store, tmp_path / "new", "capture-npz")
    with np.load(tmp_path / "new" / "activations" / f"{names[0]}.npz", allow_pickle=False) as file:
        assert json.loads(file["metadata"].item()) == captured(0)["metadata"]


def test_c3_lists_and_long_texts_survive_hdf5(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    store = actstore.create(backend="memory")
    prompt = "é" * 100_000
    store.put(key="k", prompt=prompt, activations={7: np.ones((1, 2), np.float32)})
    export_store(store, tmp_path / "new", "capture-h5", verify=True)
    again, _ = memory(tmp_path / "new")
    assert again["k"].prompt == prompt
    assert again["k"].metadata["imported_from"]["metadata"]["capture_layers"] == [7]


def test_an_axis_of_the_batch_is_taken_off_and_written_again(tmp_path: Path) -> None:
    write_captured(tmp_path / "old", ".pkl", 1)
    (file,) = (tmp_path / "old" / "activations").iterdir()
    rows = np.ones((1, 3, 2), np.float32)
    save_captured(file, {"metadata": {}, "layers": {"layer_0": {"hidden_states": rows}}})
    store, _ = memory(tmp_path / "old")
    (entry,) = store
    assert entry.shape("resid_post.0") == (3, 2)
    assert entry.response == "answer 0"
    export_store(store, tmp_path / "new", "capture-pickle")
    (file,) = (tmp_path / "new" / "activations").iterdir()
    assert pickle.loads(file.read_bytes())["layers"]["layer_0"]["hidden_states"].shape == (1, 3, 2)


def test_activations_without_a_record_and_a_record_without_activations(tmp_path: Path) -> None:
    names = write_captured(tmp_path / "old", ".npz")
    (tmp_path / "old" / "metadata" / f"{names[0]}_metadata.json").unlink()
    (tmp_path / "old" / "activations" / f"{names[1]}.npz").unlink()
    store, report = memory(tmp_path / "old")
    assert store.keys() == [names[0], names[2]]
    assert (store[names[0]].prompt, store[names[0]].response) == ("prompt 0", "answer 0")
    (damage,) = report.left_out
    assert (damage["key"], damage["kind"]) == (names[1], "missing_file")


def test_files_of_another_format_beside_are_said(tmp_path: Path) -> None:
    write_captured(tmp_path / "old", ".npz", 1)
    save_captured(tmp_path / "old" / "activations" / "other.pkl", captured(9))
    store, report = memory(tmp_path / "old", "capture-pickle")
    assert store.keys() == ["other"]
    assert "`1` files of other formats" in report.notes[0]


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name.replace("__", "../") + ".npy", content)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


ROWS = npy(np.ones((2, 3), np.float32))
GADGET = call(named("os", "system"), text("touch escaped")) + STOP
OBJECTS = npy(np.array([None], object))
HEADER = OBJECTS[: OBJECTS.index(b"\n") + 1]
WHOLE = pickle.dumps(captured(), 4)

HOSTILE_NPZ = [
    (archive(layer_5_hidden_states=ROWS.replace(b"(2, 3)", b"(9, 9)")), "truncated"),
    (archive(layer_5_hidden_states=OBJECTS), "invalid_tensor"),
    (archive(layer_5_hidden_states=ROWS, metadata=HEADER + GADGET), "untrusted_input"),
    (archive(layer_5_hidden_states=ROWS, metadata=npy(np.array(["{"]))), "malformed"),
    (archive(layer_5_hidden_states=ROWS, metadata=npy(np.array(["{}"])).replace(b"(1,)", b"(9,)")), "malformed"),
    (archive(layer_5_hidden_states=ROWS, metadata=npy(np.array(["{}", "{}"]))), "malformed"),
    (archive(layer_5_hidden_states=ROWS, metadata=ROWS), "malformed"),
    (archive(layer_5_hidden_states=ROWS, __escaped=ROWS), "malformed"),
    (archive(layer_5_hidden_states=npy(np.ones(3, np.float32))), "malformed"),
    (archive(layer_5_hidden_states=ROWS)[:90], "malformed"),
    (b"PK\x03\x04", "malformed"),
]
HOSTILE_PICKLES = [
    (GADGET, "untrusted_input"),
    (gzip.compress(GADGET), "untrusted_input"),
    (WHOLE[:200], "truncated"),
    (gzip.compress(WHOLE)[:-9], "malformed"),
    (pickle.dumps([1]), "malformed"),
    (pickle.dumps({"layers": {"../x": {}}}), "malformed"),
    (pickle.dumps({"layers": {"layer_1": {"a/b": np.ones((2, 2))}}}), "malformed"),
    (pickle.dumps({"layers": {"layer_1": {"hidden_states": "no"}}}), "malformed"),
    (pickle.dumps({"metadata": [], "layers": {}}), "malformed"),
    (b"", "truncated"),
]


@pytest.mark.parametrize(
    ("suffix", "content", "kind"),
    [(".npz", *case) for case in HOSTILE_NPZ] + [(".pkl", *case) for case in HOSTILE_PICKLES],
)
def test_hostile_files_are_left_out_by_name(
    suffix: str, content: bytes, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_captured(tmp_path / "old", suffix, 2)
    (tmp_path / "old" / "activations" / (names[0] + suffix)).write_bytes(content)
    store, report = memory(tmp_path / "old")
    assert store.keys() == names[1:]
    (damage,) = report.left_out
    assert (damage["key"], damage["kind"]) == (names[0], kind)
    assert names[0] + suffix in damage["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("suffix", [".npz", ".pkl.gz", ".h5"])
def test_a_bomb_is_left_out(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".h5":
        pytest.importorskip("h5py")
    monkeypatch.setattr(npz, "_MOST_FREELY", 1 << 20)
    names = write_captured(tmp_path / "old", suffix, 1)
    data = {"metadata": {}, "layers": {"layer_0": {"hidden_states": np.zeros((1 << 10, 1 << 12), "f4")}}}
    save_captured(tmp_path / "old" / "activations" / (names[0] + suffix), data)
    _, report = memory(tmp_path / "old")
    assert [damage["kind"] for damage in report.left_out] == ["limit_exceeded"]


@pytest.mark.parametrize("folder", ["activations", "metadata", "responses"])
def test_links_out_of_the_tree_are_not_followed(folder: str, tmp_path: Path) -> None:
    names = write_captured(tmp_path / "old", ".npz", 1)
    (file,) = (tmp_path / "old" / folder).iterdir()
    file.rename(tmp_path / file.name)
    file.symlink_to(tmp_path / file.name)
    _, report = memory(tmp_path / "old")
    assert [(damage["key"], damage["kind"]) for damage in report.left_out] == [(names[0], "unsafe_path")]


@pytest.mark.parametrize("link", ["external", "soft", "elsewhere"])
def test_hdf5_links_and_values_elsewhere_are_not_followed(link: str, tmp_path: Path) -> None:
    h5py: Any = pytest.importorskip("h5py")
    names = write_captured(tmp_path / "old", ".h5", 1)
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(tmp_path / "old" / "activations" / f"{names[0]}.h5", "r+") as file:
        group = file["layers/layer_5"]
        if link == "external":
            group["more"] = h5py.ExternalLink(str(tmp_path / "secret"), "/x")
        elif link == "soft":
            group["more"] = h5py.SoftLink("/layers/layer_10/hidden_states")
        else:
            group.create_dataset("more", (4, 4), "f4", external=[(str(tmp_path / "secret"), 0, 64)])
    _, report = memory(tmp_path / "old")
    assert [(damage["key"], damage["kind"]) for damage in report.left_out] == [(names[0], "unsafe_path")]


def test_damaged_hdf5_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    names = write_captured(tmp_path / "old", ".h5", 2)
    path = tmp_path / "old" / "activations" / f"{names[0]}.h5"
    path.write_bytes(path.read_bytes()[:700])
    store, report = memory(tmp_path / "old")
    assert store.keys() == names[1:]
    assert [(damage["kind"], names[0] in damage["message"]) for damage in report.left_out] == [("malformed", True)]


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Any:
        raise ImportError

    monkeypatch.setattr(capture_h5, "import_module", missing)
    store = actstore.create(backend="memory")
    store.put(key="k", activations={0: np.ones((2, 3), np.float32)})
    with pytest.raises(InvalidInputError, match=r"actstore\[hdf5\]") as caught:
        export_store(store, tmp_path / "new", "capture-h5")
    assert caught.value.kind == "invalid_option"
    assert isinstance(caught.value, ActstoreError)


def test_what_json_has_and_metadata_has_not_comes_back(tmp_path: Path) -> None:
    names = write_captured(tmp_path / "old", ".npz", 1)
    path = tmp_path / "old" / "metadata" / f"{names[0]}_metadata.json"
    record = json.loads(path.read_text()) | {"score": float("inf")}
    path.write_text(json.dumps(record))
    store, _ = memory(tmp_path / "old")
    assert store[names[0]].metadata["score"] == "Infinity"
    export_store(store, tmp_path / "new", "capture-npz")
    assert json.loads((tmp_path / "new" / "metadata" / path.name).read_text())["score"] == float("inf")
