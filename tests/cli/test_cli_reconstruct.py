"""`reconstruct`: its options, what it prints, and how it ends."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from answered import ONE_SENTENCE, answers, read_lines, write_lines, write_log

Run = Callable[..., Result]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three questions, of which two were answered, in the current directory."""
    monkeypatch.chdir(tmp_path)
    logged = answers(3, ONE_SENTENCE)
    write_log("shards", Path("log"), logged[:2])
    write_lines(Path("qa"), [{"prompt": answer.question} for answer in logged])
    return tmp_path


def test_the_closing_line_counts_what_was_skipped(place: Path, run: Run) -> None:
    del place
    result = run("reconstruct", "--qa_output_path", "qa", "--lmdb_path", "log", "--output_path", "out")
    assert result.exit_code == 0
    assert result.stdout == (
        f"2 of 3 rows written to `out` with the prompt template `{ONE_SENTENCE!r}`; "
        "skipped: 1 without an entry, 0 corrupted\n"
    )
    assert len(read_lines(Path("out"))) == 2


def test_too_few_matches_end_with_status_1(place: Path, run: Run) -> None:
    words = ("reconstruct", "--qa-output-path", "qa", "--lmdb-path", "log", "--output-path", "out")
    for more in (("--min-match", "0.9"), ("--prompt-template", "x {prompt}")):
        result = run(*words, *more)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert "prompt templates tried" in result.stderr
    assert not (place / "out").exists()


def test_a_store_alone_gives_every_entry(place: Path, run: Run) -> None:
    del place
    result = run(
        "reconstruct", "--lmdb_path", "log", "--output_path", "out", "--prompt-template", ONE_SENTENCE, "--verbose"
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("2 entries in `")
    assert [row["prompt"] for row in read_lines(Path("out"))] == ["what is 0?", "what is 1?"]


def test_what_is_not_there_is_one_sentence(place: Path, run: Run) -> None:
    del place
    result = run("reconstruct", "--qa_output_path", "gone", "--lmdb_path", "log", "--output_path", "out")
    assert (result.exit_code, result.stderr) == (1, "error: `gone` is not there; give a file of JSON lines\n")
    result = run("reconstruct", "--qa_output_path", "qa", "--lmdb_path", "gone", "--output_path", "out")
    assert (result.exit_code, "`gone` does not exist" in result.stderr) == (1, True)
    assert run("reconstruct", "--qa_output_path", "qa").exit_code == 2
