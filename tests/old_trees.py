"""Trees of the older systems, written from the record of their bytes with plain `json`, NumPy and torch."""

import gzip
import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

LAYERS = 3
"""Blocks of the model that the logs are of: four hidden states."""


def key_of(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def hidden_states(seed: int, rows: int, width: int = 4, dtype: str = "float16") -> list[np.ndarray]:
    """Hidden states `[1, rows, width]`: embedding, blocks, and the last after the final norm."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((1, rows, width)).astype(dtype) for _ in range(LAYERS + 1)]


def tensor(array: np.ndarray) -> dict[str, Any]:
    return {
        "_type": "torch.Tensor",
        "data": array.tolist(),
        "shape": list(array.shape),
        "dtype": f"torch.{array.dtype.name}",
    }


def config(mode: str = "all", layers: str = "all") -> dict[str, str]:
    return {"target_layers": layers, "sequence_mode": mode}


def record(prompt: str, *, length: int = 3, mode: str = "all", more: dict[str, Any] | None = None) -> dict[str, Any]:
    """What every version's record has, in its order: the entry as it was passed, then what the logger adds."""
    return {
        "prompt": prompt,
        "response": f"answer to {prompt}",
        "input_length": length,
        "model": "test-model",
        "trim_position": None,
        **(more or {}),
        "logging_config": config(mode),
        "has_activations": True,
        "timestamp": 1700000000.25,
    }


def _ordered(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    timestamp = fields["timestamp"]
    rest = {name: value for name, value in fields.items() if name != "timestamp"}
    return {**rest, **more, "timestamp": timestamp}


def write_v1(root: Path, entries: Mapping[str, tuple[dict[str, Any], Sequence[np.ndarray | None]]]) -> None:
    (root / "activations").mkdir(parents=True)
    records: dict[str, Any] = {}
    for key, (fields, states) in entries.items():
        name = f"activations/{key}.json"
        listed = [None if state is None else tensor(state) for state in states]
        (root / name).write_text(json.dumps({"all_layers_activations": listed}, indent=2))
        records[key] = _ordered(fields, activation_file=name)
    index = {"logger_config": {**config(), "version": "1.0"}, "entries": records}
    (root / "metadata.json").write_text(json.dumps(index, indent=2))


def write_v2(root: Path, entries: Mapping[str, tuple[dict[str, Any], Sequence[np.ndarray]]]) -> None:
    (root / "activations").mkdir(parents=True)
    records: dict[str, Any] = {}
    for key, (fields, states) in entries.items():
        name = f"activations/{key}.npy"
        np.save(root / name, np.array(states))
        info = [{"shape": list(state.shape), "dtype": state.dtype.name} for state in states]
        records[key] = _ordered(fields, activation_file=name, activation_shape_info=info)
    index = {"logger_config": {**config(), "version": "2.0", "storage_format": "npy"}, "entries": records}
    (root / "metadata.json").write_text(json.dumps(index, indent=2))


def write_v3(root: Path, entries: Mapping[str, tuple[dict[str, Any], Sequence[np.ndarray]]]) -> None:
    (root / "activations").mkdir(parents=True, exist_ok=True)
    with (root / "metadata.jsonl").open("a") as lines:
        for key, (fields, states) in entries.items():
            np.save(root / "activations" / f"{key}.npy", np.array(states))
            info = [{"shape": list(state.shape), "dtype": state.dtype.name} for state in states]
            sidecar = _ordered(fields, activation_shape_info=info)
            (root / "activations" / f"{key}.json").write_text(json.dumps(sidecar))
            line = {"key": key, "prompt": fields["prompt"], "has_activations": True, "timestamp": fields["timestamp"]}
            lines.write(json.dumps(line) + "\n")


def some_entries(count: int = 3) -> dict[str, tuple[dict[str, Any], list[np.ndarray]]]:
    prompts = [f"question {number}?" for number in range(count)]
    return {key_of(prompt): (record(prompt), hidden_states(seed, rows=5 + seed)) for seed, prompt in enumerate(prompts)}


SETTINGS = {
    "model_name": "unsloth/Test-1B",
    "dataset_name": "SP_test",
    "load_in_4bit": False,
    "split": "EM",
    "total_examples": 10,
    "shard_size": 4,
    "batch_size": 2,
    "hidden_dim": 3,
    "num_layers": 2,
}
"""`metadata.json` of a split, in its order."""


def write_split(
    root: Path, shards: list[list[torch.Tensor]], settings: dict[str, Any] | None = None, split: str = "EM"
) -> Path:
    """`shards[layer][number]` below root; the directory of the split."""
    place = root / "unsloth_Test-1B" / "SP_test" / split
    for layer, tensors in enumerate(shards):
        folder = place / f"layer_{layer:02d}"
        folder.mkdir(parents=True)
        for number, one in enumerate(tensors):
            torch.save(one, folder / f"shard_{number:03d}.pt")
    if settings is not None:
        (place / "metadata.json").write_text(json.dumps(settings, indent=2))
    return place


def residuals(layer: int, rows: int, dtype: torch.dtype = torch.bfloat16, width: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(layer)
    return torch.randn(rows, width, generator=generator).to(dtype)


def question(number: int) -> dict[str, Any]:
    """A record of the MCQ pass, with some of its keys in their order."""
    return {
        "question_id": f"popmc_{number}",
        "question_text": f"Question {number}?",
        "options": {"A": "a", "B": "b", "C": "c", "D": "d"},
        "correct_answer_letter": "A",
        "model_name": "llama-3.1-8b-base",
        "prompt_type": "mcq",
        "prompt_text": f"prompt {number}",
        "output_text": "A",
        "logits": [1.5, -0.5, 0.25, 0.0],
        "entropy": 0.5,
        "answer_token_index": 4 + number,
    }


def write_pass(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps([question(number) for number in range(count)], indent=2))


def write_run(root: Path, count: int) -> dict[str, Any]:
    run = {"model_type": "base", "base_model_name": "meta-llama/Test", "lora_checkpoint": None, "num_questions": count}
    (root / "run_config.json").write_text(json.dumps(run, indent=2))
    return run


def captured(seed: int = 0, layers: tuple[int, ...] = (5, 10), tokens: int = 4) -> dict[str, Any]:
    """What document 001's client gave of one question."""
    random = np.random.default_rng(seed)
    shapes = {
        "hidden_states": (tokens, 6),
        "attention_weights": (2, tokens, tokens),
        "mlp_activations": (tokens, 8),
    }
    metadata = {
        "prompt": f"prompt {seed}",
        "response": f"answer {seed}",
        "model": "test-model",
        "capture_layers": list(layers),
        "prompt_length": 2,
        "response_length": 2,
    }
    return {
        "metadata": metadata,
        "layers": {
            f"layer_{layer}": {kind: random.standard_normal(shape).astype("f4") for kind, shape in shapes.items()}
            for layer in layers
        },
    }


def capture_record(question_id: str, file: str, response: str) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "question_data": {"id": question_id, "question": "Why?", "censored": False, "censorship_category": "none"},
        "response": response,
        "timestamp": "20250725_101112",
        "activation_file": f"activation_data/activations/{file}",
        "config": {
            "target_layers": [5, 10],
            "capture_attention_weights": True,
            "capture_hidden_states": True,
            "capture_mlp_activations": True,
            "model_name": "test-model",
        },
    }


def save_captured(path: Path, data: dict[str, Any], compression: bool = True) -> None:
    """As document 001's storage saved it, by the suffix of `path`."""
    if path.suffix == ".npz":
        text = np.array([json.dumps(data["metadata"])], dtype=object)
        arrays = {f"{layer}_{kind}": array for layer, kinds in data["layers"].items() for kind, array in kinds.items()}
        (np.savez_compressed if compression else np.savez)(path, metadata=text, **arrays)
    elif path.suffix == ".h5":
        import h5py  # pyright: ignore[reportMissingImports]

        options = {"compression": "gzip", "compression_opts": 9} if compression else {}
        with h5py.File(path, "w") as file:
            group = file.create_group("metadata")
            for name, value in data["metadata"].items():
                group.attrs[name] = value if isinstance(value, str | int | float) else str(value)
            for layer, kinds in data["layers"].items():
                for kind, array in kinds.items():
                    file.create_dataset(f"layers/{layer}/{kind}", data=array, **options)
    else:
        # Of a compressed pickle the uncompressed file was opened as well, and stayed empty.
        content = pickle.dumps(data, pickle.HIGHEST_PROTOCOL)
        path.with_name(path.name.removesuffix(".gz")).write_bytes(b"" if path.suffix == ".gz" else content)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(content))


def write_captured(root: Path, suffix: str, count: int = 3, compression: bool = True) -> list[str]:
    """A tree of document 001; the names of its files, without suffixes."""
    for folder in ("activations", "metadata", "responses"):
        (root / folder).mkdir(parents=True)
    names = [f"q_20240125_143022_{number}_20250725_101112" for number in range(count)]
    for number, name in enumerate(names):
        save_captured(root / "activations" / (name + suffix), captured(number), compression)
        record = capture_record(f"q_20240125_143022_{number}", name + suffix, f"answer {number}")
        (root / "metadata" / f"{name}_metadata.json").write_text(json.dumps(record, indent=2))
        (root / "responses" / f"{name}_response.txt").write_text(f"answer {number}")
    return names
