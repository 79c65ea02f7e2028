"""The snippet of document 000 that reads a log with the parser; its import changed, nothing else."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import actstore
from actstore.data import collate
from answered import Answer, answers, halves, write_evaluation, write_inference, write_log

SNIPPET = """
from actstore.legacy import ActivationParser

# Use with JSON logger
parser = ActivationParser(
    inference_json="inference.jsonl",
    eval_json="eval.json",
    activations_path="json_data/activations",
    logger_type="json"
)

# Get dataset (same API as LMDB)
dataset = parser.get_dataset("train")
"""

LAYERS = 32


def deep(count: int) -> list[Answer]:
    """Answers of a model with as many layers as the default ones need."""
    made = answers(count)
    return [
        replace(answer, states=[answer.states[0] + np.float16(layer) for layer in range(LAYERS + 1)]) for answer in made
    ]


def write_deep(kind: str, path: Path, logged: list[Answer]) -> None:
    if kind != "json":
        write_log(kind, path, logged)
        return
    with actstore.create(path, "json") as store:
        for answer in logged:
            rows = answer.states[0].shape[1]
            store.put(
                prompt=answer.fields["prompt"],
                response=answer.fields["response"],
                token_ids=range(rows),
                prompt_length=3,
                activations={layer: answer.states[layer + 1][0] for layer in range(LAYERS)},
            )


@pytest.mark.parametrize("kind", ["json v1", "json v2", "json v3", "json", "old lmdb"])
def test_the_parser_of_the_document(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logged = deep(10)
    Path("json_data").mkdir()
    write_deep(kind, Path("json_data/activations"), logged)
    write_inference(Path("inference.jsonl"), logged)
    write_evaluation(Path("eval.json"), halves(10))
    namespace: dict[str, Any] = {}
    text = SNIPPET.replace('"json"\n', '"lmdb"\n') if kind == "old lmdb" else SNIPPET
    exec(compile(text, sys.argv[0], "exec"), namespace)
    dataset = namespace["dataset"]
    assert len(dataset) == 8
    item = dataset[0]
    answer = next(answer for answer in logged if answer.key == item["hashkey"])
    assert len(item["all_activations"]) == 14
    rows = len(answer.response_states[0])
    for layer, state in zip(range(16, 30), item["all_activations"], strict=True):
        assert np.array_equal(state[0, :rows].numpy(), answer.states[layer][0, 3:])
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=collate))
    assert [batch["layer1_activations"].shape for batch in batches] == [(4, 1, 63, 4)] * 2
