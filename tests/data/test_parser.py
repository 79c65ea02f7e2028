"""Rows find their entries, labels and splits, in every kind of log, and the report says what did not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore.data import KNOWN_TEMPLATES, ActivationParser, open_log
from actstore.data.join import Joined, Labels, join, split_by_key
from actstore.data.rows import FrameRows
from actstore.errors import (
    ActstoreError,
    CorruptError,
    InvalidInputError,
    LockedError,
    NotFoundError,
    StorageIoError,
    UntrustedInputError,
)
from answered import (
    KINDS,
    OLD_LOGS,
    ONE_SENTENCE,
    STORES,
    Answer,
    answers,
    halves,
    write_evaluation,
    write_inference,
    write_lines,
    write_log,
)
from old_logs import write
from old_trees import key_of
from processes import run_python

COUNT = 10


def parse(folder: Path, logged: list[Answer], kind: str = "shards", **options: Any) -> ActivationParser:
    write_log(kind, folder / "log", logged)
    inference = write_inference(folder / "inference.jsonl", logged)
    return ActivationParser(
        inference, write_evaluation(folder / "eval.json", halves(len(logged))), folder / "log", **options
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_joined_in_every_log(kind: str, tmp_path: Path) -> None:
    logged = answers(COUNT)
    with parse(tmp_path, logged, kind, logger_type=kind.removeprefix("old ").split()[0]) as parser:
        report = parser.report
        assert (report.rows, report.matched, report.unmatched, report.used) == (COUNT, COUNT, 0, COUNT)
        assert (report.template, report.match_rate, report.differing) == ("user: {prompt}", 1.0, 0)
        assert parser.splits == {"test": 2, "train": 8}
        for number, answer in enumerate(logged):
            row, entry, states, input_length = parser.get_activations(number)
            assert row["prompt"] == answer.question
            assert (row["halu"], row["activation_key"]) == (number % 2 == 1, answer.key)
            assert row["split"] in ("train", "test")
            assert (entry.key, entry.response, input_length) == (answer.key, answer.fields["response"], 3)
            assert len(states) == 4
            for state, expected in zip(states, answer.response_states, strict=True):
                assert isinstance(state, torch.Tensor)
                assert np.array_equal(state.numpy(), expected[None])


@pytest.mark.parametrize("template", [*KNOWN_TEMPLATES, "<s>[INST] {prompt} [/INST] {not a field}"])
def test_the_prompt_template_is_found_and_said(template: str, tmp_path: Path) -> None:
    known = template in KNOWN_TEMPLATES
    parser = parse(tmp_path, answers(COUNT, template), prompt_template=None if known else template)
    assert (parser.report.template, parser.report.matched) == (template, COUNT)
    assert repr(template) in str(parser.report)


@pytest.mark.parametrize("template", ["user: ", "{prompt}{prompt}", ""])
def test_a_template_without_one_place_is_refused(template: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="it needs it once") as caught:
        parse(tmp_path, answers(2), prompt_template=template)
    assert caught.value.kind == "invalid_option"


def test_every_row_that_is_left_out_is_counted(tmp_path: Path) -> None:
    logged = answers(COUNT)
    write_log("shards", tmp_path / "log", logged)
    rows = [{"prompt": answer.question, "generation": answer.fields["response"]} for answer in logged]
    rows += [{"prompt": "what is 0?"}, {"prompt": "never asked"}, {"prompt": "never asked"}]
    rows[1]["generation"] = "something else"
    write_lines(tmp_path / "rows", rows)
    abstained = [number in (2, 3) for number in range(13)]
    evaluation = write_evaluation(tmp_path / "eval", halves(13), abstained)
    parser = ActivationParser(tmp_path / "rows", evaluation, tmp_path / "log")
    report = parser.report
    assert (report.rows, report.matched, report.unmatched) == (13, 11, 2)
    assert (report.duplicates, report.abstained, report.empty, report.damaged, report.used) == (1, 2, 0, (), 8)
    assert report.differing == 1
    assert str(report) == (
        "11 of 13 rows matched (84.6%) under the prompt template `'user: {prompt}'`; 2 unmatched, 1 duplicates, "
        "2 abstained, 0 empty, 0 damaged; 8 used, 1 of them differing"
    )
    assert {parser.row(number)["prompt"] for number in range(8)} == {f"what is {n}?" for n in range(10)} - {
        "what is 2?",
        "what is 3?",
    }


def test_h10_rows_that_occur_twice_are_kept_once(tmp_path: Path) -> None:
    logged = answers(4)
    write_log("shards", tmp_path / "log", logged)
    inference = write_inference(tmp_path / "rows", [*logged, *logged])
    parser = ActivationParser(inference, write_evaluation(tmp_path / "eval", halves(8)), tmp_path / "log")
    assert (len(parser), parser.report.duplicates) == (4, 4)


@pytest.mark.parametrize("kind", ["shards", "old lmdb", "json v3"])
def test_h10_a_join_that_fails_is_an_error(kind: str, tmp_path: Path) -> None:
    logged = answers(COUNT, "system: be brief\nuser: {prompt}")
    with pytest.raises(NotFoundError, match=r"0 of 10 rows have an entry in .*; prompt templates tried: ") as caught:
        parse(tmp_path, logged, kind)
    assert caught.value.kind == "no_such_key"
    assert all(f"`{template!r}`" in caught.value.message for template in KNOWN_TEMPLATES)


def test_the_match_rate_that_is_needed_can_be_chosen(tmp_path: Path) -> None:
    write_log("shards", tmp_path / "log", answers(4))
    inference = write_inference(tmp_path / "rows", answers(COUNT))
    evaluation = write_evaluation(tmp_path / "eval", halves(COUNT))
    with pytest.raises(NotFoundError, match=r"4 of 10 rows .* but the share 0.5 is asked for"):
        ActivationParser(inference, evaluation, tmp_path / "log")
    assert len(ActivationParser(inference, evaluation, tmp_path / "log", min_match=0.4)) == 4
    for wrong in (1.5, -0.1, True, "all"):
        with pytest.raises(InvalidInputError, match=r"`min_match` is .*give a share") as caught:
            ActivationParser(inference, evaluation, tmp_path / "log", min_match=wrong)  # pyright: ignore[reportArgumentType]
        assert caught.value.kind == "invalid_option"


def test_h18_labels_of_other_rows_are_refused(tmp_path: Path) -> None:
    logged = answers(4)
    write_log("shards", tmp_path / "log", logged)
    inference = write_inference(tmp_path / "rows", logged)
    for count in (3, 5):
        with pytest.raises(CorruptError, match=f"labels for {count} rows, but there are 4") as caught:
            ActivationParser(inference, write_evaluation(tmp_path / "eval", halves(count)), tmp_path / "log")
        assert caught.value.kind == "malformed"
    (tmp_path / "eval").write_text(json.dumps({"abstantion": [False] * 4, "halu_test_res": [True] * 3}))
    with pytest.raises(CorruptError, match="`abstantion` for 4 rows and `halu_test_res` for 3"):
        ActivationParser(inference, tmp_path / "eval", tmp_path / "log")


def test_h20_labels_stay_with_their_rows_whatever_the_log_has(tmp_path: Path) -> None:
    """Entries in another order, and some that no row asks for."""
    logged = answers(COUNT)
    strangers = answers(3, "other: {prompt}")
    write_log("shards", tmp_path / "log", [strangers[0], *logged[::-1], *strangers[1:]])
    inference = write_inference(tmp_path / "rows", logged[:8])
    parser = ActivationParser(inference, write_evaluation(tmp_path / "eval", halves(8)), tmp_path / "log")
    for item in parser.get_dataset("all", [1, 2]):
        answer = next(answer for answer in logged if answer.key == item["hashkey"])
        assert item["halu"] == float(answer.question[8:-1] in "1357")
        rows = answer.response_states[1]
        assert np.array_equal(item["all_activations"][0][0, : len(rows)].numpy(), rows)


def test_h16_answers_that_are_not_those_of_the_log_are_counted(tmp_path: Path) -> None:
    logged = answers(4)
    write_log("old lmdb", tmp_path / "log", logged)
    rows = [{"prompt": answer.question, "generation": answer.fields["response"][:4]} for answer in logged]
    parser = ActivationParser(None, None, tmp_path / "log", [{**row, "halu": 0} for row in rows])
    assert parser.report.differing == 4


@pytest.mark.parametrize("kind", ["shards", "json", "old lmdb", "json v1"])
def test_h3_prompts_alone_have_no_response_to_learn_from(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="has rows at the positions `response`; choose other") as caught:
        parse(tmp_path, answers(4, mode="prompt"), kind)
    assert caught.value.kind == "unknown_position"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mode", "positions"), [("response", "response"), ("prompt", "prompt"), ("prompt", "all")])
def test_h3_the_parser_gives_rows_of_a_part_whole(kind: str, mode: str, positions: str, tmp_path: Path) -> None:
    logged = answers(4, mode=mode)
    parser = parse(tmp_path, logged, kind, positions=positions)
    for number, answer in enumerate(logged):
        _, _, states, _ = parser.get_activations(number)
        assert all(
            state is not None and np.array_equal(state.numpy(), expected)
            for state, expected in zip(states, answer.states, strict=True)
        )


def test_h3_a_log_that_does_not_say_its_mode_is_not_guessed_at(tmp_path: Path) -> None:
    logged = answers(4, mode="response")
    write_log("old lmdb", tmp_path / "log", logged, metadata=False)
    inference = write_inference(tmp_path / "rows", logged)
    evaluation = write_evaluation(tmp_path / "eval", halves(4))
    parser = ActivationParser(inference, evaluation, tmp_path / "log")
    with pytest.raises(InvalidInputError, match="does not say which of its rows are `response`") as caught:
        parser.get_activations(0)
    assert caught.value.kind == "unknown_position"
    parser = ActivationParser(inference, evaluation, tmp_path / "log", positions="all")
    assert np.array_equal(parser.get_activations(1)[2][2], logged[1].states[2])  # pyright: ignore[reportArgumentType]


def test_h3_a_mode_that_the_whole_log_says_is_that_of_its_entries(tmp_path: Path) -> None:
    logged = answers(4, mode="prompt")
    write_log("json v1", tmp_path / "log", logged)
    index = json.loads((tmp_path / "log" / "metadata.json").read_text())
    for fields in index["entries"].values():
        index["logger_config"] |= fields.pop("logging_config")
    (tmp_path / "log" / "metadata.json").write_text(json.dumps(index))
    inference = write_inference(tmp_path / "rows", logged)
    evaluation = write_evaluation(tmp_path / "eval", halves(4))
    with pytest.raises(InvalidInputError, match="has rows at the positions `response`; choose other"):
        ActivationParser(inference, evaluation, tmp_path / "log")
    assert len(ActivationParser(inference, evaluation, tmp_path / "log", positions="prompt")) == 4


def test_h11_answers_of_one_token_are_left_out_and_counted(tmp_path: Path) -> None:
    """The last token of an answer has no state, so an answer of one token has no rows."""
    logged = answers(4, rows=0)
    parser = parse(tmp_path, logged)
    assert (parser.report.empty, len(parser)) == (1, 3)
    assert all(item["lengths"].min() > 0 for item in parser.get_dataset("all", [0, 1]))


def test_h13_a_parser_closes_and_says_so_afterwards(tmp_path: Path) -> None:
    parser = parse(tmp_path, answers(4))
    dataset = parser.get_dataset("all", [0, 1])
    parser.close()
    parser.close()
    with pytest.raises(ActstoreError) as caught:
        dataset[0]
    assert caught.value.kind == "closed"
    with actstore.open(tmp_path / "log") as store:
        with ActivationParser(tmp_path / "inference.jsonl", tmp_path / "eval.json", store) as parser:
            assert len(parser) == 4
        assert not store.closed


class PandasFrame:
    """What the parser uses of one."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return self.rows


