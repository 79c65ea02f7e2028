"""Migration: every pair of backends, without loss; resumed, in part, converted, refused, estimated, verified."""

import signal
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

import actstore
from actstore import _core
from actstore.errors import (
    ActstoreError,
    AlreadyExistsError,
    CorruptError,
    InvalidInputError,
    KeyConflictError,
    NotFoundError,
    ReadOnlyError,
)
from actstore.migration.run import _spread
from actstore.store import Store
from backends import ON_DISK
from dtypes import DTYPES, noise
from processes import python, run_python

BACKENDS = _core.backends()
PAIRS = [(source, target) for source in BACKENDS for target in BACKENDS]
SPECIAL = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, 65504.0, -3.4e38, 1 / 3]


def create(backend: str, path: Path, **options: Any) -> Store:
    return actstore.create(None if backend == "memory" else path, backend, **options)


def put_odd_ones(store: Store) -> None:
    """Ragged entries of every dtype, special values, text of many kinds, and large metadata."""
    with store.writer() as writer:
        for seed, dtype in enumerate(DTYPES):
            shapes = [(seed % 5, 7), (3,), (), (2, 3, 4), (0, 9)]
            arrays = {f"module.{index}": noise(dtype, shape, seed) for index, shape in enumerate(shapes[seed % 2 :])}
            writer.put(key=f"dtype/{dtype}", activations=arrays, metadata={"dtype": dtype})
        writer.put(
            prompt='日本語 \x00 "quoted" 🦀 \r\n \u2028',
            response="",
            token_ids=[0, 2**32 - 1, 5],
            prompt_length=2,
            positions=[0, 2],
            activations={
                "resid_post.1": np.array([SPECIAL, SPECIAL[::-1]], np.float32),
                "logits": noise("float64", (2, 3), 1),
            },
            metadata={"deep": {"a": [1, 2.5, None, True, {"ключ": -0.0}], "big": 2**63, "empty": {}}},
        )
        writer.put(key="large", activations={}, metadata={"text": "ä" * 500_000, "list": list(range(1000))})
        writer.put(token_ids=[1, 2, 3], activations={"embed": np.full((3, 2000), 0.1, np.float16)})


def put_regular(store: Store, count: int, *, rows: int = 8, width: int = 16) -> None:
    with store.writer() as writer:
        for index in range(count):
            arrays = np.random.default_rng(index).standard_normal((3, rows, width)).astype(np.float32)
            writer.put(
                key=f"key {index}",
                token_ids=range(rows),
                prompt_length=3,
                activations={"resid_post.0": arrays[0], "resid_post.2": arrays[1], "attn_out.0": arrays[2]},
                metadata={"index": index},
            )


def content(store: Store) -> list[Any]:
    """Everything about every entry, in order."""
    entries: list[Any] = []
    for entry in store:
        points = [(point, entry.dtype(point), entry.shape(point), entry.numpy(point).tobytes()) for point in entry]
        entries.append((entry.document, entry.content_id, entry.token_ids, points))
    return entries


def files(path: Path) -> dict[str, bytes]:
    """Files of a store; a lock is no part of what it holds."""
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in found if "lock" not in file.name}


@pytest.mark.parametrize(("source_backend", "target_backend"), PAIRS)
def test_every_pair_of_backends(source_backend: str, target_backend: str, tmp_path: Path) -> None:
    with create(source_backend, tmp_path / "a") as source, create(target_backend, tmp_path / "b") as target:
        put_odd_ones(source)
        report = actstore.migrate(
            source, target, source_format=source_backend, target_format=target_backend, verify=True
        )
        assert content(target) == content(source)
        assert target.verify()["damage"] == []
        entries = len(source)
        assert (report.entries, report.migrated, report.skipped, report.conflicts) == (entries, entries, 0, 0)
        assert (report.verified, report.differences, report.dry_run) == (entries, (), False)
        assert (report.source, report.target, report.backend) == (source.path, target.path, target_backend)
        assert report.raw_bytes == source.info()["raw_bytes"]
        assert report.stored_bytes == target.info()["stored_bytes"]
        assert report.file_bytes == target.info()["file_bytes"]
        again = actstore.migrate(source, target)
        assert (again.migrated, again.skipped, again.raw_bytes) == (0, entries, 0)


