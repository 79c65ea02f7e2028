"""The loggers of document 000 over actstore: what was wrong with them, by its number in the record, and the rest.

Each test of a number fails where the logger does what the older one did.
"""

import json
import logging
import signal
import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generations import LAYERS, WIDTH, generation
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import actstore
from actstore.cli import main
from actstore.config import LoggerDefaults
from actstore.errors import (
    ActstoreError,
    InvalidInputError,
    KeyConflictError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    UntrustedInputError,
)
from actstore.formats import names
from actstore.legacy import ActivationsLogger, JsonActivationsLogger
from actstore.legacy.loggers import Logger
from old_logs import ERAS, KEY, NONE, SAID, flat, wrapped, write, write_log
from old_trees import hidden_states, key_of, record, some_entries, write_v1, write_v2, write_v3
from pickles import named, stream
from processes import run_python

Make = Callable[..., Logger]

BOTH = pytest.mark.parametrize("make", [ActivationsLogger, JsonActivationsLogger])
STATES = [torch.arange(48.0).reshape(1, 6, 8) + index for index in range(4)]
PROMPT = 5
NEW = 4


def generated(new_tokens: int = NEW, **more: object) -> dict[str, Any]:
    return {"model_outputs": generation(PROMPT, new_tokens).outputs, "input_length": PROMPT, **more}


def ready(states: Any = STATES, **more: object) -> dict[str, Any]:
    return {"prompt": "p", "input_length": 2, "all_layers_activations": states, **more}


def require_states(found: Any, expected: Any) -> None:
    """Equal, bit for bit."""
    assert len(found) == len(expected)
    for state, own in zip(found, expected, strict=True):
        if own is None:
            assert state is None
            continue
        own = torch.as_tensor(own)
        assert (state.dtype, state.shape) == (own.dtype, own.shape)
        assert state.contiguous().view(torch.uint8).equal(own.contiguous().view(torch.uint8))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@BOTH
def test_h1_what_was_logged_is_there_when_it_is_opened_again(make: Make, tmp_path: Path) -> None:
    for number in range(3):
        log = make(tmp_path / "log")
        log.log_entry(f"k{number}", generated())
        log.close()
    for read_only in (True, False):
        with make(tmp_path / "log", read_only=read_only) as again:
            assert again.list_entries() == ["k0", "k1", "k2"]
            assert [len(again.get_entry(key)["all_layers_activations"]) for key in again.list_entries()] == [4] * 3


def test_h1_a_log_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        ActivationsLogger(tmp_path / "log", read_only=True)
    assert (caught.value.kind, str(tmp_path / "log") in str(caught.value)) == ("not_a_store", True)
    assert list(tmp_path.iterdir()) == []


def name(make: Make) -> str:
    return make.__name__


def written_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


@BOTH
def test_h2_an_entry_costs_the_same_however_many_there_are(make: Make, tmp_path: Path) -> None:
    costs: list[int] = []
    with make(tmp_path / "log") as log:
        for part in range(4):
            before = written_bytes()
            for number in range(100):
                log.log_entry(f"{part}-{number:03}", ready(hidden_states(number, rows=3)))
            costs.append(written_bytes() - before)
    assert costs[-1] < 1.5 * costs[0], costs


def test_h2_a_second_writer_is_refused_rather_than_lost(tmp_path: Path) -> None:
    with JsonActivationsLogger(tmp_path / "log") as log:
        log.log_entry("first", ready())
        with pytest.raises(LockedError):
            JsonActivationsLogger(tmp_path / "log")
        log.log_entry("second", ready())
    with JsonActivationsLogger(tmp_path / "log", read_only=True) as log:
        assert log.list_entries() == ["first", "second"]


LOGGING = """
    import sys
    import numpy as np
    from actstore import legacy

    with getattr(legacy, sys.argv[1])(sys.argv[2]) as log:
        number = len(log.list_entries())
        while True:
            states = [np.full((1, number % 7 + 1, 8), number, np.float32)] * 5
            log.log_entry(f"{number:05}", {"prompt": f"p{number}", "n": number, "all_layers_activations": states})
            print(number, flush=True)
            number += 1
"""


