"""Running the command line inside this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import actstore
from actstore.cli import app

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("info", path)`: the result, with `exit_code`, `stdout` and `stderr`. Errors of the test are not hidden."""
    monkeypatch.setenv("COLUMNS", "200")
    runner = CliRunner()

    def call(*arguments: object) -> Result:
        return runner.invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def small_store(tmp_path: Path) -> Path:
    """Three entries of two hook points."""
    with actstore.create(tmp_path / "small") as store:
        for index in range(3):
            array = np.full((4, 8), index, np.float32)
            array[0, 0] = np.nan if index == 2 else 1.5
            store.put(
                key=f"{'even' if index % 2 == 0 else 'odd'} {index}",
                prompt=f"[bold]prompt {index}",
                response="response",
                token_ids=[5, 6, 7, 8],
                prompt_length=3,
                activations={"resid_post.0": array, "resid_post.1": array * 2},
                metadata={"model": "demo", "index": index},
            )
    return tmp_path / "small"