def frame(kind: str, rows: list[dict[str, Any]]) -> Any:
    import polars

    return {"pandas": PandasFrame, "polars": polars.DataFrame, "dicts": list}[kind](rows)


@pytest.mark.parametrize("kind", ["pandas", "polars", "dicts"])
def test_a_data_frame_takes_the_place_of_the_files(kind: str, tmp_path: Path) -> None:
    logged = answers(6)
    write_log("lmdb", tmp_path / "log", logged)
    splits = ["train", "train", "val", "test", "test", "test"]
    rows = [
        {"prompt": answer.question, "halu": number == 1, "abstain": number == 5, "split": splits[number]}
        for number, answer in enumerate(logged)
    ]
    parser = ActivationParser(None, None, tmp_path / "log", frame(kind, rows))
    assert parser.splits == {"test": 2, "train": 2, "val": 1}
    assert [item["hashkey"] for item in parser.get_dataset("val", [0, 1])] == [logged[2].key]
    assert parser.row(1) == {**rows[1], "activation_key": logged[1].key}
    evaluation = write_evaluation(tmp_path / "eval", [True] * 6)
    assert ActivationParser(None, evaluation, tmp_path / "log", frame(kind, rows)).row(0)["halu"] is True


def test_entries_with_keys_of_their_own_are_named_by_the_rows(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "log") as store:
        for row in range(4):
            store.put(key=f"data:train:{row}", activations={"embed": np.ones((1, 2)), 3: np.full((1, 2), row)})
    rows = [{"activation_key": f"data:train:{row}", "halu": row % 2, "prompt": "same"} for row in range(4)]
    parser = ActivationParser(None, None, tmp_path / "log", rows, positions="all")
    assert (parser.report.template, parser.report.used, parser.report.duplicates) == (None, 4, 0)
    assert [item["all_activations"][1][0, 0, 0] for item in parser.get_dataset("all", ["embed", "resid_post.3"])] == [
        0,
        1,
        2,
        3,
    ]


