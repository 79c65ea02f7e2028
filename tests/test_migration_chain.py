"""A long way round: lmdb, json, shards and lmdb again, undisturbed and killed again and again, ends where it began."""

import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import actstore
from ragged import contents, fill

ENTRIES = 2000
CHAIN = ("json", "shards", "lmdb")
KILLS = 10
"""A step of the chain; there are three."""

Contents = dict[str, tuple[str, dict[str, Any], list[int] | None]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    path = tmp_path_factory.mktemp("chain") / "source.lmdb"
    with actstore.create(path, "lmdb") as store:
        fill(store, ENTRIES)
        expected = contents(store)
    assert len(expected) == ENTRIES
    return path, expected


def read(path: Path) -> Contents:
    with actstore.open(path) as store:
        assert store.verify()["damage"] == []
        return contents(store)


def test_nothing_is_lost_on_the_way(source: tuple[Path, Contents], tmp_path: Path) -> None:
    path, expected = source
    for number, backend in enumerate(CHAIN):
        target = tmp_path / f"{number}.{backend}"
        report = actstore.migrate(path, target, target_format=backend, verify=True)
        assert (report.migrated, report.verified) == (ENTRIES, ENTRIES)
        path = target
    assert read(path) == expected


MIGRATE = textwrap.dedent("""
    import os, signal, sys, time
    import actstore

    source, target, backend, last = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    waited = 0

    def progress(done, total, raw_bytes):
        global waited
        if done - waited >= 100:
            waited = done
            time.sleep(0.06)  # so that it dies among commits, not before the first
        if done >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    actstore.migrate(source, target, target_format=backend, progress=progress)
""")


def migrate_and_die(source: Path, target: Path, backend: str, last: int, seconds: float | None) -> int:
    """Migrates in a process that dies at entry `last`, or is killed after `seconds`; its exit status."""
    command = [sys.executable, "-c", MIGRATE, str(source), str(target), backend, str(last)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        if seconds is not None:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), stderr.decode()
        return process.returncode


@pytest.mark.timeout(900)
def test_a_chain_that_is_killed_ends_the_same(source: tuple[Path, Contents], tmp_path: Path) -> None:
    path, expected = source
    chance = random.Random(0)
    killed = 0
    for number, backend in enumerate(CHAIN):
        target = tmp_path / f"{number}.{backend}"
        for attempt in range(KILLS):
            # Some die while the store is made and opened, most where entries are.
            seconds = chance.uniform(0.1, 1.5) if attempt % 3 == 0 else None
            last = ENTRIES * (attempt + 1) // (KILLS + 1) + chance.randrange(50)
            killed += migrate_and_die(path, target, backend, last, seconds) != 0
        with actstore.open(target) as store:
            there = len(store)
        assert there > 0
        report = actstore.migrate(path, target, target_format=backend, verify=True)
        assert (report.skipped, report.migrated, report.verified) == (there, ENTRIES - there, ENTRIES)
        path = target
    assert killed >= 3 * KILLS - 3
    assert read(path) == expected
    assert read(source[0]) == expected
