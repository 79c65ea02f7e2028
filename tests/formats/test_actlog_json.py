"""`actlog-json-v1`, `-v2`, `-v3`: what document 000's loggers wrote comes in exactly, and goes out as they wrote it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.errors import AlreadyExistsError, CorruptError, InvalidInputError, NotFoundError
from actstore.formats import export_store, format_of, import_store
from actstore.store import Store
from old_trees import (
    LAYERS,
    hidden_states,
    key_of,
    record,
    some_entries,
    tensor,
    write_v1,
    write_v2,
    write_v3,
)

POINTS = ["hook_embed", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "ln_final.hook_out"]
WRITERS = {"1": write_v1, "2": write_v2, "3": write_v3}
VERSIONS = list(WRITERS)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def memory(source: Path, **options: Any) -> tuple[Store, Any]:
    store = actstore.create(backend="memory", codec="raw")
    return store, import_store(source, store, verify=True, **options)


def left_out(source: Path) -> list[tuple[str | None, str, str]]:
    _, report = memory(source)
    return [(damage["key"], damage["kind"], damage["message"]) for damage in report.left_out]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_and_value_comes_in(version: str, tmp_path: Path) -> None:
    entries = some_entries()
    WRITERS[version](tmp_path / "old", entries)
    before = snapshot(tmp_path / "old")
    assert format_of(tmp_path / "old").name == f"actlog-json-v{version}"  # pyright: ignore[reportOptionalMemberAccess]
    store, report = memory(tmp_path / "old")
    assert (report.entries, report.migrated, report.skipped, report.verified, report.left_out) == (3, 3, 0, 3, ())
    assert store.keys() == list(entries)
    for key, (fields, states) in entries.items():
        entry = store[key]
        assert (entry.key_recipe, entry.prompt, entry.response) == ("prompt", fields["prompt"], fields["response"])
        assert (entry.prompt_length, entry.created, entry.token_ids) == (3, fields["timestamp"], None)
        assert entry.positions == list(range(states[0].shape[1]))
        kept = ("input_length", "model", "trim_position", "logging_config", "timestamp")
        assert {name: entry.metadata[name] for name in kept} == {name: fields[name] for name in kept}
        assert entry.metadata["imported_from"] == {
            "format": f"actlog-json-v{version}",
            "layer_counting": "hidden_states",
            "token_convention": "at",
            "padding_side": None,
            "dtypes": ["float16"],
            "hidden_states": LAYERS + 1,
            "batch_axis": True,
        }
        assert [entry.numpy(point).tobytes() for point in POINTS] == [state.tobytes() for state in states]
        assert sorted(entry.points) == sorted(POINTS)
        # The last layer's own output is in no hidden state, so it is absent and not the normed one.
        assert f"resid_post.{LAYERS - 1}" not in entry
    assert snapshot(tmp_path / "old") == before


@pytest.mark.parametrize("version", VERSIONS)
def test_what_goes_out_is_what_came_in(version: str, tmp_path: Path) -> None:
    WRITERS[version](tmp_path / "old", some_entries())
    store, _ = memory(tmp_path / "old")
    report = export_store(store, tmp_path / "new", f"actlog-json-v{version}", verify=True)
    assert (report.migrated, report.verified, report.left_out, report.notes) == (3, 3, (), ())
    old, new = snapshot(tmp_path / "old"), snapshot(tmp_path / "new")
    assert list(new) == list(old)
    for name, content in old.items():
        if name.endswith(".json"):
            assert json.loads(new[name]) == json.loads(content)
            # Order is part of the layout.
            assert list(json.loads(new[name])) == list(json.loads(content))
        elif name.endswith(".npy"):
            assert new[name] == content
    if version == "1":
        assert new["metadata.json"] == old["metadata.json"]
        assert new == old
    if version == "2":
        assert new["metadata.json"] == old["metadata.json"]


def test_h9_a_newer_logger_in_an_older_directory(tmp_path: Path) -> None:
    """Each entry is read as it was written; states that the newer logger wrote over are missing, not wrong."""
    first, second, third, lost = some_entries(4).items()
    write_v1(tmp_path / "old", dict([first, lost]))
    index = json.loads((tmp_path / "old" / "metadata.json").read_text())
    write_v2(tmp_path / "two", dict([second]))
    index["entries"] |= json.loads((tmp_path / "two" / "metadata.json").read_text())["entries"]
    (tmp_path / "two" / "activations" / f"{second[0]}.npy").rename(
        tmp_path / "old" / "activations" / f"{second[0]}.npy"
    )
    (tmp_path / "old" / "metadata.json").write_text(json.dumps(index, indent=2))
    write_v3(tmp_path / "old", dict([third]))
    # The sidecar of a third logging of `lost`, whose line in the index was torn off.
    (tmp_path / "old" / "activations" / f"{lost[0]}.json").write_text(json.dumps(lost[1][0]))
    store, report = memory(tmp_path / "old")
    formats = {entry.key: entry.metadata["imported_from"]["format"] for entry in store}
    assert formats == {first[0]: "actlog-json-v1", second[0]: "actlog-json-v2", third[0]: "actlog-json-v3"}
    for key, (_, states) in (first, second, third):
        assert [store[key].numpy(point).tobytes() for point in POINTS] == [state.tobytes() for state in states]
    (damage,) = report.left_out
    assert (damage["key"], damage["kind"]) == (lost[0], "malformed")
    assert f"{lost[0]}.json` has no `all_layers_activations`: a newer logger has written over them" in damage["message"]


def test_h9_a_newer_record_of_the_same_key_counts(tmp_path: Path) -> None:
    key, (fields, _) = next(iter(some_entries().items()))
    states = hidden_states(7, rows=6)
    write_v1(tmp_path / "old", {key: (fields, [np.zeros_like(state) for state in states])})
    write_v3(tmp_path / "old", {key: ({**fields, "response": "newer"}, states)})
    store, _ = memory(tmp_path / "old")
    assert (len(store), store[key].response) == (1, "newer")
    assert store[key].numpy("resid_post.0").tobytes() == states[1].tobytes()


@pytest.mark.parametrize("mode", ["prompt", "response"])
def test_h3_rows_are_never_cut_again(mode: str, tmp_path: Path) -> None:
    """The rows that are stored are the prompt's, or the response's: their positions say so, and none is lost."""
    key, states = key_of("p"), hidden_states(0, rows=3)
    write_v1(tmp_path / "old", {key: (record("p", length=3, mode=mode), list(states))})
    store, _ = memory(tmp_path / "old")
    entry = store[key]
    assert entry.positions == ([0, 1, 2] if mode == "prompt" else [3, 4, 5])
    assert entry.numpy("resid_post.0", mode).tobytes() == states[1].tobytes()
    other = "response" if mode == "prompt" else "prompt"
    assert entry.numpy("resid_post.0", other).shape == (0, 4)


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"input_length": 9}, 9),  # fewer rows than the prompt has
        ({"logging_config": {"sequence_mode": "prompt"}, "input_length": 2}, 2),
        ({"logging_config": {"sequence_mode": "mean"}}, 3),
        ({"input_length": None}, None),
        ({"input_length": True}, None),
        ({"input_length": 2**40}, None),
    ],
)
def test_positions_are_not_guessed(fields: dict[str, Any], length: int | None, tmp_path: Path) -> None:
    key = key_of("p")
    write_v1(tmp_path / "old", {key: ({**record("p"), **fields}, list(hidden_states(0, rows=5)))})
    store, report = memory(tmp_path / "old")
    assert report.left_out == ()
    assert (store[key].prompt_length, store[key].positions) == (length, None)
    assert store[key].shape("resid_post.0") == (5, 4)


def test_the_mode_of_the_whole_log_counts_where_a_record_has_none(tmp_path: Path) -> None:
    fields = record("p")
    del fields["logging_config"]
    write_v1(tmp_path / "old", {"k": (fields, list(hidden_states(0, rows=5)))})
    store, _ = memory(tmp_path / "old")
    assert store["k"].positions == [0, 1, 2, 3, 4]
    assert store["k"].key_recipe == "user"


def test_h10_keys_of_repeated_samples(tmp_path: Path) -> None:
    keys = [f"{key_of('p')}_{request}" for request in ("0a1b2c3d", "9f8e7d6c")]
    write_v3(tmp_path / "old", {key: (record("p"), hidden_states(seed, rows=4)) for seed, key in enumerate(keys)})
    store, _ = memory(tmp_path / "old")
    assert store.keys() == keys
    assert {entry.document["prompt_sha256"] for entry in store} == {key_of("p")}
    assert store[keys[0]].numpy("embed").tobytes() != store[keys[1]].numpy("embed").tobytes()


def test_h6_missing_layers_ragged_rows_and_bfloat16(tmp_path: Path) -> None:
    """What crashed the loggers goes out and in again: where `.npy` cannot, version 2 has a `.json`."""
    import ml_dtypes

    store = actstore.create(backend="memory", codec="raw")
    rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    bfloat = rows.astype(ml_dtypes.bfloat16)
    store.put(key="half", activations={"embed": rows, "resid_post.0": rows * 2})
    store.put(key="ragged", activations={"embed": rows, "resid_post.0": rows[:3], "final_norm": rows})
    store.put(key="bfloat16", activations={"embed": bfloat, "resid_post.0": bfloat, "final_norm": bfloat})
    for version in "12":
        report = export_store(store, tmp_path / version, f"actlog-json-v{version}", layers=2, verify=True)
        assert (report.migrated, report.verified, report.left_out) == (3, 3, ())
        again, _ = memory(tmp_path / version)
        for entry in store:
            points = {point: (entry.dtype(point), entry.numpy(point).tobytes()) for point in entry}
            found = again[entry.key]
            assert {point: (found.dtype(point), found.numpy(point).tobytes()) for point in found} == points
    report = export_store(store, tmp_path / "3", "actlog-json-v3", layers=2, verify=True)
    assert [(damage["key"], damage["kind"]) for damage in report.left_out] == [
        ("half", "invalid_tensor"),
        ("ragged", "invalid_tensor"),
    ]
    assert report.notes[0] == "bfloat16 is written as float32, `.npy` has no bfloat16; every value is kept (1 x)"
    again, _ = memory(tmp_path / "3")
    assert again["bfloat16"].numpy("embed").tobytes() == bfloat.astype(np.float32).tobytes()


def test_h7_an_array_of_objects_is_read_and_nothing_of_it_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old NumPy pickled a list of unlike states."""
    monkeypatch.setattr("pickle.loads", None)
    key, states = key_of("p"), hidden_states(0, rows=5)
    write_v2(tmp_path / "old", {key: (record("p"), states)})
    objects = np.empty(LAYERS + 1, object)
    objects[0], objects[2] = states[0], states[2]
    np.save(tmp_path / "old" / "activations" / f"{key}.npy", objects, allow_pickle=True)
    store, _ = memory(tmp_path / "old")
    assert store[key].points == ["hook_embed", "blocks.1.hook_resid_post"]
    assert store[key].numpy("resid_post.1").tobytes() == states[2].tobytes()
    objects[1] = Gadget()
    np.save(tmp_path / "old" / "activations" / f"{key}.npy", objects, allow_pickle=True)
    ((_, kind, message),) = left_out(tmp_path / "old")
    assert kind == "untrusted_input"
    assert message.startswith(f"entry `{key}` of `{tmp_path / 'old'}`: byte `")
    assert message.endswith("it names `posix.mkdir`, which is no part of an array of torch or NumPy; nothing was run")


