"""LMDB logs of document 000: read into a store whatever wrote them, and written as the logger's own code reads them."""

import json
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import actstore
from actstore import formats
from actstore.cli import app
from actstore.errors import (
    ActstoreError,
    AlreadyExistsError,
    CorruptError,
    InvalidInputError,
    LockedError,
    NotFoundError,
)
from actstore.formats import actlog_lmdb_writing as writing
from actstore.formats import export_store, import_store
from actstore.store import Store
from old_logs import ERAS, FIELDS, HALVES, KEY, MIXED, NONE, SAID, flat, wrapped, write, write_log
from old_trees import hidden_states, key_of, some_entries, write_v1
from processes import python, run_python

POINTS = ("embed", "resid_post.0", "resid_post.1", "final_norm")
PROGRAM: dict[str, Any] = {"map_size": 16 << 30, "max_readers": 2048}
"""How the logger opened its environments."""


def files(path: Path) -> dict[str, tuple[int, bytes]]:
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


def content(store: Store) -> dict[str, Any]:
    return {entry.key: (entry.content_id, entry.created) for entry in store}


def loaded(path: Path) -> dict[str, Any]:
    """What the logger's code gets: py-lmdb and pickle, in the order of keys."""
    with lmdb.open(str(path), **PROGRAM) as environment, environment.begin() as transaction:
        return {key.decode(): pickle.loads(value) for key, value in transaction.cursor()}


def values(tensor: torch.Tensor | None) -> tuple[Any, ...] | None:
    return (
        None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).tolist())
    )


def write_some(path: Path, count: int = 3, mode: str = "all") -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """A log of entries like those of the JSON loggers; by key what each environment has."""
    entries: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for seed in range(count):
        fields: dict[str, Any] = {**FIELDS, "prompt": f"question {seed}?", "response": f"answer {seed}"}
        said = {
            **fields,
            "logging_config": {"target_layers": "all", "sequence_mode": mode},
            "timestamp": 1747699200.25 + seed,
            "has_activations": True,
            "compression_metadata": NONE,
        }
        tensors = [torch.from_numpy(state) for state in hidden_states(seed, rows=5 + seed)]
        entries[key_of(fields["prompt"])] = (
            {"data": {**fields, "all_layers_activations": tensors}, "metadata": NONE},
            said,
        )
    write(path, {key: entry for key, (entry, _) in entries.items()})
    write(path.with_name(f"{path.name}_metadata"), {key: said for key, (_, said) in entries.items()})
    for lock in path.parent.glob("*/lock.mdb"):
        lock.unlink()
    return dict(sorted(entries.items()))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("said", [None, SAID], ids=["alone", "with metadata"])
@pytest.mark.parametrize("era", ERAS)
def test_every_era_is_imported(era: str, said: dict[str, Any] | None, tmp_path: Path) -> None:
    value, fields, compression, layers = ERAS[era]
    said = None if said is None else {**said, **fields}
    write_log(tmp_path / "log", value, said)
    with actstore.create(tmp_path / "store", codec="raw") as store:
        report = import_store(tmp_path / "log", store, verify=True)
        assert (report.migrated, report.verified, report.left_out, report.notes) == (1, 1, (), ())
        entry = store[KEY]
        expected = (
            {f"logged.{name.replace('layer_', 'generation_step_')}": layer for name, layer in layers.items()}
            if isinstance(layers, dict)
            else dict(zip([*POINTS[: len(layers) - 1], POINTS[-1]], layers, strict=True))
        )
        for point, layer in expected.items():
            assert (point in entry) == (layer is not None)
            if layer is not None:
                assert entry.numpy(point).tobytes() == layer.tobytes()
                assert entry.shape(point) == (layer.shape[1:] if layer.ndim == 3 else layer.shape)
        metadata = dict(entry.metadata)
        known = metadata.pop("imported_from")
        rest = {name: item for name, item in {**(said or {}), **fields}.items() if name != "has_activations"}
        assert {"prompt": entry.prompt, "response": entry.response, **metadata} == rest
        assert (known["format"], known["era"]) == ("actlog-lmdb", era)
        assert known.get("compression") == (None if compression in (None, NONE) else compression)
        assert known["layer_counting"] == (None if isinstance(layers, dict) else "hidden_states")
        assert (said is None) or entry.created == SAID["timestamp"]


