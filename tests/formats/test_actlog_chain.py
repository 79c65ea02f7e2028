"""From an old LMDB log through formats and stores and back, undisturbed and killed: what is lost is said."""

import pickle
import random
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import actstore
from actstore import _core, arrays
from actstore.formats import export_store, import_store
from actstore.store import Store
from old_logs import NONE, write
from old_trees import key_of
from processes import python

COUNTS = [60, pytest.param(2000, marks=pytest.mark.long)]
KILLS = {60: 2, 2000: 25}
"""Of an import, and of an export, by the number of entries."""
CHAIN = ("actlog-json-v1", "shards", "actlog-lmdb", "json")
STATES = 4
TENSORS = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int64,
    torch.uint8,
    torch.bool,
)
SPECIAL = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 65504.0, 2**-24, 2**-133, 1 + 2**-10, 1 / 3)
TEXTS = ("plain", "", "日本語 🦀", "line\nbreak\ttab\x00zero\x7f", 'quotes " and \\', "e\u0301 é \ufeff")


class Logged(NamedTuple):
    """An entry as the logger had it: what both environments say, and what the second one alone says."""

    fields: dict[str, Any]
    said: dict[str, Any]
    states: list[torch.Tensor | None]


def tensor(random: np.random.Generator, number: int, rows: int) -> torch.Tensor:
    dtype, width = TENSORS[number % len(TENSORS)], 1 + number % 7
    values = torch.from_numpy(random.standard_normal((1, rows, width)) * 50)
    if dtype.is_floating_point and rows:
        values.view(-1)[: min(values.numel(), len(SPECIAL))] = torch.tensor(
            SPECIAL[: values.numel()], dtype=values.dtype
        )
    cast = values.to(dtype)
    # Vectorised, torch makes another NaN of bfloat16.
    return cast.masked_fill(cast.isnan(), float("nan")) if dtype.is_floating_point else cast


def logged(number: int) -> Logged:
    random = np.random.default_rng(number)
    length, rows = int(random.integers(1, 6)), int(random.integers(0, 12))
    states = [tensor(random, number, rows) if (number >> layer) & 3 != 1 else None for layer in range(STATES)]
    fields: dict[str, Any] = {
        "prompt": f"{TEXTS[number % len(TEXTS)]} {number}",
        "response": TEXTS[number % 5],
        "input_length": length,
        "model": f"m/{number % 3}",
        **({"messages": [{"role": "user", "content": TEXTS[number % 6]}]} if number % 2 else {}),
        "trim_position": None if number % 3 else number,
        **(
            {"score": SPECIAL[number % 10], "more": [1, [2.5, None, True, {"deep": -(2**62)}]]}
            if number % 4 == 0
            else {}
        ),
    }
    mode = ("all", "prompt", "response")[number % 3]
    has = any(state is not None for state in states) and number % 11 > 0
    config = {"logging_config": {"target_layers": "all", "sequence_mode": mode}} if has else {}
    return Logged(fields, {**config, "timestamp": 1.7e9 + number / 8, "has_activations": has}, states if has else [])


def write_entries(path: Path, count: int) -> dict[str, Logged]:
    entries = {key_of(entry.fields["prompt"]): entry for entry in map(logged, range(count))}
    values: dict[str, bytes] = {}
    for key, (fields, _, states) in entries.items():
        data = {**fields, **({"all_layers_activations": states} if states else {})}
        values[key] = pickle.dumps({"data": data, "metadata": NONE}, 4)
    write(path, values)
    said = {key: {**entry.fields, **entry.said, "compression_metadata": NONE} for key, entry in entries.items()}
    write(path.with_name(f"{path.name}_metadata"), {key: pickle.dumps(item, 4) for key, item in said.items()})
    return entries


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, list[int], bytes]:
    return tensor.dtype, list(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def require_log(path: Path, entries: dict[str, Logged], *, ours: bool = True) -> None:
    """The log has what was logged, each value bit for bit, as its own code unpickles it."""
    log = _core.ActlogLmdb(str(path))
    assert log.keys() == sorted(entries)
    for key, (fields, said, states) in entries.items():
        entry = log.get(key)
        mode = said.get("logging_config", {}).get("sequence_mode", "all")
        beside = {} if mode == "all" or not ours else {"logging_config": said["logging_config"]}
        assert repr(entry.fields) == repr({**fields, **beside})
        assert repr(entry.metadata) == repr({**fields, **said, "compression_metadata": NONE})
        layers: Any = entry.layers or []
        assert [None if layer is None else (layer.dtype, layer.shape, bytes(layer)) for layer in layers] == [
            None if state is None else (arrays.dtype_name(state.dtype), *bits(state)[1:]) for state in states
        ]


def require_store(store: Store, entries: dict[str, Logged]) -> None:
    points = ("embed", "resid_post.0", "resid_post.1", "final_norm")
    assert sorted(store.keys()) == sorted(entries)
    for key, (fields, said, states) in entries.items():
        entry = store[key]
        metadata = {name: value for name, value in entry.metadata.items() if name != "imported_from"}
        expected = {name: value for name, value in {**fields, **said}.items() if name != "has_activations"}
        if not np.isfinite(expected.get("score", 0.0)):
            # Under `as_text` it says that this was a number.
            expected["score"] = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(expected["score"])]
        assert repr({"prompt": entry.prompt, "response": entry.response, **metadata}) == repr(expected)
        assert entry.created == said["timestamp"]
        stored = dict(zip(points, states, strict=False))
        assert len(entry.points) == sum(state is not None for state in stored.values())
        for point, state in stored.items():
            if state is not None:
                assert bits(entry.torch(point).unsqueeze(0)) == bits(state)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", COUNTS)