class Gadget:
    def __reduce__(self) -> Any:
        return os.mkdir, ("gone",)


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 1


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": 5}, "invalid_metadata", "entry `{key}`: `prompt` is a `int`, not a string"),
    ({"note": nested(65)}, "invalid_metadata", "`note` of the metadata is nested more than 64 deep"),
    ({"note": nested(400)}, "invalid_metadata", "`note` of the metadata is nested more than 64 deep"),
    ({"activation_file": "pipe.npy"}, "malformed", "pipe.npy` is neither a file nor a directory"),
    ({"activation_file": "none.npy"}, "malformed", "none.npy` is an array [1000000, 0, 1, 4], not `[layers, 1, "),
    ({"activation_file": "huge.npy"}, "malformed", "huge.npy` is an array [2, 0, 1"),
    ({"activation_file": "five.npy"}, "malformed", "five.npy` has a `int`, not a list of hidden states"),
]


@pytest.mark.parametrize(("fields", "kind", "said"), BAD_FIELDS)
def test_an_entry_that_no_store_can_hold_is_left_out_and_the_others_come(
    fields: dict[str, Any], kind: str, said: str, tmp_path: Path
) -> None:
    write_v2(tmp_path / "old", some_entries())
    os.mkfifo(tmp_path / "old" / "pipe.npy")
    for name, shape, descr in (
        ("none", (10**6, 0, 1, 4), "<f2"),
        ("huge", (2, 0, 10**30), "<f2"),
        ("five", (2,), "|O"),
    ):
        with (tmp_path / "old" / f"{name}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
            file.write(b"K\x05." if name == "five" else b"")
    index = json.loads((tmp_path / "old" / "metadata.json").read_text())
    key, logged = next(iter(index["entries"].items()))
    logged |= fields
    (tmp_path / "old" / "metadata.json").write_text(json.dumps(index))
    _, report = memory(tmp_path / "old")
    (damage,) = report.left_out
    assert (report.migrated, damage["key"], damage["kind"]) == (2, key, kind)
    assert said.format(key=key) in damage["message"]


def test_a_damaged_record_of_an_older_version_hides_no_newer_one(tmp_path: Path) -> None:
    entries = some_entries(1)
    write_v1(tmp_path / "old", dict(entries))
    (key,) = entries
    index = json.loads((tmp_path / "old" / "metadata.json").read_text())
    index["entries"][key] = [1]
    (tmp_path / "old" / "metadata.json").write_text(json.dumps(index))
    (tmp_path / "old" / "metadata.jsonl").write_text(json.dumps({"key": key, "has_activations": True}) + "\n")
    store, report = memory(tmp_path / "old", source_format="json")
    assert (report.left_out, len(store[key].points)) == ((), LAYERS + 1)


SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 6e-8, 1 / 3]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_special_floats_survive_both_ways(version: str, dtype: str, tmp_path: Path) -> None:
    states = [np.array([[SPECIAL]], dtype) for _ in range(LAYERS + 1)]
    more = {"score": float("nan"), "limits": [float("inf"), -0.0], "big": 2**70, "surrogate": "\ud800"}
    fields = record("p", length=1, more=more)
    WRITERS[version](tmp_path / "old", {key_of("p"): (fields, states)})  # with bare NaN and Infinity
    store, _ = memory(tmp_path / "old")
    entry = store[key_of("p")]
    assert entry.numpy("resid_post.0").tobytes() == states[1].tobytes()
    assert entry.metadata["score"] == "NaN"
    assert entry.metadata["limits"] == ["Infinity", -0.0]
    assert entry.metadata["big"] == str(2**70)
    export_store(store, tmp_path / "new", f"actlog-json-v{version}", verify=True)
    assert [
        json.loads(text) for name, text in snapshot(tmp_path / "new").items() if name.endswith("json")
    ].__repr__() == [
        json.loads(text) for name, text in snapshot(tmp_path / "old").items() if name.endswith("json")
    ].__repr__()