@pytest.mark.parametrize("mode", ["all", "prompt", "response"])
def test_rows_are_tied_to_the_tokens_that_the_mode_says(mode: str, tmp_path: Path) -> None:
    state = torch.arange(24.0).reshape(1, 3, 8)
    said = {**SAID, "logging_config": {"target_layers": "all", "sequence_mode": mode}}
    write_log(tmp_path / "log", wrapped([state], NONE), said)
    with actstore.create(backend="memory") as store:
        import_store(tmp_path / "log", store)
        expected = [3, 4, 5] if mode == "response" else [0, 1, 2]
        assert (store[KEY].positions, store[KEY].prompt_length) == (expected, FIELDS["input_length"])


def test_what_is_written_is_what_the_logger_wrote(tmp_path: Path) -> None:
    entries = write_some(tmp_path / "log", 5)
    import_store(tmp_path / "log", tmp_path / "store")
    report = export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", verify=True)
    assert (report.migrated, report.verified, report.notes, report.left_out) == (5, 5, (), ())
    assert sorted(files(tmp_path / "out")) == sorted(files(tmp_path / "out_metadata")) == ["data.mdb"]
    both = [tmp_path / name / "data.mdb" for name in ("out", "out_metadata")]
    assert report.file_bytes == sum(path.stat().st_size for path in both)
    written, said = loaded(tmp_path / "out"), loaded(tmp_path / "out_metadata")
    assert list(written) == list(said) == list(entries)
    for key, (entry, metadata) in entries.items():
        assert list(written[key]) == ["data", "metadata"]
        assert written[key]["metadata"] == NONE
        assert list(written[key]["data"]) == list(entry["data"])
        for name, item in entry["data"].items():
            if name != "all_layers_activations":
                assert written[key]["data"][name] == item
        tensors = written[key]["data"]["all_layers_activations"]
        assert [values(tensor) for tensor in tensors] == [
            values(own) for own in entry["data"]["all_layers_activations"]
        ]
        # A tensor that is pickled brings its storage: no more than its own values.
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
        assert list(said[key].items()) == list(metadata.items())


def test_a_log_comes_back_from_a_store_as_it_was(tmp_path: Path) -> None:
    write_some(tmp_path / "log", 4, mode="prompt")
    with actstore.create(backend="memory") as first, actstore.create(backend="memory") as second:
        import_store(tmp_path / "log", first)
        export_store(first, tmp_path / "out", "actlog-lmdb", verify=True)
        import_store(tmp_path / "out", second)
        assert content(second) == content(first)
        assert len(first) == 4


def test_what_a_log_cannot_hold_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.ones((2, 3), np.float32)
    monkeypatch.setattr(writing, "_LARGEST_VALUE", 100_000)
    with actstore.create(backend="memory") as store:
        store.put(key="k" * 512, activations={"embed": array})
        store.put(key="large", activations={"embed": np.ones((300, 100), np.float32)})
        metadata = {"huge": 2**63, "small": -(2**63), "nested": [{"n": 2**64 - 1}]}
        store.put(key="a", activations={"embed": array, "attn_out.0": array}, metadata=metadata, token_ids=[1, 2])
        narrow = torch.tensor([[1.5, -2.0], [448.0, float("nan")]]).to(torch.float8_e4m3fn)
        store.put(key="b", activations={"embed": narrow})
        report = export_store(store, tmp_path / "out", "actlog-lmdb", verify=True)
        assert {damage["key"]: damage["kind"] for damage in report.left_out} == {
            "k" * 512: "invalid_key",
            "large": "limit_exceeded",
        }
        assert "`large` has 120," in next(damage["message"] for damage in report.left_out if damage["key"] == "large")
        assert report.notes == (
            "`blocks.0.attn.hook_out` is left out, it is no hidden state (1 x)",
            "token ids are left out, the format has none (1 x)",
            "rows that are not all, the prompt's or the response's lose their positions (1 x)",
            "integers beyond 64 bits with sign and text that is no Unicode become their JSON text (1 x)",
            "float8_e4m3fn is written as float32, the format has no float8_e4m3fn; every value is kept (1 x)",
        )
    written = loaded(tmp_path / "out")
    assert list(written) == list(loaded(tmp_path / "out_metadata")) == ["a", "b"]
    fields = written["a"]["data"]
    assert (fields["huge"], fields["small"]) == ("9223372036854775808", -(2**63))
    assert fields["nested"] == [{"n": "18446744073709551615"}]
    widened = written["b"]["data"]["all_layers_activations"][0]
    assert (widened.dtype, widened.tolist()[0]) == (
        torch.float32,
        [[1.5, -2.0], [448.0, pytest.approx(np.nan, nan_ok=True)]],
    )