@pytest.mark.parametrize("backend", ON_DISK)
def test_paths_are_opened_and_closed_and_settings_taken_over(backend: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"overflow": "keep", "on_conflict": "number", "durability": "interval"}
    codec = _core.codecs(backend)[-1]
    name = "codec" if actstore.create(backend="memory").settings["codec"] in _core.codecs(backend) else "encoding"
    with create(backend, tmp_path / "a", dtype="bfloat16", **options, **{name: codec}) as source:
        put_regular(source, 3)
    before = files(tmp_path / "a")
    report = actstore.migrate(tmp_path / "a", str(tmp_path / "deep" / "b"), target_format=backend)
    assert (report.source, report.target) == (tmp_path / "a", tmp_path / "deep" / "b")
    with actstore.open(tmp_path / "deep" / "b", "a") as target, actstore.open(tmp_path / "a", "a") as source:
        assert target.settings | {"store_id": ""} == source.settings | {"store_id": ""}
        assert content(target) == content(source)
    assert files(tmp_path / "a") == before


def test_frames_are_copied_where_codecs_agree(tmp_path: Path) -> None:
    with create("memory", tmp_path, codec="zstd") as source:
        put_odd_ones(source)
        entries = len(source)
        for backend in ("shards", "lmdb"):
            report = actstore.migrate(source, tmp_path / backend, target_format=backend)
            assert (report.copied, report.encoded) == (entries, 0)
            with actstore.open(tmp_path / backend) as target:
                assert target.settings["codec"] == "zstd"
                assert target.info()["points"] == source.info()["points"]
        report = actstore.migrate(source, tmp_path / "raw", target_format="shards", codec="raw")
        assert (report.copied, report.encoded) == (0, entries)
        assert report.ratio == 1.0


def test_stored_frames_and_their_models_are_the_same(tmp_path: Path) -> None:
    # Channels of such different scales are worth a model; one that is fitted on other rows would give other bytes.
    scales = 2.0 ** np.random.default_rng(0).integers(-60, 60, 512)
    with actstore.create(tmp_path / "a", codec="planes") as source, source.writer() as writer:
        for index in range(20):
            array = np.random.default_rng(index).standard_normal((64, 512)) * scales
            writer.put(key=str(index), activations={0: array.astype(np.float32), 1: array.astype(np.float64)})
        writer.flush()
        report = actstore.migrate(source, tmp_path / "b", target_format="shards", keys=source.keys()[::-1], verify=True)
        assert report.copied == 20
        with actstore.open(tmp_path / "b") as target:
            assert target.keys() == source.keys()[::-1]
            assert target.info()["points"] == source.info()["points"]


@pytest.mark.parametrize("target_backend", BACKENDS)
@pytest.mark.parametrize("stop", [1, 7, 29])
def test_a_stopped_migration_is_resumed(stop: int, target_backend: str, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "a") as source:
        put_regular(source, 30)
    before = files(tmp_path / "a")
    target = create(target_backend, tmp_path / "b")

    def progress(done: int, total: int, raw_bytes: int) -> None:
        assert (total, raw_bytes) == (30, done * 3 * 8 * 16 * 4)
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        actstore.migrate(tmp_path / "a", target, progress=progress)
    assert len(target) == stop
    seen: list[int] = []

    def see(done: int, *_: int) -> None:
        seen.append(done)

    report = actstore.migrate(tmp_path / "a", target, verify=True, progress=see)
    assert (report.skipped, report.migrated, report.verified) == (stop, 30 - stop, 30)
    assert seen[:30] == list(range(1, 31))
    assert seen[-1] == 30
    with actstore.open(tmp_path / "a") as source:
        assert content(target) == content(source)
    target.close()
    assert files(tmp_path / "a") == before


KILLED = """
    import os, signal, sys, time
    import actstore

    def progress(done, total, raw_bytes):
        time.sleep(0.005)
        if done == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

    actstore.migrate(sys.argv[1], sys.argv[2], target_format=sys.argv[4], progress=progress)
"""