def test_payloads_of_nan_are_said_to_be_lost(tmp_path: Path) -> None:
    odd = np.array([[0x7FC00001, 0xFFC00000]], np.uint32).view(np.float32)
    store = actstore.create(backend="memory")
    store.put(key="k", activations={"embed": odd})
    report = export_store(store, tmp_path / "1", "actlog-json-v1", verify=True)
    assert report.notes == ("NaNs lose their sign and payload, JSON has one NaN (1 x)",)


def test_a_torn_last_line_and_later_lines(tmp_path: Path) -> None:
    write_v3(tmp_path / "old", some_entries(2))
    with (tmp_path / "old" / "metadata.jsonl").open("a") as lines:
        lines.write("not json\n\n")
        lines.write(json.dumps({"key": "none", "prompt": "p", "has_activations": False, "timestamp": 1.0}) + "\n")
        lines.write('{"key": "torn", "pro')
    (tmp_path / "old" / "activations" / "none.json").write_text(json.dumps({"prompt": "p", "has_activations": False}))
    store, report = memory(tmp_path / "old")
    assert store.keys() == [*some_entries(2), "none"]
    assert store["none"].points == []
    place = tmp_path / "old" / "metadata.jsonl"
    assert report.notes == (
        f"line 3 of `{place}` is no JSON object with a `key` and was passed over",
        f"line 6 of `{place}` is torn and was passed over",
    )