def test_an_entry_without_activations_says_so(tmp_path: Path) -> None:
    with actstore.create(backend="memory") as store:
        store.put(prompt="p", activations={})
        export_store(store, tmp_path / "out", "actlog-lmdb", verify=True)
    ((key, entry),) = loaded(tmp_path / "out").items()
    assert "all_layers_activations" not in entry["data"]
    assert loaded(tmp_path / "out_metadata")[key]["has_activations"] is False
    with actstore.create(backend="memory") as store:
        assert import_store(tmp_path / "out", store).migrated == 1
        assert store[key].points == []


def test_an_empty_log(tmp_path: Path) -> None:
    with actstore.create(backend="memory") as store:
        assert export_store(store, tmp_path / "out", "actlog-lmdb", verify=True).migrated == 0
    assert loaded(tmp_path / "out") == loaded(tmp_path / "out_metadata") == {}
    with actstore.create(backend="memory") as store:
        assert import_store(tmp_path / "out", store).entries == 0


def test_logs_are_told_from_other_environments(tmp_path: Path) -> None:
    write_some(tmp_path / "log")
    write(tmp_path / "strings", {"a": b"text", "b": b"more"})
    write(tmp_path / "objects", {"a": [1], "b": {"x": 1}})
    write(tmp_path / "none", {})
    actstore.create(tmp_path / "own", "lmdb").close()
    shutil.copytree(tmp_path / "own", tmp_path / "unlocked")
    (tmp_path / "unlocked" / "actstore.lock").unlink()
    shutil.copytree(tmp_path / "log", tmp_path / "moved")
    found = {path.name: formats.format_of(path) for path in sorted(tmp_path.iterdir())}
    assert {name: format.name for name, format in found.items() if format is not None} == {
        "log": "actlog-lmdb",
        "moved": "actlog-lmdb",
    }
    for name in ("log_metadata", "objects", "none"):
        with pytest.raises(NotFoundError, match=r"is not `actlog-lmdb`|is in none of the formats"):
            import_store(tmp_path / name, tmp_path / "new", "actlog-lmdb")
    # Next to one entry that is damaged, others say what it is.
    write(tmp_path / "log", {"0": b"damaged"})
    with actstore.create(backend="memory") as store:
        report = import_store(tmp_path / "log", store)
        assert (report.entries, report.migrated) == (4, 3)
        assert report.left_out[0]["message"].startswith(f"`{tmp_path / 'log'}`: entry `0`: byte `0` of a pickle: ")


def test_a_damaged_file_is_called_damaged(tmp_path: Path) -> None:
    write_some(tmp_path / "log")
    data = tmp_path / "log" / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) - 4096])
    for name in ("auto", "lmdb", "actlog-lmdb"):
        with pytest.raises(CorruptError, match=r"pages, of .* that were committed") as caught:
            import_store(tmp_path / "log", tmp_path / "store", name)
        assert caught.value.kind == "truncated"
    # The last meta page says that there is one entry more than the tree has.
    place = (
        max((0, 4096), key=lambda page: int.from_bytes(whole[page + 144 : page + 152], "little")) + 16 + 24 + 48 + 32
    )
    count = int.from_bytes(whole[place : place + 8], "little")
    assert count == 3
    data.write_bytes(whole[:place] + (count + 1).to_bytes(8, "little") + whole[place + 8 :])
    with pytest.raises(CorruptError, match="has 3 keys, and should have 4") as caught:
        import_store(tmp_path / "log", tmp_path / "store")
    assert caught.value.kind == "malformed"
    assert not (tmp_path / "log" / "lock.mdb").exists()


