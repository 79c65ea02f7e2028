"""Pickles by hand and by pickler: `python tests/pickles.py FOLDER` writes those that fuzzing begins with."""

import collections
import pickle
import sys
from pathlib import Path

import numpy as np
import torch

STOP = b"."
MARK = b"("


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def raw(value: bytes) -> bytes:
    return b"B" + len(value).to_bytes(4, "little") + value


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def numbers(*values: int) -> bytes:
    """A tuple."""
    return MARK + b"".join(number(value) for value in values) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + MARK + b"".join(arguments) + b"tR"


def proto(number: int, body: bytes) -> bytes:
    return b"\x80" + bytes([number]) + body + STOP


LOAD = named("torch.storage", "_load_from_bytes")
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
HOOKS = named("collections", "OrderedDict") + b")R"
MAGIC = proto(2, b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")
VERSION = proto(2, b"M\xe9\x03")
MACHINE = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}, 2)


def storage_id(count: int, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    parts = (text("storage"), named("torch", kind), text("7"), text(location), number(count), b"N")
    return proto(2, MARK + b"".join(parts) + b"tQ")


def stream(values: bytes, count: int, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    """What `torch.save` wrote of a storage in its older way."""
    keys = pickle.dumps(["7"], 2)
    head = MAGIC + VERSION + MACHINE + storage_id(count, kind, location) + keys
    return head + count.to_bytes(8, "little", signed=True) + values


def tensor(storage: bytes, offset: bytes, shape: bytes, strides: bytes) -> bytes:
    """The pickle of a tensor over a stream."""
    return proto(4, call(REBUILD, call(LOAD, raw(storage)), offset, shape, strides, b"\x89", HOOKS))


def samples() -> dict[str, bytes]:
    """Pickles of every protocol, whole and sound."""
    base = torch.arange(48, dtype=torch.float32).reshape(2, 4, 6)
    array = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    values: dict[str, object] = {
        "entry": {
            "prompt": "caf\u00e9\\u",
            "n": 3,
            "t": (1, -2.5, None, True),
            "m": [{"role": "user"}, {"role": "user"}],
        },
        "bytes": [b"", b"abc", b"\xff\x80", 2**40, -(2**62), collections.OrderedDict(a=1)],
        "half": [base.half(), None, base.bfloat16()[:, 1:3]],
        "view": {
            "rows": base.transpose(0, 2),
            "last": base[..., -1],
            "none": base[:0],
            "same": base[0].expand(3, 4, 6),
        },
        "array": [array, array.T, array.transpose(1, 0, 2), np.float32(1.5), np.int64(-3), np.bool_(True)],
        "wrapped": {
            "data": {"prompt": "p", "all_layers_activations": [base.long()[:, :1, :2], None, base.gt(3)[0, :2]]},
            "metadata": {"compression": "none"},
        },
        "objects": np.array([[1, None], ["a", array]], object),
    }
    return {f"{name}-{p}": pickle.dumps(value, p) for name, value in values.items() for p in range(6)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, sample in samples().items():
        (folder / name).write_bytes(sample)
