"""Document 004, loading arrays and metadata: its snippets, with only paths changed, on what is exported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actstore
from actstore.formats import export_store, import_store
from old_trees import question, write_pass, write_run

QUESTIONS, TOKENS, WIDTH = 43, 3, 4


def rows(layer: int) -> np.ndarray:
    return np.random.default_rng(layer).standard_normal((QUESTIONS, TOKENS, WIDTH)).astype(np.float16)


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """The tree of the document, brought into a store and out of it again."""
    (tmp_path / "old").mkdir()
    write_run(tmp_path / "old", QUESTIONS)
    for name in ("mcq", "self_conf"):
        write_pass(tmp_path / "old" / name, QUESTIONS)
        for layer in (0, 15):
            np.save(tmp_path / "old" / name / f"activations_layer_{layer:02d}.npy", rows(layer))
    records: list[dict[str, Any]] = [
        {**question(n), "parsed_answer": "A", "is_correct": True} for n in range(QUESTIONS)
    ]
    (tmp_path / "old" / "mcq" / "metadata.json").write_text(json.dumps(records, indent=2))
    with actstore.create(backend="memory") as store:
        import_store(tmp_path / "old", store, verify=True)
        export_store(store, tmp_path / "output_dir", "npy-layers", verify=True)
    return tmp_path / "output_dir"


def test_activation_arrays(output_dir: Path) -> None:
    # Load layer 15 activations for MCQ pass
    acts = np.load(output_dir / "mcq/activations_layer_15.npy")
    # Shape: [num_questions, seq_length, 4096]
    # dtype: float16
    assert (acts.shape, acts.dtype) == ((QUESTIONS, TOKENS, WIDTH), np.float16)

    # Access question 42's activations at layer 15
    question_42_acts = acts[42]  # [seq_length, 4096]
    assert question_42_acts.tobytes() == rows(15)[42].tobytes()

    # Access final token activation for question 42
    final_token_act = acts[42, -1]  # [4096]
    assert final_token_act.tobytes() == rows(15)[42, -1].tobytes()


def test_metadata_json(output_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(output_dir / "mcq/metadata.json") as f:  # noqa: PTH123
        metadata = json.load(f)

    # Access question 42's metadata
    q42 = metadata[42]
    print(q42["question_text"])
    print(q42["parsed_answer"])
    print(q42["is_correct"])
    print(q42["entropy"])
    assert capsys.readouterr().out.splitlines() == ["Question 42?", "A", "True", "0.5"]


def test_sizes_match(output_dir: Path) -> None:
    assert np.load(output_dir / "mcq/activations_layer_00.npy").shape == (QUESTIONS, TOKENS, WIDTH)