@pytest.mark.parametrize("target_backend", ON_DISK)
def test_a_killed_migration_is_resumed(target_backend: str, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "a") as source:
        put_regular(source, 60)
    before = files(tmp_path / "a")
    kept: list[int] = []
    for stop in (1, 25, 50, 60):
        target = tmp_path / f"killed {stop}"
        assert python(KILLED, tmp_path / "a", target, stop, target_backend).returncode == -signal.SIGKILL
        report = actstore.migrate(tmp_path / "a", target, target_format=target_backend, verify=True)
        assert report.skipped + report.migrated == report.verified == 60
        assert report.skipped <= stop
        kept.append(report.skipped)
        with actstore.open(tmp_path / "a") as source, actstore.open(target) as migrated:
            assert content(migrated) == content(source)
            assert migrated.verify()["damage"] == []
        assert files(tmp_path / "a") == before
    assert kept[-1] > 0, "nothing was committed before the last kill"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("selection", "points"),
    [
        ({"layers": [0]}, ["blocks.0.attn.hook_out", "blocks.0.hook_resid_post"]),
        ({"layers": -1}, ["blocks.2.hook_resid_post"]),
        ({"layers": "all", "points": "attn_out"}, ["blocks.0.attn.hook_out"]),
        ({"points": "resid_post"}, ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]),
        ({"points": ["resid_post", "attn_out"], "layers": "0"}, ["blocks.0.attn.hook_out", "blocks.0.hook_resid_post"]),
        ({"points": ["resid_post.-1", ("attn_out", 0)]}, ["blocks.0.attn.hook_out", "blocks.2.hook_resid_post"]),
        ({"points": 2}, ["blocks.2.hook_resid_post"]),
    ],
)
def test_layers_and_points(selection: dict[str, Any], points: list[str], backend: str, tmp_path: Path) -> None:
    with create(backend, tmp_path / "a") as source, create("memory", tmp_path) as target:
        put_regular(source, 5)
        report = actstore.migrate(source, target, **selection, verify=True)
        assert (report.migrated, report.copied, report.verified) == (5, 0, 5)
        for entry in source:
            migrated = target[entry.key]
            assert migrated.points == points
            assert migrated.document == entry.document
            for point in points:
                assert migrated.numpy(point).tobytes() == entry.numpy(point).tobytes()
        assert actstore.migrate(source, target, **selection).skipped == 5
        with pytest.raises(KeyConflictError):
            actstore.migrate(source, target)


