"""The Python of document 000, with the imports changed; its paths lie in an empty directory."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from generations import LAYERS, generation

from actstore.legacy import ActivationsLogger, JsonActivationsLogger
from old_logs import FIELDS, KEY, NONE, SAID, wrapped, write_log
from old_trees import hidden_states, record, some_entries, write_v1


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def require_same(entry: dict[str, Any], other: dict[str, Any]) -> None:
    """Every field but the places of files, and every bit of the hidden states."""
    plain = [
        {name: value for name, value in one.items() if name not in ("all_layers_activations", "activation_file")}
        for one in (entry, other)
    ]
    assert plain[0] == plain[1]
    for state, copy in zip(entry["all_layers_activations"], other["all_layers_activations"], strict=True):
        assert (state is None) is (copy is None)
        assert state is None or (state.dtype == copy.dtype and state.equal(copy))


def test_usage() -> None:
    model_outputs = generation(prompt_length=5).outputs
    key = hashlib.sha256(b"What is 2+2?").hexdigest()

    # Initialize logger
    logger = JsonActivationsLogger(
        output_dir="json_data/activations",
        target_layers="all",
        sequence_mode="all",
        read_only=False,
    )

    # Log an entry
    logger.log_entry(
        key,
        {
            "prompt": "What is 2+2?",
            "response": "4",
            "model_outputs": model_outputs,
            "input_length": 5,
            "model": "test-model",
        },
    )

    # Retrieve entries
    entry = logger.get_entry(key)
    metadata_only = logger.get_entry(key, metadata_only=True)

    # List all entries
    keys = logger.list_entries()

    # Search entries
    results = logger.search_metadata(lambda meta: "France" in meta.get("prompt", ""))

    logger.close()

    assert (keys, results) == ([key], [])
    expected = {
        "prompt": "What is 2+2?",
        "response": "4",
        "input_length": 5,
        "model": "test-model",
        "has_activations": True,
        "logging_config": {"target_layers": "all", "sequence_mode": "all"},
    }
    assert {name: metadata_only[name] for name in expected} == expected
    assert isinstance(metadata_only["timestamp"], float)
    states = entry.pop("all_layers_activations")
    assert entry == metadata_only
    assert [tuple(state.shape) for state in states] == [(1, 8, 8)] * (LAYERS + 1)
    for state, own in zip(states, generation(prompt_length=5).expected, strict=True):
        torch.testing.assert_close(state, own)


def lmdb_of_old() -> None:
    states = [torch.arange(32.0).reshape(1, 4, 8) / 8, None, torch.arange(32).reshape(1, 4, 8).bfloat16()]
    Path("lmdb_data").mkdir()
    write_log(Path("lmdb_data/activations.lmdb"), wrapped(states, NONE), SAID)


def lmdb_of_ours() -> None:
    with ActivationsLogger("lmdb_data/activations.lmdb", target_layers="second_half", sequence_mode="response") as log:
        for new in (1, 4):
            outputs = generation(new_tokens=new).outputs
            log.log_entry(str(new), {**FIELDS, "model_outputs": outputs, "input_length": 5, "trim_position": 2})


@pytest.mark.parametrize("make", [lmdb_of_old, lmdb_of_ours])
def test_migration_from_lmdb_to_json(make: Any) -> None:
    make()

    # Load from LMDB
    lmdb_logger = ActivationsLogger(lmdb_path="lmdb_data/activations.lmdb", read_only=True)

    # Create JSON logger
    json_logger = JsonActivationsLogger(output_dir="json_data/activations")

    # Migrate entries
    for key in lmdb_logger.list_entries():
        entry = lmdb_logger.get_entry_by_key(key)
        json_logger.log_entry(key, entry)

    lmdb_logger.close()
    json_logger.close()

    assert not (Path("lmdb_data/activations.lmdb") / "actstore.lock").exists() or make is lmdb_of_ours
    with (
        ActivationsLogger(read_only=True) as old,
        JsonActivationsLogger("json_data/activations", read_only=True) as new,
    ):
        assert old.list_entries() == new.list_entries() == ([KEY] if make is lmdb_of_old else ["1", "4"])
        for key in old.list_entries():
            require_same(old.get_entry(key), new.get_entry(key))


def json_of_old() -> None:
    Path("json_data").mkdir()
    partial = (record("second half?", mode="response"), [None, None, *hidden_states(9, rows=2)[2:]])
    write_v1(Path("json_data/activations"), {**some_entries(), "partial": partial})


def json_of_ours() -> None:
    with JsonActivationsLogger("json_data/activations", target_layers=[0, -1], sequence_mode="prompt") as log:
        for new in (1, 4):
            log.log_entry(str(new), {**FIELDS, "model_outputs": generation(new_tokens=new).outputs, "input_length": 5})


@pytest.mark.parametrize("make", [json_of_old, json_of_ours])
def test_migration_from_json_to_lmdb(make: Any) -> None:
    make()

    # Load from JSON
    json_logger = JsonActivationsLogger(output_dir="json_data/activations", read_only=True)

    # Create LMDB logger
    lmdb_logger = ActivationsLogger(lmdb_path="lmdb_data/activations.lmdb")

    # Migrate entries
    for key in json_logger.list_entries():
        entry = json_logger.get_entry(key)
        lmdb_logger.log_entry(key, entry)

    json_logger.close()
    lmdb_logger.close()

    with (
        JsonActivationsLogger("json_data/activations", read_only=True) as old,
        ActivationsLogger(read_only=True) as new,
    ):
        assert old.list_entries() == new.list_entries()
        assert len(new.list_entries()) == (4 if make is json_of_old else 2)
        for key in old.list_entries():
            require_same(old.get_entry(key), new.get_entry(key))


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVATION_STORAGE_PATH", "json_data/activations")
    monkeypatch.setenv("ACTIVATION_LOGGER_TYPE", "json")
    monkeypatch.setenv("ACTIVATION_TARGET_LAYERS", "all")
    monkeypatch.setenv("ACTIVATION_SEQUENCE_MODE", "all")
    with JsonActivationsLogger() as log:
        log.log_entry("k", {"model_outputs": generation().outputs, "input_length": 5})
    assert Path("json_data/activations/metadata.json").is_file()
