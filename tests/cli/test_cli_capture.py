"""`capture`: from a file of prompts to a store; again, with other settings, and interrupted."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from typer.testing import Result

import actstore
from actstore.cli.models import LoadedModel, read_batch
from actstore.sizes import format_bytes

Run = Callable[..., Result]
QUICK = ("--max-new-tokens", 4, "--points", "embed,resid_post", "--layers", "first_half")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("What colour is grass?\n\nWhat colour is snow?\nHow many legs has a cat?\n", encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_text_file(run: Run, prompts: Path, tmp_path: Path) -> None:
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "3 prompts to answer, at most" in result.stdout
    assert "before compression" in result.stdout
    assert "3 entries are stored" in result.stdout
    assert "3/3 prompts" in result.stderr
    with actstore.open(tmp_path / "out") as store:
        assert store.keys() == [actstore.key_of_prompt(line) for line in prompts.read_text().split("\n") if line]
        entry = store[actstore.key_of_prompt("What colour is snow?")]
        assert (entry.prompt, entry.key_recipe) == ("What colour is snow?", "prompt")
        assert entry.metadata["row"] == 2
        assert (entry.metadata["model"], entry.metadata["dataset"]) == ("demo", None)
        assert entry.metadata["run"]["max_new_tokens"] == 4
        assert entry.points[0] == "hook_embed"
        assert "resid_post.0" in entry
        assert entry.token_ids is not None
        assert len(entry.token_ids) - len(entry["embed"]) == 1
        assert store.verify()["damage"] == []


def test_a_repeated_run_skips_what_is_stored(run: Run, prompts: Path, tmp_path: Path) -> None:
    assert run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK, "--limit", 2).exit_code == 0
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK, "--batch-size", 1)
    assert result.exit_code == 0, result.stderr
    assert "skipping 2 already stored" in result.stdout
    assert "3/3 prompts" in result.stderr
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK)
    assert "skipping 3 already stored" in result.stdout
    assert "3 entries are stored" in result.stdout
    assert "before compression" not in result.stdout
    with actstore.open(tmp_path / "out") as store:
        assert len(store) == 3


def test_a_run_with_other_settings_is_refused(run: Run, prompts: Path, tmp_path: Path) -> None:
    assert run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK).exit_code == 0
    other = (*QUICK[:-1], "all", "--max-new-tokens", 5)
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *other)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: entry `{actstore.key_of_prompt('What colour is grass?')}` was captured")
    assert "`layers` was `first_half`, now `all`, `max_new_tokens` was `4`, now `5`" in result.stderr
    with actstore.open(tmp_path / "out") as store:
        assert len(store) == 3


def test_the_same_key_with_another_text_is_refused(run: Run, prompts: Path, tmp_path: Path) -> None:
    named = (*QUICK, "--dataset", "trivia", "--split", "dev")
    assert run("capture", "demo", prompts, "--store", tmp_path / "out", *named).exit_code == 0
    with actstore.open(tmp_path / "out") as store:
        assert store.keys() == ["trivia:dev:0", "trivia:dev:2", "trivia:dev:3"]
        entry = store["trivia:dev:2"]
        assert (entry.metadata["dataset"], entry.metadata["split"], entry.metadata["row"]) == ("trivia", "dev", 2)
    prompts.write_text("What colour is grass?\n\nWhat colour is coal?\n", encoding="utf-8")
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *named)
    assert result.exit_code == 1
    assert "entry `trivia:dev:2` was captured from another text than line 3 has now" in result.stderr


def test_keys_that_somebody_else_stored_are_refused(run: Run, prompts: Path, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "out") as store:
        store.put(prompt="What colour is grass?", activations={"embed": torch.ones(1, 2)})
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK)
    assert result.exit_code == 1
    assert "was not stored by `capture`; repeat that run or choose another store" in result.stderr


def test_json_lines_keep_their_fields(run: Run, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", [{"prompt": "What is ice?", "id": 7, "tags": ["a"]}, {"prompt": "Why?"}])
    result = run("capture", "demo", rows, "--store", tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.stderr
    with actstore.open(tmp_path / "out") as store:
        assert store.search(id=7) == [actstore.key_of_prompt("What is ice?")]
        assert store[store.keys()[0]].metadata["tags"] == ["a"]


@pytest.mark.parametrize("side", [None, "left"])
def test_prompts_with_responses_are_read_in_one_forward(side: str | None, run: Run, tmp_path: Path) -> None:
    pairs = [{"prompt": "What colour is grass?", "response": " green"}, {"prompt": "Sky?", "response": " blue as ice"}]
    options = () if side is None else ("--padding-side", side)
    rows = write_rows(tmp_path / "in.jsonl", pairs)
    result = run("capture", "demo", rows, "--store", tmp_path / "out", "--points", "resid_post,logits", *options)
    assert result.exit_code == 0, result.stderr
    model, tokenizer = actstore.demo.load()
    with actstore.open(tmp_path / "out") as store:
        for pair in pairs:
            entry = store[actstore.key_of_prompt(pair["prompt"])]
            prompt = tokenizer(pair["prompt"])["input_ids"]
            response = tokenizer(pair["response"], add_special_tokens=False)["input_ids"]
            assert entry.token_ids == prompt + response
            assert entry.prompt_length == len(prompt)
            assert entry.positions == list(range(len(prompt + response)))
            assert entry.torch("resid_post.0", "response").shape[0] == len(response)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
            stored = entry["logits"].float()
            assert (stored - logits.float()).abs().max() < 0.05 * logits.float().abs().max()


@pytest.mark.parametrize("positions", ["all", "last"])
def test_i10_the_estimate_is_what_is_stored(positions: str, run: Run, tmp_path: Path) -> None:
    """Of all tokens of all layers, or of one token of each row: the two are not taken for each other."""
    pairs = [{"prompt": f"What is {number}?", "response": " I do not know." * number} for number in range(1, 9)]
    rows = write_rows(tmp_path / "in.jsonl", pairs)
    result = run("capture", "demo", rows, "--store", tmp_path / "out", "--positions", positions)
    assert result.exit_code == 0, result.stderr
    with actstore.open(tmp_path / "out") as store:
        kept = store.info()["raw_bytes"]
    assert f": {format_bytes(kept)} before compression" in result.stdout


def test_only_the_prompt_gets_special_tokens() -> None:
    model, tokenizer = actstore.demo.load()
    begin = tokenizer.convert_tokens_to_ids("<|begin|>")
    processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    cast("Any", tokenizer).backend_tokenizer.post_processor = processor
    batch, prompt_lengths = read_batch(LoadedModel(model, tokenizer, "demo", None), ["a", "a b"], ["c", "d"])
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert [row.count(begin) for row in rows] == [1, 1]
    assert prompt_lengths == [len(row) - 1 for row in rows]
    places = zip(batch["position_ids"], batch["attention_mask"], strict=True)
    assert [ids[mask.bool()].tolist() for ids, mask in places] == [list(range(len(row))) for row in rows]


def test_equal_prompts_count_once(run: Run, prompts: Path, tmp_path: Path) -> None:
    prompts.write_text("Why?\nWhy?\n", encoding="utf-8")
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK)
    assert "1 entry is stored" in result.stdout
    rows = [{"prompt": "Why?", "response": "so"}, {"prompt": "Why?", "response": "because"}]
    result = run("capture", "demo", write_rows(tmp_path / "in.jsonl", rows), "--store", tmp_path / "other")
    assert result.exit_code == 1
    assert "lines 1 and 2 have the same prompt and other responses" in result.stderr


@pytest.mark.parametrize("option", ["backend", "codec", "dtype"])
def test_a_store_keeps_its_settings(option: str, run: Run, prompts: Path, tmp_path: Path) -> None:
    actstore.create(tmp_path / "out", codec="zstd").close()
    wanted = {"backend": "json", "codec": "raw", "dtype": "float16"}[option]
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK, f"--{option}", wanted)
    assert result.exit_code == 1
    was = {"backend": "shards", "codec": "zstd", "dtype": "none"}[option]
    assert f"`{option}` is `{wanted}`, but the store `{tmp_path / 'out'}` was created with `{was}`" in result.stderr
    assert run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK, "--codec", "zstd").exit_code == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("in.txt", "", "has no prompts"),
        ("in.txt", "\n \n", "has no prompts"),
        ("in.csv", "a,b", "is no input; give a `.txt` file with a prompt a line, or a `.jsonl` file"),
        ("in.jsonl", '{"prompt": "a"\n', "line 1 is not JSON"),
        ("in.jsonl", '{"prompt": "a"}\n[1]\n', "line 2 is no JSON object"),
        (
            "in.jsonl",
            '{"text": "a"}\n',
            "line 1 needs a `prompt`, and a `response` if any, that are strings; its fields: `text`",
        ),
        ("in.jsonl", '{"prompt": "a", "response": 5}\n', "line 1 needs a `prompt`"),
        (
            "in.jsonl",
            '{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": ""}\n',
            "line 2 has an empty `response`, so that its last token would be the prompt's; leave the row out",
        ),
        ("in.jsonl", '{"prompt": "a", "response": "\\ud800"}\n', "line 1 has a `response` that is not valid Unicode"),
        ("in.jsonl", '{"prompt": "a", "run": 5}\n', "line 1 has the field `run`, which `capture` writes itself"),
        (
            "in.jsonl",
            '{"prompt": "a", "response": "b"}\n{"prompt": "c"}\n',
            "line 2: either every row has a `response`",
        ),
    ],
)
def test_inputs_that_are_none(name: str, text: str, message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    result = run("capture", "demo", tmp_path / name, "--store", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("in.txt", "Why?\n", "has prompts alone and no field `EM`; give a `.jsonl` file"),
        (
            "in.jsonl",
            '{"prompt": "a", "response": "b"}\n',
            "line 1 needs `prompt` and `EM` that are strings; its fields: `prompt`, `response`",
        ),
        ("in.jsonl", '{"prompt": "a", "EM": ""}\n', "line 1 has an empty `EM`"),
    ],
)
def test_inputs_without_the_field_of_responses(name: str, text: str, message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    result = run("capture", "demo", tmp_path / name, "--store", tmp_path / "out", "--response-field", "EM")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_other_bad_input(run: Run, prompts: Path, tmp_path: Path) -> None:
    out = ("--store", tmp_path / "out")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "is not UTF-8" in run("capture", "demo", tmp_path / "latin.txt", *out).stderr
    missing = run("capture", "demo", tmp_path / "missing.txt", *out)
    assert missing.stderr == f"error: cannot read `{tmp_path / 'missing.txt'}`: No such file or directory\n"
    assert run("capture", "demo", prompts, *out, "--dataset", "d").exit_code == 2
    assert run("capture", "demo", prompts).exit_code == 2
    assert run("capture", "demo", prompts, *out, "--limit", 0).exit_code == 2
    result = run("capture", str(tmp_path / "no model"), prompts, *out)
    assert (result.exit_code, result.stderr[:7]) == (1, "error: ")
    assert not (tmp_path / "out").exists()
    for options, message in (
        (("--layers", "40"), "layer `40` does not exist"),
        (("--points", "resid_post,nowhere"), "hook point `nowhere` does not exist"),
        (("--positions", "middle"), "middle"),
        (("--codec", "gzip"), "gzip"),
    ):
        result = run("capture", "demo", prompts, *out, *options)
        assert result.exit_code == 1
        assert message in result.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("responses", [False, True])
def test_a_row_beyond_the_context_is_named_before_anything_is_captured(
    responses: bool, run: Run, tmp_path: Path
) -> None:
    long = "many words " * 2000
    rows = [{"prompt": "Why?", "response": "So."}, {"prompt": "Why not?", "response": long}]
    if not responses:
        rows = [{"prompt": "Why?"}, {"prompt": long}]
    place = write_rows(tmp_path / "in.jsonl", rows)
    assert run("capture", "demo", place, "--store", tmp_path / "out", *QUICK, "--limit", 1).exit_code == 0
    write_rows(place, [rows[0], {**rows[0], "prompt": "How?"}, rows[1]])
    result = run("capture", "demo", place, "--store", tmp_path / "out", *QUICK, "--batch-size", 1)
    assert result.exit_code == 1
    (message,) = result.stderr.splitlines()
    assert message.startswith(f"error: `{place}` line 3 has ")
    assert message.endswith(" tokens, more than the 256 of the model's context; shorten the row or leave it out")
    with actstore.open(tmp_path / "out") as store:
        assert store.keys() == [actstore.key_of_prompt("Why?")]
        assert store.verify()["damage"] == []


def test_a_prompt_without_tokens_is_named(run: Run, tmp_path: Path) -> None:
    place = write_rows(tmp_path / "in.jsonl", [{"prompt": "Why?"}, {"prompt": ""}])
    result = run("capture", "demo", place, "--store", tmp_path / "out", *QUICK)
    assert result.exit_code == 1
    assert f"error: `{place}` line 2: the prompt '' has no tokens; leave the row out" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_last_line_of_progress_counts_everything(run: Run, prompts: Path, tmp_path: Path) -> None:
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *QUICK)
    with actstore.open(tmp_path / "out") as store:
        info = store.info()
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"3/3 prompts  {info['tokens']:,} tok  ")
    assert f"  {info['stored_bytes'] / 1000:.1f} kB written  " in last


def test_responses_may_lie_in_fields_of_other_names(run: Run, tmp_path: Path) -> None:
    """A file of pairs, as document 002's data sets have it, is captured split by split."""
    place = write_rows(tmp_path / "in.jsonl", [{"prompt": "What colour is grass?", "Neutral": " Green", "EM": " Red"}])
    for split in ("EM", "Neutral"):
        named = ("--dataset", "SP", "--split", split, "--response-field", split, "--positions", "last")
        result = run("capture", "demo", place, "--store", tmp_path / "out", *named)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith("1 prompt with its response, at most 1 row at 4 hook points: ")
    _, tokenizer = actstore.demo.load()
    with actstore.open(tmp_path / "out") as store:
        entry = store["SP:EM:0"]
        assert (entry.response, entry.metadata["Neutral"], store["SP:Neutral:0"].response) == (
            " Red",
            " Green",
            " Green",
        )
        assert entry.token_ids is not None
        assert entry.positions == [len(entry.token_ids) - 1]
        assert cast("Any", tokenizer).decode(entry.token_ids).endswith(" Red")


