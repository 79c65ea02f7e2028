"""Bad input gets a plain error and loses nothing: what was stored before is still there, bit for bit."""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore import errors
from actstore.errors import ActstoreError
from actstore.store import Store
from backends import CHOICES, ON_DISK
from independent_reader import crc32c
from processes import python, run_python

POINT = "resid_post.1"
ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def make(path: Path, backend: str = "shards") -> Store:
    store = actstore.create(path, backend)
    store.put(prompt="before", activations={POINT: ARRAY})
    return store


def require_before(store: Store) -> None:
    """What `make` stored is still there, bit for bit."""
    assert store[actstore.key_of_prompt("before")].numpy(POINT).tobytes() == ARRAY.tobytes()


def refusal(kind: str, call: Callable[[], object], *parts: str) -> ActstoreError:
    """The error of `call`: of `kind`, of its class, with a message in the house style that has `parts`."""
    with pytest.raises(ActstoreError) as caught:
        call()
    error = caught.value
    assert (error.kind, type(error)) == (kind, type(errors.error(kind, ""))), str(error)
    message = str(error)
    for part in parts:
        assert part in message
    assert message[0] == "`" or message[0].islower() or message[0].isdigit(), message
    assert not message.endswith("."), message
    assert "\n" not in message
    return error


def test_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("something")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_text("something")
    for name in ("nowhere", "empty", "file", "other"):
        for mode in ("r", "a"):
            refusal("not_a_store", lambda name=name, mode=mode: actstore.open(tmp_path / name, mode), name)
    assert (tmp_path / "file").read_text() == "something"
    assert not (tmp_path / "nowhere").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_store_is_never_created_over_something(on_disk: str, tmp_path: Path) -> None:
    make(tmp_path / "s", on_disk).close()
    (tmp_path / "file").write_text("something")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("something")
    for name in ("s", "file", "other"):
        refusal("store_exists", lambda name=name: actstore.create(tmp_path / name, on_disk), name)
    assert (tmp_path / "file").read_text() == "something"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    with actstore.open(tmp_path / "s") as store:
        require_before(store)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("backend", "hdf5"),
        ("backend", ""),
        ("codec", "gzip"),
        ("codec", 5),
        ("dtype", "float12"),
        ("overflow", "wrap"),
        ("on_conflict", "overwrite"),
        ("durability", "off"),
        ("durability", None),
        ("overflow", None),
    ],
)
def test_options_that_do_not_exist(option: str, value: Any, tmp_path: Path) -> None:
    refusal("invalid_option", lambda: actstore.create(tmp_path / "s", **{option: value}), f"`{value}`")
    assert not (tmp_path / "s").exists()


def test_places_and_modes_that_do_not_exist(tmp_path: Path) -> None:
    refusal("invalid_option", lambda: actstore.create(None), "path")
    refusal("invalid_option", lambda: actstore.create(tmp_path / "s", "memory"), "memory")
    make(tmp_path / "s").close()
    modes: tuple[Any, ...] = ("w", "rb", "", None)
    for mode in modes:
        refusal(
            "invalid_option",
            lambda mode=mode: actstore.open(tmp_path / "s", mode),
            "`mode` is",
            "one of `r`, `a`",
        )


def test_a_second_writer(on_disk: str, tmp_path: Path) -> None:
    with make(tmp_path / "s", on_disk) as store:
        refusal("already_open", lambda: actstore.open(tmp_path / "s", "a"), "s")
        (tmp_path / "link").symlink_to(tmp_path / "s")
        refusal("already_open", lambda: actstore.open(tmp_path / "link", "a"))
        script = f"""
            import actstore
            try:
                actstore.open({str(tmp_path / "s")!r}, "a")
            except actstore.ActstoreError as error:
                print(error.kind, type(error).__name__, error, sep="|")
            print(len(actstore.open({str(tmp_path / "s")!r})))
        """
        lines = run_python(script).splitlines()
        assert lines[0].startswith("locked|LockedError|")
        assert str(tmp_path / "s") in lines[0]
        assert lines[1] == "1"
        require_before(store)
        store.put(key="still works", activations={POINT: ARRAY})
    actstore.open(tmp_path / "s", "a").close()