@pytest.mark.parametrize("suffix", ["json", "npy"])
def test_missing_files_are_named_and_the_rest_comes(suffix: str, tmp_path: Path) -> None:
    entries = some_entries()
    write_v3(tmp_path / "old", entries)
    gone = tmp_path / "old" / "activations" / f"{list(entries)[1]}.{suffix}"
    gone.unlink()
    store, report = memory(tmp_path / "old")
    assert (len(store), report.entries, report.migrated) == (2, 3, 2)
    (damage,) = report.left_out
    assert damage == {"key": list(entries)[1], "kind": "missing_file", "message": f"`{gone}` is not there"}


ELSEWHERE = ["../secret.json", "/etc/passwd", "activations/../../secret.json", "a\\b.json", "", "link.json", 7]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_file_elsewhere_is_not_opened(name: Any, tmp_path: Path) -> None:
    write_v1(tmp_path / "old", {"k": (record("p"), list(hidden_states(0, rows=5)))})
    (tmp_path / "old" / "activations" / "k.json").rename(tmp_path / "secret.json")
    (tmp_path / "old" / "link.json").symlink_to(tmp_path / "secret.json")
    index = json.loads((tmp_path / "old" / "metadata.json").read_text())
    index["entries"]["k"]["activation_file"] = name
    (tmp_path / "old" / "metadata.json").write_text(json.dumps(index))
    ((key, kind, message),) = left_out(tmp_path / "old")
    assert (key, kind) == ("k", "unsafe_path")
    assert message.startswith("`activation_file` of entry `k` of `")


