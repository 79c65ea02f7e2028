"""Fixtures for captures of tiny models."""

from collections.abc import Iterator
from typing import Any

import models
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on many threads, far slower where other processes run as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def llama() -> Any:
    """Shared: a test that changes it puts it back."""
    return models.tiny("llama")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return models.byte_tokenizer()
