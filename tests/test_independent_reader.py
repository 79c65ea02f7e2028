"""A reader written from FORMAT.md alone gets out of a store exactly what was put in, or says that it is damaged."""

import ast
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xxhash

import actstore
import independent_reader
from actstore import _core
from actstore.errors import ActstoreError, AlreadyExistsError, CorruptError, UnsupportedVersionError
from actstore.store import Store
from dtypes import DTYPES, noise
from independent_reader import (
    COMMIT,
    DATA,
    ENTRY,
    SEAL,
    Activation,
    Damaged,
    Frame,
    Records,
    Unsupported,
    align,
    crc32c,
    decode_archive,
    decode_frame,
    read_log,
    read_manifest,
    read_store,
    walk,
    xxh3_128,
)

REPOSITORY = Path(__file__).parent.parent
CORE = REPOSITORY / "rust/core"
SHARD = "shards/0-000001.shard"
LOG = "logs/0.log"
MANIFEST = "actstore.manifest"
HEAD = 192
FIRST_EXTENT = HEAD + 128

SHAPES = [(), (0,), (7,), (4, 0), (0, 3), (33, 5), (3, 2, 4), (2, 1, 3, 2), (40, 300)]
FLOATS = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]

Arrays = dict[str, np.ndarray]


def gauss(dtype: str, rows: int, width: int, seed: int = 0) -> np.ndarray:
    """As activations are: each channel has a scale of its own, so that a model pays."""
    values = np.random.default_rng(seed).standard_normal((rows, width))
    return (values * np.exp2(np.arange(width) % 9 - 4)).astype(DTYPES[dtype])


def documents(store: Store) -> dict[str, dict[str, Any]]:
    """As stored: without what is derived, and what has its default."""
    found = {}
    for document in store.metadata():
        del document["prompt_sha256"]
        found[document["key"]] = {name: value for name, value in document.items() if value not in (None, {})}
    return found


def assert_same(path: Path, expected: dict[str, Arrays]) -> set[str]:
    """What the independent reader gets is what the library gets, and its activations are those put.

    Gives what was met in decoding them.
    """
    entries = read_store(path)
    with actstore.open(path) as store:
        assert list(entries) == store.keys() == list(expected)
        assert {key: entry.document for key, entry in entries.items()} == documents(store)
        for key, entry in entries.items():
            assert entry.token_ids == store[key].token_ids
            assert list(entry.activations) == store[key].points
    for key, arrays in expected.items():
        put = {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}
        assert entries[key].activations == put
    return {met for entry in entries.values() for words in entry.met.values() for met in words}


def encodings(path: Path) -> dict[str, set[str]]:
    with actstore.open(path) as store:
        return {point["dtype"]: set(point["encodings"]) for point in store.info()["points"]}


@pytest.mark.parametrize("codec", _core.codecs("shards"))
def test_every_dtype_and_shape(codec: str, tmp_path: Path) -> None:
    arrays = {
        f"module.{dtype}.{index}": noise(dtype, shape, index) for dtype in DTYPES for index, shape in enumerate(SHAPES)
    }
    with actstore.create(tmp_path / "s", codec=codec) as store:
        store.put(key="noise", activations=arrays)
        store.put(key="zeros", activations={name: np.zeros_like(array) for name, array in arrays.items()})
    zeros = {name: np.zeros_like(array) for name, array in arrays.items()}
    ordered = sorted(arrays)
    expected = {"noise": arrays, "zeros": zeros}
    assert_same(tmp_path / "s", {key: {name: found[name] for name in ordered} for key, found in expected.items()})


@pytest.mark.parametrize("codec", _core.codecs("shards"))
def test_activations_as_models_have_them(codec: str, tmp_path: Path) -> None:
    expected = {
        f"entry {index}": {f"module.{dtype}": gauss(dtype, 64, 384, index) for dtype in sorted(FLOATS)}
        for index in range(3)
    }
    with actstore.create(tmp_path / "s", codec=codec) as store, store.writer() as writer:
        for key, arrays in expected.items():
            writer.put(key=key, activations=arrays, token_ids=range(64))
    assert_same(tmp_path / "s", expected)
    used = encodings(tmp_path / "s")
    if codec in ("planes", "archive"):
        assert used == {dtype: {"planes"} for dtype in FLOATS}
        assert len(models(tmp_path / "s")) >= 4
    else:
        assert models(tmp_path / "s") == set()
        assert all(found <= {"stored", "zstd"} for found in used.values())


def models(path: Path) -> set[bytes]:
    commits = walk(Records(path / SHARD, read_manifest(path), 1), None)
    return {name for commit in commits for name, _ in commit.models}


def test_every_encoding_is_met(tmp_path: Path) -> None:
    counts = np.arange(4096, dtype=np.int32).reshape(64, 64) % 7
    arrays = {**layers("bfloat16", [0, 1], 64, 64, step=0.01), "m.a": counts, "m.b": noise("int8", (64, 64), 1)}
    arrays["m.c"] = gauss("float32", 64, 64)
    with actstore.create(tmp_path / "s", codec="archive") as store:
        store.put(key="k", activations=arrays)
    assert set().union(*encodings(tmp_path / "s").values()) == {"stored", "zstd", "planes", "archive"}
    assert {"stored", "zstd", "planes", "archive"} <= assert_same(tmp_path / "s", {"k": arrays})


WIDTHS = [1, 3, 31, 129, 384, 513, 1000]


@pytest.mark.parametrize("codec", _core.codecs("shards"))
def test_segments_of_every_width(codec: str, tmp_path: Path) -> None:
    expected = {
        f"{rows} rows": {f"m.{dtype}.{width}": gauss(dtype, rows, width, rows) for dtype in FLOATS for width in WIDTHS}
        for rows in (1, 3, 18)
    }
    ordered = {key: {name: arrays[name] for name in sorted(arrays)} for key, arrays in expected.items()}
    with actstore.create(tmp_path / "s", codec=codec) as store, store.writer() as writer:
        for key, arrays in expected.items():
            writer.put(key=key, activations=arrays)
    assert_same(tmp_path / "s", ordered)


# The codecs `planes` and `archive`


def with_odd_values(array: np.ndarray, seed: int = 0) -> np.ndarray:
    """Every fortieth value is any bits: NaNs with payloads, infinities, subnormals, negative zeros, outliers."""
    odd = np.random.default_rng(seed).random(array.shape) < 1 / 40
    return np.where(odd, noise(array.dtype.name, array.shape, seed), array)


