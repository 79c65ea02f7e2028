"""Importing and exporting, whatever the format: resumed, verified, refused, from the command line, along a chain."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import actstore
from actstore import formats
from actstore.cli import app
from actstore.errors import (
    AlreadyExistsError,
    CorruptError,
    InvalidInputError,
    KeyConflictError,
    NotFoundError,
    StorageIoError,
)
from actstore.formats import export_store, exporting, import_store
from actstore.store import Store
from old_trees import hidden_states, key_of, record, residuals, some_entries, write_split, write_v1, write_v2, write_v3
from processes import python, run_python


def files(path: Path) -> dict[str, tuple[int, bytes]]:
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


def content(store: Store) -> dict[str, Any]:
    return {entry.key: (entry.content_id, entry.created) for entry in store}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_an_import_is_repeated_for_nothing(tmp_path: Path) -> None:
    write_v1(tmp_path / "old", dict(some_entries()))
    before = files(tmp_path / "old")
    first = import_store(tmp_path / "old", tmp_path / "new", verify=True)
    second = import_store(str(tmp_path / "old"), tmp_path / "new", "json", verify=True)
    assert (first.migrated, first.skipped, first.verified) == (3, 0, 3)
    assert (second.migrated, second.skipped, second.verified, second.conflicts) == (0, 3, 3, 0)
    assert (first.backend, first.source, first.target) == ("shards", tmp_path / "old", tmp_path / "new")
    assert first.raw_bytes == 4 * 4 * 2 * (5 + 6 + 7)
    assert files(tmp_path / "old") == before


KILLED = """
    import os, signal, sys
    from actstore.formats import import_store

    def progress(done, total, raw_bytes):
        if done == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

    import_store(sys.argv[1], sys.argv[2], progress=progress)
