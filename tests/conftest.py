"""Fixtures that every part of the suite shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import actstore
from actstore.store import Store


@pytest.fixture(params=["shards", "lmdb", "memory"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def store(backend: str, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each backend, open for writing."""
    path = None if backend == "memory" else tmp_path / "store"
    with actstore.create(path, backend) as created:
        yield created
