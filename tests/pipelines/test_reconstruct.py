"""The inference file of a run, from its questions and what was logged, and the other way round."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.data import KNOWN_TEMPLATES, ActivationParser
from actstore.data.templates import without_template
from actstore.errors import InvalidInputError, NotFoundError, StorageIoError
from actstore.pipelines import Reconstruction, inference_of_store, reconstruct_inference
from answered import (
    KINDS,
    ONE_SENTENCE,
    Answer,
    answers,
    halves,
    read_lines,
    write_evaluation,
    write_lines,
    write_log,
)
from old_logs import write
from old_trees import key_of
from processes import run_python

COUNT = 8


def questions(logged: list[Answer]) -> list[dict[str, Any]]:
    """What document 003 shows of a row."""
    return [
        {
            "index": number,
            "title": "Caf\u00e9",
            "h_score_cat": 8,
            "pageid": 12345,
            "revid": 67890,
            "description": "d",
            "categories": ["a", "b"],
            "reference": 'text with "quotes"\n',
            "prompt": answer.question,
            "answer": f"right answer {number}",
        }
        for number, answer in enumerate(logged)
    ]


def rebuild(folder: Path, **options: Any) -> tuple[Reconstruction, list[dict[str, Any]], list[str]]:
    """The report, the rows, and what was said."""
    said: list[str] = []
    report = reconstruct_inference(folder / "qa", folder / "log", folder / "out", say=said.append, **options)
    return report, read_lines(folder / "out"), said


@pytest.mark.parametrize("kind", KINDS)
def test_every_documented_field_is_there_in_the_order_of_the_questions(kind: str, tmp_path: Path) -> None:
    logged = answers(COUNT, ONE_SENTENCE)
    write_log(kind, tmp_path / "log", logged)
    given_rows = questions(logged)[::-1]
    write_lines(tmp_path / "qa", given_rows)
    report, rows, _ = rebuild(tmp_path)
    assert (report.rows, report.matched, report.missing, report.corrupted) == (COUNT, COUNT, 0, 0)
    assert report.template == ONE_SENTENCE
    assert [row["index"] for row in rows] == list(range(COUNT))[::-1]
    for row, given_row, answer in zip(rows, given_rows, logged[::-1], strict=True):
        assert list(row) == [
            *given_row,
            *("generation", "model", "input_length", "timestamp", "messages", "activation_key"),
        ]
        assert row == given_row | {
            "generation": answer.fields["response"],
            "model": "test-model",
            "input_length": 3,
            "timestamp": 1700000000.25,
            "messages": answer.fields["messages"],
            "activation_key": answer.key,
        }


@pytest.mark.parametrize("kind", ["shards", "old lmdb", "json v3"])
@pytest.mark.parametrize("strip_keys", [False, True])
def test_h10_what_is_reconstructed_joins_in_the_parser(kind: str, strip_keys: bool, tmp_path: Path) -> None:
    """The original's rows had the bare question as `prompt`, of which its parser made another key: none matched."""
    logged = answers(COUNT, ONE_SENTENCE)
    write_log(kind, tmp_path / "log", logged)
    write_lines(tmp_path / "qa", questions(logged))
    rebuild(tmp_path)
    if strip_keys:
        rows = [{name: value for name, value in row.items() if name != "activation_key"} for row in questions(logged)]
        write_lines(tmp_path / "out", rows)
    parser = ActivationParser(tmp_path / "out", write_evaluation(tmp_path / "eval", halves(COUNT)), tmp_path / "log")
    assert (parser.report.matched, parser.report.used, parser.report.differing) == (COUNT, COUNT, 0)
    assert parser.report.template == (ONE_SENTENCE if strip_keys else None)


def test_a_template_of_ones_own_joins_too(tmp_path: Path) -> None:
    template = "<|user|>{prompt}<|assistant|>"
    logged = answers(COUNT, template)
    write_log("lmdb", tmp_path / "log", logged)
    write_lines(tmp_path / "qa", questions(logged))
    report, rows, _ = rebuild(tmp_path, prompt_template=template)
    assert (report.matched, report.template) == (COUNT, template)
    labels = [{**row, "halu": False} for row in rows]
    assert ActivationParser(None, None, tmp_path / "log", labels).report.used == COUNT


