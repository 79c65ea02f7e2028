"""Questions that a model answered while its hidden states were logged, in every kind of log there is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import actstore
from old_logs import write
from old_trees import LAYERS, hidden_states, key_of, record, write_v1, write_v2, write_v3

STORES = ("shards", "lmdb", "json")
OLD_LOGS = ("old lmdb", "json v1", "json v2", "json v3")
KINDS = (*STORES, *OLD_LOGS)

ONE_SENTENCE = "user: Answer in one sentence. Q:{prompt}\n A:"
"""The template of document 003, which the parser of document 000 did not know."""
POINTS = ("embed", *(f"resid_post.{layer}" for layer in range(LAYERS - 1)), "final_norm")
"""What the hidden states of the logs are."""
LENGTH = 3
"""Tokens of each prompt."""


@dataclass(frozen=True)
class Answer:
    """One question, what was fed for it, and its hidden states, `[1, rows, 4]` each, in the mode of its log."""

    question: str
    key: str
    fields: dict[str, Any]
    states: list[np.ndarray]

    @property
    def response_states(self) -> list[np.ndarray]:
        """Of each hidden state, the rows of the response."""
        mode = self.fields["logging_config"]["sequence_mode"]
        return [state[0, LENGTH if mode == "all" else 0 :] for state in self.states]


def answers(count: int, template: str = "user: {prompt}", mode: str = "all", rows: int = 4) -> list[Answer]:
    """Answers of different lengths: the i-th has `rows + i` tokens, less the last."""
    made: list[Answer] = []
    for number in range(count):
        question = f"what is {number}?"
        fed = template.replace("{prompt}", question)
        fields = record(fed, length=LENGTH, mode=mode, more={"messages": [{"role": "user", "content": question}]})
        size = {"all": LENGTH + rows + number, "prompt": LENGTH, "response": rows + number}[mode]
        made.append(Answer(question, key_of(fed), fields, hidden_states(number, size)))
    return made


def write_log(kind: str, path: Path, logged: Sequence[Answer], *, metadata: bool = True) -> Path:
    """The answers in a log of `kind`; `metadata`: whether an old LMDB log has its second environment."""
    if kind in STORES:
        _write_store(kind, path, logged)
    elif kind == "old lmdb":
        _write_lmdb(path, logged, metadata=metadata)
    else:
        writers = {"json v1": write_v1, "json v2": write_v2, "json v3": write_v3}
        writers[kind](path, {answer.key: (answer.fields, answer.states) for answer in logged})
    return path


def _write_store(backend: str, path: Path, logged: Sequence[Answer]) -> None:
    with actstore.create(path, backend) as store, store.writer() as writer:
        for answer in logged:
            first = {"all": 0, "prompt": 0, "response": LENGTH}[answer.fields["logging_config"]["sequence_mode"]]
            rows = answer.states[0].shape[1]
            writer.put(
                prompt=answer.fields["prompt"],
                response=answer.fields["response"],
                token_ids=range(first + rows),
                prompt_length=LENGTH,
                positions=[(first, first + rows)],
                # A hook sees the last layer before the norm too, which is no hidden state.
                activations={
                    **{point: state[0] for point, state in zip(POINTS, answer.states, strict=True)},
                    f"resid_post.{LAYERS - 1}": answer.states[-1][0] * 2,
                },
                metadata={"model": answer.fields["model"], "messages": answer.fields["messages"]},
                created=answer.fields["timestamp"],
            )


def _write_lmdb(path: Path, logged: Sequence[Answer], *, metadata: bool) -> None:
    named = ("prompt", "response", "input_length", "model", "messages", "trim_position")
    values, said = dict[str, object](), dict[str, object]()
    for answer in logged:
        fields = {name: answer.fields[name] for name in named}
        tensors = [torch.from_numpy(state) for state in answer.states]
        values[answer.key] = {
            "data": {**fields, "all_layers_activations": tensors},
            "metadata": {"compression": "none"},
        }
        more = {name: answer.fields[name] for name in ("logging_config", "timestamp", "has_activations")}
        said[answer.key] = {**fields, **more, "compression_metadata": {"compression": "none"}}
    write(path, values)
    if metadata:
        write(path.with_name(f"{path.name}_metadata"), said)


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_inference(path: Path, logged: Sequence[Answer], **more: Any) -> Path:
    """What the client kept: the prompts as it sent them, without the role."""
    return write_lines(
        path, [{"prompt": answer.question, "generation": answer.fields["response"], **more} for answer in logged]
    )


def write_evaluation(path: Path, halu: Sequence[bool], abstained: Sequence[bool] | None = None) -> Path:
    none = [False] * len(halu)
    path.write_text(json.dumps({"model": "m", "abstantion": list(abstained or none), "halu_test_res": list(halu)}))
    return path


def halves(count: int) -> list[bool]:
    """Every second answer was hallucinated."""
    return [number % 2 == 1 for number in range(count)]