@pytest.mark.parametrize("key", ["../../escaped", "a/../../../escaped"])
def test_keys_that_are_paths_open_nothing(key: str, tmp_path: Path) -> None:
    write_v3(tmp_path / "old", some_entries(1))
    with (tmp_path / "old" / "metadata.jsonl").open("a") as lines:
        lines.write(json.dumps({"key": key, "prompt": "p", "has_activations": True, "timestamp": 1.0}) + "\n")
    ((named, kind, message),) = left_out(tmp_path / "old")
    assert (named, kind) == (key, "unsafe_path")
    assert "leads out of" in message


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("key", ["a/b", "x" * 300])
def test_keys_that_are_no_file_names_are_refused_before_anything_is_written(
    version: str, key: str, tmp_path: Path
) -> None:
    store = actstore.create(backend="memory")
    store.put(key="fine", activations={})
    store.put(key=key, activations={})
    with pytest.raises(InvalidInputError, match="cannot be the name of a file") as caught:
        export_store(store, tmp_path / "new", f"actlog-json-v{version}")
    assert caught.value.kind == "unsafe_path"
    assert list(tmp_path.iterdir()) == []


def forged(**fields: Any) -> dict[str, Any]:
    return {**tensor(np.ones((1, 2, 4), np.float16)), **fields}


HOSTILE: list[tuple[Any, str]] = [
    (forged(shape=[1, 10**12, 4]), "but its `data` has `[1, 2, 4]`"),
    (forged(shape=[1, -2, 4]), "which is none"),
    (forged(shape="[1, 2, 4]"), "which is none"),
    (forged(shape=[True, 2, 4]), "which is none"),
    (forged(dtype="torch.float17"), "the `dtype` `torch.float17`, which does not exist"),
    (forged(dtype=None), "which does not exist"),
    (forged(dtype="torch.int64", data=[[[0.5] * 4] * 2]), "is no array of `int64`"),
    (forged(dtype="torch.int8", data=[[[300] * 4] * 2]), "values that its `dtype` `int8` has not"),
    (forged(data=[[[1e6] * 4] * 2]), "values that its `dtype` `float16` has not"),
    (forged(data=[[[1.0], [2.0, 3.0]]]), "is ragged or holds no numbers"),
    (forged(data=[[["1.0"] * 4] * 2]), "is no array of `float16`"),
    (forged(data=[[[{}] * 4] * 2]), "is no array of `float16`"),
    (forged(data=[[[10**400] * 4] * 2]), "the `data` of a tensor"),
    (forged(shape=[2, 4], data=[[1.0] * 4] * 2) | {"_type": "os.system"}, "has a `dict` as hidden state 0"),
    (forged(shape=[4], data=[1.0] * 4), "not `[1, tokens, d]`"),
    ("text", "has a `str` as hidden state 0, not a tensor or null"),
]