def test_fields_that_metadata_cannot_hold(tmp_path: Path) -> None:
    entries = {
        "bytes": {**FIELDS, "note": b"abc"},
        "key": {**FIELDS, "note": [{3: 4}]},
        "tuple": {**FIELDS, "note": (1, 2)},
        "nan": {**FIELDS, "note": [float("nan"), 2.5]},
    }
    write(tmp_path / "log", {key: {"data": fields, "metadata": NONE} for key, fields in entries.items()})
    with actstore.create(backend="memory") as store:
        report = import_store(tmp_path / "log", store, verify=True)
        assert {damage["key"]: damage["kind"] for damage in report.left_out} == dict.fromkeys(
            ("bytes", "tuple"), "invalid_metadata"
        ) | {"key": "invalid_metadata"}
        assert (
            "entry `bytes` has a `bytes` among its fields, which metadata cannot hold" in report.left_out[0]["message"]
        )
        assert store["nan"].metadata["note"] == ["NaN", 2.5]
        export_store(store, tmp_path / "out", "actlog-lmdb")
    assert repr(loaded(tmp_path / "out")["nan"]["data"]["note"]) == "[nan, 2.5]"


def test_the_source_is_only_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_some(tmp_path / "in" / "log")
    before = files(tmp_path / "in")
    places = [*(tmp_path / "in").rglob("*"), tmp_path / "in"]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    import_store(tmp_path / "in" / "log", tmp_path / "store", verify=True)
    import_store(tmp_path / "in" / "log", tmp_path / "other", dry_run=True)
    assert files(tmp_path / "in") == before
    for place in places:
        place.chmod(0o755)


def test_a_log_that_is_being_written_is_not_half_imported_in_silence(tmp_path: Path) -> None:
    def write_more(done: int, *_: int) -> None:
        if done == 2:
            write(tmp_path / "log", {"another": b"value"})

    write_some(tmp_path / "log", 4)
    with pytest.raises(LockedError, match=r"data\.mdb` was written to while it was read") as caught:
        import_store(tmp_path / "log", tmp_path / "store", progress=write_more)
    assert caught.value.kind == "locked"
    report = import_store(tmp_path / "log", tmp_path / "store")
    assert (report.skipped, report.migrated, [damage["key"] for damage in report.left_out]) == (2, 2, ["another"])


