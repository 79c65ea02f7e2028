"""The commands and the snippet of document 003, their paths and the program's name changed, nothing else."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from answered import ONE_SENTENCE, answers, read_lines, write_lines, write_log
from processes import run_python

QUESTION = "What is the name of the actress who played the role of Sarah Packard?"
ROW = {
    "index": 0,
    "title": "Example Article",
    "h_score_cat": 8,
    "pageid": 12345,
    "revid": 67890,
    "description": "Example description",
    "categories": ["Category1", "Category2"],
    "reference": "Example reference text...",
    "prompt": QUESTION,
    "answer": "Sarah Jessica Parker",
}

BASIC = r"""
actstore-cli reconstruct \
    --qa_output_path qa_data.jsonl \
    --lmdb_path activations.lmdb \
    --output_path reconstructed_inference.jsonl
"""
EXAMPLE = r"""
actstore-cli reconstruct \
    --qa_output_path data/precise_qa/save/qa_goodwiki_Llama-3.1-8B-Instruct_dynamic.jsonl \
    --lmdb_path lmdb_data/precise_wikiqa_activations.lmdb \
    --output_path output/precise_wikiqa_goodwiki_dynamic/Llama-3.1-8B-Instruct/reconstructed_generation.jsonl \
    --verbose
"""
DEBUGGING = r"""
actstore-cli reconstruct \
    --qa_output_path qa_data.jsonl \
    --lmdb_path activations.lmdb \
    --output_path output.jsonl \
    --verbose
"""


def command(text: str) -> dict[str, str]:
    """The options of a command, `--verbose` too."""
    words = shlex.split(text.replace("\\\n", " "))
    assert words[:2] == ["actstore-cli", "reconstruct"]
    options = dict(zip(words[2::2], words[3::2], strict=False))
    return options | ({"--verbose": ""} if words[-1] == "--verbose" else {})


@pytest.mark.parametrize("kind", ["old lmdb", "lmdb", "shards"])
@pytest.mark.parametrize("text", [BASIC, EXAMPLE, DEBUGGING], ids=["basic", "example", "debugging"])
def test_the_commands(text: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = command(text)
    logged = answers(3, ONE_SENTENCE)
    log = Path(options["--lmdb_path"])
    log.parent.mkdir(parents=True, exist_ok=True)
    write_log(kind, log, logged)
    write_lines(Path(options["--qa_output_path"]), [{**ROW, "prompt": answer.question} for answer in logged])
    script = "import sys; from actstore.cli import main; sys.argv = ['actstore-cli', *sys.argv[1:]]; main()"
    printed = run_python(script, "--quiet", *shlex.split(text.replace("\\\n", " "))[1:]).splitlines()
    rows = read_lines(Path(options["--output_path"]))
    assert [row["generation"] for row in rows] == [answer.fields["response"] for answer in logged]
    assert all(list(row)[: len(ROW)] == list(ROW) for row in rows)
    assert printed[-1].startswith(f"3 of 3 rows written to `{options['--output_path']}`")
    assert printed[-1].endswith("skipped: 0 without an entry, 0 corrupted")
    assert len(printed) == (6 if "--verbose" in options else 1)


class PreciseQAEval:
    """What the document's evaluation needs of the file."""

    def __init__(self, model_path: str, TASKNAME: str, generations_file_path: str) -> None:  # noqa: N803
        self.model_path = model_path
        self.task = TASKNAME
        self.rows = read_lines(Path(generations_file_path))

    def run_eval(self) -> None:
        needed = ("prompt", "answer", "generation", "model")
        self.judged = [row["generation"] == row["answer"] for row in self.rows if all(name in row for name in needed)]


SNIPPET = """
# Use the reconstructed file for evaluation
eval = PreciseQAEval(
    model_path="meta-llama/Llama-3.1-8B-Instruct",
    TASKNAME="precise_wikiqa_goodwiki_dynamic",
    generations_file_path="output/reconstructed_inference.jsonl"
)
eval.run_eval()
"""


def test_the_example_entry_and_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import actstore
    from actstore.pipelines import reconstruct_inference

    monkeypatch.chdir(tmp_path)
    with actstore.create("log") as store, store.writer() as writer:
        writer.put(
            prompt=f"user: Answer in one sentence. Q:{QUESTION}\n A:",
            response="Sarah Jessica Parker played the role of Sarah Packard.",
            activations={},
            metadata={"model": "meta-llama/Llama-3.1-8B-Instruct", "input_length": 15},
            created=1703123456.789,
        )
    write_lines(Path("qa"), [ROW])
    reconstruct_inference("qa", "log", "output/reconstructed_inference.jsonl", False)
    (row,) = read_lines(Path("output/reconstructed_inference.jsonl"))
    del row["activation_key"]
    expected = {
        **ROW,
        "generation": "Sarah Jessica Parker played the role of Sarah Packard.",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "input_length": 15,
        "timestamp": 1703123456.789,
    }
    assert json.dumps(row) == json.dumps(expected)
    namespace: dict[str, Any] = {"PreciseQAEval": PreciseQAEval}
    exec(compile(SNIPPET, sys.argv[0], "exec"), namespace)
    assert namespace["eval"].judged == [False]