"""


def test_a_killed_import_is_resumed(tmp_path: Path) -> None:
    write_v2(tmp_path / "old", some_entries(20))
    before = files(tmp_path / "old")
    import_store(tmp_path / "old", tmp_path / "whole")
    for stop in (1, 10, 20):
        target = tmp_path / f"killed {stop}"
        assert python(KILLED, tmp_path / "old", target, stop).returncode == -signal.SIGKILL
        report = import_store(tmp_path / "old", target, verify=True)
        assert report.skipped + report.migrated == report.verified == 20
        with actstore.open(tmp_path / "whole") as whole, actstore.open(target) as resumed:
            assert content(resumed) == content(whole)
    assert files(tmp_path / "old") == before


def test_what_the_progress_raises_stops_an_import_and_the_rest_stays(tmp_path: Path) -> None:
    def stop(done: int, total: int, _: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    write_v1(tmp_path / "old", dict(some_entries()))
    with pytest.raises(KeyboardInterrupt):
        import_store(tmp_path / "old", tmp_path / "new", progress=stop)
    assert import_store(tmp_path / "old", tmp_path / "new").skipped == 2


def test_a_dry_run_reads_everything_and_writes_nothing(tmp_path: Path) -> None:
    entries = some_entries()
    write_v2(tmp_path / "old", entries)
    (tmp_path / "old" / "activations" / f"{list(entries)[1]}.npy").unlink()
    plan = import_store(tmp_path / "old", tmp_path / "new", dry_run=True)
    assert (plan.entries, plan.migrated, plan.skipped, len(plan.left_out), plan.dry_run) == (3, 2, 0, 1, True)
    assert plan.raw_bytes == 4 * 4 * 2 * (5 + 7)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    import_store(tmp_path / "old", tmp_path / "new")
    again = import_store(tmp_path / "old", tmp_path / "new", dry_run=True)
    assert (again.migrated, again.skipped, again.conflicts) == (0, 2, 0)
    store = actstore.create(backend="memory")
    store.put(key="k", activations={"embed": np.ones((2, 3), np.float32)})
    plan = export_store(store, tmp_path / "out", "actlog-json-v1", dry_run=True)
    assert (plan.migrated, plan.raw_bytes, (tmp_path / "out").exists()) == (1, 24, False)


@pytest.mark.parametrize("name", formats.names())
def test_a_dry_run_of_an_export_counts_what_is_written_and_refuses_what_would_be(name: str, tmp_path: Path) -> None:
    """Whatever the format leaves out, such as `attn_out`, is counted in neither."""
    store = exportable(more={"attn_out.1": np.ones((2, 300), np.float32)})
    planned = export_store(store, tmp_path / "new", name, layers=3, dry_run=True)
    assert not list(tmp_path.iterdir())
    report = export_store(store, tmp_path / "new", name, layers=3)
    assert (planned.dry_run, planned.migrated, planned.notes) == (True, report.migrated, report.notes)
    assert planned.raw_bytes == planned.stored_bytes == report.raw_bytes > 0
    before = files(tmp_path)
    with pytest.raises(AlreadyExistsError):
        export_store(store, tmp_path / "new", name, layers=3, dry_run=True)
    assert export_store(store, tmp_path / "new", name, layers=3, dry_run=True, overwrite=True).migrated == 3
    assert files(tmp_path) == before


def test_a_dry_run_says_what_has_no_place_in_the_format(tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    store.put(key="k", activations={"resid_post.0": np.ones((2, 3), np.float32)})
    with pytest.raises(InvalidInputError, match="has the `model` `None` in its metadata"):
        export_store(store, tmp_path / "new", "pt-shards", dry_run=True)


def test_a_shard_size_where_files_have_none_is_refused(tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    for target, call in (
        ("npy-layers", lambda: export_store(store, tmp_path / "new", "npy-layers", shard_size=2)),
        ("json", lambda: actstore.migrate(store, tmp_path / "new", target_format="json", shard_size=2)),
        ("None", lambda: actstore.migrate(store, tmp_path / "new", shard_size=2)),
    ):
        with pytest.raises(InvalidInputError, match=f"`shard_size` is for the format `pt-shards`, not for `{target}`"):
            call()


def test_a_store_of_ours_is_named_when_it_is_to_be_imported(tmp_path: Path) -> None:
    actstore.create(tmp_path / "store").close()
    with pytest.raises(NotFoundError, match="is a store of actstore already, which `migrate` brings to another"):
        import_store(tmp_path / "store", tmp_path / "new")


def test_a_key_with_other_content_follows_the_rule_of_the_store(tmp_path: Path) -> None:
    key = key_of("p")
    write_v1(tmp_path / "old", {key: (record("p"), list(hidden_states(0, rows=4)))})
    for rule, there in (("skip", 1), ("replace", 1), ("number", 2)):
        with actstore.create(backend="memory", on_conflict=rule) as store:
            store.put(key=key, activations={})
            report = import_store(tmp_path / "old", store, verify=rule != "skip")
            assert (len(store), report.migrated + report.skipped) == (there, 1)
            assert report.conflicts == (0 if rule == "skip" else 1)
            assert ("embed" in store[key]) == (rule == "replace")
    with actstore.create(backend="memory") as store:
        store.put(key=key, activations={})
        with pytest.raises(KeyConflictError):
            import_store(tmp_path / "old", store)


def test_verification_finds_what_differs(tmp_path: Path) -> None:
    entries = some_entries()
    write_v2(tmp_path / "old", entries)

    def change(done: int, *_: int) -> None:
        if done == 3:
            path = tmp_path / "old" / "activations" / f"{next(iter(entries))}.npy"
            array = np.load(path)
            array[0, 0, 0, 0] += 1
            np.save(path, array)

    with pytest.raises(CorruptError, match="1 of 3 entries differ after migrating") as caught:
        import_store(tmp_path / "old", tmp_path / "new", verify=True, progress=change)
    assert caught.value.kind == "checksum"


def test_verification_of_an_export_finds_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v2(tmp_path / "old", some_entries())
    store = actstore.create(backend="memory")
    import_store(tmp_path / "old", store)
    save = np.save

    def lie(file: Any, array: Any, **options: Any) -> None:
        save(file, array * 2, **options)

    monkeypatch.setattr(np, "save", lie)
    with pytest.raises(CorruptError, match=r"3 of 3 entries differ after migrating.*has other values"):
        export_store(store, tmp_path / "new", "actlog-json-v2", verify=True)


def test_packing_on_the_way_in(tmp_path: Path) -> None:
    write_v1(tmp_path / "old", {"k": (record("p"), list(hidden_states(0, rows=4, dtype="float32")))})
    import_store(tmp_path / "old", tmp_path / "new", dtype="float16", codec="raw", target_format="lmdb", verify=True)
    with actstore.open(tmp_path / "new") as store:
        assert (store.backend, store["k"].dtype("embed")) == ("lmdb", "float16")
    write_v1(tmp_path / "wide", {"k": (record("p"), [np.full((1, 2, 2), 1e30, np.float32)])})
    with pytest.raises(InvalidInputError, match="beyond float16") as caught:
        import_store(tmp_path / "wide", tmp_path / "new2", dtype="float16")
    assert caught.value.kind == "float16_overflow"


def export_as_float16(name: str, path: Path) -> None:
    export_store(path / "store", path / "new", name, dtype="float16")


REFUSED: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda path: import_store(path / "none", path / "new"), "not_a_store", "does not exist; give what to import"),
    (lambda path: import_store(path / "empty", path / "new"), "not_a_store", "is in none of the formats"),
    (lambda path: import_store(path / "old", path / "new", "csv"), "invalid_option", "unknown format `csv`"),
    (
        lambda path: import_store(path / "old", path / "new", "pt-shards"),
        "not_a_store",
        "is not `pt-shards`; it looks like `actlog-json-v1`",
    ),
    (lambda path: import_store(path / "old", path / "old" / "new"), "invalid_option", "lies in the source"),
    (
        lambda path: export_store(path / "store", path / "store", "pt-shards"),
        "invalid_option",
        "lies in the source",
    ),
    (lambda path: export_store(path / "store", path / "new", "csv"), "invalid_option", "unknown format `csv`"),
    (lambda path: export_store(path / "old", path / "new", "pt-shards"), "not_a_store", "`"),
    (
        lambda path: export_store(path / "store", path / "new", "pt-shards", shard_size=0),
        "invalid_option",
        "`shard_size` is `0`; give a number from 1",
    ),
    (
        lambda path: export_store(path / "store", path / "new", "pt-shards", dtype="float64"),
        "invalid_option",
        "`dtype` is `float64`; for `pt-shards` one of `float16`, `bfloat16`, `float32`",
    ),
    (
        lambda path: export_store(path / "store", path / "new", "pt-shards", overflow="saturate"),
        "invalid_option",
        "`dtype` is not given, but `overflow` is about it",
    ),
    (
        lambda path: export_store(path / "store", path / "new", "pt-shards", dtype="float16", overflow="keep"),
        "invalid_option",
        "`overflow` is `keep`; for `pt-shards`, whose files have one dtype, `error` or `saturate`",
    ),
    *(
        (
            partial(export_as_float16, name),
            "invalid_option",
            f"`dtype` cannot be given for `{name}`, which has activations in the dtype that they have",
        )
        for name in formats.names()
        if name != "pt-shards"
    ),
    (
        lambda path: actstore.migrate(path / "store", path / "new", target_format="capture-npz", dtype="float16"),
        "invalid_option",
        "`dtype` cannot be given from `auto` to `capture-npz`",
    ),
    (
        lambda path: actstore.migrate(path / "old", path / "new", target_format="shards", layers=1),
        "invalid_option",
        "`layers` cannot be given from `auto` to `shards`",
    ),
    (lambda path: actstore.migrate(path / "old", path / "new"), "invalid_option", "say what to create there"),
    (
        lambda path: actstore.migrate(path / "store", path / "new", target_format="pt-shards", codec="raw"),
        "invalid_option",
        "`codec` cannot be given",
    ),
    (
        lambda path: actstore.migrate(path / "old", path / "new", target_format="pt-shards", on_conflict="skip"),
        "invalid_option",
        "`on_conflict` cannot be given from `auto` to `pt-shards`",
    ),
    (
        lambda path: actstore.migrate(path / "old", path / "old" / "new", target_format="actlog-json-v2"),
        "invalid_option",
        "lies in the source",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED)
def test_what_is_refused(call: Callable[[Path], object], kind: str, message: str, tmp_path: Path) -> None:
    write_v1(tmp_path / "old", dict(some_entries(1)))
    actstore.create(tmp_path / "store").close()
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    with pytest.raises((InvalidInputError, NotFoundError)) as caught:
        call(tmp_path)
    assert caught.value.kind == kind
    assert message in str(caught.value)
    assert files(tmp_path).keys() == before.keys()


def test_no_library_is_imported_before_its_format_is_used() -> None:
    script = "import sys, actstore.formats; actstore.formats.names(); print(*sys.modules)"
    assert {"numpy", "torch"} & set(run_python(script).split()) == set()


@pytest.mark.parametrize("name", ["json", "auto", "actlog-json-v1", "actlog-json-v3"])
def test_migrate_takes_formats_too(name: str, tmp_path: Path) -> None:
    write_v3(tmp_path / "old", some_entries())
    report = actstore.migrate(tmp_path / "old", tmp_path / "new", source_format=name, target_format="json", verify=True)
    assert (report.migrated, report.verified, report.backend) == (3, 3, "json")
    back = actstore.migrate(tmp_path / "new", tmp_path / "back", target_format="actlog-json-v3", verify=True)
    assert (back.migrated, back.verified, back.backend) == (3, 3, "actlog-json-v3")
    over = actstore.migrate(tmp_path / "old", tmp_path / "over", target_format="actlog-json-v1", verify=True)
    assert (over.entries, over.migrated, over.backend) == (3, 3, "actlog-json-v1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "new", "old", "over"]


def test_h5_a_chain_of_formats_keeps_every_value_and_field(tmp_path: Path) -> None:
    entries = some_entries(40)
    for fields, states in entries.values():
        states[1][0, 0] = [np.nan, np.inf, -np.inf, -0.0]
        fields |= {"messages": [{"role": "user", "content": "日本語"}], "score": float("nan")}
    write_v1(tmp_path / "0", dict(entries))
    places = ["actlog-json-v2", "shards", "actlog-json-v3", "lmdb", "actlog-json-v1", "json"]
    for number, name in enumerate(places):
        report = actstore.migrate(tmp_path / str(number), tmp_path / str(number + 1), target_format=name, verify=True)
        assert (report.entries, report.left_out, report.notes) == (40, (), ())
    with actstore.open(tmp_path / "6") as store:
        for key, (fields, states) in entries.items():
            names = ["embed", "resid_post.0", "resid_post.1", "final_norm"]
            assert [store[key].numpy(name).tobytes() for name in names] == [state.tobytes() for state in states]
            assert store[key].created == fields["timestamp"]
    old, new = (json.loads((tmp_path / place / "metadata.json").read_text())["entries"] for place in ("0", "5"))
    derived = ("activation_file", "activation_shape_info")
    for key in old:
        left, right = ({k: v for k, v in entry[key].items() if k not in derived} for entry in (old, new))
        assert repr(sorted(left.items())) == repr(sorted(right.items()))


def test_an_export_never_goes_on_with_files_of_another_format(tmp_path: Path) -> None:
    write_v1(tmp_path / "old", dict(some_entries()))
    store = actstore.create(backend="memory")
    import_store(tmp_path / "old", store)

    def stop(done: int, *_: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_store(store, tmp_path / "new", "actlog-json-v1", progress=stop)
    assert list((tmp_path / "new.partial" / "activations").iterdir())
    # Both have `activations/<key>.json`, the one with the states, the other with the record.
    report = export_store(store, tmp_path / "new", "actlog-json-v3", verify=True)
    assert (report.migrated, report.verified) == (3, 3)
    assert not (tmp_path / "new.partial").exists()


def test_an_export_that_was_stopped_in_its_last_step_is_finished(tmp_path: Path) -> None:
    write_v1(tmp_path / "old", dict(some_entries()))
    store = actstore.create(backend="memory")
    import_store(tmp_path / "old", store)
    mark = tmp_path / "new.partial" / ".export"
    marks = list[bytes]()

    def keep(*_: int) -> None:
        marks.append(mark.read_bytes())

    export_store(store, tmp_path / "new", "actlog-json-v1", progress=keep)
    whole = files(tmp_path / "new")
    # The tree has its name, so it is complete, and only the mark of one that grows was not removed.
    (tmp_path / "new" / ".export").write_bytes(marks[0])
    assert formats.format_of(tmp_path / "new") is not None
    report = export_store(store, tmp_path / "new", "actlog-json-v1", verify=True)
    assert report.verified == 3
    assert {name: content for name, (_, content) in files(tmp_path / "new").items()} == {
        name: content for name, (_, content) in whole.items()
    }


def exportable(seed: int = 0, more: dict[str, Any] | None = None) -> Store:
    """A store that every format can hold, but for `more` activations; the model has three layers."""
    store = actstore.create(backend="memory")
    for row in range(3):
        store.put(
            key=f"{row}",
            prompt=f"prompt {row}",
            activations={
                point: residuals(seed + number, 3, torch.float16)[row : row + 1]
                for number, point in enumerate(("embed", "resid_post.0", "resid_post.1", "final_norm"))
            }
            | (more or {}),
            metadata={"model": "m", "dataset": "d", "split": "s", "row": row},
        )
    return store


class Killed(BaseException):
    """Nothing catches it."""


def kill_at_the_end(patched: pytest.MonkeyPatch, step: str) -> None:
    """Die once the tree has its name, or once what it replaced is gone too."""
    rename, unlink = Path.rename, Path.unlink

    def renamed(path: Path, target: Path) -> Path:
        result = rename(path, target)
        if path.name.endswith(".partial"):
            raise Killed
        return result

    def unlinked(path: Path) -> None:
        if path.name == ".export":
            raise Killed
        unlink(path)

    patched.setattr(Path, step, {"rename": renamed, "unlink": unlinked}[step])


@pytest.mark.parametrize("step", ["rename", "unlink"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", formats.names())
def test_an_export_that_is_killed_as_it_ends_is_there_whole(
    name: str, overwrite: bool, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if overwrite:
        export_store(exportable(7), tmp_path / "new", name, layers=3)
    with monkeypatch.context() as patched:
        kill_at_the_end(patched, step)
        with pytest.raises(Killed):
            export_store(exportable(), tmp_path / "new", name, layers=3, overwrite=overwrite)
    # The second environment of a log gets its name first.
    if name != "actlog-lmdb" or overwrite:
        assert import_store(tmp_path / "new", actstore.create(backend="memory")).migrated == 3
    report = export_store(exportable(), tmp_path / "new", name, layers=3, overwrite=overwrite, verify=True)
    assert (report.migrated, report.verified) == (3, 3)
    left = [path for path in tmp_path.rglob("*") if path.name in (".export", ".writing") or path.suffix == ".partial"]
    assert left == []


@pytest.mark.parametrize("name", formats.names())
def test_another_export_replaces_one_that_was_killed_as_it_ended(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at_the_end(patched, "unlink")
        with pytest.raises(Killed):
            export_store(exportable(7), tmp_path / "new", name, layers=3)
    if name != "actlog-lmdb":
        with pytest.raises(AlreadyExistsError):
            export_store(exportable(), tmp_path / "new", name, layers=3)
    assert export_store(exportable(), tmp_path / "new", name, layers=3, overwrite=True, verify=True).verified == 3
    assert not list(tmp_path.rglob(".export"))


@pytest.mark.parametrize("name", [name for name in formats.names() if name != "actlog-json-v3"])
def test_a_hook_point_that_is_missing_in_an_export_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of version 3 of the JSON log an array has all hidden states or is none."""
    format, fewer = formats.find(name), actstore.create(backend="memory")
    actstore.migrate(exportable(), fewer, points=["embed", "resid_post.0", "final_norm"])

    def write(export: formats.Export) -> None:
        format.write(export)
        format.write(replace(export, store=fewer, overwrite=True, written={}))

    def find(_: str) -> formats.Format:
        return replace(format, write=write)

    monkeypatch.setattr(exporting, "find", find)
    message = "3 of 3 entries differ after migrating, .*`blocks.1.hook_resid_post` of entry `0` is missing in what"
    with pytest.raises(CorruptError, match=message):
        export_store(exportable(), tmp_path / "new", name, layers=3, verify=True)