def test_a_dry_run_and_resuming(tmp_path: Path) -> None:
    write_some(tmp_path / "log", 4)
    plan = import_store(tmp_path / "log", tmp_path / "store", dry_run=True)
    assert (plan.migrated, plan.raw_bytes) == (4, 4 * 4 * 2 * (5 + 6 + 7 + 8))
    assert not (tmp_path / "store").exists()
    assert import_store(tmp_path / "log", tmp_path / "store").migrated == 4
    assert import_store(tmp_path / "log", tmp_path / "store", verify=True).skipped == 4
    plan = export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", dry_run=True)
    assert (plan.migrated, plan.raw_bytes) == (4, 4 * 4 * 2 * (5 + 6 + 7 + 8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log_metadata", "store"]


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    write_some(tmp_path / "log")
    import_store(tmp_path / "log", tmp_path / "store")
    before = files(tmp_path)
    for taken in ("out", "out_metadata"):
        (tmp_path / taken).mkdir()
        (tmp_path / taken / "file").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(AlreadyExistsError) as caught:
                export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", overwrite=overwrite)
            assert caught.value.kind == "store_exists"
        shutil.rmtree(tmp_path / taken)
    assert files(tmp_path) == before
    export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb")
    first = {key: value["data"]["prompt"] for key, value in loaded(tmp_path / "out").items()}
    with actstore.create(backend="memory") as store:
        store.put(prompt="another", activations={})
        with pytest.raises(AlreadyExistsError):
            export_store(store, tmp_path / "out", "actlog-lmdb")
        assert {key: value["data"]["prompt"] for key, value in loaded(tmp_path / "out").items()} == first
        export_store(store, tmp_path / "out", "actlog-lmdb", overwrite=True, verify=True)
    for name in ("out", "out_metadata"):
        assert [len(loaded(tmp_path / name)), (tmp_path / f"{name}.partial").exists()] == [1, False]


KILLED_BETWEEN = """
    import os, signal, sys
    from pathlib import Path
    from actstore.formats import export_store

    rename = Path.rename
    def die(path, target):
        if path.name == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = die
    export_store(sys.argv[1], sys.argv[2], "actlog-lmdb")
"""


@pytest.mark.parametrize("last", ["out.partial", "out_metadata.partial"])
def test_an_export_that_dies_as_it_ends_leaves_no_log_without_its_metadata(last: str, tmp_path: Path) -> None:
    write_some(tmp_path / "log")
    import_store(tmp_path / "log", tmp_path / "store")
    assert python(KILLED_BETWEEN, tmp_path / "store", tmp_path / "out", last).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert formats.format_of(tmp_path / "out.partial") is None
    export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", verify=True)
    assert list(loaded(tmp_path / "out")) == list(loaded(tmp_path / "out_metadata"))
    assert len(loaded(tmp_path / "out")) == 3
    assert not list(tmp_path.glob("*.partial"))


def test_an_export_goes_on_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, *_: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    write_some(tmp_path / "log", 6)
    import_store(tmp_path / "log", tmp_path / "store")
    monkeypatch.setattr(writing, "_BATCH_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", progress=stop)
    there = loaded(tmp_path / "out.partial")
    assert len(there) == 4
    pickled = pickle.dumps
    seen: list[str] = []

    def watched(value: dict[str, Any], protocol: int) -> bytes:
        seen.extend(value)
        return pickled(value, protocol)

    monkeypatch.setattr(pickle, "dumps", watched)
    export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", verify=True)
    assert seen.count("data") == 2
    assert len(loaded(tmp_path / "out")) == len(loaded(tmp_path / "out_metadata")) == 6


def test_an_environment_that_something_else_has_open(tmp_path: Path) -> None:
    write_some(tmp_path / "log")
    import_store(tmp_path / "log", tmp_path / "store")

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", progress=stop)
    with lmdb.open(str(tmp_path / "out.partial"), **PROGRAM), pytest.raises(ActstoreError) as caught:
        export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb")
    assert caught.value.kind == "already_open"
    assert "another LMDB library in this process has `" in str(caught.value)


def test_the_names_of_migrate(tmp_path: Path) -> None:
    write_some(tmp_path / "old.lmdb", 4)
    report = actstore.migrate(tmp_path / "old.lmdb", tmp_path / "json", source_format="lmdb", target_format="json")
    assert (report.migrated, report.backend) == (4, "json")
    over = actstore.migrate(tmp_path / "old.lmdb", tmp_path / "v1", target_format="actlog-json-v1", verify=True)
    back = actstore.migrate(tmp_path / "v1", tmp_path / "back", target_format="actlog-lmdb", verify=True)
    assert (over.migrated, back.migrated, back.notes) == (4, 4, ())
    for key, entry in loaded(tmp_path / "old.lmdb").items():
        other = loaded(tmp_path / "back")[key]
        tensors, own = (each["data"].pop("all_layers_activations") for each in (entry, other))
        assert (entry, [values(tensor) for tensor in tensors]) == (other, [values(tensor) for tensor in own])
    assert loaded(tmp_path / "old.lmdb_metadata") == loaded(tmp_path / "back_metadata")
    with pytest.raises(NotFoundError, match=r"is in none of the formats .*; it looks like `actlog-json-v1`"):
        actstore.migrate(tmp_path / "v1", tmp_path / "new", source_format="lmdb", target_format="json")


def test_the_command_line(tmp_path: Path) -> None:
    write_some(tmp_path / "old.lmdb")
    target = tmp_path / "json_data" / "activations"
    arguments = ("migrate", "lmdb", "json", "--source", tmp_path / "old.lmdb", "--target", target)
    assert run(*arguments, "--dry-run").exit_code == 0
    assert not target.exists()
    result = run(*arguments, "--verify")
    assert (result.exit_code, result.stdout.startswith("3 entries migrated, 576 B raw, ")) == (0, True), result.stderr
    assert ", 3 verified" in result.stdout
    assert "3/3 entries" in result.stderr
    result = run("import", "auto", "--source", tmp_path / "old.lmdb", "--target", tmp_path / "acts")
    assert (result.exit_code, result.stdout.startswith("3 entries migrated, 576 B raw, ")) == (0, True), result.stderr
    result = run("export", "actlog-lmdb", "--source", target, "--target", tmp_path / "out", "--format", "json")
    assert (result.exit_code, json.loads(result.stdout)["migrated"]) == (0, 3), result.stderr
    assert list(loaded(tmp_path / "out")) == list(loaded(tmp_path / "old.lmdb"))


def test_entries_of_json_logs_are_written(tmp_path: Path) -> None:
    write_v1(tmp_path / "v1", dict(some_entries()))
    report = actstore.migrate(tmp_path / "v1", tmp_path / "out", target_format="actlog-lmdb", verify=True)
    assert (report.migrated, report.notes) == (3, ())
    said = loaded(tmp_path / "out_metadata")
    for key, (fields, states) in some_entries().items():
        assert [values(t) for t in loaded(tmp_path / "out")[key]["data"]["all_layers_activations"]] == [
            values(torch.from_numpy(state)) for state in states
        ]
        assert said[key] == {**fields, "compression_metadata": NONE}


IMPORTED = """
    import sys
    from actstore.formats import import_store
    from actstore.migration import migrate

    import_store(sys.argv[1], sys.argv[2], verify=True)
    print(*sys.modules)
"""


def test_neither_torch_nor_pickle_is_needed_to_import(tmp_path: Path) -> None:
    write_log(tmp_path / "log", wrapped(MIXED, NONE))
    assert {"torch", "lmdb"} & set(run_python(IMPORTED, tmp_path / "log", tmp_path / "store").split()) == set()


MEASURED = """
    import sys
    import actstore
    from actstore.formats import import_store, export_store
    from memory import Peak, anonymous_bytes
    import torch

    with actstore.create(backend="memory") as store:
        store.put(key="warm", activations={"embed": torch.ones(1, 1)})
        export_store(store, sys.argv[3] + "_warm", "actlog-lmdb")
    with actstore.create(sys.argv[2], memory="4 MiB", codec="raw") as target:
        import_store(sys.argv[1], actstore.create(backend="memory"), dry_run=True)
        before = anonymous_bytes()
        with Peak() as peak:
            import_store(sys.argv[1], target)
        print(peak.bytes - before)
        before = anonymous_bytes()
        with Peak() as peak:
            export_store(target, sys.argv[3], "actlog-lmdb")
        print(peak.bytes - before)
"""


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    tensors = [torch.from_numpy(state) for state in hidden_states(0, rows=64, width=1024)]
    value = wrapped(tensors, NONE)
    write(tmp_path / "log", {key_of(str(number)): value for number in range(400)})
    came, went = map(int, run_python(MEASURED, tmp_path / "log", tmp_path / "store", tmp_path / "out").split())
    assert came < 32 << 20, f"{came} bytes for 200 MB"
    # A batch of 64 MiB, and LMDB's pages of it.
    assert went < 160 << 20, f"{went} bytes for 200 MB"


def test_keys_come_in_the_order_of_bytes(tmp_path: Path) -> None:
    keys = ["b", "a", "é", "\U0001f600", "\uffff", "Z", "aa"]
    with actstore.create(backend="memory") as store:
        for key in keys:
            store.put(key=key, prompt=key, activations={})
        report = export_store(store, tmp_path / "out", "actlog-lmdb", verify=True)
    assert report.verified == len(keys)
    assert list(loaded(tmp_path / "out")) == sorted(keys, key=str.encode)


def test_views_are_taken_as_they_are(tmp_path: Path) -> None:
    write_log(tmp_path / "log", wrapped(HALVES, NONE))
    with actstore.create(backend="memory") as store:
        import_store(tmp_path / "log", store)
        expected = [flat(tensor) for tensor in HALVES]
        for point, own in zip(("embed", "resid_post.0", "final_norm"), expected, strict=True):
            assert own is not None
            assert store[KEY].numpy(point).tobytes() == own.tobytes()


def test_hidden_states_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_log(tmp_path / "log", wrapped([torch.ones(2, 3, 4)], NONE))
    with actstore.create(backend="memory") as store:
        (damage,) = import_store(tmp_path / "log", store).left_out
    assert (damage["kind"], damage["key"]) == ("malformed", KEY)
    assert "has hidden states of shapes [[2, 3, 4]], not `[1, tokens, d]`" in damage["message"]


def test_export_needs_a_place_outside_the_store(tmp_path: Path) -> None:
    actstore.create(tmp_path / "store").close()
    with pytest.raises(InvalidInputError, match="lies in the source"):
        export_store(tmp_path / "store", tmp_path / "store" / "out", "actlog-lmdb")
