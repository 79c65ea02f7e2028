"""LMDB logs of document 000, written from the record of their bytes with pickle, torch, zstandard and py-lmdb."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
import zstandard

from dtypes import DTYPES

FIELDS: dict[str, object] = {
    "prompt": "user: caf\u00e9?",
    "response": "yes\n",
    "input_length": 3,
    "model": "m/1",
    "messages": [{"role": "user", "content": "caf\u00e9?"}],
    "trim_position": None,
}
SAID = {
    **FIELDS,
    "logging_config": {"target_layers": "all", "sequence_mode": "all"},
    "timestamp": 1747699200.5,
    "has_activations": True,
}
KEY = hashlib.sha256("user: caf\u00e9?".encode()).hexdigest()

BASE = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
HALVES = [BASE[:1].half(), BASE[1:2].half(), BASE[2:3, :2].half()]
"""Of one dtype, each a view of a larger storage in the last case."""
MIXED = [BASE[:1].half(), None, BASE[1:2, 1:4].bfloat16(), BASE.transpose(0, 1)[2:3]]


def flat(tensor: torch.Tensor | None) -> np.ndarray | None:
    if tensor is None:
        return None
    return tensor.contiguous().view(torch.uint8).numpy().view(DTYPES[str(tensor.dtype).removeprefix("torch.")])


def packed(tensors: list[torch.Tensor]) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


def zstd(data: bytes, **more: object) -> tuple[bytes, dict[str, object]]:
    """A frame, and what was said of it."""
    frame = zstandard.ZstdCompressor(level=19).compress(data)
    sizes = {"original_size": len(data), "compressed_size": len(frame), "ratio": len(data) / len(frame)}
    return frame, {"compression": "zstd", "level": 19, **sizes, **more}


def tensor_metadata(tensors: list[torch.Tensor]) -> list[dict[str, object]]:
    return [{"shape": list(t.shape), "dtype": str(t.dtype), "device": "cpu"} for t in tensors]


def wrapped(activations: object, compression: dict[str, object]) -> dict[str, object]:
    return {"data": {**FIELDS, "all_layers_activations": activations}, "metadata": compression}


STEPS = {f"layer_{i}": np.arange(6, dtype=np.float32).reshape(1, 2, 3) + i for i in range(11)}
FLAT: dict[str, object] = {"prompt": "p", "response": "r", "activations": BASE[0].numpy(), "model": "m"}
ZSTD_A = zstd(pickle.dumps(MIXED))
ZSTD_B = zstd(packed(HALVES), tensor_metadata=tensor_metadata(HALVES))
NONE: dict[str, object] = {"compression": "none"}
FAILED: dict[str, object] = {"compression": "none", "error": "'NoneType' object has no attribute 'cpu'"}

ERAS: dict[str, tuple[dict[str, object], dict[str, object], dict[str, object] | None, Any]] = {
    "V0": (FLAT, {"prompt": "p", "response": "r", "model": "m"}, None, {"activations": BASE[0].numpy()}),
    "V1": ({**FIELDS, "all_layers_activations": STEPS}, FIELDS, None, STEPS),
    "V2-none": (wrapped(MIXED, NONE), FIELDS, NONE, [flat(t) for t in MIXED]),
    "V2-zstd-a": (wrapped(*ZSTD_A), FIELDS, ZSTD_A[1], [flat(t) for t in MIXED]),
    "V2-zstd-b": (wrapped(*ZSTD_B), FIELDS, ZSTD_B[1], [flat(t) for t in HALVES]),
    "V2-fallback": (wrapped(MIXED, FAILED), FIELDS, FAILED, [flat(t) for t in MIXED]),
    "BytesCompressor": (
        {"data": pickle.dumps({**FIELDS, "all_layers_activations": MIXED}), "metadata": {"compression": "bytes"}},
        FIELDS,
        {"compression": "bytes"},
        [flat(t) for t in MIXED],
    ),
}
"""What was written; of it the fields, what is said of compression, and the layers."""


def write(place: Path, values: Mapping[str, object]) -> None:
    """Pickles of the values, or bytes as they are, in the environment at `place`."""
    with lmdb.open(str(place), map_size=1 << 28, max_readers=2048) as environment, environment.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key.encode(), value if isinstance(value, bytes) else pickle.dumps(value))


def write_log(path: Path, value: object, said: object = None, metadata: str | None = None) -> Path:
    """A log of one entry, with the second environment beside it where something is said."""
    write(path, {KEY: value})
    if said is not None:
        write(path.with_name(f"{path.name}_metadata") if metadata is None else path / metadata, {KEY: said})
    return path