def test_keys_in_their_order(tmp_path: Path) -> None:
    with create("memory", tmp_path) as source:
        put_regular(source, 6)
        for keys, expected in (("key 4", ["key 4"]), (["key 5", "key 1", "key 5"], ["key 5", "key 1"]), (iter(()), [])):
            with create("memory", tmp_path) as target:
                report = actstore.migrate(source, target, keys=keys, verify=True)
                assert target.keys() == expected
                assert report.entries == report.verified == len(expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_conversion_is_verified_and_resumed(backend: str, tmp_path: Path) -> None:
    with (
        create(backend, tmp_path / "a") as source,
        create("memory", tmp_path, dtype="float16", overflow="keep") as target,
    ):
        put_regular(source, 5)
        source.put(key="wide", activations={0: np.array([[1e30]], np.float32), 1: np.array([[1, 2]], np.int8)})
        report = actstore.migrate(source, target, verify=True)
        assert (report.verified, report.encoded) == (6, 6)
        assert target["key 3"].dtype("resid_post.2") == "float16"
        expected = source["key 3"].numpy("resid_post.2").astype(np.float16)
        assert target["key 3"].numpy("resid_post.2").tobytes() == expected.tobytes()
        assert [target["wide"].dtype(layer) for layer in (0, 1)] == ["float32", "int8"]
        assert actstore.migrate(source, target).skipped == 6


def test_what_was_clamped_stays_counted(tmp_path: Path) -> None:
    with create("memory", tmp_path, dtype="float16", overflow="saturate") as source:
        source.put(key="k", activations={0: np.array([[1e30, 1, np.inf]], np.float32)})
        actstore.migrate(source, tmp_path / "b", target_format="shards", codec="raw", verify=True)
        with actstore.open(tmp_path / "b") as target:
            point = target.info()["points"][0]
            assert (point["dtype"], point["saturated"], point["nonfinite"]) == ("float16", 1, 1)


def test_values_that_do_not_fit_stop_a_conversion(tmp_path: Path) -> None:
    with create("memory", tmp_path) as source:
        put_regular(source, 2)
        source.put(key="wide", activations={0: np.array([[1e30]], np.float32)})
        with pytest.raises(InvalidInputError, match=r"stopped at entry `wide`.*limit 65504.*stays") as caught:
            actstore.migrate(source, tmp_path / "b", target_format="shards", dtype="float16")
        assert caught.value.kind == "float16_overflow"
        with actstore.open(tmp_path / "b") as target:
            assert len(target) == 2
        report = actstore.migrate(source, tmp_path / "b2", target_format="shards", dtype="float16", overflow="saturate")
        assert report.migrated == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_conflicts(backend: str, tmp_path: Path) -> None:
    with create("memory", tmp_path) as source:
        put_regular(source, 4)
        for rule in ("error", "skip", "replace", "number"):
            with create(backend, tmp_path / rule) as target:
                other = np.ones((8, 16), np.float32)
                target.put(key="key 2", activations={0: other})
                if rule == "error":
                    with pytest.raises(KeyConflictError, match="key `key 2` is stored in the target") as caught:
                        actstore.migrate(source, target)
                    assert caught.value.kind == "key_conflict"
                    assert sorted(target.keys()) == ["key 0", "key 1", "key 2"]
                    continue
                report = actstore.migrate(source, target, on_conflict=rule, verify=True)
                assert (report.entries, report.conflicts, report.verified) == (4, 1, 4)
                assert report.skipped == (rule == "skip")
                replaced = target["key 2"].numpy(0).tobytes() != other.tobytes()
                assert replaced == (rule == "replace")
                assert ("key 2#1" in target) == (rule == "number")
                if rule == "number":
                    assert target["key 2#1"].content_id == source["key 2"].content_id
                again = actstore.migrate(source, target, on_conflict=rule, verify=True)
                assert (again.migrated, again.skipped, len(target)) == (0, 4, 4 + (rule == "number"))
                planned = actstore.migrate(source, target, on_conflict=rule, dry_run=True)
                assert (planned.migrated, planned.skipped, planned.conflicts) == (0, 4, again.conflicts)


def refused(arguments: dict[str, Any], tmp_path: Path) -> ActstoreError:
    with actstore.create(tmp_path / "a") as source:
        put_regular(source, 2)
    actstore.create(tmp_path / "raw", codec="raw").close()
    places = {"source": tmp_path / "a", "target": tmp_path / "b"}
    places |= {name: tmp_path / arguments.pop(name) for name in ("source", "target") if name in arguments}
    before = files(tmp_path)
    with pytest.raises(ActstoreError) as caught:
        actstore.migrate(**places, **arguments)
    assert not (tmp_path / "b").exists()
    assert files(tmp_path) == before
    return caught.value


NEW = {"target_format": "shards"}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({}, "invalid_option", "does not exist; say what to create there with `target_format`: `shards`"),
        ({"target_format": "csv"}, "invalid_option", "unknown `target_format` `csv`; one of `auto`, `shards`"),
        ({"source_format": "csv"}, "invalid_option", "unknown `source_format` `csv`"),
        ({"source_format": "memory"}, "invalid_option", "`source_format` is `memory`, a store without a path"),
        ({"target_format": "memory"}, "invalid_option", "`target_format` is `memory`, a store without a path"),
        ({"target": "a"}, "invalid_option", "source and target are the same store, `"),
        ({"target": "raw", "codec": "zstd"}, "invalid_option", "`codec` is `zstd`, but the store `"),
        ({"target": "raw", "dtype": "float16"}, "invalid_option", "was created with `none`; leave it out"),
        ({**NEW, "codec": "gzip"}, "invalid_option", "unknown codec `gzip`"),
        ({**NEW, "on_conflict": "ask"}, "invalid_option", "`on_conflict` is `ask`; one of `error`, `skip`"),
        ({**NEW, "layers": [0, 1]}, "unknown_layer", "layers `[0, 1]` are not stored; stored are `0`, `2`"),
        ({**NEW, "layers": 9}, "unknown_layer", "layers `9` are not stored; stored are `0`, `2`"),
        ({**NEW, "layers": []}, "unknown_layer", "stored are `0`, `2`"),
        ({**NEW, "points": "logits"}, "unknown_point", "`logits` is not stored; stored are `attn_out.0`, "),
        ({**NEW, "points": ["resid_post.1"]}, "unknown_point", "`resid_post.1` is not stored"),
        ({**NEW, "points": "nowhere"}, "unknown_point", "`nowhere` is not stored"),
        ({**NEW, "points": []}, "unknown_point", "no hook point is given"),
        ({**NEW, "keys": ["key 0", "none"]}, "no_such_key", "no entry `none`"),
        ({**NEW, "source": "nowhere"}, "not_a_store", "does not exist; give the store to migrate"),
        ({**NEW, "target": "a/b"}, "invalid_option", "lies in the source `"),
        ({**NEW, "target": "a/shards/deep/b"}, "invalid_option", "which is never changed; give a place outside"),
        ({**NEW, "keys": 3}, "invalid_option", "`keys` is `3`; give strings"),
        ({**NEW, "keys": ["key 0", 3]}, "invalid_option", "`keys` has `3`; give strings"),
        ({**NEW, "progress": 3}, "invalid_option", "`progress` is `3`; give a function of `done`, `total` and "),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_is_refused(arguments: dict[str, Any], kind: str, message: str, dry_run: bool, tmp_path: Path) -> None:
    raised = refused({**arguments, "dry_run": dry_run}, tmp_path)
    error = NotFoundError if kind in NotFoundError.kinds else InvalidInputError
    assert (type(raised), raised.kind) == (error, kind)
    assert message in str(raised)


@pytest.mark.parametrize("backend", ON_DISK)
def test_a_named_format_must_be_what_is_found(backend: str, tmp_path: Path) -> None:
    create(backend, tmp_path / "a").close()
    with create("memory", tmp_path) as other:
        for wrong in (name for name in BACKENDS if name != backend):
            if wrong == "memory":
                continue
            with pytest.raises(InvalidInputError, match=f"`source_format` is `{wrong}`, but .* of format `{backend}`"):
                actstore.migrate(tmp_path / "a", other, source_format=wrong)
            with pytest.raises(InvalidInputError, match=f"`target_format` is `{wrong}`, but .* of format `{backend}`"):
                actstore.migrate(other, tmp_path / "a", target_format=wrong)
        with pytest.raises(InvalidInputError, match=f"`source_format` is `{backend}`, but the store in memory"):
            actstore.migrate(other, tmp_path / "a", source_format=backend)
        assert actstore.migrate(tmp_path / "a", other, source_format=backend, target_format="memory").entries == 0


def test_what_is_no_place_is_refused(tmp_path: Path) -> None:
    source = create("memory", tmp_path)
    nothing: Any = None
    with pytest.raises(InvalidInputError, match="`source` is `None`; give a path or an open store"):
        actstore.migrate(nothing, tmp_path / "b", target_format="shards")
    with pytest.raises(InvalidInputError, match="`target` is `None`; give a path or an open store"):
        actstore.migrate(source, nothing, target_format="shards")
    source.close()
    for dry_run in (False, True):
        with pytest.raises(ReadOnlyError, match="the source is closed") as caught:
            actstore.migrate(source, tmp_path / "b", target_format="shards", dry_run=dry_run)
        assert caught.value.kind == "closed"
    assert not (tmp_path / "b").exists()


def foreign_sources(path: Path) -> dict[str, str]:
    """What older loggers, and others, wrote below `path`, and how it is called."""
    lmdb.open(str(path / "env"), map_size=1 << 20).close()
    lmdb.open(str(path / "file.lmdb"), subdir=False, map_size=1 << 20).close()
    (path / "other").mkdir()
    (path / "other" / "metadata.json").write_text("[1]")
    actstore.create(path / "own", "lmdb").close()
    only = "and that is no log of `actlog-lmdb` either"
    return {
        "env": f"is an LMDB environment that actstore did not write, {only}",
        "env/data.mdb": f"is an LMDB environment that actstore did not write, {only}",
        "file.lmdb": f"is an LMDB environment that actstore did not write, {only}",
        "other": "holds no actstore store and is in none of the formats "
        + ", ".join(f"`{name}`" for name in actstore.formats.names()),
        "own/data.mdb": f"is a file of a store; give its directory, `{path / 'own'}`",
    }


def test_a_source_of_others_is_called_what_it_is(tmp_path: Path) -> None:
    for name, what in foreign_sources(tmp_path).items():
        before = files(tmp_path)
        with pytest.raises(NotFoundError) as caught:
            actstore.migrate(tmp_path / name, tmp_path / "b", target_format="shards")
        assert (caught.value.kind, str(caught.value)) == ("not_a_store", f"`{tmp_path / name}` {what}")
        assert files(tmp_path) == before


def test_a_log_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "metadata.json").write_text('{"logger_config": {"version": "1.0"}, "entries": {}}')
    with pytest.raises(NotFoundError) as caught:
        actstore.migrate(tmp_path / "log", tmp_path / "b", source_format="shards", target_format="shards")
    expected = (
        f"`{tmp_path / 'log'}` is no store, but in the format `actlog-json-v1`; give that, or `auto`, as its format"
    )
    assert (caught.value.kind, str(caught.value)) == ("not_a_store", expected)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_target_that_is_taken_is_refused(dry_run: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    with create("memory", tmp_path) as source:
        put_regular(source, 2)
        for name in ("file", "link", "full"):
            with pytest.raises(AlreadyExistsError, match=r"is already .*choose another path"):
                actstore.migrate(source, tmp_path / name, target_format="shards", dry_run=dry_run)
        assert actstore.migrate(source, tmp_path / "empty", target_format="shards", dry_run=dry_run).migrated == 2


def test_progress_is_not_ahead_of_the_disk(tmp_path: Path) -> None:
    ahead: list[int] = []

    def progress(done: int, *_: int) -> None:
        if done % 250 == 0:
            ahead.append(done - sum(1 for _ in (tmp_path / "b" / "activations").glob("*.json")))

    with create("memory", tmp_path) as source:
        put_regular(source, 4000, rows=3, width=1)
        actstore.migrate(source, tmp_path / "b", target_format="json", progress=progress)
    assert max(ahead) <= 1024


def test_a_link_to_the_source_is_the_source(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "a") as source:
        put_regular(source, 2)
        (tmp_path / "link").symlink_to(tmp_path / "a")
        for target in (tmp_path / "link", source, actstore.open(tmp_path / "a")):
            with pytest.raises(InvalidInputError, match="source and target are the same store"):
                actstore.migrate(source, target)
        memory = create("memory", tmp_path)
        with pytest.raises(InvalidInputError, match="same store, in memory"):
            actstore.migrate(memory, memory)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dry_run_writes_nothing_and_estimates(backend: str, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "a") as source:
        put_regular(source, 120, rows=32, width=64)
    before = files(tmp_path / "a")
    with create(backend, tmp_path / "b") as made:
        place = made if backend == "memory" else tmp_path / "c"
        estimate = actstore.migrate(tmp_path / "a", place, target_format=backend, dry_run=True)
        assert not (tmp_path / "c").exists()
        assert len(made) == 0
        real = actstore.migrate(tmp_path / "a", place, target_format=backend)
        assert estimate.dry_run
        assert (estimate.migrated, estimate.entries, estimate.backend) == (120, 120, backend)
        assert (estimate.copied, estimate.encoded) == (real.copied, real.encoded)
        assert estimate.raw_bytes == real.raw_bytes
        assert estimate.stored_bytes == pytest.approx(real.stored_bytes, rel=0.25)
        assert estimate.file_bytes == pytest.approx(real.file_bytes, rel=0.25)
        rest = actstore.migrate(tmp_path / "a", place, dry_run=True)
        assert (rest.skipped, rest.migrated, rest.stored_bytes, rest.file_bytes) == (
            120,
            0,
            0,
            pytest.approx(real.file_bytes, rel=0.01),
        )
    assert files(tmp_path / "a") == before


def test_an_estimate_looks_at_all_of_the_store(tmp_path: Path) -> None:
    with create("memory", tmp_path) as source:
        for index in range(200):
            # What comes first shrinks to nothing, what comes last not at all.
            array = np.zeros((32, 64), np.int8) if index < 100 else noise("int8", (32, 64), index)
            source.put(key=str(index), activations={0: array})
        for count in (200, 1):
            place = tmp_path / str(count)
            arguments: dict[str, Any] = {"target_format": "shards", "codec": "zstd", "keys": source.keys()[-count:]}
            estimate = actstore.migrate(source, place, **arguments, dry_run=True)
            real = actstore.migrate(source, place, **arguments)
            assert estimate.stored_bytes == pytest.approx(real.stored_bytes, rel=0.05)
        empty = actstore.migrate(source, tmp_path / "none", target_format="shards", keys=[], dry_run=True)
        assert (empty.entries, empty.stored_bytes, empty.ratio) == (0, 0, None)


def test_an_estimate_of_a_part_of_ragged_entries(tmp_path: Path) -> None:
    with create("memory", tmp_path) as source:
        for index in range(40):
            arrays = {0: noise("int8", (1 + index, 50), index), 1: noise("int8", (1, 50 * (40 - index)), index)}
            source.put(key=str(index), activations=arrays)
        arguments: dict[str, Any] = {"target_format": "shards", "layers": 0}
        estimate = actstore.migrate(source, tmp_path / "b", **arguments, dry_run=True)
        real = actstore.migrate(source, tmp_path / "b", **arguments)
        assert estimate.raw_bytes == real.raw_bytes
        # A dry run takes no lock, and so none is in its way.
        with actstore.open(tmp_path / "b", "a"):
            assert actstore.migrate(source, tmp_path / "b", layers=0, dry_run=True).skipped == 40


def test_large_entries_make_a_small_sample() -> None:
    mebi = 1 << 20
    assert len(_spread([("k", mebi)] * 1000)) == 16
    assert len(_spread([("k", 10 * mebi)] * 1000)) == 6
    assert len(_spread([("k", 100 * mebi)] * 1000)) == 1
    assert _spread([(str(index), 1) for index in range(64)])[::15] == [("2", 1), ("62", 1)]
    assert _spread([]) == []


def test_a_dry_run_counts_what_is_there(tmp_path: Path) -> None:
    with create("memory", tmp_path) as source, create("memory", tmp_path) as target:
        put_regular(source, 6)
        actstore.migrate(source, target, keys=["key 1", "key 3"])
        target.put(key="key 4", activations={0: np.ones((2, 2), np.float32)})
        for rule, skipped in (("error", 2), ("skip", 3)):
            report = actstore.migrate(source, target, on_conflict=rule, dry_run=True)
            assert (report.skipped, report.conflicts, report.migrated) == (skipped, 1, 6 - skipped)
        chosen = actstore.migrate(source, target, layers=0, dry_run=True)
        assert (chosen.skipped, chosen.conflicts, chosen.raw_bytes) == (3, 0, 3 * 2 * 8 * 16 * 4)
        assert len(target) == 3


@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
@pytest.mark.parametrize("backend", ON_DISK)
def test_a_damaged_entry_stops_and_is_named(backend: str, tmp_path: Path) -> None:
    with create(backend, tmp_path / "a") as source:
        put_regular(source, 4)
    lost = damage_one_entry(tmp_path / "a")
    keys = [f"key {index}" for index in range(4)]
    for dtype in (None, "float16"):
        target = tmp_path / f"b {dtype}"
        with pytest.raises(CorruptError, match=rf"stopped at entry `{lost}`.*; `keys` without it migrate the rest"):
            actstore.migrate(tmp_path / "a", target, target_format=backend, dtype=dtype)
        with actstore.open(target) as migrated:
            assert migrated.keys() == keys[: keys.index(lost)]
        rest = [key for key in keys if key != lost]
        report = actstore.migrate(tmp_path / "a", target, keys=rest, verify=True)
        assert (report.skipped, report.verified) == (keys.index(lost), 3)


@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
@pytest.mark.parametrize("backend", ON_DISK)
def test_what_the_target_has_is_not_read_again(backend: str, tmp_path: Path) -> None:
    with create(backend, tmp_path / "a") as source:
        put_regular(source, 4)
    with create("memory", tmp_path, dtype="float16") as converted, create("memory", tmp_path) as same:
        actstore.migrate(tmp_path / "a", same)
        actstore.migrate(tmp_path / "a", converted)
        damage_one_entry(tmp_path / "a")
        assert actstore.migrate(tmp_path / "a", same).skipped == 4
        with pytest.raises(CorruptError):
            actstore.migrate(tmp_path / "a", converted)
        assert actstore.migrate(tmp_path / "a", converted, on_conflict="skip").skipped == 4


def damage_one_entry(path: Path) -> str:
    """Flips a byte that costs exactly one entry, not the first; its key."""
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        data = file.read_bytes()
        for offset in range(len(data) // 2, len(data), 97):
            file.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
            try:
                with actstore.open(path) as store:
                    damage = [] if store.damage else store.verify()["damage"]
            except ActstoreError:
                damage = []
            if len(damage) == 1 and damage[0]["key"] not in (None, "key 0"):
                return damage[0]["key"]
        file.write_bytes(data)
    pytest.fail("no byte costs one entry")


def test_a_store_that_may_have_lost_entries_is_not_migrated_whole(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "a") as source:
        put_regular(source, 2)
    shard = tmp_path / "a" / "shards" / "0-000001.shard"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(CorruptError, match="entries may be missing"):
        actstore.migrate(tmp_path / "a", tmp_path / "b", target_format="shards")


def test_what_differs_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _core.migrate

    def loses_two(source: Any, target: Any, _: Any, *rest: Any) -> str:
        return real(source, target, ["key 0", "key 3"], *rest).replace('"entries":2', '"entries":4')

    monkeypatch.setattr(_core, "migrate", loses_two)
    with create("memory", tmp_path) as source, create("memory", tmp_path) as target:
        put_regular(source, 4)
        with pytest.raises(CorruptError) as caught:
            actstore.migrate(source, target, verify=True)
        assert caught.value.kind == "checksum"
        expected = "2 of 4 entries differ after migrating, such as `key 1`, `key 2`: entry `key 1` is not in the target"
        assert str(caught.value) == expected


def test_what_the_progress_raises_stops_a_verification(tmp_path: Path) -> None:
    def progress(done: int, *_: int) -> None:
        seen.append(done)
        if len(seen) > 4:
            raise RuntimeError("enough")

    seen: list[int] = []
    with create("memory", tmp_path) as source, create("memory", tmp_path) as target:
        put_regular(source, 4)
        with pytest.raises(RuntimeError, match="enough"):
            actstore.migrate(source, target, verify=True, progress=progress)
        assert (seen, len(target)) == ([1, 2, 3, 4, 4], 4)


MEASURED = """
    import sys
    import actstore
    from memory import Peak, anonymous_bytes

    with actstore.create(sys.argv[2], memory="4 MiB", codec="raw") as target:
        actstore.migrate(sys.argv[1], target, keys="key 0")
        before = anonymous_bytes()
        with Peak() as peak:
            actstore.migrate(sys.argv[1], target)
    print(peak.bytes - before)
"""


@pytest.mark.parametrize("codec", ["raw", "planes"])
def test_memory_does_not_grow_with_the_store(codec: str, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "a", codec=codec) as source:
        put_regular(source, 200, rows=64, width=1024)
    peak = int(run_python(MEASURED, tmp_path / "a", tmp_path / "b"))
    assert peak < 32 << 20, f"{peak} bytes for 157 MB"
