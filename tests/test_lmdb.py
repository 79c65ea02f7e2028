"""An `lmdb` store between processes: forks, other processes, and other LMDB libraries in this one and in others."""

import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest

import actstore
from actstore.errors import ActstoreError
from actstore.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

POINT = "resid_post.0"
PAGE = 4096


def array(number: int) -> np.ndarray:
    return np.arange(12, dtype=np.int32).reshape(4, 3) + number


def fill(store: Store, numbers: range) -> None:
    with store.writer() as writer:
        for number in numbers:
            writer.put(key=f"k{number}", activations={POINT: array(number)})


def require(store: Store, numbers: range) -> None:
    for number in numbers:
        assert np.array_equal(store[f"k{number}"].numpy(POINT), array(number))


def churn(store: Store) -> None:
    """Two commits that leave the store as it was."""
    fill(store, range(100, 108))
    store.delete([f"k{number}" for number in range(100, 108)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with actstore.create(tmp_path / "s", "lmdb", on_conflict="replace") as store:
        fill(store, range(8))
    return tmp_path / "s"


def answer(function: Callable[[], object]) -> str:
    """Kind and message of the error that `function` raises, or `fine`."""
    try:
        function()
    except ActstoreError as error:
        return f"{error.kind}: {error}"
    return "fine"


def in_a_fork(function: Callable[[], object]) -> str:
    """The answer of a forked child."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            sender.send(answer(function))
        finally:
            os._exit(0)
    sender.close()
    if not receiver.poll(20):
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child hangs")
    said = receiver.recv()
    assert os.waitpid(child, 0)[1] == 0
    return said


def grandchild_reads(store: Store) -> None:
    assert in_a_fork(lambda: require(store, range(8))) == "fine"


def test_forked_children_read_and_open_and_never_write_through_what_they_inherit(path: Path) -> None:
    with actstore.open(path, "a") as writer, actstore.open(path) as reader:
        held = reader["k3"]
        session = writer.writer()
        for _ in range(2):
            assert in_a_fork(lambda: require(reader, range(8))) == "fine"
            assert in_a_fork(lambda: np.testing.assert_array_equal(held.numpy(POINT), array(3))) == "fine"
            assert in_a_fork(lambda: require(actstore.open(path), range(8))) == "fine"
            assert in_a_fork(lambda: grandchild_reads(reader)) == "fine"
            assert in_a_fork(lambda: actstore.open(path, "a")).startswith("locked: ")
            for use in (lambda: len(writer), lambda: fill(writer, range(1)), lambda: writer.delete("k1")):
                assert in_a_fork(use).startswith("forked_handle: ")
            assert in_a_fork(writer.close) == in_a_fork(session.close) == "fine"
        session.close()
        fill(writer, range(8, 12))
        require(reader, range(12))
        assert not reader.verify()["damage"]


def test_forks_while_other_threads_read_and_commit(path: Path) -> None:
    """A child either reads or says why it cannot; it never hangs, and the parent goes on."""
    stop = threading.Event()
    with actstore.open(path, "a") as writer, actstore.open(path) as reader:

        def read() -> None:
            while not stop.is_set():
                require(reader, range(8))

        def write() -> None:
            while not stop.is_set():
                churn(writer)

        require(reader, range(8))
        threads = [threading.Thread(target=target) for target in (read, read, write)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(12):
                said = in_a_fork(lambda: require(reader, range(8)))
                assert said == "fine" or said.startswith("forked_handle: another thread was using the store"), said
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert in_a_fork(lambda: require(reader, range(8))) == "fine"
        assert not reader.verify()["damage"]


def test_killed_children_hold_no_pages(path: Path) -> None:
    """Killed while they read, which for a large entry they nearly always do."""
    large = np.random.default_rng(0).integers(0, 2**31, (3000, 500), dtype=np.int32)
    with actstore.open(path, "a") as writer, actstore.open(path) as reader:
        writer.put(key="large", activations={POINT: large})
        churn(writer)
        size = (path / "data.mdb").stat().st_size
        for _ in range(6):
            child = os.fork()
            if child == 0:
                while True:
                    reader["large"].numpy(POINT)
            time.sleep(0.06)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            churn(writer)
        require(reader, range(8))
        for _ in range(40):
            churn(writer)
        assert (path / "data.mdb").stat().st_size < size + (1 << 20)


def first_row(store: Store, number: int) -> int:
    return int(store[f"k{number}"].numpy(POINT)[0, 0])


STORE: list[Store] = []


def first_row_of_inherited(number: int) -> int:
    return first_row(STORE[0], number)


def test_pools_of_processes(path: Path) -> None:
    with actstore.open(path) as reader:
        STORE[:] = [reader]
        with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
            assert list(pool.map(first_row_of_inherited, list(range(8)) * 8)) == list(range(8)) * 8
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            assert list(pool.map(first_row, [reader] * 8, range(8))) == list(range(8))
        STORE.clear()


def read_until(path: Path, stop: Path) -> int:
    reads = 0
    with actstore.open(path) as store:
        while not stop.exists():
            keys = store.keys()
            for number in (0, len(keys) // 2, len(keys) - 1):
                assert first_row(store, number) == number
            reads += 1
        return reads if len(store) == 200 else -1


def test_two_processes_read_while_one_writes(path: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        reads = [pool.submit(read_until, path, tmp_path / "stop") for _ in range(2)]
        with actstore.open(path, "a") as writer:
            for number in range(8, 200):
                fill(writer, range(number, number + 1))
            time.sleep(1)
            (tmp_path / "stop").touch()
            assert all(future.result(timeout=60) > 0 for future in reads)


ELSEWHERE = """
import lmdb, sys
try:
    environment = lmdb.open(sys.argv[1], readonly=True, lock=sys.argv[2] == "lock", max_dbs=16)
except lmdb.Error as error:
    sys.exit(type(error).__name__)
print("open", flush=True)
sys.stdin.readline()
"""


def test_py_lmdb_in_another_process(path: Path) -> None:
    def opened(lock: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", ELSEWHERE, str(path), lock]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    process = opened("lock")
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    refused = f"locked: `{path}/data.mdb` is open in another LMDB version; close it there first"
    assert answer(lambda: actstore.open(path)) == answer(lambda: actstore.open(path, "a")) == refused
    process.communicate("\n")
    with actstore.open(path, "a") as store:
        require(store, range(8))
        assert opened("lock").communicate("\n")[1] == "VersionMismatchError\n"
        assert opened("none").communicate("\n")[0] == "open\n"
        fill(store, range(8, 10))
        require(store, range(10))


def test_py_lmdb_first_in_this_process(path: Path) -> None:
    for place, single in ((path, False), (path / "data.mdb", True)):
        with lmdb.open(str(place), readonly=True, max_dbs=16, subdir=not single):
            for mode in ("r", "a"):
                said = answer(lambda mode=mode: actstore.open(path, mode))
                assert said.startswith("already_open: another LMDB library in this process has ")
        with actstore.open(path, "a") as store:
            require(store, range(8))


def test_py_lmdb_second_in_this_process(path: Path) -> None:
    """It makes the lock file anew under us: whoever waited for our lock in it would wait for ever."""
    with actstore.open(path, "a") as writer, actstore.open(path) as reader:
        require(reader, range(8))
        with lmdb.open(str(path), readonly=True, max_dbs=16):
            for use in (lambda: require(reader, range(8)), lambda: fill(writer, range(8))):
                assert "another LMDB library in this process has " in answer(use)
        require(reader, range(8))
    with actstore.open(path, "a") as writer, actstore.open(path) as reader:
        lmdb.open(str(path), readonly=True, max_dbs=16).close()
        fill(writer, range(8, 10))
        require(reader, range(10))


def theirs(directory: Path) -> bytearray:
    """The data file of somebody else's environment, alone in `directory`."""
    with lmdb.open(str(directory), map_size=1 << 24, max_dbs=4) as environment:
        database = environment.open_db(b"manifest")
        with environment.begin(write=True, db=database) as transaction:
            for number in range(200):
                transaction.put(b"%d" % number, b"value" * number)
    (directory / "lock.mdb").unlink()
    return bytearray((directory / "data.mdb").read_bytes())


def as_lmdb_1(data: bytearray) -> bytearray:
    """The first two pages as LMDB 1.0 writes them: a longer page header, and version 3."""
    for start in (0, PAGE):
        data[start + 24 : start + 32] = struct.pack("<II", 0xBEEFC0DE, 3)
        data[start + 16 : start + 24] = bytes(8)
    return data


def refusals(directory: Path) -> Iterator[str]:
    for mode in ("r", "a"):
        yield answer(lambda mode=mode: actstore.open(directory, mode))
    yield answer(lambda: actstore.create(directory, "lmdb"))


def test_what_others_made_is_named_and_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir()
    sound = theirs(directory)
    random = np.random.default_rng(0)
    flipped = sound.copy()
    for at in random.integers(2 * PAGE, len(flipped), 400):
        flipped[at] ^= 1 << int(random.integers(8))
    for data, start in (
        (sound, f"not_a_store: `{directory}` is an LMDB environment, but holds no actstore store"),
        (as_lmdb_1(sound.copy()), f"unsupported_version: `{directory}/data.mdb` is in the format of LMDB 1.0, which"),
        (flipped, "malformed: "),
        (sound[:-PAGE], "truncated: "),
        (sound[:100], "truncated: "),
        (random.bytes(3 * PAGE), f"not_a_store: `{directory}/data.mdb` is not an LMDB file"),
    ):
        (directory / "data.mdb").write_bytes(data)
        reading, writing, creating = refusals(directory)
        assert reading.startswith(start), reading
        assert writing.startswith((start, "not_a_store: ")), writing
        assert creating.startswith("store_exists: ")
        assert [file.name for file in directory.iterdir()] == ["data.mdb"]
        assert (directory / "data.mdb").read_bytes() == bytes(data)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_elses_store_says_which_permission_is_missing() -> None:
    root = Path(tempfile.mkdtemp(prefix="actstore-test-"))
    try:
        root.chmod(0o755)
        path = root / "s"
        with actstore.create(path, "lmdb") as store:
            fill(store, range(8))

        def as_nobody(use: Callable[[], object]) -> str:
            def become_and_use() -> None:
                os.setuid(65534)
                use()

            return in_a_fork(become_and_use)

        path.chmod(0o755)
        for file in path.iterdir():
            file.chmod(0o644)
        said = as_nobody(lambda: actstore.open(path))
        assert said.startswith(f"read_only: cannot read `{path}` without permission to write its `lock.mdb`"), said
        (path / "lock.mdb").chmod(0o666)
        assert as_nobody(lambda: require(actstore.open(path), range(8))) == "fine"
        assert as_nobody(lambda: actstore.open(path, "a")).startswith("read_only: ")
    finally:
        shutil.rmtree(root)


def test_closing_while_threads_read(path: Path) -> None:
    stop = threading.Event()
    store = [actstore.open(path)]
    unexpected: list[str] = []

    def read() -> None:
        while not stop.is_set():
            said = answer(lambda: require(store[0], range(8)))
            if said != "fine" and not said.startswith("closed: "):
                unexpected.append(said)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        before, store[0] = store[0], actstore.open(path)
        before.close()
        time.sleep(0.002)
    stop.set()
    for thread in threads:
        thread.join()
    assert not unexpected