@BOTH
def test_h2_h20_killed_at_any_moment_it_has_what_it_logged_and_nothing_half(make: Make, tmp_path: Path) -> None:
    acknowledged = -1
    for round in range(6):
        command = [sys.executable, "-c", textwrap.dedent(LOGGING), name(make), str(tmp_path / "log")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(3 + 5 * round):
                acknowledged = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        with make(tmp_path / "log", read_only=True) as log:
            keys = log.list_entries()
            # Of the one that was on its way, all or nothing.
            assert len(keys) - 1 in (acknowledged, acknowledged + 1)
            for number, key in enumerate(keys):
                entry = log.get_entry(key)
                assert (entry["n"], entry["prompt"]) == (number, f"p{number}")
                require_states(entry["all_layers_activations"], [torch.full((1, number % 7 + 1, 8), float(number))] * 5)


@BOTH
@pytest.mark.parametrize(
    ("mode", "rows"),
    [
        ("all", slice(0, PROMPT + NEW - 1)),
        ("prompt", slice(0, PROMPT)),
        ("response", slice(PROMPT, PROMPT + NEW - 1)),
    ],
)
def test_h3_rows_of_a_part_are_not_cut_again(make: Make, mode: str, rows: slice, tmp_path: Path) -> None:
    with make(tmp_path / "log", sequence_mode=mode) as log:
        log.log_entry("k", generated())
        entry = log.get_entry("k")
    assert entry["logging_config"] == {"target_layers": "all", "sequence_mode": mode}
    for state, whole in zip(entry["all_layers_activations"], generation(PROMPT, NEW).expected, strict=True):
        torch.testing.assert_close(state, whole[:, rows])
    with actstore.open(tmp_path / "log") as store:
        stored = store["k"]
        assert stored.positions == list(range(rows.start, rows.stop))
        responses = stored.torch("final_norm", "response")
        torch.testing.assert_close(responses, generation(PROMPT, NEW).expected[-1][0, PROMPT : rows.stop])


def test_h3_outputs_have_the_mode_they_were_logged_by(tmp_path: Path) -> None:
    with ActivationsLogger(tmp_path / "log", sequence_mode="response") as log:
        log.log_entry("k", generated(logging_config={"target_layers": "all", "sequence_mode": "all"}))
        assert log.get_entry("k")["logging_config"] == {"target_layers": "all", "sequence_mode": "response"}


def test_h3_an_old_entry_says_its_mode(tmp_path: Path) -> None:
    config = {"target_layers": "all", "sequence_mode": "response"}
    path = write_log(tmp_path / "log", wrapped([STATES[0]], NONE), {**SAID, "logging_config": config})
    with ActivationsLogger(path, read_only=True) as log:
        assert log.get_entry(KEY)["logging_config"] == config
        require_states(log.get_entry(KEY)["all_layers_activations"], [STATES[0]])


@BOTH
def test_h3_an_old_entry_without_a_mode_does_not_get_one(make: Make, tmp_path: Path) -> None:
    path = write_log(tmp_path / "old", wrapped([STATES[0]], NONE))
    with ActivationsLogger(path) as old, make(tmp_path / "log") as log:
        assert old.get_entry(KEY)["logging_config"] is None
        log.log_entry(KEY, old.get_entry(KEY))
        assert log.get_entry(KEY)["logging_config"] is None
    with actstore.open(tmp_path / "log") as store:
        assert store[KEY].positions is None


@BOTH
@pytest.mark.parametrize("mode", ["prompt", "all"])
def test_h3_rows_that_cannot_be_those_of_the_mode_are_refused(make: Make, mode: str, tmp_path: Path) -> None:
    with make(tmp_path / "log", sequence_mode=mode) as log:
        with pytest.raises(InvalidInputError, match=f"has `6` rows, but `sequence_mode` is `{mode}`") as caught:
            log.log_entry("k", ready(input_length=7))
        assert (caught.value.kind, log.list_entries()) == ("unknown_position", [])


@BOTH
def test_h5_an_entry_of_another_log_stays_as_it_is(make: Make, tmp_path: Path) -> None:
    with (
        make(tmp_path / "from", target_layers="first_half", sequence_mode="response") as source,
        make(tmp_path / "to", target_layers="second_half", sequence_mode="prompt") as target,
    ):
        source.log_entry("k", generated(prompt="p", response="r", model="m", trim_position=None, own={"a": [1, None]}))
        entry = source.get_entry("k")
        target.log_entry("k", entry)
        copy = target.get_entry("k")
        require_states(copy.pop("all_layers_activations"), entry.pop("all_layers_activations"))
        assert copy == entry
        assert copy["logging_config"] == {"target_layers": "first_half", "sequence_mode": "response"}
        assert copy["timestamp"] == source.get_entry("k", metadata_only=True)["timestamp"]


RAGGED = [torch.randn(1, 3, 8).bfloat16(), None, torch.randn(1, 5, 8).half(), torch.tensor([[[float("nan"), -0.0]]])]


@BOTH
def test_h6_layers_that_are_missing_or_unlike_and_bfloat16_are_kept(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "log") as log:
        log.log_entry("k", {"all_layers_activations": RAGGED})
        require_states(log.get_entry("k")["all_layers_activations"], RAGGED)


@BOTH
def test_h6_states_without_an_axis_for_the_batch_and_one_array_of_all_come_back(make: Make, tmp_path: Path) -> None:
    flat_states = [state[0] for state in STATES]
    with make(tmp_path / "log") as log:
        log.log_entry("flat", ready(flat_states))
        log.log_entry("stacked", ready(torch.stack(STATES)))
        log.log_entry("numpy", ready(np.stack([state.numpy() for state in STATES])))
        require_states(log.get_entry("flat")["all_layers_activations"], flat_states)
        for key in ("stacked", "numpy"):
            require_states(log.get_entry(key)["all_layers_activations"], STATES)


@BOTH
@pytest.mark.parametrize(
    ("layers", "kept"), [("first_half", {0, 1}), ("second_half", {2, 3}), ([0, -1], {0, 3}), ((2,), {2})]
)
def test_h6_a_part_of_the_layers(make: Make, layers: Any, kept: set[int], tmp_path: Path) -> None:
    with make(tmp_path / "log", target_layers=layers) as log:
        log.log_entry("generated", generated())
        log.log_entry("ready", ready())
        for key, expected in (("generated", generation(PROMPT, NEW).expected), ("ready", STATES)):
            entry = log.get_entry(key)
            assert entry["logging_config"]["target_layers"] == (layers if isinstance(layers, str) else list(layers))
            states = entry["all_layers_activations"]
            assert {index for index, state in enumerate(states) if state is not None} == kept
            for index in kept:
                torch.testing.assert_close(states[index], expected[index])
    with actstore.open(tmp_path / "log") as store:
        points = ["hook_embed", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "ln_final.hook_out"]
        assert set(store["ready"].points) == {points[index] for index in kept}


def test_h7_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gadget = named("os", "system") + b"X\x09\x00\x00\x00touch ran\x85R."
    write(tmp_path / "log", {KEY: gadget})
    with ActivationsLogger(tmp_path / "log", read_only=True) as log:
        for metadata_only in (False, True):
            with pytest.raises(UntrustedInputError) as caught:
                log.get_entry(KEY, metadata_only=metadata_only)
            assert caught.value.kind == "untrusted_input"
    assert not (tmp_path / "ran").exists()


class CudaStorage:
    def __reduce__(self) -> Any:
        values = np.arange(8, dtype=np.float32).tobytes()
        return torch.storage._load_from_bytes, (stream(values, 8, location="cuda:3"),)


class CudaTensor:
    def __reduce__(self) -> Any:
        rebuild = import_module("torch._utils")._rebuild_tensor_v2
        return rebuild, (CudaStorage(), 0, (1, 2, 4), (8, 4, 1), False, OrderedDict())


def test_h7_tensors_of_a_device_that_is_not_here_are_read(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", wrapped([CudaTensor()], NONE))
    with ActivationsLogger(path, read_only=True) as log:
        require_states(log.get_entry(KEY)["all_layers_activations"], [torch.arange(8.0).reshape(1, 2, 4)])


@BOTH
def test_h8_a_view_costs_its_own_bytes_and_a_layer_is_read_alone(make: Make, tmp_path: Path) -> None:
    base = torch.randn(1, 100_000, 8)
    with make(tmp_path / "log") as log:
        log.log_entry("k", {"all_layers_activations": [base[:, :2], base[:, -2:].half()]})
        assert log.check_lmdb_size() < 1 << 20
    with actstore.open(tmp_path / "log") as store:
        assert store["k"].torch("final_norm").equal(base[0, -2:].half())


@pytest.mark.parametrize("write", [write_v1, write_v2, write_v3])
@BOTH
def test_h9_nothing_is_written_into_an_old_directory(make: Make, write: Any, tmp_path: Path) -> None:
    entries = some_entries()
    write(tmp_path / "log", entries)
    before = contents(tmp_path)
    with make(tmp_path / "log") as log:
        for key, (fields, states) in entries.items():
            with pytest.raises(ReadOnlyError, match="was written by an older program and is only read") as caught:
                log.log_entry(key, ready())
            assert caught.value.kind == "read_only"
            entry = log.get_entry(key)
            require_states(entry["all_layers_activations"], states)
            assert fields.items() <= entry.items()
            assert fields.items() <= log.get_entry(key, metadata_only=True).items()
        assert set(log.list_entries()) == set(entries)
    assert contents(tmp_path) == before


def old_lmdb(path: Path) -> None:
    write_log(path, wrapped([STATES[0], None, STATES[1]], NONE), SAID)


def old_json(path: Path) -> None:
    write_v1(path, {KEY: ({**record("p"), **SAID}, [STATES[0].numpy(), None, STATES[1].numpy()])})


@pytest.mark.parametrize(("write", "make"), [(old_lmdb, ActivationsLogger), (old_json, JsonActivationsLogger)])
def test_the_command_of_the_refusal_makes_a_log_to_go_on_with(
    write: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "an old log"
    write(path)
    with make(path) as log:
        with pytest.raises(ReadOnlyError) as caught:
            log.log_entry("k", ready())
        expected = log.get_entry(KEY)
    command = str(caught.value).split("`")[5]
    assert command.startswith("actstore-cli migrate actlog-")
    if command.split()[2] not in names():
        pytest.skip("this build does not import them")
    import shlex

    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    with make(f"{path}.actstore") as log:
        log.log_entry("k", ready())
        log.log_entry("k", ready(response="another"))
        assert log.list_entries() == [KEY, "k"]
        assert log.get_entry("k")["response"] == "another"
        entry = log.get_entry(KEY)
        require_states(entry["all_layers_activations"], expected["all_layers_activations"])
        assert all(entry[name] == SAID[name] for name in SAID)


@BOTH
@pytest.mark.parametrize("format", ["actlog-json-v1", "actlog-json-v3"])
def test_what_was_logged_goes_back_to_the_older_program_as_it_was(make: Make, format: str, tmp_path: Path) -> None:
    states = [state.half() for state in STATES]
    with make(tmp_path / "log", sequence_mode="prompt") as log:
        log.log_entry("k", ready(states, input_length=6, response="r", model="m", own={"a": float("inf")}))
        expected = log.get_entry("k")
    assert actstore.migrate(tmp_path / "log", tmp_path / "old", target_format=format, verify=True).left_out == ()
    with make(tmp_path / "old", read_only=True) as log:
        entry = log.get_entry("k")
    require_states(entry.pop("all_layers_activations"), expected.pop("all_layers_activations"))
    assert expected.items() <= entry.items()


@BOTH
def test_several_threads_log_at_once(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "log") as log:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(log.log_entry, map(str, range(40)), [ready(n=number) for number in range(40)]))
        assert sorted(log.get_entry(key)["n"] for key in log.list_entries()) == list(range(40))


@BOTH
def test_logging_a_key_again_replaces_it(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "log") as log:
        for number in range(3):
            log.log_entry("k", ready([STATES[number]], n=number))
            log.log_entry("other", ready())
        assert log.list_entries() == ["k", "other"]
        assert log.get_entry("k", metadata_only=True)["n"] == 2
        require_states(log.get_entry("k")["all_layers_activations"], [STATES[2]])


@pytest.mark.parametrize(("make", "backend"), [(ActivationsLogger, "lmdb"), (JsonActivationsLogger, "json")])
def test_h10_samples_of_a_prompt_need_not_replace_each_other(make: Make, backend: str, tmp_path: Path) -> None:
    actstore.create(tmp_path / "log", backend, on_conflict="number").close()
    key = key_of("p")
    with make(tmp_path / "log") as log:
        for sample in range(3):
            log.log_entry(key, ready([STATES[sample]], temperature=0.5 + sample))
        assert log.list_entries() == [key, f"{key}#1", f"{key}#2"]
        assert [log.get_entry(k)["temperature"] for k in log.list_entries()] == [0.5, 1.5, 2.5]


@BOTH
@pytest.mark.parametrize(("mode", "rows"), [("all", PROMPT), ("prompt", PROMPT), ("response", 0)])
def test_h11_a_response_of_one_token_is_logged(make: Make, mode: str, rows: int, tmp_path: Path) -> None:
    with make(tmp_path / "log", sequence_mode=mode) as log:
        log.log_entry("k", generated(new_tokens=1, response="yes"))
        entry = log.get_entry("k")
    assert (entry["response"], entry["has_activations"]) == ("yes", True)
    assert [tuple(state.shape) for state in entry["all_layers_activations"]] == [(1, rows, WIDTH)] * (LAYERS + 1)


@pytest.mark.parametrize("new_tokens", [1, 2, 6])
def test_h11_a_row_is_the_state_at_its_token(new_tokens: int, tmp_path: Path) -> None:
    with ActivationsLogger(tmp_path / "log") as log:
        log.log_entry("k", generated(new_tokens=new_tokens))
        states = log.get_entry("k")["all_layers_activations"]
    for state, expected in zip(states, generation(PROMPT, new_tokens).expected, strict=True):
        torch.testing.assert_close(state, expected)


def test_h12_zstd_is_what_was_asked_for_or_an_error(tmp_path: Path) -> None:
    with ActivationsLogger(tmp_path / "log", compression="zstd") as log:
        log.log_entry("k", {"all_layers_activations": RAGGED})
        require_states(log.get_entry("k")["all_layers_activations"], RAGGED)
    with actstore.open(tmp_path / "log") as store:
        assert store.settings["codec"] == "zstd"
    with pytest.raises(InvalidInputError, match="lz4") as caught:
        ActivationsLogger(tmp_path / "other", compression="lz4")
    assert (caught.value.kind, (tmp_path / "other").exists()) == ("invalid_option", False)


@BOTH
@pytest.mark.parametrize("read_only", [False, True])
def test_h13_search_finds_what_is_there_and_close_closes(make: Make, read_only: bool, tmp_path: Path) -> None:
    with make(tmp_path / "log") as log:
        for place in ("France", "Peru"):
            log.log_entry(place, ready(prompt=f"What is the capital of {place}?"))
        log.log_entry("nothing", {"all_layers_activations": None})
        nothing = log.get_entry("nothing")
        assert (nothing["has_activations"], nothing["all_layers_activations"], "prompt" in nothing) == (
            False,
            None,
            False,
        )
    log = make(tmp_path / "log", read_only=read_only)
    found = log.search_metadata(lambda meta: "France" in meta.get("prompt", ""))
    assert found == [("France", log.get_entry("France", metadata_only=True))]
    assert "all_layers_activations" not in found[0][1]
    log.close()
    log.close()
    for call in (log.list_entries, lambda: log.get_entry("France"), lambda: log.log_entry("k", ready())):
        with pytest.raises(ReadOnlyError, match="is closed; open it again") as caught:
            call()
        assert caught.value.kind == "closed"


def test_h13_of_an_old_log_only_metadata_is_searched(tmp_path: Path) -> None:
    old_lmdb(tmp_path / "log")
    with ActivationsLogger(tmp_path / "log", read_only=True) as log:
        # Its other file has the activations.
        write(tmp_path / "log", {KEY: b"damaged"})
    with ActivationsLogger(tmp_path / "log", read_only=True) as log:
        assert log.search_metadata(lambda meta: meta["model"] == "m/1") == [(KEY, SAID)]
        with pytest.raises(ActstoreError):
            log.get_entry(KEY)
    with pytest.raises(ReadOnlyError) as caught:
        log.list_entries()
    assert caught.value.kind == "closed"


def test_h14_a_log_grows_beyond_its_map_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ActivationsLogger(tmp_path / "log", map_size=200_000, compression="raw") as log:
        assert log.check_lmdb_size() < 200_000
        assert caplog.records == []
        for number in range(4):
            log.log_entry(str(number), {"all_layers_activations": [torch.randn(1, 4000, 8)]})
        assert log.check_lmdb_size() > 4 * 128_000
        assert "`map_size` is 200.0 kB; it grows as it needs to" in caplog.text
        assert log.list_entries() == ["0", "1", "2", "3"]


def test_h14_an_old_log_is_read_without_its_lock(tmp_path: Path) -> None:
    old_lmdb(tmp_path / "log")
    for lock in tmp_path.rglob("lock.mdb"):
        lock.unlink()
    before = contents(tmp_path)
    logs = [ActivationsLogger(tmp_path / "log", read_only=True) for _ in range(200)]
    assert all(log.get_entry(KEY)["model"] == "m/1" for log in logs)
    assert contents(tmp_path) == before


@BOTH
@pytest.mark.parametrize("trim", [0, 2, 9])
def test_h16_states_end_where_the_response_was_cut(make: Make, trim: int, tmp_path: Path) -> None:
    rows = min(trim, NEW - 1)
    with make(tmp_path / "log", sequence_mode="response") as log:
        log.log_entry("k", generated(trim_position=trim))
        entry = log.get_entry("k")
    assert entry["trim_position"] == trim
    expected = generation(PROMPT, NEW).expected
    for state, whole in zip(entry["all_layers_activations"], expected, strict=True):
        torch.testing.assert_close(state, whole[:, PROMPT : PROMPT + rows])
    with actstore.open(tmp_path / "log") as store:
        assert store["k"].positions == list(range(PROMPT, PROMPT + rows))


def test_h16_a_batch_is_refused_because_its_rows_may_be_padding(tmp_path: Path) -> None:
    outputs = {"hidden_states": ([torch.zeros(2, 5, 8)] * 4, [torch.zeros(2, 1, 8)] * 4)}
    with ActivationsLogger(tmp_path / "log") as log:
        with pytest.raises(InvalidInputError, match="one prompt at a time") as caught:
            log.log_entry("k", {"model_outputs": outputs, "input_length": 5})
        assert (caught.value.kind, log.list_entries()) == ("invalid_tensor", [])


@BOTH
def test_h17_tensors_may_change_once_they_are_logged(make: Make, tmp_path: Path) -> None:
    states = [state.clone().requires_grad_(index == 1) for index, state in enumerate(STATES)]
    with make(tmp_path / "log") as log:
        log.log_entry("k", ready(states))
        with torch.no_grad():
            for state in states:
                state.zero_()
        require_states(log.get_entry("k")["all_layers_activations"], STATES)


def test_h17_what_fails_is_raised_and_the_log_goes_on(tmp_path: Path) -> None:
    actstore.create(tmp_path / "log", "lmdb", on_conflict="error").close()
    with ActivationsLogger(tmp_path / "log") as log:
        log.log_entry("k", ready(n=1))
        with pytest.raises(KeyConflictError) as caught:
            log.log_entry("k", ready(n=2))
        assert caught.value.kind == "key_conflict"
        log.log_entry("other", ready())
        assert (log.list_entries(), log.get_entry("k")["n"]) == (["k", "other"], 1)


@BOTH
def test_h19_fields_of_a_sample_are_what_was_given(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "log") as log:
        for row, sample in enumerate([3, 0, 1]):
            log.log_entry(str(row), ready(sample_index=sample, sample_group_id="g", request_id="r"))
        primary = log.search_metadata(lambda meta: meta["sample_index"] == 0)
    assert [key for key, _ in primary] == ["1"]


@pytest.mark.parametrize(("make", "files"), [(ActivationsLogger, 0), (JsonActivationsLogger, 1)])
def test_h21_an_entry_is_one_file_at_most(make: Make, files: int, tmp_path: Path) -> None:
    with make(tmp_path / "log") as log:
        log.log_entry("first", generated())
        before = len(contents(tmp_path))
        for number in range(20):
            log.log_entry(str(number), generated())
        assert len(contents(tmp_path)) == before + 20 * files


@BOTH
def test_h22_a_line_an_entry_and_none_where_it_is_not_wanted(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for verbose in (False, True):
        with make(tmp_path / "log", verbose=verbose) as log:
            log.log_entry("k", generated())
            log.get_entry("k")
            log.search_metadata(bool)
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("actstore")]
        assert lines == ([f"logged `k` to `{tmp_path / 'log'}`: 4 hidden states"] if verbose else [])


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("said", [None, SAID])
def test_old_entries_of_every_era_have_the_shape_they_had(era: str, said: Any, tmp_path: Path) -> None:
    value, fields, _, layers = ERAS[era]
    write_log(tmp_path / "log", value, said)
    with ActivationsLogger(tmp_path / "log", read_only=True) as log:
        assert log.list_entries() == [KEY]
        entry = log.get_entry_by_key(KEY)
        metadata = log.get_entry_by_key(KEY, metadata_only=True)
    assert fields.items() <= entry.items()
    assert entry["logging_config"] == (None if said is None else SAID["logging_config"])
    assert "compression_metadata" not in metadata
    assert metadata.items() >= (fields if said is None else SAID).items()
    found = entry["all_layers_activations"]
    assert type(found) is type(layers)
    pairs = [(found[name], layers[name]) for name in (layers if isinstance(layers, dict) else range(len(layers)))]
    for state, own in pairs:
        if own is None:
            assert state is None
            continue
        read = flat(state)
        assert read is not None
        assert (read.tobytes(), read.shape) == (own.tobytes(), own.shape)
        assert state.untyped_storage().nbytes() == own.nbytes


def test_an_old_directory_that_several_versions_wrote_to(tmp_path: Path) -> None:
    first, second = some_entries(), {key_of("new"): (record("new", mode="response"), hidden_states(8, rows=2))}
    write_v1(tmp_path / "log", first)
    write_v3(tmp_path / "log", second)
    with JsonActivationsLogger(tmp_path / "log", read_only=True) as log:
        assert log.list_entries() == [*first, *second]
        for key, (fields, states) in {**first, **second}.items():
            assert fields.items() <= log.get_entry(key, metadata_only=True).items()
            require_states(log.get_entry(key)["all_layers_activations"], states)


def test_an_old_record_without_a_mode_has_that_of_its_log(tmp_path: Path) -> None:
    fields, states = record("p"), hidden_states(0, rows=4)
    del fields["logging_config"]
    write_v1(tmp_path / "log", {"k": (fields, states)})
    with JsonActivationsLogger(tmp_path / "log") as log:
        assert log.get_entry("k")["logging_config"] == {"target_layers": "all", "sequence_mode": "all"}
    index = json.loads((tmp_path / "log" / "metadata.json").read_text())
    index["logger_config"] = {"version": "1.0"}
    (tmp_path / "log" / "metadata.json").write_text(json.dumps(index))
    with JsonActivationsLogger(tmp_path / "log") as log:
        assert log.get_entry("k")["logging_config"] is None


@pytest.mark.parametrize("write", [old_lmdb, old_json])
def test_a_missing_key_is_the_same_error_everywhere(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "old")
    logs = [
        ActivationsLogger(tmp_path / "old"),
        ActivationsLogger(tmp_path / "l"),
        JsonActivationsLogger(tmp_path / "j"),
    ]
    for log in logs:
        with log:
            for get in (log.get_entry, log.get_entry_by_key):
                for metadata_only in (False, True):
                    with pytest.raises(KeyError) as caught:
                        get("gone", metadata_only=metadata_only)
                    assert isinstance(caught.value, NotFoundError)
                    assert (caught.value.kind, "`gone`" in str(caught.value)) == ("no_such_key", True)


def test_any_store_is_read_as_a_log(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s") as store:
        rows = {point: np.ones((3, 4), np.float32) for point in ("embed", "resid_post.1", "mlp_out.0")}
        store.put(prompt="p", token_ids=[1, 2, 3], prompt_length=2, metadata={"model": "m"}, activations=rows)
    for make in (ActivationsLogger, JsonActivationsLogger):
        with make(tmp_path / "s", read_only=True) as log:
            entry = log.get_entry(key_of("p"))
        states = entry["all_layers_activations"]
        assert [state is not None and tuple(state.shape) for state in states] == [(1, 3, 4), False, (1, 3, 4), False]
        assert (entry["input_length"], entry["model"], entry["logging_config"]["sequence_mode"]) == (2, "m", "all")
        with pytest.raises(InvalidInputError, match="created with `shards`") as caught:
            make(tmp_path / "s")
        assert caught.value.kind == "invalid_option"


def test_read_only_refuses_to_log(tmp_path: Path) -> None:
    with JsonActivationsLogger(tmp_path / "log") as log:
        log.log_entry("k", ready())
    with JsonActivationsLogger(tmp_path / "log", read_only=True) as log, pytest.raises(ReadOnlyError) as caught:
        log.log_entry("k", ready())
    assert caught.value.kind == "read_only"


@BOTH
def test_an_entry_stays_the_callers(make: Make, tmp_path: Path) -> None:
    entry = generated(prompt="p")
    before = dict(entry)
    with make(tmp_path / "log") as log:
        log.log_entry("k", entry)
    assert entry == before
    assert not hasattr(entry["model_outputs"], "trim_position")


FORWARD = [torch.zeros(1, 5, 8)] * 3
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing": ({"prompt": "p"}, "invalid_metadata", "an entry needs `model_outputs` and `input_length`, or"),
    "no length": ({"model_outputs": {"hidden_states": [FORWARD]}}, "invalid_metadata", "without `input_length`"),
    "no states": ({"model_outputs": object(), "input_length": 5}, "invalid_tensor", "output_hidden_states=True"),
    "a forward": (
        {"model_outputs": {"hidden_states": FORWARD}, "input_length": 5},
        "invalid_tensor",
        "no hidden states of a generation",
    ),
    "another length": (
        {"model_outputs": {"hidden_states": [FORWARD]}, "input_length": 4},
        "unknown_position",
        "`input_length` is `4`, but `model_outputs` has `5` states of the prompt",
    ),
    "two tokens a step": (
        {"model_outputs": {"hidden_states": [FORWARD, FORWARD]}, "input_length": 5},
        "invalid_tensor",
        "forward `1` in `model_outputs` has `3` hidden states of shapes `[(1, 5, 8), (1, 5, 8)]`",
    ),
    "fewer states in a step": (
        {"model_outputs": {"hidden_states": [FORWARD, [torch.zeros(1, 1, 8)]]}, "input_length": 5},
        "invalid_tensor",
        "forward `1`",
    ),
    "a negative length": (ready(input_length=-1), "invalid_option", "`input_length` is `-1`"),
    "a length of text": (ready(input_length="5"), "invalid_option", "`input_length` has `'5'`"),
    "a place of text": (ready(trim_position="5"), "invalid_option", "`trim_position` has `'5'`"),
    "a batch": (ready([torch.zeros(2, 3, 8)]), "invalid_tensor", "hidden state `0` has the shape `[2, 3, 8]`"),
    "both axes": (ready([STATES[0], STATES[1][0]]), "invalid_tensor", "some of `all_layers_activations` have an axis"),
    "text": (ready([None, "a"]), "invalid_tensor", "hidden state `1` is a `str`"),
    "a dict": (ready({"layer_0": STATES[0]}), "invalid_tensor", "`all_layers_activations` is a dict"),
    "a field of bytes": (ready(own=b"a"), "invalid_metadata", "own` is a `bytes`, which JSON cannot hold"),
    "complex numbers": (ready([torch.zeros(1, 3, 8, dtype=torch.complex64)]), "invalid_tensor", "complex64"),
}


@BOTH
@pytest.mark.parametrize("bad", BAD)
def test_entries_that_cannot_be_logged_are_refused(make: Make, bad: str, tmp_path: Path) -> None:
    entry, kind, said = BAD[bad]
    with make(tmp_path / "log") as log:
        log.log_entry("k", ready())
        with pytest.raises(InvalidInputError) as caught:
            log.log_entry("k", entry)
        assert (caught.value.kind, said in str(caught.value)) == (kind, True), str(caught.value)
        require_states(log.get_entry("k")["all_layers_activations"], STATES)


@BOTH
@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"target_layers": "third_half"}, "unknown_layer", "`target_layers` is `third_half`; one of `all`"),
        ({"target_layers": ["all"]}, "unknown_layer", "`target_layers` has `'all'`"),
        ({"target_layers": 5.5}, "unknown_layer", "`target_layers` has `5.5`"),
        ({"sequence_mode": "both"}, "invalid_option", "`sequence_mode` is `both`; one of `all`, `prompt`, `response`"),
    ],
)
def test_settings_that_do_not_exist_are_refused(
    make: Make, options: dict[str, Any], kind: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make(tmp_path / "log", **options)
    assert (caught.value.kind, said in str(caught.value)) == (kind, True), str(caught.value)
    assert not (tmp_path / "log").exists()


@BOTH
def test_a_hidden_state_beyond_the_last_is_refused(make: Make, tmp_path: Path) -> None:
    with make(tmp_path / "log", target_layers=[1, 4]) as log:
        for entry in (generated(), ready()):
            with pytest.raises(InvalidInputError, match="`target_layers` has `4`; there are `4`") as caught:
                log.log_entry("k", entry)
            assert caught.value.kind == "unknown_layer"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACTIVATION_LOGGER_TYPE", "zarr", "one of `lmdb`, `json`"),
        ("ACTIVATION_TARGET_LAYERS", "none", "one of `all`, `first_half`, `second_half`"),
        ("ACTIVATION_SEQUENCE_MODE", "both", "one of `all`, `prompt`, `response`"),
        ("ACTIVATION_LMDB_MAP_SIZE", "-1", "give a number of bytes"),
        ("ACTIVATION_LMDB_MAP_SIZE", "much", "give a number of bytes"),
    ],
)
@BOTH
def test_variables_that_say_nothing_known_are_named(
    make: Make, variable: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInputError) as caught:
        make(tmp_path / "log")
    assert (caught.value.kind, f"`{variable}` is `" in str(caught.value)) == ("invalid_option", True)
    assert said in str(caught.value)