def test_a_field_called_as_the_split_is_not_passed_over(run: Run, tmp_path: Path) -> None:
    place = write_rows(tmp_path / "in.jsonl", [{"prompt": "What colour is grass?", "Neutral": " Green", "EM": " Red"}])
    result = run("capture", "demo", place, "--store", tmp_path / "out", "--dataset", "SP", "--split", "EM")
    assert result.exit_code == 1
    assert f"`{place}` line 1 has no `response`, but a field `EM`, as the split is called" in result.stderr
    assert "read it with `--response-field EM`" in result.stderr
    result = run("capture", "demo", place, "--store", tmp_path / "out", *QUICK, "--dataset", "SP", "--split", "dev")
    assert result.stdout.startswith("1 prompt to answer, "), result.stderr


def test_i3_ctrl_c_leaves_a_store_to_continue(tmp_path: Path, run: Run) -> None:
    prompts = tmp_path / "in.txt"
    prompts.write_text("".join(f"What is {number} and one?\n" for number in range(120)), encoding="utf-8")
    arguments = ["capture", "demo", str(prompts), "--store", str(tmp_path / "out"), "--max-new-tokens", "8"]
    command = [sys.executable, "-m", "actstore", *arguments, "--batch-size", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # The first line of progress: the capture is under way.
    first = process.stderr.readline()
    assert "/120 prompts" in first, first + process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    with actstore.open(tmp_path / "out") as store:
        count = len(store)
        assert 0 < count < 120
        assert store.verify()["damage"] == []
    assert errors.splitlines()[-1] == f"stopped at {count}/120; run the same command again to continue"
    result = run(*arguments, "--batch-size", 50)
    assert result.exit_code == 0, result.stderr
    assert f"skipping {count} already stored" in result.stdout
    with actstore.open(tmp_path / "out") as store:
        assert len(store) == 120


@pytest.mark.parametrize(("backend", "option", "codec"), [("lmdb", "codec", "raw"), ("json", "encoding", "base64")])
def test_a_store_of_another_backend(
    run: Run, prompts: Path, tmp_path: Path, backend: str, option: str, codec: str
) -> None:
    options = (*QUICK, "--backend", backend, f"--{option}", codec)
    for _ in range(2):
        assert run("capture", "demo", prompts, "--store", tmp_path / "out", *options).exit_code == 0
    with actstore.open(tmp_path / "out") as store:
        assert (store.backend, store.settings[option], len(store)) == (backend, codec, 3)


def test_an_archive_and_its_key_layers(run: Run, prompts: Path, tmp_path: Path) -> None:
    every = ("--points", "embed,resid_post", "--max-new-tokens", 16, "--codec", "archive", "--key-distance", 3)
    result = run("capture", "demo", prompts, "--store", tmp_path / "out", *every)
    assert result.exit_code == 0, result.stderr
    shown = run("info", tmp_path / "out").stdout
    assert "archive, a key layer every 3, dtype as captured" in shown
    refused = run("capture", "demo", prompts, "--store", tmp_path / "out", "--codec", "archive", "--key-distance", 4)
    assert refused.exit_code != 0
    assert "`key_distance` is `4`, but the store" in refused.stderr
    target = tmp_path / "migrated"
    options = ("--source", tmp_path / "out", "--target", target, "--codec", "archive", "--key-distance", 5, "--verify")
    migrated = run("migrate", "shards", "lmdb", *options)
    assert migrated.exit_code == 0, migrated.stderr
    assert ", 3 verified" in migrated.stdout
    assert "a key layer every 5" in run("info", target).stdout