def keys_of(parser: ActivationParser, split: str) -> set[str]:
    return set(parser.get_dataset(split, [0, 1]).keys)


SPLIT = """
    import json, sys
    from actstore.data import ActivationParser

    rows = [{"prompt": f"what is {number}?", "halu": number < 20} for number in range(50)]
    print(json.dumps(ActivationParser(None, None, sys.argv[1], rows).get_dataset("test", [0, 1]).keys))
"""


def test_i4_splits_are_stratified_and_follow_from_seed_and_keys_in_any_process(tmp_path: Path) -> None:
    """Of a program that took Python's own hash of a text, each process chose others."""
    logged = answers(50)
    write_log("shards", tmp_path / "log", logged)
    rows = [{"prompt": answer.question, "halu": number < 20} for number, answer in enumerate(logged)]
    parser = ActivationParser(None, None, tmp_path / "log", rows)
    train, test = keys_of(parser, "train"), keys_of(parser, "test")
    assert (len(train), len(test), len(train & test)) == (40, 10, 0)
    assert len(test & {answer.key for answer in logged[:20]}) == 4
    assert keys_of(ActivationParser(None, None, tmp_path / "log", rows[::-1]), "test") == test
    assert keys_of(ActivationParser(None, None, tmp_path / "log", rows, seed=7), "test") != test
    assert set(json.loads(run_python(SPLIT, tmp_path / "log"))) == test


