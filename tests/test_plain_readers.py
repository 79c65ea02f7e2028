"""What others make of our files: py-lmdb reads an `lmdb` store, `json.load` a `json` store, without a line of ours."""

import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import lmdb
import ml_dtypes
import numpy as np
import pytest
import torch
import xxhash

import actstore
from ragged import entry, fill

COUNT = 48
HEADER = 64
"""Bytes of a record header before every value of an `lmdb` store."""


def document_of(value: bytes) -> dict[str, Any]:
    """The JSON document in an `entry` record without offsets: content id, no chunks, length in seven bits a byte,
    text."""
    chunks, *payload = value[HEADER + 32 :]
    assert chunks == 0
    groups = next(count for count, byte in enumerate(payload, 1) if byte < 0x80)
    length = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(payload[:groups]))
    return json.loads(bytes(payload[groups : groups + length]))


def test_py_lmdb_lists_a_store(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s", "lmdb") as store:
        fill(store, COUNT)
        store.delete([entry(7)["key"]])
    expected = {entry(number)["key"]: entry(number) for number in range(COUNT) if number != 7}
    with lmdb.open(str(tmp_path / "s"), readonly=True, max_dbs=16) as environment:
        with environment.begin() as transaction:
            names = [bytes(name).decode() for name, _ in transaction.cursor()]
        assert names == ["chunks", "entries", "index", "keys", "manifest", "models"]
        entries = environment.open_db(b"entries", create=False)
        with environment.begin(db=entries) as transaction:
            assert transaction.stat()["entries"] == COUNT - 1
            values = [bytes(value) for _, value in transaction.cursor()]
        manifest = environment.open_db(b"manifest", create=False)
        with environment.begin(db=manifest) as transaction:
            value = transaction.get(b"manifest")
            assert value is not None
            assert json.loads(bytes(value)[HEADER:])["format"] == "actstore"
    for value in values:
        assert (value[:4], len(value) - HEADER) == (b"ACTR", struct.unpack_from("<Q", value, 8)[0])
        low, high = struct.unpack_from("<QQ", value, 24)
        assert xxhash.xxh3_128_intdigest(value[HEADER:]) == low | high << 64
    documents = {document["key"]: document for document in map(document_of, values)}
    assert list(documents) == list(expected), "in the order of writing"
    for key, given in expected.items():
        assert documents[key]["metadata"] == given["metadata"]
        assert documents[key].get("prompt") == given["prompt"]


def finite(array: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.isfinite(array.astype(np.float64))


def expected_file(directory: Path, key: str) -> Path:
    named = len(key) == 64 and not set(key) - set("0123456789abcdef")
    return directory / "activations" / f"{key if named else hashlib.sha256(key.encode()).hexdigest()}.json"


def values_of(tensor: dict[str, Any], dtype: np.dtype[Any]) -> np.ndarray:
    """Nested lists as NumPy takes them, with the strings for what is no number as NaN."""
    numbers = json.loads(json.dumps(tensor["data"]), parse_float=float)
    flat = np.array([float("nan") if isinstance(v, str) else v for v in flatten(numbers)], dtype=object)
    kind = np.float64 if dtype.kind == "V" or dtype.kind == "f" else dtype
    return flat.astype(kind).astype(dtype).reshape(tensor["shape"])


def flatten(numbers: Any) -> list[Any]:
    return [value for item in numbers for value in flatten(item)] if isinstance(numbers, list) else [numbers]


def test_plain_json_reads_a_store(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s", "json") as store:
        fill(store, COUNT)
    catalogue = json.loads((tmp_path / "s" / "metadata.json").read_text())
    assert catalogue["logger_config"]["version"] == "actstore-0"
    assert list(catalogue["entries"]) == [entry(number)["key"] for number in range(COUNT)]
    for number in range(COUNT):
        given = entry(number)
        listed = catalogue["entries"][given["key"]]
        assert (listed["prompt"], listed["response"]) == (given["prompt"], given["response"])
        path = expected_file(tmp_path / "s", given["key"])
        assert tmp_path / "s" / listed["activation_file"] == path
        loaded = json.loads(path.read_text())
        assert loaded["entry"]["metadata"] == given["metadata"]
        assert loaded["entry"].get("token_ids") == given["token_ids"]
        tensors = loaded["activations"]
        assert len(tensors) == len(given["activations"])
        for name, array in given["activations"].items():
            tensor = tensors[actstore.hook_points.canonical(name)]
            assert (tensor["_type"], tensor["dtype"]) == ("torch.Tensor", f"torch.{array.dtype.name}")
            assert tensor["xxh3"] == xxhash.xxh3_64_hexdigest(array.tobytes())
            if array.dtype == np.bool_:
                continue  # random bytes, of which few are bools
            read = values_of(tensor, array.dtype)
            assert read.shape == array.shape
            chosen = finite(array)
            assert read[chosen].tobytes() == array[chosen].tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_torch_and_numpy_build_the_same_tensor_from_the_lists(dtype: str, tmp_path: Path) -> None:
    """Every value of 16 bits that is finite, and the one float32 that two roundings would change."""
    if dtype == "float32":
        special = np.array([0x15AE43FD, 0x95AE43FD, 1, 0x7F7FFFFF, 0x80000000], np.uint32)
        bits = np.concatenate([special, np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32)])
    else:
        bits = np.arange(2**16, dtype=np.uint16)
    array = bits.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
    array = array[finite(array)].reshape(-1, 1)
    with actstore.create(tmp_path / "s", "json") as store:
        store.put(key="k", activations={0: array})
    (path,) = (tmp_path / "s" / "activations").iterdir()
    data = json.loads(path.read_text())["activations"]["blocks.0.hook_resid_post"]["data"]
    assert np.array(data, dtype=array.dtype).tobytes() == array.tobytes()
    tensor = torch.tensor(data, dtype=getattr(torch, dtype))
    assert tensor.view(torch.uint8).numpy().tobytes() == array.tobytes()


def test_base64_is_the_raw_bytes(tmp_path: Path) -> None:
    array = entry(14)["activations"]["resid_post.1"]
    with actstore.create(tmp_path / "s", "json", encoding="base64") as store:
        store.put(key="k", activations={1: array})
    (path,) = (tmp_path / "s" / "activations").iterdir()
    tensor = json.loads(path.read_text())["activations"]["blocks.1.hook_resid_post"]
    assert base64.b64decode(tensor["data"], validate=True) == array.tobytes()