KILLED = """
    import os, signal, sys, actstore, numpy
    store = actstore.create(sys.argv[1], sys.argv[2])
    array = numpy.arange(12, dtype=numpy.float32).reshape(3, 4)
    store.put(prompt="before", activations={"resid_post.1": array})
    store.writer().put(key="unfinished", activations={"resid_post.1": array})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_lock(on_disk: str, tmp_path: Path) -> None:
    assert python(KILLED, tmp_path / "s", on_disk).returncode == -signal.SIGKILL
    with actstore.open(tmp_path / "s", "a") as store:
        require_before(store)
        store.put(key="after", activations={POINT: ARRAY})


def in_a_fork(function: Callable[[], object]) -> str:
    """Kind of the error that `function` raises in a forked child, or `fine`."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            function()
            sender.send("fine")
        except ActstoreError as error:
            sender.send(error.kind)
        finally:
            os._exit(0)
    assert receiver.poll(30)
    kind = receiver.recv()
    assert os.waitpid(child, 0)[1] == 0
    return kind


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_handle(on_disk: str, tmp_path: Path) -> None:
    with make(tmp_path / "s", on_disk) as store:
        writer = store.writer()
        assert in_a_fork(lambda: store.put(key="child", activations={POINT: ARRAY})) == "forked_handle"
        assert in_a_fork(lambda: writer.put(key="child", activations={POINT: ARRAY})) == "forked_handle"
        assert in_a_fork(lambda: store.delete("child")) == "forked_handle"
        writer.put(key="parent", activations={POINT: ARRAY})
        writer.close()
        require_before(store)
    with actstore.open(tmp_path / "s") as reader:
        assert in_a_fork(lambda: require_before(reader)) == "fine"
        require_before(reader)
        assert reader.keys()[1:] == ["parent"]
        # A thread that the child lacks reads their next part.
        begun = reader.scan(POINT), iter(reader.metadata()), reader.tokens(POINT, batch_size=1)
        for iterator in begun:
            next(iterator)
            assert in_a_fork(partial(list, iterator)) == "forked_handle"
        assert in_a_fork(lambda: [*reader.scan(POINT), *reader.metadata(), *reader.tokens(POINT)]) == "fine"
        assert [len(list(iterator)) for iterator in begun] == [1, 1, 5]
        unbegun = reader.scan(POINT)
        assert in_a_fork(lambda: list(unbegun)) == "fine"
        assert len(list(unbegun)) == 2


def test_writing_to_what_can_only_be_read(on_disk: str, tmp_path: Path) -> None:
    make(tmp_path / "s", on_disk).close()
    with actstore.open(tmp_path / "s") as store:
        refusal("read_only", store.writer)
        refusal("read_only", lambda: store.put(key="x", activations={POINT: ARRAY}))
        refusal("read_only", lambda: store.delete(actstore.key_of_prompt("before")))
        require_before(store)


def test_a_directory_that_cannot_be_written(on_disk: str) -> None:
    # Not in `tmp_path`, which nobody else may enter.
    with tempfile.TemporaryDirectory() as directory:
        require_refusal_to_write(Path(directory), on_disk)


def require_refusal_to_write(directory: Path, backend: str) -> None:
    make(directory / "s", backend).close()
    (directory / "locked").mkdir()
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # The superuser may write anywhere, so it has to become somebody else first.
    script = """
        import os, sys, actstore, numpy
        os.chdir(sys.argv[1])
        if os.geteuid() == 0:
            os.seteuid(65534)
        for call in (
            lambda: actstore.create("locked/new", sys.argv[2]),
            lambda: actstore.open("s", "a"),
            lambda: print([entry.numpy("resid_post.1").tolist() for entry in actstore.open("s")]),
        ):
            try:
                call()
            except actstore.ActstoreError as error:
                print(error.kind, type(error).__name__, error, sep="|")
    """
    lines = run_python(script, directory, backend).splitlines()
    for path in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    # Whoever reads LMDB says so in its lock file.
    refused = lines if backend == "lmdb" else lines[:2]
    assert [line.split("|")[:2] for line in refused] == [["read_only", "ReadOnlyError"]] * len(refused)
    assert "locked/new" in lines[0]
    assert len(lines) == 3
    if backend != "lmdb":
        assert json.loads(lines[2]) == [ARRAY.tolist()]