def test_what_is_missing_or_corrupted_is_skipped_and_counted(tmp_path: Path) -> None:
    logged = answers(COUNT, ONE_SENTENCE)
    write_log("old lmdb", tmp_path / "log", logged)
    said = {"prompt": logged[2].fields["prompt"], "input_length": 3, "timestamp": 1.5}
    write(tmp_path / "log_metadata", {logged[1].key: b"\x80\x04damaged", logged[2].key: said})
    rows = [*questions(logged), {"prompt": "never asked"}, {"prompt": "never asked either"}]
    write_lines(tmp_path / "qa", rows)
    with (tmp_path / "qa").open("a") as file:
        file.write('{"answer": "no prompt"}\n\n{"prompt": "torn')
    report, found, said_lines = rebuild(tmp_path)
    assert (report.rows, report.matched, report.missing, report.corrupted) == (12, 6, 2, 4)
    assert [row["index"] for row in found] == [0, 3, 4, 5, 6, 7]
    closing = f"6 of 12 rows written to `{tmp_path / 'out'}` with the prompt template `{ONE_SENTENCE!r}`; "
    assert str(report) == closing + "skipped: 2 without an entry, 4 corrupted"
    assert said_lines[-1] == str(report)
    assert f"entry `{logged[2].key}` has no `response`" in "\n".join(said_lines)


def test_a_log_of_the_first_weeks_has_no_more_than_its_entries(tmp_path: Path) -> None:
    """Neither metadata of their own nor a time."""
    logged = answers(3, ONE_SENTENCE)
    write_log("old lmdb", tmp_path / "log", logged, metadata=False)
    write_lines(tmp_path / "qa", [*questions(logged), {"prompt": "never asked"}])
    report, rows, _ = rebuild(tmp_path)
    assert (report.matched, report.missing) == (3, 1)
    assert [(row["generation"], row["input_length"], row["timestamp"]) for row in rows] == [
        (answer.fields["response"], 3, None) for answer in logged
    ]


def test_verbose_says_what_document_003_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged = answers(2, ONE_SENTENCE)
    write_log("old lmdb", tmp_path / "log", logged)
    write_lines(tmp_path / "qa", [*questions(logged), {"prompt": "never asked"}])
    with (tmp_path / "qa").open("a") as file:
        file.write('no JSON\n{"prompt": 7}\n{"prompt": "\\ud800"}\n')
    report, _, said = rebuild(tmp_path)
    missing = key_of(ONE_SENTENCE.replace("{prompt}", "never asked"))
    assert said == [
        f"6 rows in `{tmp_path / 'qa'}`",
        f"2 entries in `{tmp_path / 'log'}`",
        f"`{tmp_path / 'qa'}` line 1: `{logged[0].key}` matched",
        f"`{tmp_path / 'qa'}` line 2: `{logged[1].key}` matched",
        f"`{tmp_path / 'qa'}` line 3: `{missing}` has no entry",
        f"`{tmp_path / 'qa'}` line 4 is not JSON: Expecting value: line 1 column 1 (char 0); skipped",
        f"`{tmp_path / 'qa'}` line 5 has no string `prompt`; skipped",
        f"`{tmp_path / 'qa'}` line 6: `prompt` is not valid Unicode: it has a lone surrogate; skipped",
        str(report),
    ]
    reconstruct_inference(tmp_path / "qa", tmp_path / "log", tmp_path / "out")
    assert capsys.readouterr().err.splitlines() == said
    assert reconstruct_inference(tmp_path / "qa", tmp_path / "log", tmp_path / "out", False) == report
    assert capsys.readouterr().err == ""


def test_trim_position_and_messages_are_there_where_there_are_any(tmp_path: Path) -> None:
    for number, more in enumerate([{}, {"trim_position": 4}, {"messages": [{"role": "user", "content": "q"}]}]):
        with actstore.create(tmp_path / f"log{number}") as store:
            store.put(prompt="q", response="r", activations={}, metadata={"model": "m", "trim_position": None, **more})
        write_lines(tmp_path / "qa", [{"prompt": "q"}])
        reconstruct_inference(tmp_path / "qa", tmp_path / f"log{number}", tmp_path / "out", False)
        (row,) = read_lines(tmp_path / "out")
        assert {name: row[name] for name in ("trim_position", "messages") if name in row} == more


