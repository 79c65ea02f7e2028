"""What was wrong with document 000's LMDB logs, by its number in the record of bugs, and is not wrong here.

Each test has what the logger wrote, or what it did with it, and fails where that is done.
"""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

import actstore
from actstore import _core
from actstore.errors import KeyConflictError
from actstore.formats import actlog_lmdb_writing as writing
from actstore.formats import export_store, import_store
from actstore.migration import migrate
from old_logs import FIELDS, HALVES, KEY, NONE, SAID, packed, tensor_metadata, wrapped, write, write_log, zstd
from pickles import named, number, numbers, proto, stream, tensor, text
from processes import run_python


def loaded(path: Path) -> dict[str, Any]:
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin() as transaction:
        return {key.decode(): pickle.loads(value) for key, value in transaction.cursor()}


def config(mode: str) -> dict[str, str]:
    return {"target_layers": "all", "sequence_mode": mode}


def test_h1_what_is_exported_is_there_when_it_is_read_again(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "store") as store:
        for number in range(7):
            store.put(prompt=f"p{number}", activations={"embed": np.ones((2, 3), np.float16)})
        report = export_store(store, tmp_path / "log", "actlog-lmdb")
    assert len(loaded(tmp_path / "log")) == len(loaded(tmp_path / "log_metadata")) == report.migrated == 7
    assert import_store(tmp_path / "log", tmp_path / "again").migrated == 7


@pytest.mark.parametrize("mode", ["response", "prompt"])
def test_h3_rows_of_a_part_have_their_positions_in_and_out(mode: str, tmp_path: Path) -> None:
    state = torch.arange(24.0).reshape(1, 3, 8)
    # The value itself does not have `logging_config`: its reader took the mode for `all`.
    write_log(tmp_path / "log", wrapped([state], NONE), {**SAID, "logging_config": config(mode)})
    with actstore.create(backend="memory") as store:
        import_store(tmp_path / "log", store)
        assert np.array_equal(store[KEY].numpy("embed", mode), state[0].numpy())
        other = "prompt" if mode == "response" else "response"
        assert store[KEY].shape("embed", other) == (0, 8)
        export_store(store, tmp_path / "out", "actlog-lmdb")
    # Where the logger's parser looks for it.
    assert loaded(tmp_path / "out")[KEY]["data"]["logging_config"] == config(mode)


def test_h5_both_migrations_keep_every_field(tmp_path: Path) -> None:
    said = {**SAID, "logging_config": config("prompt"), "timestamp": 1700000000.125, "compression_metadata": NONE}
    write_log(tmp_path / "log", wrapped(HALVES, NONE), said)
    migrate(tmp_path / "log", tmp_path / "json", source_format="lmdb", target_format="json")
    migrate(tmp_path / "json", tmp_path / "back", target_format="actlog-lmdb", verify=True)
    assert loaded(tmp_path / "back_metadata") == loaded(tmp_path / "log_metadata")
    old, new = (loaded(tmp_path / name)[KEY]["data"].pop("all_layers_activations") for name in ("log", "back"))
    assert [(t.dtype, t.tolist()) for t in new] == [(t.dtype, t.tolist()) for t in old]


def test_h6_layers_that_are_missing_ragged_or_of_bfloat16_are_kept(tmp_path: Path) -> None:
    states = [None, torch.ones(1, 2, 3), None, torch.full((1, 5, 3), 2.0).bfloat16(), torch.zeros(1, 1, 3).half()]
    write_log(tmp_path / "log", wrapped(states, NONE))
    import_store(tmp_path / "log", tmp_path / "store")
    export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", verify=True)
    for own, given in zip(loaded(tmp_path / "out")[KEY]["data"]["all_layers_activations"], states, strict=True):
        assert (own is None) == (given is None)
        assert given is None or (own.dtype == given.dtype and torch.equal(own, given))


IMPORTED = """
    import sys
    from actstore.formats import import_store

    report = import_store(sys.argv[1], sys.argv[2])
    print(report.migrated, [damage["kind"] for damage in report.left_out], "torch" in sys.modules)
"""