def with_a_noisy_row(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[len(array) // 2] = noise(array.dtype.name, array.shape[1:], 1)
    return array


def sparse(dtype: str) -> np.ndarray:
    kept = np.random.default_rng(1).random((40, 129)) < 1 / 16
    return np.where(kept, gauss(dtype, 40, 129), np.zeros((), DTYPES[dtype]))


def powers(dtype: str, lowest: int, highest: int) -> np.ndarray:
    """Values that are but an exponent."""
    with np.errstate(over="ignore"):
        return np.exp2(np.random.default_rng(0).integers(lowest, highest, (64, 384))).astype(DTYPES[dtype])


def subnormal(dtype: str) -> np.ndarray:
    smallest = float(ml_dtypes.finfo(DTYPES[dtype]).smallest_subnormal)
    return (np.random.default_rng(0).integers(-3, 4, (40, 31)) * smallest).astype(DTYPES[dtype])


def all_kinds(dtype: str) -> Arrays:
    plain = np.random.default_rng(0).standard_normal((64, 384))
    return {
        "m.gauss": gauss(dtype, 64, 384),
        "m.noise": noise(dtype, (30, 100), 1),
        "m.noisy_row": with_a_noisy_row(gauss(dtype, 64, 384)),
        "m.odd": with_odd_values(gauss(dtype, 40, 31)),
        "m.one": np.full((40, 129), 1.5, DTYPES[dtype]),
        "m.one_scale": plain.astype(DTYPES[dtype]),
        "m.powers": powers(dtype, -6, 6),
        "m.powers_far": powers(dtype, -14, 15),
        "m.powers_of_all": powers(dtype, -126, 128),
        "m.ragged": gauss(dtype, 7, 1000),
        "m.rows": gauss(dtype, 384, 64).T.copy(),
        "m.sparse": sparse(dtype),
        "m.subnormal": subnormal(dtype),
    }


WAYS_OF_PLANES = {
    f"planes{way}"
    for way in (
        "",
        ": own code",
        ": model of one bias",
        ": model of a bias a channel",
        ": escapes",
        ": high bits of lengths",
        ": many escapes",
        ": compressed low plane",
        ": plane of tops",
        ": compressed plane of tops",
    )
}


def test_every_way_of_planes(tmp_path: Path) -> None:
    met: dict[str, set[str]] = {}
    for dtype in FLOATS:
        with actstore.create(tmp_path / dtype, codec="planes") as store:
            store.put(key="k", activations=all_kinds(dtype))
        met[dtype] = assert_same(tmp_path / dtype, {"k": all_kinds(dtype)})
        assert met[dtype] >= {"planes: model of a bias a channel", "planes: escapes", "planes: high bits of lengths"}
    assert set().union(*met.values()) == WAYS_OF_PLANES | {"stored", "zstd"}
    # Also where a top is more than its symbol.
    assert "planes: compressed plane of tops" in met["float8_e4m3fn"] & met["float8_e5m2"]


def layers(dtype: str, numbers: list[int], rows: int, width: int, seed: int = 0, step: float = 0.3) -> Arrays:
    """A residual stream: each layer is the one below it, and something more."""
    random, scale = np.random.default_rng(seed), np.exp2(np.arange(width) % 9 - 4)
    state, found = random.standard_normal((rows, width)) * scale, {}
    for number in range(max(numbers) + 1):
        if number in numbers:
            found[f"blocks.{number}.hook_resid_post"] = state.astype(DTYPES[dtype])
        state = state + step * random.standard_normal((rows, width)) * scale
    return found


def put_archive(path: Path, expected: dict[str, Arrays], key_distance: int = 8) -> set[str]:
    """Puts, reads and compares; what was met."""
    with actstore.create(path, codec="archive", key_distance=key_distance) as store, store.writer() as writer:
        for key, arrays in expected.items():
            writer.put(key=key, activations=arrays)
    return assert_same(path, expected)


def below(path: Path) -> dict[int, int]:
    """Of the blocks that are coded given another: which one."""
    (entry,) = read_store(path).values()
    given = {name for name, met in entry.met.items() if "archive" in met}
    return {block(name): block(other) for name, other in entry.below.items() if other and name in given}


def block(name: str) -> int:
    return int(name.split(".")[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_given_the_layer_below(dtype: str, tmp_path: Path) -> None:
    due = {1: {}, 2: {1: 0, 4: 2}, 3: {1: 0, 2: 1, 5: 4}, 8: {1: 0, 2: 1, 4: 2, 5: 4}}
    for key_distance, chain in due.items():
        path = tmp_path / f"{key_distance}"
        met = put_archive(path, {"k": layers(dtype, [0, 1, 2, 4, 5], 60, 64)}, key_distance)
        assert ("archive" in met) == (key_distance > 1)
        assert below(path) == chain


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_of_every_width(dtype: str, tmp_path: Path) -> None:
    for width in WIDTHS:
        expected = {f"{less} less": layers(dtype, [0, 2, 3], 33 - less, width, less) for less in (0, 7)}
        met = put_archive(tmp_path / f"{width}", expected)
        # A model does not pay for three channels.
        assert width == 3 or "archive" in met, width


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_with_odd_values(dtype: str, tmp_path: Path) -> None:
    expected = {
        f"{seed}": {
            name: with_odd_values(array, seed) for name, array in layers(dtype, [0, 1, 2], 30, 64, seed).items()
        }
        for seed in range(3)
    }
    expected["zeros"] = {name: np.zeros_like(array) for name, array in expected["0"].items()}
    expected["subnormal"] = {f"blocks.{number}.hook_resid_post": subnormal(dtype) for number in range(2)}
    assert {"archive", "archive: escapes"} <= put_archive(tmp_path / "s", expected)


def test_a_row_that_the_layer_below_does_not_give(tmp_path: Path) -> None:
    expected = {f"{seed}": layers("float16", [0, 1], 30, 512, seed, step=0.01) for seed in range(2)}
    for arrays in expected.values():
        arrays["blocks.1.hook_resid_post"] = with_a_noisy_row(arrays["blocks.1.hook_resid_post"])
    assert {"archive: escapes", "archive: high bits of lengths"} <= put_archive(tmp_path / "s", expected)


def test_the_embedding_is_below_the_first_block(tmp_path: Path) -> None:
    first, second = layers("bfloat16", [0, 1], 60, 64).values()
    arrays = {"hook_embed": first, "blocks.0.hook_resid_post": second}
    assert "archive" in put_archive(tmp_path / "s", {"k": arrays})
    assert read_store(tmp_path / "s")["k"].below == {"hook_embed": None, "blocks.0.hook_resid_post": "hook_embed"}


# Stores


def test_packed_activations(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s", dtype="float16", overflow="saturate") as store:
        store.put(key="k", activations={"m.a": np.array([[1.0, 1e9, -np.inf]], np.float32)})
    assert_same(tmp_path / "s", {"k": {"m.a": np.array([[1.0, 65504.0, -np.inf]], np.float16)}})


@pytest.mark.parametrize("codec", _core.codecs("shards"))
@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_a_store_with_a_history(codec: str, durability: str, tmp_path: Path) -> None:
    expected: dict[str, Arrays] = {}

    def put(store: Store, key: str, seed: int, **rest: Any) -> None:
        arrays = {
            "hook_embed": noise("bfloat16", (3, 16), seed),
            "logits": gauss("float32", 40, 20, seed).reshape(40, 1, 20),
        }
        store.put(key=key, activations=arrays, **rest)
        expected[key] = arrays

    def delete(store: Store, key: str) -> None:
        assert store.delete(key) == 1
        del expected[key]

    with actstore.create(tmp_path / "s", codec=codec, durability=durability, on_conflict="replace") as store:
        put(store, "ключ 🗝", 1, prompt='¿qué?\n\t\0"\\', response="\u2028é\U0001f600", metadata=ODD_METADATA)
        put(store, "a", 2, token_ids=[], prompt_length=0)
        put(store, "b", 3, token_ids=[0, 2**32 - 1, 7, 7, 7, 7], prompt_length=2, positions=[(0, 2), (5, 6)])
        put(store, "a", 4, metadata={"replaced": True})
        delete(store, "b")
    with actstore.open(tmp_path / "s", "a") as store:
        put(store, "b", 5, prompt="again, so at the end")
        put(store, "c", 6)
        delete(store, "ключ 🗝")
    with actstore.open(tmp_path / "s", "a") as store:
        put(store, "b", 7, response="")
    assert_same(tmp_path / "s", expected)
    assert list(expected) == ["a", "b", "c"]


ODD_METADATA = {
    "deep": {"ä": ["ö", {"\x7f": None}], "": []},
    "numbers": [0, -0.0, 1e300, 5e-324, 2**64 - 1, -(2**63), 0.1, 1.0],
    "empty": {},
    "true": True,
}


def test_a_store_without_entries(tmp_path: Path) -> None:
    actstore.create(tmp_path / "s").close()
    assert read_store(tmp_path / "s") == {}


def tiny(index: int) -> np.ndarray:
    return np.array([[index]], np.int32)


def test_sealed_shards_and_what_follows_them(tmp_path: Path) -> None:
    path, expected = tmp_path / "s", {f"{index}": {"m.a": tiny(index)} for index in range(4200)}
    with actstore.create(path, on_conflict="replace") as store:
        with store.writer() as writer:
            for key, arrays in expected.items():
                writer.put(key=key, activations=arrays)
        store.delete(["7", "8"])
    del expected["7"], expected["8"]
    assert read_log(path, read_manifest(path))[1].seal > 0
    assert_same(path, expected)
    log = (path / LOG).read_bytes()
    (path / LOG).write_bytes(log[:FIRST_EXTENT])
    assert_same(path, expected)
    (path / LOG).write_bytes(log)
    with actstore.open(path, "a") as store:
        for key in ("11", "7"):
            store.put(key=key, activations={"m.a": tiny(-1)})
            expected[key] = {"m.a": tiny(-1)}
        store.delete("4000")
    del expected["4000"]
    assert len(list(path.glob("shards/*"))) == 2
    assert_same(path, expected)
    log = (path / LOG).read_bytes()
    (path / LOG).write_bytes(log[:FIRST_EXTENT])
    with pytest.raises(Damaged):
        read_store(path)
    # Somebody may be writing: a reader says nothing, a writer, which would know, refuses.
    with actstore.open(path) as store:
        assert (store.keys(), store.damage) == (list(expected), [])
    with pytest.raises(CorruptError, match="not in the log"):
        actstore.open(path, "a")
    (path / LOG).write_bytes(log)
    (path / SHARD).unlink()
    with pytest.raises(Damaged):
        read_store(path)


# Damage


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a few kilobytes with everything in it."""
    path = tmp_path_factory.mktemp("small") / "s"
    with actstore.create(path, on_conflict="replace") as store:
        store.put(key="a", activations={"m.x": gauss("bfloat16", 32, 8)}, token_ids=range(3), metadata={"n": 1})
        store.put(key="b", activations={"m.x": noise("uint8", (9,), 1)})
        store.put(key="c", activations={}, prompt="gone soon")
        store.put(key="b", activations={"m.x": np.zeros((64, 2), np.int16)})
        store.delete("c")
    assert models(path)
    return path


def flipped(file: Path, positions: Iterator[int]) -> Iterator[int]:
    """Each byte in turn is another one while the loop runs."""
    original = file.read_bytes()
    for position in positions:
        change = random.Random(position).randrange(1, 256)
        damaged = bytearray(original)
        damaged[position] ^= change
        file.write_bytes(damaged)
        yield position
    file.write_bytes(original)


@pytest.mark.parametrize("name", [SHARD, LOG, MANIFEST])
def test_no_flipped_byte_gives_other_bytes(name: str, small: Path) -> None:
    intact, damaged = read_store(small), 0
    size = (small / name).stat().st_size
    for position in flipped(small / name, iter(range(size))):
        try:
            assert read_store(small) == intact, position
        except Damaged:
            damaged += 1
    # The rest is padding; in the log also the last record, without which it says less.
    assert damaged > size * (0.3 if name == LOG else 0.8)
    assert read_store(small) == intact


def test_a_torn_tail_ends_with_a_whole_commit(tmp_path: Path) -> None:
    ends: list[tuple[int, list[str]]] = []
    with actstore.create(tmp_path / "s", on_conflict="replace") as store:
        for key in ("a", "b", "a", "c"):
            store.put(key=key, activations={"m.x": gauss("float16", 32, 8, len(ends))})
            ends.append(((tmp_path / "s" / SHARD).stat().st_size, store.keys()))
        shutil.copytree(tmp_path / "s", tmp_path / "copy")
    shard = tmp_path / "copy" / SHARD
    whole = shard.read_bytes()
    for length in range(HEAD, len(whole), 32):
        keys = next((keys for end, keys in reversed(ends) if end <= length), [])
        # Half a block lost, with what may lie in its place, but for the padding that completes a record.
        for rest in (b"", bytes(100), random.Random(length).randbytes(300)) if length % 64 == 0 else (b"",):
            shard.write_bytes(whole[:length] + rest)
            assert list(read_store(tmp_path / "copy")) == keys, length
            with actstore.open(tmp_path / "copy") as store:
                assert store.keys() == keys, length
    shard.write_bytes(whole[: HEAD - 1])
    with pytest.raises(Damaged):
        read_store(tmp_path / "copy")


def test_what_was_durable_is_no_torn_tail(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "s")
    shard = tmp_path / "s" / SHARD
    whole = shard.read_bytes()
    for position in range(0, len(whole) - 256, 64):
        shard.write_bytes(whole[:position] + bytes(64) + whole[position + 64 :])
        try:
            assert read_store(tmp_path / "s") == read_store(small)
        except Damaged:
            continue
        assert not any(whole[position : position + 64])


def test_files_of_another_place_are_refused(small: Path, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "other") as store:
        store.put(key="other", activations={"m.x": tiny(1)})
    for name in (SHARD, LOG, MANIFEST):
        shutil.copytree(small, tmp_path / "s")
        shutil.copy(tmp_path / "other" / name, tmp_path / "s" / name)
        with pytest.raises(Damaged):
            read_store(tmp_path / "s")
        shutil.rmtree(tmp_path / "s")
    shutil.copytree(small, tmp_path / "s")
    shutil.copy(small / SHARD, tmp_path / "s" / "shards/0-000002.shard")
    with pytest.raises(Damaged):
        read_store(tmp_path / "s")


def test_other_names_mean_nothing(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "s")
    for name in ("0-1.shard", "0-0000001.shard", "0-+00001.shard", "1-000001.shard", "0-000001.shard~", "x"):
        shutil.copy(small / SHARD, tmp_path / "s/shards" / name)
    (tmp_path / "s/actstore.new").write_bytes(b"half a manif")
    assert read_store(tmp_path / "s") == read_store(small)
    with actstore.open(tmp_path / "s") as store:
        assert (store.keys(), store.damage, store.verify()["damage"]) == (["a", "b"], [], [])


def test_an_interrupted_creation_is_taken_over(small: Path, tmp_path: Path) -> None:
    for name in ("empty", "full"):
        actstore.create(tmp_path / name).close()
        (tmp_path / name / MANIFEST).rename(tmp_path / name / "actstore.new")
        with pytest.raises(Damaged):
            read_store(tmp_path / name)
    shutil.copy(small / SHARD, tmp_path / "full/shards")
    with pytest.raises(AlreadyExistsError):
        actstore.create(tmp_path / "full")
    actstore.create(tmp_path / "empty").close()
    assert not (tmp_path / "empty/actstore.new").exists()
    assert read_store(tmp_path / "empty") == {}


def test_links_and_missing_files_are_refused(small: Path, tmp_path: Path) -> None:
    for name in (SHARD, LOG, MANIFEST):
        shutil.copytree(small, tmp_path / "s")
        (tmp_path / "s" / name).unlink()
        (tmp_path / "s" / name).symlink_to(small / name)
        with pytest.raises(Damaged):
            read_store(tmp_path / "s")
        shutil.rmtree(tmp_path / "s")
    with pytest.raises(Damaged):
        read_store(tmp_path / "nothing")


def test_as_a_command(small: Path, tmp_path: Path) -> None:
    def run(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", independent_reader.__file__, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    result = run(small)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "'a': 3 token ids; m.x bfloat16[32, 8]",
        "'b': no token ids; m.x int16[64, 2]",
    ]
    failed = run(tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("Damaged: ")


# Files that a wrong writer, or somebody who knows the format, could make: their checksums are right.


def checked(header: bytes | bytearray) -> bytes:
    return bytes(header[:60]) + crc32c(bytes(header[:60])).to_bytes(4, "little")


def set_byte(file: Path, position: int, value: int) -> None:
    """Changes a byte of the first header."""
    data = bytearray(file.read_bytes())
    data[position] = value
    file.write_bytes(checked(data[:64]) + data[64:])


Change = Callable[[int, int, bytearray], None]
"""Changes a payload, given type and sequence of its record; its length stays."""


def forge(file: Path, change: Change, chained: bool = True) -> None:
    data, chain, headers, offset, sequence = bytearray(file.read_bytes()), bytes(16), b"", 0, 0
    while offset < len(data):
        kind, length = data[offset + 4], int.from_bytes(data[offset + 8 : offset + 16], "little")
        payload = data[offset + 64 : offset + 64 + length]
        change(kind, sequence, payload)
        if kind in (COMMIT, SEAL) and chained:
            chain = xxh3_128(chain + headers)
            payload[:16], headers = chain, b""
        data[offset + 64 : offset + 64 + length] = payload
        data[offset + 24 : offset + 40] = xxh3_128(bytes(payload))
        data[offset : offset + 64] = checked(data[offset : offset + 64])
        headers += data[offset : offset + 64]
        offset, sequence = offset + 64 + align(length), sequence + 1
    file.write_bytes(data)


def replaced(kind: int, *pairs: tuple[bytes, bytes]) -> Change:
    def change(found: int, _: int, payload: bytearray) -> None:
        if found == kind:
            for old, new in pairs:
                assert (payload.count(old), len(old)) == (1, len(new))
                payload[:] = payload.replace(old, new)

    return change


def after(payload: bytearray, text: bytes, distance: int) -> int:
    return payload.index(text) + len(text) + distance


def other_content_id(kind: int, _: int, payload: bytearray) -> None:
    if kind == ENTRY:
        payload[0] ^= 1


def perhaps_a_model(kind: int, _: int, payload: bytearray) -> None:
    if kind == ENTRY:
        # Dtype, rank, two extents, 2^14 rows a frame, and two numbers.
        at = after(payload, b"blocks.3.x", 1 + 1 + 2 + 3 + 2)
        assert payload[at - 5 : at + 2] == b"\x80\x80\1\0\0\0\1"
        payload[at] = 2


def without_bytes(kind: int, _: int, payload: bytearray) -> None:
    if kind == ENTRY:
        at = after(payload, b"blocks.3.x", 1 + 1 + 1)
        assert payload[at] == 4
        payload[at] = 0


def second_spelling(kind: int, _: int, payload: bytearray) -> None:
    if kind == ENTRY:
        # Rows of a frame: 2^14, and 4, which is as good.
        at = after(payload, b"blocks.3.x", 1 + 1 + 2)
        assert payload[at : at + 3] == b"\x80\x80\1"
        payload[at : at + 3] = b"\x84\x80\0"


def unchanged(kind: int, sequence: int, payload: bytearray) -> None:
    pass


SWAPPED = (b"blocks.2.x", b"blocks.?.x"), (b"blocks.3.x", b"blocks.2.x"), (b"blocks.?.x", b"blocks.3.x")
WRONG_ENTRIES: dict[str, Change] = {
    "content id": other_content_id,
    "has-model byte": perhaps_a_model,
    "a frame without bytes": without_bytes,
    "a number with a byte too many": second_spelling,
    "order": replaced(ENTRY, *SWAPPED),
    "twice": replaced(ENTRY, (b"blocks.2.x", b"blocks.3.x")),
    "block above all": replaced(ENTRY, (b"blocks.2.x", b"blocks.23x")),
    "name": replaced(ENTRY, (b"blocks.3.x", b"blocks.3/x")),
    "another key": replaced(ENTRY, (b'"key":"k"', b'"key":"l"')),
}


@pytest.mark.parametrize("change", WRONG_ENTRIES.values(), ids=WRONG_ENTRIES.keys())
def test_what_an_entry_cannot_say(change: Change, tmp_path: Path) -> None:
    arrays = {"blocks.2.x": noise("int8", (3, 4), 1), "blocks.3.x": noise("int8", (3, 4), 2)}
    with actstore.create(tmp_path / "s") as store:
        store.put(key="k", activations=arrays)
    forge(tmp_path / "s" / SHARD, unchanged)
    assert_same(tmp_path / "s", {"k": arrays})
    forge(tmp_path / "s" / SHARD, change)
    with pytest.raises(Damaged):
        read_store(tmp_path / "s")
    with actstore.open(tmp_path / "s") as store, pytest.raises(ActstoreError, match="entry `k` is damaged"):
        _ = store["k"]


def test_hook_points_are_in_the_order_of_a_forward_pass(tmp_path: Path) -> None:
    names = ["hook_embed", "blocks.0", "blocks.00.x", "blocks.2.b", "blocks.10.a", f"blocks.{2**64 - 1}.a"]
    names += ["a.b", f"blocks.{2**64}.a", "blocks.1x.a", "logits", "z.a"]
    shuffled = random.Random(1).sample(names, len(names))
    with actstore.create(tmp_path / "s") as store:
        store.put(key="k", activations={name: tiny(1) for name in shuffled})
    assert_same(tmp_path / "s", {"k": {name: tiny(1) for name in names}})


@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
def test_a_commit_covers_the_one_before_it(small: Path, tmp_path: Path) -> None:
    def less_durable(kind: int, sequence: int, payload: bytearray) -> None:
        if kind == COMMIT and sequence < 10:
            payload[16:24] = bytes(8)

    for chained in (True, False):
        shutil.copytree(small, tmp_path / "s")
        forge(tmp_path / "s" / SHARD, less_durable, chained)
        with actstore.open(tmp_path / "s") as store:
            damage = store.damage
        if chained:
            assert (read_store(tmp_path / "s"), damage) == (read_store(small), [])
        else:
            assert len(damage) == 1
            assert "as they were before" in damage[0]
            with pytest.raises(Damaged):
                read_store(tmp_path / "s")
        shutil.rmtree(tmp_path / "s")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "s"
    with actstore.create(path) as store, store.writer() as writer:
        for index in range(4096):
            writer.put(key=f"{index}", activations={})
    return path


def without_log(path: Path, sealed: Path, shard: bytes) -> Path:
    """The store as it is where a writer was interrupted before it could log the seal."""
    shutil.copytree(sealed, path)
    (path / SHARD).write_bytes(shard)
    (path / LOG).write_bytes((path / LOG).read_bytes()[:FIRST_EXTENT])
    return path


def other_chain(kind: int, _: int, payload: bytearray) -> None:
    if kind == SEAL:
        payload[0] ^= 1


def torn_seals(sealed: Path, path: Path) -> list[bytes]:
    """Shards whose seal is cut off, zeroed, or of another chain; the last one is left at `path`."""
    whole, at = (sealed / SHARD).read_bytes(), read_log(sealed, read_manifest(sealed))[1].seal
    shutil.copytree(sealed, path)
    forge(path / SHARD, other_chain, chained=False)
    cut = [whole[:at], whole[: at + 64], whole[: at + 1000], whole[: at + 64] + bytes(len(whole) - at - 64)]
    return [*cut, (path / SHARD).read_bytes()]


def test_a_seal_that_does_not_stand_is_a_torn_tail(sealed: Path, tmp_path: Path) -> None:
    intact, torn = read_store(sealed), torn_seals(sealed, tmp_path / "forged")
    with pytest.raises(Damaged):
        read_store(tmp_path / "forged")
    for number, shard in enumerate(torn):
        path = without_log(tmp_path / f"{number}", sealed, shard)
        assert read_store(path) == intact
        with actstore.open(path, "a") as store:
            assert (store.keys(), store.verify()["damage"]) == (list(intact), [])
            store.put(key="more", activations={})
        assert read_store(path) == intact | {"more": read_store(path)["more"]}


@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
def test_before_a_seal_all_was_durable(sealed: Path, tmp_path: Path) -> None:
    """Even if nothing is right but the header of the seal."""
    torn = torn_seals(sealed, tmp_path / "forged")
    last = max(record.offset for record in Records(sealed / SHARD, read_manifest(sealed), 1) if record.kind == COMMIT)
    for number, shard in enumerate(torn):
        path = without_log(tmp_path / f"{number}", sealed, shard[:last] + bytes(64) + shard[last + 64 :])
        with actstore.open(path) as store:
            lost = len(store.keys()) < 4096
            damaged = bool(store.damage)
        assert lost
        # A header does not count where the file ends within its record.
        assert damaged == (len(shard) == (sealed / SHARD).stat().st_size)
        if damaged:
            with pytest.raises(Damaged):
                read_store(path)
        else:
            assert len(read_store(path)) < 4096


@pytest.mark.parametrize("name", [SHARD, LOG, MANIFEST])
@pytest.mark.parametrize(("position", "value"), [(4, 9), (5, 1), (6, 1), (7, 255)])
@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
def test_what_a_later_build_wrote(name: str, position: int, value: int, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "s")
    file = tmp_path / "s" / name
    whole = file.read_bytes()
    set_byte(file, position, value)
    with pytest.raises(Unsupported):
        read_store(tmp_path / "s")
    with pytest.raises(UnsupportedVersionError):
        actstore.open(tmp_path / "s")
    # Without the checksum to go with it, it is damage.
    file.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
    with pytest.raises(Damaged):
        read_store(tmp_path / "s")
    try:
        with actstore.open(tmp_path / "s") as store:
            assert store.damage
    except CorruptError:
        assert name == MANIFEST


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"actstore"', b'"actstole"'),
        (b'"store_id":"', b'"store_id":"g'),
        (b'"store_id":"', b'"store_id" :"'),
        (b'"store_id"', b'"store_ID"'),
    ],
)
def test_a_manifest_of_no_store(old: bytes, new: bytes, small: Path, tmp_path: Path) -> None:
    def change(_: int, __: int, payload: bytearray) -> None:
        length = len(payload)
        payload[:] = payload.replace(old, new, 1)[:length].ljust(length)

    shutil.copytree(small, tmp_path / "s")
    forge(tmp_path / "s" / MANIFEST, change)
    with pytest.raises(Damaged):
        read_store(tmp_path / "s")
    with pytest.raises(ActstoreError):
        actstore.open(tmp_path / "s")


def test_the_header_of_a_manifest(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "s")
    manifest = tmp_path / "s" / MANIFEST
    whole = manifest.read_bytes()
    assert len(whole) % 64 == 0
    # Its type, its sequence, its store, its writer, its shard.
    for position, value in ((4, 1), (16, 1), (40, whole[40] ^ 1), (48, 1), (52, 1)):
        set_byte(manifest, position, value)
        with pytest.raises(Damaged):
            read_store(tmp_path / "s")
        with pytest.raises(CorruptError):
            actstore.open(tmp_path / "s")
        manifest.write_bytes(whole)
    manifest.write_bytes(whole[:-1])
    with pytest.raises(Damaged):
        read_store(tmp_path / "s")
    manifest.write_bytes(whole + b"what follows")
    assert read_store(tmp_path / "s") == read_store(small)


@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
def test_a_log_begins_with_its_head(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "s")
    log = tmp_path / "s" / LOG
    whole = log.read_bytes()
    extent = whole[HEAD:FIRST_EXTENT]
    for data in (b"", bytes(64), checked(extent[:16] + bytes(8) + extent[24:60]) + extent[64:]):
        log.write_bytes(data)
        with pytest.raises(Damaged):
            read_store(tmp_path / "s")
        with actstore.open(tmp_path / "s") as store:
            assert (store.keys(), len(store.damage)) == (["a", "b"], 1)
    second_head = whole[:16] + (len(whole[HEAD:]) // 128 + 1).to_bytes(8, "little") + whole[24:60]
    log.write_bytes(whole + checked(second_head) + whole[64:HEAD])
    assert read_store(tmp_path / "s") == read_store(small)
    log.write_bytes(log.read_bytes() + extent)
    with pytest.raises(Damaged):
        read_store(tmp_path / "s")


def test_a_document_that_would_not_come_back(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s") as store, pytest.raises(ActstoreError, match=r"cannot be stored"):
        store.put(key="k", activations={}, metadata={"$serde_json::private::Number": "1"})
    assert read_store(tmp_path / "s") == {}


# Frames written by hand.


def decode(encoding: int, frame: str, shape: tuple[int, ...], **rest: Any) -> str:
    """What the one frame of an activation decodes to."""
    stored, dtype = bytes.fromhex(frame), DTYPE_CODES[rest.pop("dtype")]
    activation = Activation("m", dtype, shape, shape[0], **rest)
    entry = Frame(0, len(stored), encoding, int(np.prod(shape)))
    return decode_frame(entry, stored, activation, 0).hex(" ", 2)


DTYPE_CODES = {name: code for code, (name, _) in independent_reader.DTYPES.items()}
EVEN = "44 44 44 44 44 44 44 44"
"""Sixteen codes of four bits: the number of the class, highest bit first."""
UNEVEN = "55 55 55 15 55 55 55 54"
"""0 of class 7, 1000 of class 14, and from 10010 to 11111 of the others."""

# 1, -2, 0, a NaN, 0.5, 1.5: tops 7F 80 00 FF 7E 7F, so classes 1 2 14 15 0 1 of bias 7E; in one segment of 24 bits.
OF_BFLOAT16 = f"03 00 | 00 01 00 82 00 80 | {EVEN} 7E | 1400 04 01 00 | 48 F7 80 | FF"
# 1, -1.125, 0, 2: symbols 7 7 0 8 and mids 0 3 0 0.
OF_FLOAT8 = f"01 00 | 30 00 | {UNEVEN} 00 | 0B00 00 | C4 04"
# Eight times 1.5: a low plane of 80 and tops of 7F, each as a zstd frame of one block that says so.
OF_TOPS = "04 01 | 0A000000 28B52FFD 20 08 430000 80 | 28B52FFD 20 08 430000 7F"


def test_planes_by_hand() -> None:
    def planes(frame: str, shape: tuple[int, ...], dtype: str, model: str | None = None) -> str:
        return decode(2, frame.replace("|", ""), shape, dtype=dtype, model=bytes.fromhex(model) if model else None)

    assert planes(OF_BFLOAT16, (3, 2), "bfloat16") == "803f 00c0 0000 c17f 003f c03f"
    assert planes(OF_FLOAT8, (4,), "float8_e4m3fn") == "38b9 0040"
    assert planes(OF_TOPS, (8,), "bfloat16") == " ".join(["c03f"] * 8)
    assert planes("04 00 | 80 00 | 7F 80", (2,), "bfloat16") == "c03f 0040"
    # 1 and -3: symbols 15 and 16, mids 0 and 4. A bias a channel: classes 0 and 3; then one: classes 2 and 3.
    high = "00 00 | 00 01 | 20 | 0810 00 00 |"
    assert planes(f"{high} C0", (1, 2), "float16", f"02 {EVEN} 0F 0D") == "003c 00c2"
    assert planes(f"{high} C4", (1, 2), "float16", f"02 {EVEN} 0D") == "003c 00c2"


WORDS = [{64: 1, 66: 2, 128: 2}, {64: 2, 65: 2, 66: 2, 128: 2}] * 8
"""The lengths of the symbols that have one: 0 10 11 in an even context, 00 01 10 11 in an odd one."""
OF_THREE_CHANNELS = "803F 0000 80BF | 0000 803F 0000 | 78 C8 BB"
"""Slopes 1 0 -1, offsets 0 1 0, spreads 120 200 187."""

# By value: S, o, e, context, B: 187 93 127 15 476; 267 133 127 6 488; 254 127 127 2 464, negative.
# 186 93 0 0 328; 266 133 127 0 488; 253 126 128 12 482, negative. So code words 01 0 10, 0 11 0.
GIVEN = "803F C07F 803F 0100 0000 4040"
OF_LAYER = "02 | 01 | 05FC1000 | 0100 01 01 00 | CA00 | C17F"


def layer_model(channels: str, words: list[dict[int, int]]) -> bytes:
    lengths = [code.get(symbol, 0) for code in words for symbol in range(129)]
    halves = (low | high << 4 for low, high in zip(lengths[::2], lengths[1::2], strict=True))
    return bytes([3, *bytes.fromhex(channels.replace("|", "")), *halves])


def archive(frame: str, model: bytes | None = None, **rest: Any) -> str:
    shape, dtype = rest.get("shape", (2, 3)), rest.get("dtype", "bfloat16")
    lower = Activation("b", DTYPE_CODES[dtype], shape, shape[0], values=[bytes.fromhex(rest.get("below", GIVEN))])
    model = layer_model(OF_THREE_CHANNELS, WORDS) if model is None else model
    return decode(3, frame.replace("|", ""), shape, dtype=dtype, model=model, below=lower)


def test_archive_by_hand() -> None:
    assert archive(OF_LAYER) == "85bf 0041 3fbe 012d c17f 40c0"
    of_one = layer_model("803F | 0000 | 78", WORDS)
    assert archive("00 | 00 | AB | 0100 00 | 00", of_one, below="003C", dtype="float16", shape=(1,)) == "ab3c"


# 63 times 1.5 and a NaN, whose low byte is the same.
LOW = "0A000000 28B52FFD 20 40 030200 80"
LONG = f"03 01 | {LOW} | {EVEN} 7E | 0001 00 01 00 | {'88' * 31} F8 | FF"
LONG_TOPS = f"04 01 | {LOW} | 28B52FFD 20 40 030200 7F"
# 63 times 1 and a 2.
LONG_FLOAT8 = f"01 00 | {'00' * 32} | {UNEVEN} 00 | 4400 00 | {'00' * 7} 80 09"

WRONG_PLANES = {
    "no bytes": "",
    "flags alone": "03",
    "an unknown flag": LONG.replace("03", "13", 1),
    "tops with a code": LONG_TOPS.replace("04", "05", 1),
    "tops with a code and escapes": LONG_TOPS.replace("04", "07", 1),
    "tops with escapes": LONG_TOPS.replace("04", "06", 1),
    "a low plane that is none": LONG.replace("03 01", "03 03", 1),
    "a low plane that is no zstd frame": LONG.replace("28B5", "28B4", 1),
    "other low bytes than values": LONG.replace("20 40 030200", "20 3F FB0100", 1),
    "more than a zstd frame": LONG.replace("0A000000", "0B000000", 1).replace("80 |", "80 00 |", 1),
    "a low plane without an end": LONG.replace("0A000000", "0A000001", 1),
    "other tops than values": LONG_TOPS.replace("20 40 030200 7F", "20 3F FB0100 7F", 1),
    "an incomplete code": LONG.replace("44", "54", 1),
    "more than a code": LONG.replace("44", "43", 1),
    "a class without a word": LONG.replace(EVEN, "03 44 44 44 44 44 44 44", 1),
    "a word of 8 bits": LONG.replace(EVEN, "73 44 44 44 44 44 44 45", 1).replace("45 7E", "88 7E", 1),
    "a segment too long": LONG.replace("0001 00", "0001 01", 1),
    "five planes of lengths": LONG.replace("0001 00", "0051 00 0000000000", 1),
    "many escapes of none": LONG.replace("03", "01", 1).replace("0001 00 01 00", "0081 00", 1).removesuffix("| FF"),
    "an escape too few": LONG.removesuffix("| FF"),
    "a byte too many": LONG + "00",
    "no model": LONG.replace("03", "02", 1).replace(f"{EVEN} 7E |", "", 1),
}
CONTRADICTIONS = {
    "a segment too short": LONG.replace("0001 00", "FF00 00", 1),
    "no escapes": LONG.replace("01 00 | 88", "00 | 88", 1).removesuffix("| FF"),
    "too many escapes": LONG.replace("01 00 | 88", "01 01 | 88", 1) + "FF",
}
SYMBOL_OF_FIVE_BITS = LONG_FLOAT8.replace(f"{UNEVEN} 00", f"{UNEVEN} 09", 1)


def sum_of(stored: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(stored).to_bytes(8, "little")


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number >> 7 else bytes([number])


def put_frame(path: Path, frame: str, dtype: str, shape: tuple[int, ...]) -> Path:
    """A store of one activation of one frame of `planes`, written by hand."""
    old, new = noise(dtype, shape, 1).tobytes(), bytes.fromhex(frame.replace("|", ""))
    with actstore.create(path, codec="raw") as store:
        store.put(key="k", activations={"m.x": noise(dtype, shape, 1)})

    def change(kind: int, _: int, payload: bytearray) -> None:
        if kind == DATA:
            payload[: len(new)] = new
        if kind == ENTRY:
            before, after = sum_of(old) + varint(len(old)) + b"\0", sum_of(new) + varint(len(new)) + b"\2"
            assert payload.count(before) == 1
            payload[:] = payload.replace(before, after)
            # The document makes up with spaces for a shorter number.
            document, spaces = payload.index(b'{"key"'), len(before) - len(after)
            payload[document - 1] += spaces
            payload[document + 1 : document + 1] = b" " * spaces

    forge(path / SHARD, change)
    return path


def test_both_readers_read_planes_by_hand(tmp_path: Path) -> None:
    of_bfloat16 = {"codes": (LONG, [1.5] * 63 + [np.nan]), "tops": (LONG_TOPS, [1.5] * 64)}
    for name, (frame, values) in of_bfloat16.items():
        array = np.array(values, DTYPES["bfloat16"])
        assert_same(put_frame(tmp_path / name, frame, "bfloat16", (64,)), {"k": {"m.x": array}})
    array = np.array([1.0] * 63 + [2.0], DTYPES["float8_e4m3fn"])
    assert_same(put_frame(tmp_path / "8", LONG_FLOAT8, "float8_e4m3fn", (64,)), {"k": {"m.x": array}})
    # It would not be smaller stored.
    for name, frame in (("short", OF_BFLOAT16), ("frame", f"{LONG_TOPS} 00")):
        path = put_frame(tmp_path / name, frame, "bfloat16", (6,))
        with pytest.raises(Damaged):
            read_store(path)
        with actstore.open(path) as store, pytest.raises(CorruptError):
            _ = store["k"]["m.x"]


@pytest.mark.parametrize("frame", WRONG_PLANES.values(), ids=WRONG_PLANES.keys())
def test_what_a_frame_of_planes_cannot_say(frame: str, tmp_path: Path) -> None:
    path = put_frame(tmp_path / "s", frame, "bfloat16", (64,))
    with pytest.raises(Damaged):
        read_store(path)
    with actstore.open(path) as store, pytest.raises(CorruptError):
        _ = store["k"]["m.x"]


def test_a_frame_of_planes_that_contradicts_itself(tmp_path: Path) -> None:
    """The text lets a reader pass over it."""
    for name, frame in CONTRADICTIONS.items():
        with pytest.raises(Damaged):
            read_store(put_frame(tmp_path / name, frame, "bfloat16", (64,)))
    with pytest.raises(Damaged):
        read_store(put_frame(tmp_path / "symbol", SYMBOL_OF_FIVE_BITS, "float8_e4m3fn", (64,)))


OTHER_WORDS = {
    "no word for escapes": {0: 1, 1: 1},
    "an incomplete code": {0: 1, 128: 2},
    "more than a code": {0: 1, 1: 1, 128: 1},
    "a word of 10 bits": {number: number + 1 for number in range(10)} | {128: 10},
    "one word": {128: 1},
}
WRONG_LAYERS = {
    "no bytes": "",
    "an unknown flag": OF_LAYER.replace("02", "03", 1),
    "another unknown flag": OF_LAYER.replace("02", "06", 1),
    "a segment too short": OF_LAYER.replace("0100 01", "0000 01", 1),
    "a segment too long": OF_LAYER.replace("0100 01", "0200 01", 1).replace("CA00", "CA0000", 1),
    "a segment above the frame": OF_LAYER.replace("0100 01", "00FF 01", 1),
    "no escapes": OF_LAYER.replace("02", "00", 1).replace("01 00 | CA00 | C17F", "CA00", 1),
    "too few escapes": OF_LAYER.replace("01 00 | CA", "00 | CA", 1).removesuffix("| C17F"),
    "too many escapes": OF_LAYER.replace("00 | CA", "01 | CA", 1) + "0000",
    "half an escape": OF_LAYER.removesuffix("7F"),
    "a byte too many": OF_LAYER + "00",
}
WRONG_COEFFICIENTS = {
    "a subnormal slope": OF_THREE_CHANNELS.replace("803F", "7F00", 1),
    "an infinite offset": OF_THREE_CHANNELS.replace("0000 803F", "0000 807F", 1),
    "a zero with a sign": OF_THREE_CHANNELS.replace("803F 0000", "803F 0080", 1),
    "two channels": "803F 0000 | 0000 803F | 78 C8",
    "four channels": "803F 0000 80BF 0000 | 0000 803F 0000 0000 | 78 C8 BB 00",
}


def test_what_archive_cannot_say() -> None:
    for frame in WRONG_LAYERS.values():
        with pytest.raises(Damaged):
            archive(frame)
    for words in OTHER_WORDS.values():
        with pytest.raises(Damaged):
            archive(OF_LAYER, layer_model(OF_THREE_CHANNELS, [*WORDS[:-1], words]))
    for channels in WRONG_COEFFICIENTS.values():
        with pytest.raises(Damaged):
            archive(OF_LAYER, layer_model(channels, WORDS))
    right = layer_model(OF_THREE_CHANNELS, WORDS)
    for model in (bytes([2]) + right[1:], right[:-1], right + b"\0", b""):
        with pytest.raises(Damaged):
            archive(OF_LAYER, model)
    with pytest.raises(Damaged):
        decode(3, OF_LAYER.replace("|", ""), (2, 3), dtype="bfloat16", model=right)
    with pytest.raises(Damaged):
        archive(OF_LAYER, dtype="int16")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    """Three layers, each but the first given the one below it."""
    path, arrays = tmp_path_factory.mktemp("chain") / "s", layers("float16", [0, 1, 2], 60, 64)
    with actstore.create(path, codec="archive") as store:
        store.put(key="k", activations=arrays)
    assert below(path) == {1: 0, 2: 1}
    return path, arrays


def behind_name(payload: bytearray, number: int, distance: int) -> int:
    return after(payload, f"blocks.{number}.hook_resid_post".encode(), distance)


def of_block(number: int, at: int, old: int, new: int) -> Change:
    """Changes a byte of an activation from where its model, and what is below it, stand."""

    def change(kind: int, _: int, payload: bytearray) -> None:
        if kind == ENTRY:
            place = behind_name(payload, number, MODEL_BYTE + at)
            assert payload[place] == old
            payload[place] = new

    return change


def other_shape_below(kind: int, _: int, payload: bytearray) -> None:
    if kind == ENTRY:
        payload[behind_name(payload, 0, 1 + 1)] -= 1


def model_for_planes(kind: int, _: int, payload: bytearray) -> None:
    if kind == ENTRY:
        first, second = (behind_name(payload, number, MODEL_BYTE) for number in (0, 1))
        assert (payload[first], payload[second]) == (1, 2)
        payload[second + 1 : second + 17] = payload[first + 1 : first + 17]


MODEL_BYTE, BELOW = 1 + 1 + 2 + 2 + 2, 1 + 16
"""Behind dtype, rank, two extents, 512 rows a frame, and two numbers; and from there on."""
WRONG_CHAINS: dict[str, Change] = {
    "no activation below": of_block(1, 0, 2, 1),
    "an unknown way": of_block(1, 0, 2, 3),
    "itself": of_block(2, BELOW, 1, 2),
    "one after it": of_block(1, BELOW, 0, 2),
    "none": of_block(2, BELOW, 1, 3),
    "one that is below another": of_block(2, BELOW, 1, 0),
    "a model for planes": model_for_planes,
    "another shape": other_shape_below,
}


@pytest.mark.parametrize("change", WRONG_CHAINS.values(), ids=WRONG_CHAINS.keys())
def test_what_is_not_below(change: Change, chain: tuple[Path, Arrays], tmp_path: Path) -> None:
    shutil.copytree(chain[0], tmp_path / "s")
    forge(tmp_path / "s" / SHARD, unchanged)
    assert_same(tmp_path / "s", {"k": chain[1]})
    forge(tmp_path / "s" / SHARD, change)
    with pytest.raises(Damaged):
        read_store(tmp_path / "s")
    with actstore.open(tmp_path / "s") as store, pytest.raises(CorruptError):
        _ = [store["k"][name] for name in chain[1]]


@pytest.mark.parametrize("flag", [1, 8, 16, 128])
def test_flags_of_archive_that_are_not_named(
    flag: int, chain: tuple[Path, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bytes] = []

    def kept(stored: bytes, below: bytes, activation: Activation) -> bytes:
        found.append(stored)
        return decode_archive(stored, below, activation)

    def change(kind: int, _: int, payload: bytearray) -> None:
        new = bytes([found[0][0] | flag]) + found[0][1:]
        pairs = {DATA: (found[0], new), ENTRY: (sum_of(found[0]), sum_of(new))}
        if kind in pairs:
            payload[:] = payload.replace(*pairs[kind])

    with monkeypatch.context() as patch:
        patch.setattr(independent_reader, "decode_archive", kept)
        read_store(chain[0])
    shutil.copytree(chain[0], tmp_path / "s")
    forge(tmp_path / "s" / SHARD, change)
    with pytest.raises(Damaged):
        read_store(tmp_path / "s")
    with actstore.open(tmp_path / "s") as store, pytest.raises(CorruptError):
        _ = store["k"]["blocks.1.hook_resid_post"]


# The text


def test_the_reader_leans_on_two_packages_alone() -> None:
    tree = ast.parse(Path(independent_reader.__file__).read_text())
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module or ".")
    foreign = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    assert foreign == {"xxhash", "zstandard"}
    assert independent_reader.crc32c(b"123456789") == 0xE3069283


def variants(source: str, enum: str) -> set[tuple[str, str]]:
    """(code, lower-case name) of each variant of a Rust enum whose codes are written out."""
    body = re.search(rf"pub enum {enum} {{(.*?)\n}}", (CORE / "src" / source).read_text(), re.DOTALL)
    assert body
    found = re.findall(r"^ +(\w+) = (\d+),$", body[1], re.MULTILINE)
    assert found
    return {(code, name.lower()) for name, code in found}


def test_the_text_names_all_there_is() -> None:
    text = (CORE / "FORMAT.md").read_text()
    rows = set(re.findall(r"\| (\d+) \| `(\w+)` \|", text))
    codes = {(str(code), name) for code, name in enumerate(DTYPES)}
    assert rows == codes | variants("format/mod.rs", "RecordType") | variants("codec/mod.rs", "Encoding")
    assert f"version {_core.FORMAT_VERSION}" in text.splitlines()[0]
    assert all(f"`{codec}`" in text for codec in _core.codecs("shards"))
    for _, (name, size) in independent_reader.DTYPES.items():
        assert DTYPES[name].itemsize == size
