"""`demo`: everything stored equals what plain hooks saw, and a difference is noticed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

import actstore
from actstore.cli import fidelity

Run = Callable[..., Result]


@pytest.fixture
def ten_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore.cli.demo._QUESTIONS", 10)


def test_the_demo(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--store", tmp_path / "out")
    assert result.exit_code == 0, result.stdout + result.stderr
    assert "MISMATCH" not in result.stdout
    assert result.stdout.count("equal bit for bit to plain hooks in the same calls: ") == 2
    assert result.stdout.count("equal bit for bit to output_hidden_states of the same calls: ") == 2
    assert result.stdout.count("within the tolerance of") == 2
    assert "answered right, padded on the left: " in result.stdout
    assert "round trip of the first store" in result.stdout
    assert "equal after the round trip: 60 content ids, " in result.stdout
    for side in ("left", "right"):
        with actstore.open(tmp_path / "out" / side) as store:
            assert len(store) == 60
            points = store.info()["points"]
            layers = max(int(point["point"].split(".")[1]) for point in points if point["point"].startswith("blocks"))
            assert len(points) == 6 * (layers + 1) + 3
        assert f"store: {tmp_path / 'out' / side}" in result.stdout
    commands = [
        line.split("actstore-cli ")[1].split() for line in result.stdout.splitlines() if "actstore-cli " in line
    ]
    assert [command[0] for command in commands] == ["info", "show", "verify"]
    for command in commands:
        assert run(*command).exit_code == 0


@pytest.mark.usefixtures("ten_questions")
def test_a_single_changed_bit_is_a_mismatch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fidelity.rows_of

    def changed(steps: fidelity.Steps, row: int, mask: torch.Tensor, response_tokens: int) -> dict[str, torch.Tensor]:
        rows = real(steps, row, mask, response_tokens)
        if row == 3 and "blocks.1.hook_attn_out" in rows:
            rows["blocks.1.hook_attn_out"].view(torch.int16)[2, 5] ^= 1
        return rows

    monkeypatch.setattr(fidelity, "rows_of", changed)
    result = run("demo", "--store", tmp_path / "out")
    assert result.exit_code == 1
    assert "MISMATCH with plain hooks in the same calls: 1, first entry `" in result.stdout
    assert "point `blocks.1.hook_attn_out`" in result.stdout


@pytest.mark.usefixtures("ten_questions")
def test_a_difference_beyond_the_tolerance_fails(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore.cli.demo._TOLERANCE", 0.0)
    result = run("demo", "--store", tmp_path / "out")
    assert result.exit_code == 1
    assert "BEYOND the tolerance of 0.0" in result.stdout


def test_the_demo_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("something")
    result = run("demo", "--store", tmp_path)
    assert (result.exit_code, result.stderr) == (1, f"error: `{tmp_path}` is not empty; give a new directory\n")


def test_same_bits() -> None:
    zeros, nan = torch.zeros(2, 2), torch.full((2, 2), torch.nan)
    assert fidelity.same_bits(nan, nan.clone())
    assert fidelity.same_bits(zeros.T, zeros)
    assert not fidelity.same_bits(zeros, -zeros)
    assert not fidelity.same_bits(zeros.half(), zeros.bfloat16())
    assert not fidelity.same_bits(zeros, zeros[:1])