def test_h7_no_code_is_run_and_no_device_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = np.arange(6, dtype=np.float32)
    on_device = stream(values.tobytes(), 6, location="cuda:3")
    layer = tensor(on_device, number(0), numbers(1, 2, 3), numbers(6, 3, 1))[2:-1]
    data = b"}(" + text("prompt") + text("p") + text("all_layers_activations") + b"](" + layer + b"eu"
    value = b"}(" + text("data") + data + text("metadata") + b"}(" + text("compression") + text("none") + b"uu"
    hostile = named("os", "system") + b"X\x09\x00\x00\x00touch ran\x85R."
    write(tmp_path / "log", {KEY: proto(4, value), "0": hostile})
    assert run_python(IMPORTED, tmp_path / "log", tmp_path / "store") == "1 ['untrusted_input'] False\n"
    assert not (tmp_path / "ran").exists()
    with actstore.open(tmp_path / "store") as store:
        assert store[KEY].numpy("embed").tobytes() == values.tobytes()


def test_h8_a_view_costs_its_own_bytes_and_two_layers_cost_two(tmp_path: Path) -> None:
    base = torch.randn(1, 1000, 100, generator=torch.Generator().manual_seed(0))
    states = [base[:, row : row + 1] for row in range(37)]
    write_log(tmp_path / "log", wrapped(states, NONE))
    assert (tmp_path / "log" / "data.mdb").stat().st_size > 37 * base.nbytes
    report = import_store(tmp_path / "log", tmp_path / "store", codec="raw")
    assert report.raw_bytes == 37 * 400
    export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb")
    assert (tmp_path / "out" / "data.mdb").stat().st_size < 100_000


def test_h8_reading_two_layers_reads_no_others(tmp_path: Path) -> None:
    states = [torch.full((1, 64, 512), float(layer)).half() for layer in range(37)]
    write_log(tmp_path / "log", wrapped(states, NONE))
    import_store(tmp_path / "log", tmp_path / "store", codec="raw")
    with actstore.open(tmp_path / "store") as store:
        entry = store[KEY]
        assert entry.points
        before = characters_read()
        for layer in (14, 22):
            assert float(entry.numpy(f"resid_post.{layer}")[0, 0]) == layer + 1
        assert characters_read() - before < 3 * 64 * 512 * 2