@pytest.mark.parametrize(("state", "message"), HOSTILE)
def test_lies_about_a_tensor(state: Any, message: str, tmp_path: Path) -> None:
    write_v1(tmp_path / "old", {"k": (record("p"), list(hidden_states(0, rows=5)))})
    path = tmp_path / "old" / "activations" / "k.json"
    path.write_text(json.dumps({"all_layers_activations": [state]}))
    ((key, kind, found),) = left_out(tmp_path / "old")
    assert (key, kind) == ("k", "malformed")
    assert message in found
    assert "entry `k`" in found or "k.json`" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "is nested too deeply"),
        ('{"all_layers_activations": [', "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "has no list `all_layers_activations`"),
        ('{"all_layers_activations": {}}', "has no list `all_layers_activations`"),
    ],
)
def test_broken_documents(text: str, message: str, tmp_path: Path) -> None:
    write_v1(tmp_path / "old", {"k": (record("p"), list(hidden_states(0, rows=5)))})
    (tmp_path / "old" / "activations" / "k.json").write_bytes(text.encode("latin-1"))
    ((key, kind, found),) = left_out(tmp_path / "old")
    assert (key, kind) == ("k", "malformed")
    assert message in found


def npy(header: str, values: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (
            npy("{'descr': '<f2', 'fortran_order': False, 'shape': (4, 1, 1000000000000, 4096)}"),
            "truncated",
            "promises",
        ),
        (npy("{'descr': '<f2', 'fortran_order': False, 'shape': (1, 1, 2, 4)}", b"x" * 17), "truncated", "17 bytes"),
        (npy("{'descr': '<f2', 'fortran_order': False, 'shape': (-1, 1, 2, 4)}"), "malformed", "is no activation"),
        (
            npy("{'descr': '<U8', 'fortran_order': False, 'shape': (1, 1, 2, 4)}", b"x" * 256),
            "malformed",
            "no activation",
        ),
        (
            npy("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (8,)}", b"x" * 16),
            "malformed",
            "no activation",
        ),
        (npy("__import__('os').system('touch gone')"), "malformed", "has no `.npy` header"),
        (npy("{'descr': '<f2', 'fortran_order': False, 'shape': (8,)}", b"x" * 16), "malformed", "not `[layers, 1"),
        (b"\x93NUMPY\x09\x00", "malformed", "is an `.npy` of version `(9, 0)`"),
        (b"", "malformed", "has no `.npy` header"),
        (npy("(" * 100), "malformed", "has no `.npy` header"),
    ],
)
def test_broken_arrays(
    content: bytes, kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_v2(tmp_path / "old", {"k": (record("p"), hidden_states(0, rows=5))})
    (tmp_path / "old" / "activations" / "k.npy").write_bytes(content)
    ((key, found, text),) = left_out(tmp_path / "old")
    assert (key, found) == ("k", kind)
    assert message in text
    assert "k.npy`" in text
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"k": 7}, "entry `k` of `"),
        ({"k": {"prompt": "p", "has_activations": True}}, "has activations, but no `activation_file`"),
        ({"k": {"prompt": ["p"]}}, "`prompt` is a `list`, not a string"),
        ({"a\nb": {"prompt": "p"}}, "is no key"),
        ({"k": {"prompt": "p", "extra": {"\ud800": 1}}}, "lone surrogate"),
    ],
)
def test_broken_records(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    entries = {**entries, "fine": {"prompt": "fine", "has_activations": False}}
    index = {"logger_config": {"version": "1.0"}, "entries": entries}
    (tmp_path / "old" / "metadata.json").write_text(json.dumps(index))
    store, report = memory(tmp_path / "old")
    assert store.keys() == ["fine"]
    (damage,) = report.left_out
    assert message in damage["message"]


def test_a_damaged_index_ends_the_import_before_a_target_is_made(tmp_path: Path) -> None:
    write_v3(tmp_path / "old", some_entries(1))
    (tmp_path / "old" / "metadata.json").write_text('{"entries": [')
    with pytest.raises(CorruptError, match=r"metadata\.json` is not JSON") as caught:
        import_store(tmp_path / "old", tmp_path / "new")
    assert caught.value.kind == "malformed"
    assert not (tmp_path / "new").exists()


def test_a_store_of_our_own_is_no_log(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "ours", "json") as store:
        store.put(key="k", activations={"embed": np.ones((2, 2), np.float32)})
    assert format_of(tmp_path / "ours") is None
    with pytest.raises(NotFoundError, match="is not `actlog-json-v1`") as caught:
        import_store(tmp_path / "ours", tmp_path / "new", "actlog-json-v1")
    assert caught.value.kind == "not_a_store"


def test_a_store_of_our_own_goes_out_as_hidden_states(tmp_path: Path) -> None:
    """A layer keeps its place; the last one is in no hidden state, and that and the rest are said to be left out."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    store = actstore.create(backend="memory")
    activations = {"embed": rows, "resid_post.0": rows + 1, "resid_post.1": rows + 2, "final_norm": rows + 3}
    store.put(prompt="p", token_ids=[5, 6, 7], prompt_length=2, activations={**activations, "attn_out.0": rows})
    report = export_store(store, tmp_path / "new", "actlog-json-v1", verify=True)
    assert report.notes == (
        "`blocks.0.attn.hook_out` is left out, it is no hidden state (1 x)",
        "`blocks.1.hook_resid_post` is left out, it is no hidden state (1 x)",
        "token ids are left out, the format has none (1 x)",
    )
    key = key_of("p")
    index = json.loads((tmp_path / "new" / "metadata.json").read_text())["entries"][key]
    assert (index["input_length"], index["logging_config"]["sequence_mode"]) == (2, "all")
    states = json.loads((tmp_path / "new" / "activations" / f"{key}.json").read_text())["all_layers_activations"]
    assert [state["data"][0][0][0] for state in states] == [0.0, 1.0, 3.0]
    again, _ = memory(tmp_path / "new")
    assert again[key].points == ["hook_embed", "blocks.0.hook_resid_post", "ln_final.hook_out"]
    assert again[key].positions == [0, 1, 2]


def test_the_place_of_the_final_norm_is_not_guessed(tmp_path: Path) -> None:
    rows = np.ones((3, 4), np.float32)
    store = actstore.create(backend="memory")
    store.put(key="k", activations={"resid_post.3": rows, "final_norm": rows})
    with pytest.raises(InvalidInputError, match="give its number of `layers`") as caught:
        export_store(store, tmp_path / "new", "actlog-json-v1")
    assert caught.value.kind == "unknown_layer"
    with pytest.raises(InvalidInputError, match=r"`layers` is `3`, but `resid_post.3` is stored"):
        export_store(store, tmp_path / "new", "actlog-json-v1", layers=3)
    export_store(store, tmp_path / "new", "actlog-json-v1", layers=8, verify=True)
    again, _ = memory(tmp_path / "new")
    assert again["k"].points == ["blocks.3.hook_resid_post", "ln_final.hook_out"]
    assert again["k"].metadata["imported_from"]["hidden_states"] == 9


def test_a_lone_layer_keeps_its_place(tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    store.put(key="k", activations={"resid_post.3": np.ones((3, 4), np.float32)})
    export_store(store, tmp_path / "new", "actlog-json-v1", verify=True)
    again, _ = memory(tmp_path / "new")
    assert again["k"].points == ["blocks.3.hook_resid_post"]


@settings(max_examples=30, deadline=None)
@given(
    fields=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_field_survives_both_ways(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fields")
    fields = {name: value for name, value in fields.items() if name not in {*record("p"), "messages", "key"}}
    write_v1(folder / "old", {key_of("p"): (record("p", more=fields), list(hidden_states(0, rows=4)))})
    store, report = memory(folder / "old")
    assert report.left_out == ()
    export_store(store, folder / "new", "actlog-json-v1")
    old, new = ((folder / name / "metadata.json").read_text() for name in ("old", "new"))
    assert repr(json.loads(new)["entries"]) == repr(json.loads(old)["entries"])


def test_an_export_into_a_place_that_is_taken(tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    store.put(key="k", activations={})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    for overwrite, message in ((False, "exists already"), (True, "is no earlier export in this format")):
        with pytest.raises(AlreadyExistsError, match=message) as caught:
            export_store(store, tmp_path / "other", "actlog-json-v1", overwrite=overwrite)
        assert caught.value.kind == "store_exists"
    assert (tmp_path / "other" / "precious").exists()
