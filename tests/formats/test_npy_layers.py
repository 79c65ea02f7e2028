"""`npy-layers`: document 004's directories, as the document says and as the program wrote them."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.errors import CorruptError, InvalidInputError, LimitExceededError
from actstore.formats import export_store, format_of, import_store
from actstore.formats import npz as npz_files
from actstore.store import Store
from old_trees import question, write_pass, write_run

WIDTH, TOKENS, QUESTIONS = 3, 5, 4


def memory(source: Path) -> tuple[Store, Any]:
    store = actstore.create(backend="memory", codec="raw")
    return store, import_store(source, store, verify=True)


def values(layer: int, shape: tuple[int, ...] = (QUESTIONS, TOKENS, WIDTH)) -> np.ndarray:
    return np.random.default_rng(layer).standard_normal(shape).astype(np.float16)


def write_documented(
    root: Path, layers: tuple[int, ...] = (0, 1), passes: tuple[str, ...] = ("mcq", "self_conf")
) -> None:
    root.mkdir()
    write_run(root, QUESTIONS)
    for name in passes:
        write_pass(root / name, QUESTIONS)
        for layer in layers:
            np.save(root / name / f"activations_layer_{layer:02d}.npy", values(layer))


def write_real(root: Path, **members: Any) -> None:
    root.mkdir()
    write_run(root, QUESTIONS)
    write_pass(root / "mcq", QUESTIONS)
    arrays: dict[str, Any] = {
        "activations": values(0, (2, QUESTIONS, WIDTH)),
        "layer_indices": np.arange(2),
        "num_questions": QUESTIONS,
        "hidden_dim": WIDTH,
    }
    np.savez_compressed(root / "mcq" / "activations.npz", **{**arrays, **members})


def test_every_question_of_every_pass_comes_in(tmp_path: Path) -> None:
    write_documented(tmp_path / "old")
    assert format_of(tmp_path / "old").name == "npy-layers"  # pyright: ignore[reportOptionalMemberAccess]
    store, report = memory(tmp_path / "old")
    assert (report.entries, report.migrated, report.verified, report.left_out) == (8, 8, 8, ())
    assert store.keys() == [f"{name}:{row}" for name in ("mcq", "self_conf") for row in range(QUESTIONS)]
    for row in range(QUESTIONS):
        entry = store[f"mcq:{row}"]
        known = entry.metadata.pop("imported_from")
        assert entry.metadata == question(row)
        assert list(entry.metadata) == list(question(row))
        assert (entry.prompt, entry.response) == (f"prompt {row}", "A")
        assert {name: known[name] for name in ("layer_counting", "token_convention", "padding_side", "positions")} == {
            "layer_counting": "blocks",
            "token_convention": "at",
            "padding_side": "left",
            "positions": "padded",
        }
        assert (known["pass"], known["row"], known["run_config"]["base_model_name"]) == ("mcq", row, "meta-llama/Test")
        for layer in (0, 1):
            assert entry.numpy(f"resid_post.{layer}").tobytes() == values(layer)[row].tobytes()
        # Which rows are padding is not known, so no row has a position.
        assert entry.positions is None


def test_one_pass_alone_and_layers_as_numbers(tmp_path: Path) -> None:
    write_documented(tmp_path / "old", layers=(2, 99, 100))
    store, _ = memory(tmp_path / "old" / "mcq")
    assert store["mcq:1"].points == [f"blocks.{layer}.hook_resid_post" for layer in (2, 99, 100)]
    assert store["mcq:1"].numpy("resid_post.100").tobytes() == values(100)[1].tobytes()


def test_i1_the_programs_own_arrays_come_in_and_their_fault_is_said(tmp_path: Path) -> None:
    write_real(tmp_path / "old", layer_indices=np.array([7, 3]))
    store, report = memory(tmp_path / "old")
    assert store.keys() == [f"mcq:{row}" for row in range(QUESTIONS)]
    for row in range(QUESTIONS):
        entry = store[f"mcq:{row}"]
        assert entry.numpy("resid_post.7").tobytes() == values(0, (2, QUESTIONS, WIDTH))[0, row].tobytes()
        assert entry.numpy("resid_post.3").tobytes() == values(0, (2, QUESTIONS, WIDTH))[1, row].tobytes()
        assert entry.positions is None
        assert entry.metadata["imported_from"]["positions"] == "unverified"
    (note,) = report.notes
    assert "only the longest prompts have their last token" in note


def test_the_npz_counts_before_the_arrays_of_layers(tmp_path: Path) -> None:
    write_real(tmp_path / "old")
    np.save(tmp_path / "old" / "mcq" / "activations_layer_00.npy", values(5))
    store, _ = memory(tmp_path / "old")
    assert store["mcq:0"].shape("resid_post.0") == (1, WIDTH)


def test_what_goes_out_comes_in_again(tmp_path: Path) -> None:
    write_documented(tmp_path / "old")
    store, _ = memory(tmp_path / "old")
    report = export_store(store, tmp_path / "new", "npy-layers", verify=True)
    assert (report.migrated, report.verified, report.notes, report.left_out) == (8, 8, (), ())
    for file in sorted((tmp_path / "old").rglob("*")):
        twin = tmp_path / "new" / file.relative_to(tmp_path / "old")
        if file.suffix == ".npy":
            assert twin.read_bytes() == file.read_bytes()
        elif file.name == "metadata.json":
            assert twin.read_text() == file.read_text()
        elif file.is_file():
            assert json.loads(file.read_text()).items() <= json.loads(twin.read_text()).items()
    assert np.load(tmp_path / "new" / "mcq" / "lengths.npy").tolist() == [TOKENS] * QUESTIONS


def test_ragged_entries_are_padded_on_the_left_and_their_lengths_kept(tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    for length in (2, 0, 4):
        rows = np.full((length, WIDTH), length, np.float16)
        store.put(key=f"q{length}", prompt="p", activations={4: rows}, metadata={"score": length, "model": "m"})
    report = export_store(store, tmp_path / "new", "npy-layers", verify=True)
    assert (report.verified, report.notes) == (3, ())
    array = np.load(tmp_path / "new" / "activations_layer_04.npy")
    assert array[0, :, 0].tolist() == [0, 0, 2, 2]
    assert np.load(tmp_path / "new" / "lengths.npy").tolist() == [2, 0, 4]
    assert json.loads((tmp_path / "new" / "metadata.json").read_text())[2] == {
        "question_id": "q4",
        "prompt_text": "p",
        "output_text": None,
        "score": 4,
        "model": "m",
    }
    assert json.loads((tmp_path / "new" / "run_config.json").read_text())["base_model_name"] == "m"
    again, _ = memory(tmp_path / "new")
    assert [entry.shape("resid_post.4") for entry in again] == [(2, WIDTH), (0, WIDTH), (4, WIDTH)]
    assert again["new:2"].metadata["imported_from"]["positions"] == "real tokens"


def test_i9_rows_that_do_not_fit_their_records_are_refused(tmp_path: Path) -> None:
    write_documented(tmp_path / "old", passes=("mcq",))
    np.save(tmp_path / "old" / "mcq" / "activations_layer_01.npy", values(1)[1:])
    with pytest.raises(
        CorruptError, match=r"has `3` questions, but `metadata.json` beside it has `4`; which"
    ) as caught:
        memory(tmp_path / "old")
    assert caught.value.kind == "malformed"


def test_a_damaged_pass_is_left_out_and_the_others_come_in(tmp_path: Path) -> None:
    write_documented(tmp_path / "old", passes=("mcq", "self_conf"))
    array = tmp_path / "old" / "mcq" / "activations_layer_01.npy"
    array.write_bytes(array.read_bytes()[:-5])
    store, report = memory(tmp_path / "old")
    assert (store.keys(), report.verified) == ([f"self_conf:{row}" for row in range(QUESTIONS)], QUESTIONS)
    (damage,) = report.left_out
    assert (damage["key"], damage["kind"], str(array) in damage["message"]) == ("mcq", "truncated", True)


def test_i5_what_is_wider_than_float16_stays_so(tmp_path: Path) -> None:
    """bfloat16 goes out as float32, not through float16, which has no such values."""
    import ml_dtypes

    rows = np.full((2, WIDTH), 1e30, ml_dtypes.bfloat16)
    store = actstore.create(backend="memory")
    store.put(key="k", activations={0: rows})
    report = export_store(store, tmp_path / "new", "npy-layers", verify=True)
    assert report.notes == ("bfloat16 is written as float32, `.npy` has no bfloat16; every value is kept (1 x)",)
    assert np.load(tmp_path / "new" / "activations_layer_00.npy").tolist() == rows.astype(np.float32)[None].tolist()


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "../") + ".npy", content)
    return file.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


FORGED = npy(np.ones((2, QUESTIONS, WIDTH), np.float16)).replace(b"(2, 4, 3)", b"(9, 4, 3)")
OBJECTS = npy(np.array([None] * 8).reshape(2, QUESTIONS, 1), allow_pickle=True)
GOOD = npy(values(0, (2, QUESTIONS, WIDTH)))


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (npz(activations=FORGED), "truncated", "`activations` of `"),
        (npz(activations=OBJECTS), "invalid_tensor", "is an array of objects, which are pickles"),
        (npz(activations=npy(np.ones((2, 3)))), "malformed", "not `[layers, questions, d]`"),
        (npz(activations=GOOD, layer_indices=npy(np.array([0, 0]))), "malformed", "`layer_indices` of `"),
        (npz(activations=GOOD, layer_indices=npy(np.array([-1, 0]))), "malformed", "`layer_indices` of `"),
        (npz(activations=GOOD, layer_indices=npy(np.array([0.5, 1]))), "malformed", "`layer_indices` of `"),
        (npz(activations=GOOD)[:200], "malformed", "is no whole `.npz`"),
        (b"no zip", "malformed", "is no whole `.npz`"),
        (npz(other=GOOD), "malformed", "has no `activations`"),
        (npz(activations=b"\x93NUMPY"), "malformed", "has no `.npy` header"),
    ],
)
def test_hostile_archives(content: bytes, kind: str, message: str, tmp_path: Path) -> None:
    write_real(tmp_path / "old")
    (tmp_path / "old" / "mcq" / "activations.npz").write_bytes(content)
    with pytest.raises((CorruptError, InvalidInputError)) as caught:
        memory(tmp_path / "old")
    assert caught.value.kind == kind
    assert message in str(caught.value)
    assert "activations.npz`" in str(caught.value)


def test_nothing_of_an_archive_is_unpacked_by_its_names(tmp_path: Path) -> None:
    write_real(tmp_path / "old")
    (tmp_path / "old" / "mcq" / "activations.npz").write_bytes(npz(activations=GOOD, __escaped=GOOD))
    store, _ = memory(tmp_path / "old")
    assert len(store) == QUESTIONS
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_files, "_MOST_FREELY", 1 << 20)
    write_real(tmp_path / "old")
    (tmp_path / "old" / "mcq" / "activations.npz").write_bytes(npz(activations=npy(np.zeros((2, QUESTIONS, 1 << 17)))))
    with pytest.raises(LimitExceededError, match=r"would grow from [\d,]+ to 8,388,736 bytes") as caught:
        memory(tmp_path / "old")
    assert caught.value.kind == "limit_exceeded"


def test_c6_numbers_without_a_header_are_no_npy(tmp_path: Path) -> None:
    """A later program called its raw memory so; what shape and dtype it has is nowhere, and is not guessed."""
    write_documented(tmp_path / "old", passes=("mcq",))
    path = tmp_path / "old" / "mcq" / "activations_layer_01.npy"
    path.write_bytes(values(1).tobytes())
    with pytest.raises(CorruptError, match=r"activations_layer_01\.npy` has no `\.npy` header") as caught:
        memory(tmp_path / "old")
    assert caught.value.kind == "malformed"


@pytest.mark.parametrize(
    ("lengths", "message"),
    [(np.arange(3), "is no array of `4` lengths"), (np.full(4, 9), "up to `5`"), (np.ones(4), "is no array")],
)
def test_lengths_that_lie(lengths: np.ndarray, message: str, tmp_path: Path) -> None:
    write_documented(tmp_path / "old", passes=("mcq",))
    np.save(tmp_path / "old" / "mcq" / "lengths.npy", lengths)
    with pytest.raises(CorruptError, match=r"lengths\.npy") as caught:
        memory(tmp_path / "old")
    assert caught.value.kind == "malformed"
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "[", '[{"a": 1}'])
def test_records_that_are_none(text: str, tmp_path: Path) -> None:
    write_documented(tmp_path / "old", passes=("mcq",))
    (tmp_path / "old" / "mcq" / "metadata.json").write_text(text)
    with pytest.raises(CorruptError, match=r"metadata.json` is no") as caught:
        import_store(tmp_path / "old", actstore.create(backend="memory"), "npy-layers")
    assert caught.value.kind == "malformed"


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        ({}, "has other layers, dtypes or widths of `resid_post` than `first`, or none"),
        ({0: np.ones((2, 4), np.float16)}, "has other layers, dtypes or widths"),
        ({1: np.ones((2, WIDTH), np.float16)}, "has other layers, dtypes or widths"),
    ],
)
def test_what_no_array_can_hold_is_refused(activations: dict[int, Any], message: str, tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    store.put(key="first", activations={0: np.ones((2, WIDTH), np.float16)})
    store.put(key="second", activations=activations)
    with pytest.raises(InvalidInputError, match="entry `second`") as caught:
        export_store(store, tmp_path / "new", "npy-layers")
    assert caught.value.kind == "invalid_tensor"
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_metadata_cannot_hold_is_kept_as_text(tmp_path: Path) -> None:
    write_documented(tmp_path / "old", passes=("mcq",))
    run = {"model_type": "base", "temperature": float("inf"), "num_questions": QUESTIONS}
    (tmp_path / "old" / "run_config.json").write_text(json.dumps(run))
    store, report = memory(tmp_path / "old")
    known = store["mcq:0"].metadata["imported_from"]
    assert (report.left_out, known["run_config"]["temperature"]) == ((), "Infinity")
    export_store(store, tmp_path / "new", "npy-layers", verify=True)
    written = json.loads((tmp_path / "new" / "run_config.json").read_text())
    assert {name: written[name] for name in run} == run


def test_an_npz_that_numpy_never_wrote_is_refused(tmp_path: Path) -> None:
    write_real(tmp_path / "old")
    path = tmp_path / "old" / "mcq" / "activations.npz"
    for method, said in ((zipfile.ZIP_LZMA, "compressed in a way"), (zipfile.ZIP_STORED, r"is \[1000000000, 4, 0\]")):
        with zipfile.ZipFile(path, "w", method) as archive, archive.open("activations.npy", "w") as file:
            header = {"shape": (10**9, QUESTIONS, 0), "fortran_order": False, "descr": "<f2"}
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(CorruptError, match=said) as caught:
            memory(tmp_path / "old")
        assert caught.value.kind == "malformed"


def write_paired(root: Path, **members: Any) -> None:
    root.mkdir()
    questions = [{"id": f"q{row}", "question": f"Question {row}?"} for row in range(QUESTIONS)]
    document = {"run_id": "r1", "config": {"base_model_name": "m"}, "questions": questions}
    (root / "m_mc_paired_data.json").write_text(json.dumps(document, indent=2))
    arrays: dict[str, Any] = {
        "layer_0": values(0, (QUESTIONS, WIDTH)),
        "layer_10": values(10, (QUESTIONS, WIDTH)),
        "entropy": np.arange(QUESTIONS, dtype=np.float32),
        "run_id": np.array("r1"),
        "question_ids": np.array([f"q{row}" for row in range(QUESTIONS)], dtype=object),
    }
    np.savez_compressed(root / "m_mc_direct_activations.npz", **{**arrays, **members})


def test_the_later_archives_come_in_with_their_paired_records(tmp_path: Path) -> None:
    write_paired(tmp_path / "old")
    assert format_of(tmp_path / "old").name == "npy-layers"  # pyright: ignore[reportOptionalMemberAccess]
    store, report = memory(tmp_path / "old")
    assert (report.entries, report.verified, report.left_out) == (QUESTIONS, QUESTIONS, ())
    for row in range(QUESTIONS):
        entry = store[f"m_mc_direct:{row}"]
        known = entry.metadata.pop("imported_from")
        assert entry.metadata == {"id": f"q{row}", "question": f"Question {row}?", "entropy": float(row)}
        assert (known["positions"], known["run_config"]) == ("last", {"base_model_name": "m"})
        for layer in (0, 10):
            assert entry.numpy(f"resid_post.{layer}").tobytes() == values(layer, (QUESTIONS, WIDTH))[row].tobytes()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"run_id": np.array(["r2"])}, "has another `run_id`"),
        ({"question_ids": np.array(["q1", "q0", "q2", "q3"], dtype=object)}, "are not those of the JSON"),
        ({"layer_0": values(0, (3, WIDTH))}, "but there are `4` questions"),
    ],
)
def test_i9_paired_rows_of_another_run_or_order_are_refused(
    members: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_paired(tmp_path / "old", **members)
    with pytest.raises(CorruptError) as caught:
        memory(tmp_path / "old")
    assert caught.value.kind == "malformed"
    assert message in str(caught.value)