def test_an_export_does_not_replace_the_store_it_reads(tmp_path: Path) -> None:
    write_v1(tmp_path / "old", dict(some_entries()))
    import_store(tmp_path / "old", tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "old" / "store")
    before = files(tmp_path)
    with pytest.raises(InvalidInputError, match=r"lies in the target .*, which would be replaced") as caught:
        export_store(tmp_path / "old" / "store", tmp_path / "old", "actlog-json-v1", overwrite=True)
    assert caught.value.kind == "invalid_option"
    assert files(tmp_path).keys() == before.keys()


def test_what_came_into_the_place_meanwhile_is_not_removed(tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    store.put(key="k", activations={"embed": np.ones((2, 3), np.float32)})

    def intrude(*_: int) -> None:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "kept").touch()

    with pytest.raises(StorageIoError, match="Directory not empty"):
        export_store(store, tmp_path / "new", "actlog-json-v1", progress=intrude)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]


def test_a_dry_run_from_format_to_format_writes_nothing(tmp_path: Path) -> None:
    entries = some_entries()
    write_v2(tmp_path / "old", entries)
    (tmp_path / "old" / "activations" / f"{list(entries)[1]}.npy").unlink()
    target = tmp_path / "folder" / "new"
    plan = actstore.migrate(tmp_path / "old", target, target_format="actlog-json-v1", dry_run=True)
    assert (plan.entries, plan.migrated, len(plan.left_out), plan.dry_run) == (3, 2, 1, True)
    assert (plan.backend, plan.target) == ("actlog-json-v1", target)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_command_line(tmp_path: Path) -> None:
    write_v1(tmp_path / "old", dict(some_entries()))
    result = run("import", "auto", "--source", tmp_path / "old", "--target", tmp_path / "new", "--verify")
    assert (result.exit_code, "3 entries migrated, 576 B raw, " in result.stdout) == (0, True), result.stderr
    assert "3/3 entries" in result.stderr
    assert "3/3 verified" in result.stderr
    result = run("export", "actlog-json-v2", "--source", tmp_path / "new", "--target", tmp_path / "out", "--verify")
    assert (result.exit_code, ", 3 verified" in result.stdout) == (0, True), result.stderr
    result = run("migrate", "actlog-json-v2", "lmdb", "--source", tmp_path / "out", "--target", tmp_path / "lmdb")
    assert (result.exit_code, result.stdout.startswith("3 entries migrated, ")) == (0, True), result.stderr
    result = run("export", "pt-shards", "--source", tmp_path / "new", "--target", tmp_path / "pt")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: entry `" in result.stderr


def test_the_command_line_names_what_was_left_out(tmp_path: Path) -> None:
    place = write_split(tmp_path / "old", [[residuals(0, 2)], []])
    arguments = ("import", "pt-shards", "--source", tmp_path / "old", "--target", tmp_path / "new")
    for more in ((), ("--dry-run",)):
        result = run("--quiet", *arguments, *more)
        assert result.exit_code == 1
        lines = [line for line in result.stdout.splitlines() if line.startswith("left out: ")]
        assert [line.partition(" has no ")[0] for line in lines] == [
            f"left out: `SP_test:EM:{row}`: layer `1` of `{place}`" for row in range(2)
        ]
    report = json.loads(run("--quiet", *arguments, "--format", "json").stdout)
    assert [damage["key"] for damage in report["left_out"]] == ["SP_test:EM:0", "SP_test:EM:1"]


def test_every_format_has_a_name_of_its_own() -> None:
    assert formats.names() == sorted(formats.names())
    for name in formats.names():
        assert formats.find(name).name == name


MEASURED = """
    import sys
    import actstore
    from actstore.formats import import_store
    from memory import Peak, anonymous_bytes

    import_store(sys.argv[1], actstore.create(backend="memory"), dry_run=True)
    with actstore.create(sys.argv[2], memory="4 MiB", codec="raw") as target:
        before = anonymous_bytes()
        with Peak() as peak:
            import_store(sys.argv[1], target)
    print(peak.bytes - before)
"""


@pytest.mark.parametrize("name", ["npy", "pt"])
def test_e7_memory_does_not_grow_with_the_source(name: str, tmp_path: Path) -> None:
    if name == "npy":
        states = hidden_states(0, rows=64, width=1024)
        write_v2(tmp_path / "old", {key_of(str(index)): (record(str(index)), states) for index in range(200)})
    else:
        write_split(tmp_path / "old", [[residuals(layer, 512, width=2048)] * 12 for layer in range(4)])
    peak = int(run_python(MEASURED, tmp_path / "old", tmp_path / "new"))
    assert peak < 32 << 20, f"{peak} bytes for 100 MB"