def test_variables_set_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert LoggerDefaults.from_env() == LoggerDefaults(None, "lmdb", "all", "all", 16 << 30)
    values = {
        "ACTIVATION_STORAGE_PATH": "there",
        "ACTIVATION_LOGGER_TYPE": "json",
        "ACTIVATION_TARGET_LAYERS": "first_half",
        "ACTIVATION_SEQUENCE_MODE": "response",
        "ACTIVATION_LMDB_MAP_SIZE": "4096",
    }
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    assert LoggerDefaults.from_env() == LoggerDefaults("there", "json", "first_half", "response", 4096)
    config = {"target_layers": "first_half", "sequence_mode": "response"}
    for log, place in ((JsonActivationsLogger(), "there"), (ActivationsLogger(), "lmdb_data/activations.lmdb")):
        with log:
            assert log.path == Path(place)
            log.log_entry("k", generated())
            assert log.get_entry("k")["logging_config"] == config
    with JsonActivationsLogger("here", target_layers="all", sequence_mode="prompt") as log:
        log.log_entry("k", generated())
        assert log.get_entry("k")["logging_config"] == {"target_layers": "all", "sequence_mode": "prompt"}
    monkeypatch.setenv("ACTIVATION_LOGGER_TYPE", "")
    with pytest.raises(InvalidInputError, match="`backend` is `lmdb`, but the store"):
        ActivationsLogger()