def test_a_chain_of_formats_and_stores_keeps_everything(count: int, tmp_path: Path) -> None:
    entries = write_entries(tmp_path / "0", count)
    require_log(tmp_path / "0", entries, ours=False)
    for number, name in enumerate(CHAIN):
        report = actstore.migrate(tmp_path / str(number), tmp_path / str(number + 1), target_format=name, verify=True)
        assert (report.entries, report.migrated, report.verified) == (count, count, count)
        assert (report.left_out, report.notes) == ((), ())
    require_log(tmp_path / "3", entries)
    with actstore.open(tmp_path / "2") as shards, actstore.open(tmp_path / "4") as store:
        require_store(shards, entries)
        require_store(store, entries)


def test_what_the_chain_cannot_keep_is_said(tmp_path: Path) -> None:
    payload = torch.tensor([[[0x7E01, 0xFE00 - 0x10000, 0x7D01]]], dtype=torch.int16).view(torch.float16)
    value = {"data": {"prompt": "p", "all_layers_activations": [payload]}, "metadata": NONE}
    write(tmp_path / "0", {"k": value})
    said = [
        actstore.migrate(tmp_path / str(number), tmp_path / str(number + 1), target_format=name, verify=True).notes
        for number, name in enumerate(("shards", "actlog-lmdb", "shards", "actlog-json-v1"))
    ]
    assert said == [(), (), (), ("NaNs lose their sign and payload, JSON has one NaN (1 x)",)]
    with actstore.open(tmp_path / "3") as store:
        assert bits(store["k"].torch("embed").unsqueeze(0)) == bits(payload)


KILLED = """
    import os, signal, sys, time
    from actstore.formats import actlog_lmdb_writing, export_store, import_store

    way, source, target, last, wait = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
    # So that there are many commits.
    actlog_lmdb_writing._BATCH_BYTES = 20_000

    def progress(done, total, raw_bytes):
        if done == last:
            time.sleep(wait)
            os.kill(os.getpid(), signal.SIGKILL)

    if way == "import":
        import_store(source, target, progress=progress)
    else:
        export_store(source, target, "actlog-lmdb", progress=progress)
"""


def content(store: Store) -> dict[str, Any]:
    return {entry.key: (entry.content_id, entry.created) for entry in store}


def killed(way: str, source: Path, target: Path, count: int) -> None:
    """Begins `way` again and again; each time it dies, further on than before, right away or after a commit."""
    chance = random.Random(count)
    for number in range(KILLS[count]):
        last = 1 + (count - 1) * number // KILLS[count] + chance.randrange(count // 2 // KILLS[count])
        done = python(KILLED, way, source, target, last, chance.choice((0, 0.12)))
        assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", COUNTS)
def test_a_killed_import_and_a_killed_export_end_the_same(count: int, tmp_path: Path) -> None:
    entries = write_entries(tmp_path / "log", count)
    import_store(tmp_path / "log", tmp_path / "whole")
    killed("import", tmp_path / "log", tmp_path / "store", count)
    report = import_store(tmp_path / "log", tmp_path / "store", verify=True)
    assert report.skipped + report.migrated == report.verified == count
    killed("export", tmp_path / "store", tmp_path / "out", count)
    assert not (tmp_path / "out").exists()
    report = export_store(tmp_path / "store", tmp_path / "out", "actlog-lmdb", verify=True)
    assert (report.migrated, report.verified, report.left_out) == (count, count, ())
    require_log(tmp_path / "out", entries)
    with actstore.open(tmp_path / "whole") as whole, actstore.open(tmp_path / "store") as store:
        assert content(store) == content(whole)
        require_store(store, entries)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.mdb"]
