"""Fixtures that every part of the suite shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import actstore
from actstore import _core
from actstore.store import Store
from backends import ON_DISK


@pytest.fixture(params=_core.backends())
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=ON_DISK)
def on_disk(request: pytest.FixtureRequest) -> str:
    """Each backend whose stores are files."""
    return request.param


@pytest.fixture
def store(backend: str, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each backend, open for writing."""
    path = None if backend == "memory" else tmp_path / "store"
    with actstore.create(path, backend) as created:
        yield created