def test_a_log_of_the_other_kind_or_compression_is_refused_in_the_words_of_the_loggers(tmp_path: Path) -> None:
    ActivationsLogger(tmp_path / "log").close()
    for call, said in (
        (
            lambda: JsonActivationsLogger(tmp_path / "log"),
            r"`backend` is `json`, but .* with `lmdb`; log to another path",
        ),
        (
            lambda: ActivationsLogger(tmp_path / "log", compression="zstd"),
            "`compression` is `zstd`, but .* with `planes`; log to another path",
        ),
    ):
        with pytest.raises(InvalidInputError, match=said) as caught:
            call()
        assert caught.value.kind == "invalid_option"
    ActivationsLogger(tmp_path / "log", compression="planes").close()


text = st.text(st.characters(categories=None), max_size=8)
fields = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
own_fields = st.dictionaries(st.text(st.characters(categories=["Ll"]), min_size=1, max_size=4), fields, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=text, response=text, own=own_fields)
@example(prompt="", response="", own={"key": "of its own"})
def test_any_fields_come_back(prompt: str, response: str, own: dict[str, Any], tmp_path: Path) -> None:
    entry = {**own, "prompt": prompt, "response": response}
    for make in (ActivationsLogger, JsonActivationsLogger):
        with make(tmp_path / name(make)) as log:
            log.log_entry("k", ready(**entry))
            found = log.get_entry("k", metadata_only=True)
        # NaN is unlike itself.
        assert json.dumps({name: found[name] for name in entry}) == json.dumps(entry)


def test_importing_it_is_light() -> None:
    script = "import sys, actstore{}; print(*{{name for name in sys.modules if name.count('.') < 2}})"
    assert {"actstore.legacy", "torch"} & set(run_python(script.format("")).split()) == set()
    assert {"torch", "transformers"} & set(run_python(script.format(".legacy")).split()) == set()