def test_a_full_disk(on_disk: str, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk without space; the kernel says so in the same way."""
    make(tmp_path / "s", on_disk).close()
    script = """
        import resource, sys, actstore, numpy
        store = actstore.open(sys.argv[1], "a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        noise = numpy.random.default_rng(0).standard_normal((1024, 512))
        for index in range(2):
            try:
                store.put(key=f"large {index}", activations={"logits": noise})
            except (actstore.ActstoreError, OSError) as error:
                print(error.kind, type(error).__name__, isinstance(error, OSError), error, sep="|")
        store.close()
    """
    lines = run_python(script, tmp_path / "s").splitlines()
    assert lines[0].startswith("storage_full|StorageFullError|True|")
    assert "free some space" in lines[0]
    assert lines[1].split("|")[0] in ("storage_full", "writer_failed")
    with actstore.open(tmp_path / "s", "a") as store:
        require_before(store)
        assert len(store) == 1
        store.put(key="after", activations={POINT: ARRAY})
        assert store.verify()["damage"] == []


def test_a_failed_writer_stays_failed(on_disk: str, tmp_path: Path) -> None:
    script = """
        import resource, sys, actstore, numpy
        store = actstore.open(sys.argv[1], "a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        writer = store.writer()
        noise = numpy.random.default_rng(0).standard_normal((1024, 512))
        for call in (
            lambda: [writer.put(key="large", activations={"logits": noise}), writer.flush()],
            lambda: writer.put(key="small", activations={"embed": noise[:1]}),
            writer.flush,
            writer.close,
        ):
            try:
                call()
                print("fine")
            except actstore.ActstoreError as error:
                print(error.kind)
        store.close()
        store = actstore.open(sys.argv[1], "a")
        try:
            with store.writer() as writer:
                writer.put(key="large", activations={"logits": noise})
                raise LookupError("of the user")
        except LookupError as error:
            print(error, *error.__notes__, sep="|")
    """
    make(tmp_path / "s", on_disk).close()
    first, *others, last = run_python(script, tmp_path / "s").splitlines()
    assert first == "storage_full"
    # The first failure is kept, and raised by every later call.
    assert others == ["storage_full"] * 3
    assert last.startswith("of the user|closing the writer failed as well: ")
    with actstore.open(tmp_path / "s") as store:
        require_before(store)
        assert len(store) == 1


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("", "invalid_key"),
        ("a\0b", "invalid_key"),
        ("line\nbreak", "invalid_key"),
        ("\x7f", "invalid_key"),
        ("x" * 1025, "invalid_key"),
        ("../outside", "unsafe_path"),
        ("/etc/passwd", "unsafe_path"),
        ("a/../../b", "unsafe_path"),
        ("..", "unsafe_path"),
    ],
)
def test_keys_that_cannot_be(key: str, kind: str, store: Store, tmp_path: Path) -> None:
    store.put(prompt="before", activations={POINT: ARRAY})
    outside = {path for path in tmp_path.rglob("*") if store.path not in (path, *path.parents)}
    refusal(kind, lambda: store.put(key=key, activations={POINT: ARRAY}), "key")
    assert len(store) == 1
    require_before(store)
    assert key not in store
    assert {path for path in tmp_path.rglob("*") if store.path not in (path, *path.parents)} == outside


@pytest.mark.parametrize("key", ["x" * 1024, "ключ", "a b", "data:train:7", "a/b", "#1", "日本"])
def test_keys_that_can_be(key: str, store: Store) -> None:
    store.put(key=key, activations={POINT: ARRAY})
    assert store.keys() == [key]
    assert store[key].key_recipe == "user"


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": {"b": [1, float("nan")]}}, "`metadata.a.b[1]` is `nan`, which JSON cannot hold"),
        ({"a": float("inf")}, "`metadata.a` is `inf`, which JSON cannot hold"),
        ({"a": 2**64}, f"`metadata.a` is `{2**64}`, which does not fit 64 bits; store it as a string"),
        ({"a": {1: 2}}, "`metadata.a` has the key `1`, which is not a string"),
        ({"a": {1, 2}}, "`metadata.a` is a `set`, which JSON cannot hold"),
        ({"a": np.int64(1)}, "`metadata.a` is a `int64`, which JSON cannot hold"),
        ({"a": b"bytes"}, "`metadata.a` is a `bytes`, which JSON cannot hold"),
        ({"a": "\ud800"}, "`metadata.a` is not valid Unicode: a lone surrogate at character `0`"),
        ({"\ud800": 1}, "`metadata` is not valid Unicode: a lone surrogate at character `0`"),
        (CYCLE, "the metadata is nested too deeply, or contains itself"),
        (5, "`metadata` is a `int`, not a mapping"),
        ([("a", 1)], "`metadata` is a `list`, not a mapping"),
    ],
)
def test_metadata_that_json_cannot_hold(metadata: Any, message: str, store: Store) -> None:
    store.put(prompt="before", activations={POINT: ARRAY})
    error = refusal("invalid_metadata", lambda: store.put(key="k", activations={POINT: ARRAY}, metadata=metadata))
    assert str(error) == message
    assert len(store) == 1
    require_before(store)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"prompt": b"bytes"}, "invalid_metadata", "`prompt` is a `bytes`, not a string"),
        ({"response": 5}, "invalid_metadata", "`response` is a `int`, not a string"),
        ({"prompt": "a\udfff"}, "invalid_metadata", "`prompt` is not valid Unicode: a lone surrogate at character `1`"),
        ({"prompt_length": "3"}, "invalid_metadata", "`prompt_length` is a `str`, not an int"),
        ({"token_ids": [1, 2, -1]}, "invalid_tensor", "token id `-1` does not fit 32 bits without sign"),
        ({"token_ids": [1, 2, 2**32]}, "invalid_tensor", f"token id `{2**32}` does not fit 32 bits without sign"),
        ({"token_ids": [[1], [2], [3]]}, "invalid_tensor", "`token_ids` is a `list` that is no flat sequence of ints"),
        ({"token_ids": "abc"}, "invalid_tensor", "`token_ids` is a `str` that is no flat sequence of ints"),
        (
            {"token_ids": np.array([0.5])},
            "invalid_tensor",
            "`token_ids` is a `ndarray` that is no flat sequence of ints",
        ),
    ],
)
def test_fields_that_cannot_be(fields: dict[str, Any], kind: str, message: str, store: Store) -> None:
    store.put(prompt="before", activations={POINT: ARRAY})
    arguments: dict[str, Any] = {"key": "k", "activations": {POINT: ARRAY}, **fields}
    error = refusal(kind, lambda: store.put(**arguments))
    assert str(error) == message
    assert len(store) == 1
    require_before(store)


def test_an_entry_without_prompt_ids_and_key_has_no_name(store: Store) -> None:
    refusal("invalid_key", lambda: store.put(activations={POINT: ARRAY}), "key")
    refusal("invalid_key", lambda: store.put(response="r", activations={POINT: ARRAY}), "key")
    assert len(store) == 0


@pytest.mark.parametrize("prompt_length", [-1, 4])
def test_a_prompt_longer_than_the_tokens(prompt_length: int, store: Store) -> None:
    def put() -> None:
        store.put(key="k", token_ids=[1, 2, 3], prompt_length=prompt_length, activations={POINT: ARRAY})

    error = refusal("invalid_metadata", put)
    assert str(error) == f"`prompt_length` is `{prompt_length}` of `3` tokens"
    assert len(store) == 0


def test_metadata_beyond_the_limit(store: Store) -> None:
    store.put(prompt="before", activations={POINT: ARRAY})
    refusal("limit_exceeded", lambda: store.put(key="k", activations={}, metadata={"text": "x" * (17 << 20)}), "16 MiB")
    require_before(store)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    make(tmp_path / "s").close()
    for path in (path for path in files_of(tmp_path / "s") if path.suffix != ".lock"):
        data = path.read_bytes()
        # FORMAT.md, "records": the version is byte 5 of a header, whose last four bytes are its CRC.
        header = data[:5] + bytes([data[5] + 1]) + data[6:60]
        path.write_bytes(header + crc32c(header).to_bytes(4, "little") + data[64:])
        for mode in ("r", "a"):
            refusal(
                "unsupported_version", lambda mode=mode: actstore.open(tmp_path / "s", mode), "version `1`", "upgrade"
            )
        path.write_bytes(data)
    with actstore.open(tmp_path / "s") as store:
        require_before(store)


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
@pytest.mark.parametrize(("backend", "codec"), [choice for choice in CHOICES if choice[0] in ON_DISK])
def test_a_damaged_byte_never_gives_wrong_values(backend: str, codec: dict[str, Any], tmp_path: Path) -> None:
    """One flipped bit anywhere is an error that names what is lost, or has no effect; other entries still read."""
    expected = {f"key {index}": np.random.default_rng(index).standard_normal((6, 32)) for index in range(6)}
    with actstore.create(tmp_path / "s", backend, **codec) as store:
        for key, array in expected.items():
            store.put(key=key, activations={POINT: array})
    random = np.random.default_rng(0)
    lost: set[str] = set()
    for path in files_of(tmp_path / "s"):
        data = path.read_bytes()
        for offset in sorted(random.choice(len(data), min(len(data), 150), replace=False).tolist()):
            path.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :])
            lost |= read_damaged(tmp_path / "s", expected)
        path.write_bytes(data)
    assert lost & {"checksum"}
    assert lost <= {"checksum", "malformed", "truncated", "unsupported_version", "not_a_store", "missing_file"}
    with actstore.open(tmp_path / "s") as store:
        assert store.verify()["damage"] == []


def read_damaged(path: Path, expected: dict[str, np.ndarray]) -> set[str]:
    """Kinds of the errors met while reading everything; whatever reads must be right."""
    try:
        store = actstore.open(path)
    except ActstoreError as error:
        return {error.kind}
    kinds: set[str] = set()
    with store:
        for key, array in expected.items():
            try:
                assert store[key].numpy(POINT).tobytes() == array.tobytes()
            except ActstoreError as error:
                kinds.add(error.kind)
        damage = store.verify()["damage"]
        assert bool(damage) >= bool(kinds)
        assert len(kinds) <= len(expected)
    return kinds


def damage_until_it_shows(path: Path) -> None:
    """Flips one bit of the largest file such that opening the store notices."""
    largest = max(files_of(path), key=lambda file: file.stat().st_size)
    data = largest.read_bytes()
    for offset in range(0, len(data), 8):
        largest.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            actstore.open(path).close()
        if caught:
            return
    pytest.fail("no byte was missed")


def test_a_damaged_store_opens_with_a_warning(tmp_path: Path) -> None:
    with make(tmp_path / "s") as store:
        store.put(key="later", activations={POINT: ARRAY})
    damage_until_it_shows(tmp_path / "s")
    with pytest.warns(UserWarning, match=f"`{tmp_path / 's'}` is damaged: .*"):
        store = actstore.open(tmp_path / "s")
    with store:
        assert len(store.damage) == 1
        assert repr(store).endswith(", damaged)")
        assert store.verify()["damage"]
    error = refusal("checksum", lambda: actstore.open(tmp_path / "s", "a"), "nothing can be appended")
    assert str(tmp_path / "s") in str(error)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
def test_files_cut_short_or_gone(on_disk: str, tmp_path: Path) -> None:
    with make(tmp_path / "s", on_disk) as store:
        for index in range(4):
            store.put(key=str(index), activations={POINT: ARRAY + index})
    kinds: set[str] = set()
    for path in files_of(tmp_path / "s"):
        # Each file of an entry in JSON stands for itself: one that is taken away is an entry deleted.
        alone = on_disk == "json" and path.parent.name == "activations"
        for change in (cut_in_half,) if alone else (cut_in_half, Path.unlink):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(tmp_path / "s", tmp_path / "copy")
            change(tmp_path / "copy" / path.relative_to(tmp_path / "s"))
            kinds |= read_damaged(tmp_path / "copy", {str(index): ARRAY + index for index in range(4)})
    assert kinds & {"truncated", "missing_file"}


def test_a_torn_tail_is_cut_and_what_was_committed_stays(tmp_path: Path) -> None:
    """The files of a writer that was killed, with garbage after its last commit."""
    assert python(KILLED, tmp_path / "s", "shards").returncode == -signal.SIGKILL
    largest = max(files_of(tmp_path / "s"), key=lambda path: path.stat().st_size)
    with largest.open("ab") as file:
        file.write(b"\x01" * 100)
    with actstore.open(tmp_path / "s") as store:
        require_before(store)
    with actstore.open(tmp_path / "s", "a") as store:
        require_before(store)
        store.put(key="after", activations={POINT: ARRAY})
        assert store.verify()["damage"] == []
    with actstore.open(tmp_path / "s") as store:
        require_before(store)
        assert "after" in store


def test_a_link_where_a_file_should_be(on_disk: str, tmp_path: Path) -> None:
    make(tmp_path / "s", on_disk).close()
    for path in files_of(tmp_path / "s"):
        target = tmp_path / "elsewhere"
        path.rename(target)
        path.symlink_to(target)
        if path.name == "metadata.json":
            # Made anew from the entries, in the place of the link.
            actstore.open(tmp_path / "s", "a").close()
            assert not path.is_symlink()
        else:
            with pytest.raises(ActstoreError) as caught:
                actstore.open(tmp_path / "s", "a")
            assert caught.value.kind in ("unsafe_path", "not_a_store"), path
        path.unlink()
        target.rename(path)
    read_before(tmp_path / "s")


def read_before(path: Path) -> None:
    with actstore.open(path) as store:
        require_before(store)


def test_other_errors_of_the_system_keep_their_reason(on_disk: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something")
    error = refusal("storage_io", lambda: actstore.create(tmp_path / "file" / "s", on_disk), str(tmp_path / "file"))
    assert isinstance(error, OSError)
    name = tmp_path / ("x" * 300)
    assert isinstance(refusal("storage_io", lambda: actstore.create(name, on_disk)), OSError)