def test_h19_fields_of_the_questions_are_not_taken_for_those_of_the_log(tmp_path: Path) -> None:
    logged = answers(3, ONE_SENTENCE)
    with actstore.create(tmp_path / "log") as store:
        for number, answer in enumerate(logged):
            store.put(
                prompt=answer.fields["prompt"],
                response="r",
                activations={},
                metadata={"index": 100 + number, "sample_index": 0, "model": "m"},
            )
    write_lines(tmp_path / "qa", [{**row, "sample_index": 7} for row in questions(logged)])
    _, rows, _ = rebuild(tmp_path)
    assert [(row["index"], row["sample_index"]) for row in rows] == [(0, 7), (1, 7), (2, 7)]


def test_too_few_matches_are_an_error_and_leave_what_was_there(tmp_path: Path) -> None:
    logged = answers(4, ONE_SENTENCE)
    write_log("shards", tmp_path / "log", logged[:1])
    write_lines(tmp_path / "qa", questions(logged))
    (tmp_path / "out").write_text("earlier")
    with pytest.raises(NotFoundError, match=r"1 of 4 rows have an entry in .*, but the share 0.5 is asked") as caught:
        reconstruct_inference(tmp_path / "qa", tmp_path / "log", tmp_path / "out", False, min_match=0.5)
    assert caught.value.kind == "no_such_key"
    with pytest.raises(
        NotFoundError, match=r"0 of 4 rows .*at least one must; prompt templates tried: `'A \{prompt\}'`"
    ):
        reconstruct_inference(tmp_path / "qa", tmp_path / "log", tmp_path / "out", False, prompt_template="A {prompt}")
    assert (tmp_path / "out").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out", "qa"]
    assert rebuild(tmp_path, min_match=0.25)[0].matched == 1


def test_no_questions_give_no_rows(tmp_path: Path) -> None:
    write_log("shards", tmp_path / "log", answers(1))
    (tmp_path / "qa").write_text("\n")
    assert rebuild(tmp_path)[:2] == (Reconstruction(0, 0, 0, 0, None, tmp_path / "out"), [])


def test_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    logged = answers(1, ONE_SENTENCE)
    write_log("shards", tmp_path / "log", logged)
    write_lines(tmp_path / "qa", questions(logged))
    with pytest.raises(StorageIoError, match=r"`.*gone` is not there; give a file of JSON lines") as caught:
        reconstruct_inference(tmp_path / "gone", tmp_path / "log", tmp_path / "out", False)
    assert caught.value.kind == "storage_io"
    with pytest.raises(NotFoundError, match="does not exist") as missing:
        reconstruct_inference(tmp_path / "qa", tmp_path / "nothing", tmp_path / "out", False)
    assert missing.value.kind == "not_a_store"
    for target, reason in (
        (tmp_path / "qa", "is the file of the questions"),
        (tmp_path / "log" / "x", "never changed"),
    ):
        with pytest.raises(InvalidInputError, match=reason) as wrong:
            reconstruct_inference(tmp_path / "qa", tmp_path / "log", target, False)
        assert wrong.value.kind == "invalid_option"
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageIoError, match=r"cannot write `.*out`"):
        reconstruct_inference(tmp_path / "qa", tmp_path / "log", tmp_path / "file" / "out", False)
    assert not (tmp_path / "out").exists()
    assert read_lines(tmp_path / "qa") == questions(logged)


def test_directories_of_the_output_are_made(tmp_path: Path) -> None:
    logged = answers(1, ONE_SENTENCE)
    write_log("shards", tmp_path / "log", logged)
    write_lines(tmp_path / "qa", questions(logged))
    reconstruct_inference(tmp_path / "qa", tmp_path / "log", tmp_path / "a" / "b" / "out", False)
    assert len(read_lines(tmp_path / "a" / "b" / "out")) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_alone_gives_an_inference_file(kind: str, tmp_path: Path) -> None:
    logged = answers(COUNT, ONE_SENTENCE)
    write_log(kind, tmp_path / "log", logged)
    report = inference_of_store(tmp_path / "log", tmp_path / "bare", False, prompt_template=ONE_SENTENCE)
    assert (report.rows, report.matched, report.corrupted) == (COUNT, COUNT, 0)
    rows = sorted(read_lines(tmp_path / "bare"), key=lambda row: row["prompt"])
    assert [(row["prompt"], row["generation"], row["activation_key"]) for row in rows] == [
        (answer.question, answer.fields["response"], answer.key) for answer in logged
    ]
    inference_of_store(tmp_path / "log", tmp_path / "fed", False)
    assert {row["prompt"] for row in read_lines(tmp_path / "fed")} == {answer.fields["prompt"] for answer in logged}
    for path in ("bare", "fed"):
        evaluation = write_evaluation(tmp_path / "eval", halves(COUNT))
        parser = ActivationParser(tmp_path / path, evaluation, tmp_path / "log")
        assert (parser.report.used, parser.report.differing) == (COUNT, 0)