@given(st.lists(st.tuples(st.uuids(), st.booleans()), unique_by=lambda pair: pair[0]), st.integers(0, 9), st.randoms())
@settings(deadline=None)
def test_any_order_of_rows_is_split_alike(rows: list[tuple[Any, bool]], seed: int, random: Any) -> None:
    joined = [Joined(number, str(key), halu, None) for number, (key, halu) in enumerate(rows)]
    expected = dict(zip((item.key for item in joined), split_by_key(joined, seed), strict=True))
    assert sum(split == "test" for split in expected.values()) == sum(
        round(0.2 * sum(halu is label for _, halu in rows)) for label in (True, False)
    )
    random.shuffle(joined)
    assert dict(zip((item.key for item in joined), split_by_key(joined, seed), strict=True)) == expected


def test_a_split_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    parser = parse(tmp_path, answers(4))
    with pytest.raises(InvalidInputError, match="`split` is `valid`; one of `test`, `train`, `all`") as caught:
        parser.get_dataset("valid")
    assert caught.value.kind == "invalid_option"


BAD_LINES = {
    "{": "line 2 is not JSON",
    "[1]": "line 2 is no JSON object",
    '{"generation": "x"}': "line 2 has no string `prompt`",
    '{"prompt": 3}': "line 2 has no string `prompt`",
    '{"prompt": "\\ud800"}': "lone surrogate",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_damaged_row_is_named(line: str, tmp_path: Path) -> None:
    """It is not passed over, which would move the labels of all rows after it."""
    write_log("shards", tmp_path / "log", answers(2))
    (tmp_path / "rows").write_text(f'{{"prompt": "what is 0?"}}\n{line}\n')
    with pytest.raises(CorruptError, match=BAD_LINES[line]) as caught:
        ActivationParser(tmp_path / "rows", write_evaluation(tmp_path / "eval", halves(2)), tmp_path / "log")
    assert caught.value.kind == "malformed"


BAD_EVALUATIONS = ["[]", "{}", '{"abstantion": [false, false]}', '{"abstantion": [0, 0], "halu_test_res": [1, null]}']


@pytest.mark.parametrize("text", [*BAD_EVALUATIONS, "{"])
def test_a_damaged_evaluation_is_refused(text: str, tmp_path: Path) -> None:
    logged = answers(2)
    write_log("shards", tmp_path / "log", logged)
    (tmp_path / "eval").write_text(text)
    with pytest.raises(CorruptError) as caught:
        ActivationParser(write_inference(tmp_path / "rows", logged), tmp_path / "eval", tmp_path / "log")
    assert (caught.value.kind, str(tmp_path / "eval") in str(caught.value)) == ("malformed", True)


def test_rows_without_labels_are_refused(tmp_path: Path) -> None:
    write_log("shards", tmp_path / "log", answers(1))
    for row in ({"prompt": "what is 0?"}, {"prompt": "what is 0?", "halu": "yes"}):
        with pytest.raises(CorruptError, match="row 0 of `df` has no truth values"):
            ActivationParser(None, None, tmp_path / "log", [row])
    for frame in (3, ["text"]):
        with pytest.raises(InvalidInputError, match=r"`df` is a `.*`; give a data frame"):
            ActivationParser(None, None, tmp_path / "log", frame)
    with pytest.raises(InvalidInputError, match="`inference_json` is None"):
        ActivationParser(None, None, tmp_path / "log")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    log = write_log("shards", tmp_path / "log", answers(1))
    for inference, evaluation in (("gone", None), (write_inference(tmp_path / "rows", answers(1)), "gone")):
        with pytest.raises(StorageIoError, match="`gone`") as caught:
            ActivationParser(inference, evaluation, log)
        assert caught.value.kind == "storage_io"
    rows = [{"prompt": "what is 0?", "halu": 1}]
    with pytest.raises(NotFoundError, match=r"`.*nothing` does not exist") as missing:
        ActivationParser(None, None, tmp_path / "nothing", rows)
    (tmp_path / "other").mkdir()
    with pytest.raises(NotFoundError, match="is no store and no log of activations"):
        ActivationParser(None, None, tmp_path / "other", rows)
    assert missing.value.kind == "not_a_store"


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_of_another_kind_than_was_said_is_refused(kind: str, tmp_path: Path) -> None:
    path = write_log(kind, tmp_path / "log", answers(1))
    own = kind.removeprefix("old ").split()[0]
    for said in {"shards", "lmdb", "json"} - {own}:
        with pytest.raises(InvalidInputError, match=f"is of the kind `{own}`, not `{said}`") as caught:
            open_log(path, said)
        assert caught.value.kind == "invalid_option"
    with pytest.raises(InvalidInputError, match="`logger_type` is `zarr`; one of `auto`"):
        open_log(path, "zarr")


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_is_not_there_is_named(kind: str, tmp_path: Path) -> None:
    log = open_log(write_log(kind, tmp_path / "log", answers(2)))
    missing = key_of("never asked")
    assert missing not in log
    assert sorted(log.keys()) == sorted(answer.key for answer in answers(2))
    for read in (log.fields, log.entry):
        with pytest.raises(NotFoundError) as caught:
            read(missing)
        assert (caught.value.kind, missing in str(caught.value)) == ("no_such_key", True)


@pytest.mark.parametrize("kind", [*OLD_LOGS, *STORES])
def test_points_and_rows_that_are_not_there_are_named(kind: str, tmp_path: Path) -> None:
    entry = open_log(write_log(kind, tmp_path / "log", answers(1))).entry(answers(1)[0].key)
    with pytest.raises(NotFoundError) as caught:
        entry.torch("blocks.7.hook_resid_post")
    assert caught.value.kind == "point_not_stored"
    assert tuple(entry.torch("hook_embed", "last").shape) == (1, 4)
    with pytest.raises(InvalidInputError) as wrong:
        entry.torch("hook_embed", "first")
    assert wrong.value.kind == "unknown_position"


def test_a_damaged_entry_is_left_out_and_named(tmp_path: Path) -> None:
    logged = answers(3)
    log = write_log("old lmdb", tmp_path / "log", logged)
    write(tmp_path / "log_metadata", {logged[1].key: b"\x80\x04no pickle"})
    inference = write_inference(tmp_path / "rows", logged)
    parser = ActivationParser(inference, write_evaluation(tmp_path / "eval", halves(3)), log)
    assert (parser.report.matched, parser.report.used) == (3, 2)
    assert [damage["key"] for damage in parser.report.damaged] == [logged[1].key]


def test_a_log_that_is_written_to_meanwhile_ends_the_join(tmp_path: Path) -> None:
    """It is no damage of one entry after the other."""
    logged = answers(3)
    log = open_log(write_log("old lmdb", tmp_path / "log", logged))
    write(tmp_path / "log_metadata", {"other": {}})
    rows = FrameRows([{"prompt": answer.question, "halu": False} for answer in logged])
    with pytest.raises(LockedError) as caught:
        join(rows, lambda _, row: Labels(False, bool(row.fields["halu"])), log, None, "response")
    assert caught.value.kind == "locked"


class Gadget:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_h7_a_log_from_somebody_else_runs_nothing(tmp_path: Path) -> None:
    logged = answers(3)
    log = write_log("old lmdb", tmp_path / "log", logged)
    write(tmp_path / "log_metadata", {logged[0].key: {"prompt": Gadget(tmp_path / "ran")}})
    write(tmp_path / "log", {logged[1].key: {"data": Gadget(tmp_path / "ran"), "metadata": {}}})
    rows = [{"prompt": answer.question, "halu": False} for answer in logged]
    parser = ActivationParser(None, None, log, rows)
    assert [damage["kind"] for damage in parser.report.damaged] == ["untrusted_input"]
    with pytest.raises(UntrustedInputError) as caught:
        parser.get_activations(0)
    assert caught.value.kind == "untrusted_input"
    assert parser.get_activations(1)[1].key == logged[2].key
    assert not (tmp_path / "ran").exists()


def test_h22_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parser = parse(tmp_path, answers(4), "old lmdb")
    assert len(list(parser.get_dataset("all", [0, 1]))) == 4
    assert capfd.readouterr() == ("", "")


def test_arrays_of_the_first_eras_are_no_layers(tmp_path: Path) -> None:
    key = key_of("user: old?")
    write(tmp_path / "log", {key: {"prompt": "user: old?", "response": "r", "activations": np.ones((2, 3))}})
    parser = ActivationParser(None, None, tmp_path / "log", [{"prompt": "old?", "halu": True}])
    assert len(parser) == 1
    with pytest.raises(NotFoundError, match="is of era `V0`, whose arrays are not layers") as caught:
        parser.get_activations(0)
    assert caught.value.kind == "point_not_stored"


def test_the_template_of_document_003_joins(tmp_path: Path) -> None:
    parser = parse(tmp_path, answers(3, ONE_SENTENCE), "old lmdb")
    assert parser.report.template == ONE_SENTENCE