def characters_read() -> int:
    """Bytes that this process asked files for."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_h10_entries_of_one_prompt_do_not_replace_each_other(tmp_path: Path) -> None:
    for name, model in (("one", "m/1"), ("two", "m/2")):
        value = wrapped([torch.full((1, 2, 3), float(len(name)))], NONE)
        data: Any = value["data"]
        write_log(tmp_path / name, {**value, "data": {**data, "model": model, "response": name}})
    with actstore.create(tmp_path / "strict") as store:
        import_store(tmp_path / "one", store)
        with pytest.raises(KeyConflictError):
            import_store(tmp_path / "two", store)
        assert store[KEY].metadata["model"] == "m/1"
    with actstore.create(tmp_path / "numbered", on_conflict="number") as store:
        for name in ("one", "two", "two"):
            import_store(tmp_path / name, store)
        assert {entry.key: entry.metadata["model"] for entry in store} == {KEY: "m/1", f"{KEY}#1": "m/2"}
        export_store(store, tmp_path / "out", "actlog-lmdb", verify=True)
    assert [value["data"]["response"] for value in loaded(tmp_path / "out").values()] == ["one", "two"]


def test_h11_a_response_of_one_token_has_no_rows_and_is_an_entry(tmp_path: Path) -> None:
    said = {**SAID, "logging_config": config("response")}
    write_log(tmp_path / "log", wrapped([torch.zeros(1, 0, 8)] * 2, NONE), said)
    import_store(tmp_path / "log", tmp_path / "store")
    export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", verify=True)
    states = loaded(tmp_path / "out")[KEY]["data"]["all_layers_activations"]
    assert [tuple(state.shape) for state in states] == [(1, 0, 8)] * 2


def test_h12_what_cannot_be_unpacked_is_named_and_not_given_as_activations(tmp_path: Path) -> None:
    frame, about = zstd(packed(HALVES), tensor_metadata=tensor_metadata(HALVES))
    good, bad = wrapped(frame, about), wrapped(frame[:-3], about)
    failed = wrapped([HALVES[0], None], {**NONE, "error": "'NoneType' object has no attribute 'cpu'"})
    write(tmp_path / "log", {"a": good, "b": bad, "c": failed})
    with actstore.create(backend="memory") as store:
        report = import_store(tmp_path / "log", store, verify=True)
        assert [(damage["key"], damage["kind"]) for damage in report.left_out] == [("b", "malformed")]
        assert "a zstd frame that" in report.left_out[0]["message"]
        assert store["a"].numpy("embed").tobytes() == HALVES[0].numpy().tobytes()
        assert store["c"].metadata["imported_from"]["compression"]["error"].startswith("'NoneType'")


def test_h13_metadata_is_found_without_activations(tmp_path: Path) -> None:
    write_log(tmp_path / "log", wrapped(HALVES, NONE), SAID)
    log = _core.ActlogLmdb(str(tmp_path / "log"))
    found = {key: log.metadata(key) or {} for key in (*log.keys(), "none")}
    assert [key for key, said in found.items() if "caf" in said.get("prompt", "")] == [KEY]
    import_store(tmp_path / "log", tmp_path / "store")
    store = actstore.open(tmp_path / "store")
    assert [found["key"] for found in store.metadata() if found["metadata"]["model"] == "m/1"] == [KEY]
    store.close()
    store.close()


def test_h14_a_log_grows_without_a_map_to_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_BATCH_BYTES", 40 << 20)
    array = np.random.default_rng(0).standard_normal((256, 4096)).astype(np.float32)
    with actstore.create(backend="memory", codec="raw") as store:
        for number in range(40):
            store.put(key=str(number), activations={"embed": array})
        export_store(store, tmp_path / "log", "actlog-lmdb")
    # 160 MiB in an environment that began with a map of 64.
    assert (tmp_path / "log" / "data.mdb").stat().st_size > 160 << 20
    assert len(_core.ActlogLmdb(str(tmp_path / "log")).keys()) == 40


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_h14_64_workers_read_without_a_lock_file(tmp_path: Path) -> None:
    write_log(tmp_path / "log", wrapped(HALVES, NONE), SAID)
    for place in ("log", "log_metadata"):
        (tmp_path / place / "lock.mdb").unlink()
    gate, opened = os.pipe(), os.pipe()
    children: list[int] = []
    for _ in range(64):
        child = os.fork()
        if child == 0:
            fine = False
            try:
                log = _core.ActlogLmdb(str(tmp_path / "log"))
                os.write(opened[1], b".")
                os.read(gate[0], 1)
                fine = log.get(KEY).fields == FIELDS
            finally:
                os._exit(not fine)
        children.append(child)
    there = 0
    while there < len(children):
        there += len(os.read(opened[0], 64))
    os.write(gate[1], b"." * len(children))
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 64
    assert not list(tmp_path.rglob("lock.mdb"))
    for descriptor in (*gate, *opened):
        os.close(descriptor)


def test_h18_where_both_environments_disagree_both_are_kept(tmp_path: Path) -> None:
    # The logger writes the entry, then, in another environment, its metadata; killed in between, it leaves the old.
    write_log(tmp_path / "log", wrapped(HALVES, NONE), {**SAID, "response": "of an earlier run"})
    with actstore.create(backend="memory") as store:
        import_store(tmp_path / "log", store, verify=True)
        assert store[KEY].response == FIELDS["response"]
        assert store[KEY].metadata["imported_from"]["other_metadata"] == {"response": "of an earlier run"}


def test_h22_nothing_is_printed_or_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path / "log", wrapped(HALVES, NONE), SAID)
    with caplog.at_level(logging.DEBUG):
        import_store(tmp_path / "log", tmp_path / "store", verify=True)
        export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", verify=True)
    assert (caplog.records, tuple(capfd.readouterr())) == ([], ("", ""))