def test_entries_without_an_answer_are_skipped_and_counted(tmp_path: Path) -> None:
    said: list[str] = []
    with actstore.create(tmp_path / "log") as store:
        store.put(prompt="p", response="r", activations={0: np.ones((1, 2))})
        store.put(prompt="forward only", activations={})
    report = inference_of_store(tmp_path / "log", tmp_path / "out", say=said.append)
    assert (report.rows, report.matched, report.corrupted) == (2, 1, 1)
    assert said == [
        f"2 entries in `{tmp_path / 'log'}`",
        f"entry `{key_of('forward only')}` is skipped: entry `{key_of('forward only')}` has no `response`",
        str(report),
    ]


def test_what_comes_back_and_goes_again_is_the_same(tmp_path: Path) -> None:
    logged = answers(COUNT, ONE_SENTENCE)
    write_log("lmdb", tmp_path / "log", logged)
    inference_of_store(tmp_path / "log", tmp_path / "first", False, prompt_template=ONE_SENTENCE)
    reconstruct_inference(tmp_path / "first", tmp_path / "log", tmp_path / "second", False)
    assert read_lines(tmp_path / "second") == read_lines(tmp_path / "first")


@given(st.sampled_from(KNOWN_TEMPLATES), st.text())
def test_a_prompt_comes_out_of_its_template_as_it_went_in(template: str, prompt: str) -> None:
    assert without_template(template, template.replace("{prompt}", prompt)) == prompt


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
@settings(deadline=None, max_examples=25)
def test_any_rows_keep_their_order_and_are_all_counted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with actstore.create(backend="memory") as store:
        for number in range(3):
            store.put(prompt=f"user: {number}", response=f"r{number}", activations={})
        lines = [
            json.dumps({"prompt": str(number), "at": at}) if whole else "{" for at, (number, whole) in enumerate(rows)
        ]
        (folder / "qa").write_text("\n".join([*lines, json.dumps({"prompt": "0", "at": len(rows)})]))
        report = reconstruct_inference(folder / "qa", store, folder / "out", False)
    expected = [at for at, (number, whole) in enumerate(rows) if whole and number < 3]
    assert [row["at"] for row in read_lines(folder / "out")] == [*expected, len(rows)]
    assert report.matched + report.missing + report.corrupted == report.rows == len(rows) + 1
    assert report.corrupted == sum(not whole for _, whole in rows)


def peak_of(rows: int, folder: Path, log: Path) -> int:
    """Most anonymous bytes of a process that reconstructs `rows` rows."""
    with (folder / "qa").open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"prompt": f"what is {number % 500}?", "reference": "x" * 100, "at": number}) + "\n")
    script = """
        import sys
        from actstore.pipelines import reconstruct_inference
        from memory import Peak

        with Peak() as peak:
            report = reconstruct_inference(*sys.argv[1:4], False)
        assert report.matched == report.rows == int(sys.argv[4])
        print(peak.bytes)
    """
    return int(run_python(script, folder / "qa", log, folder / "out", rows))


@pytest.mark.parametrize("kind", ["shards", "old lmdb"])
def test_memory_does_not_grow_with_the_rows(kind: str, tmp_path: Path) -> None:
    log = write_log(kind, tmp_path / "log", answers(500, ONE_SENTENCE, rows=1))
    few, many = (peak_of(rows, tmp_path, log) for rows in (2_000, 40_000))
    assert many <= few + (4 << 20), f"{few} bytes for 2,000 rows, {many} bytes for 40,000"
