"""A reader written from FORMAT.md alone gets out of a store exactly what was put in, or says that it is damaged."""

import ast
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import independent_reader
import ml_dtypes
import numpy as np
import pytest
from actstore import _core
from actstore.store import Store
from independent_reader import Damaged, Records, read_log, read_manifest, read_store, walk

REPOSITORY = Path(__file__).parent.parent
CORE = REPOSITORY / "rust/core"
SHARD = "shards/0-000001.shard"
LOG = "logs/0.log"
MANIFEST = "actstore.manifest"
HEAD = 192
FIRST_EXTENT = HEAD + 128

DTYPES = dict(_core.dtypes())
SHAPES = [(), (0,), (7,), (4, 0), (0, 3), (33, 5), (3, 2, 4), (2, 1, 3, 2), (40, 300)]
FLOATS = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]

Arrays = dict[str, np.ndarray]


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def noise(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype]
    return np.frombuffer(random.Random(seed).randbytes(size), numpy_dtype(dtype)).reshape(shape)


def gauss(dtype: str, rows: int, width: int, seed: int = 0) -> np.ndarray:
    """As activations are: each channel has a scale of its own, so that a model pays."""
    values = np.random.default_rng(seed).standard_normal((rows, width))
    return (values * np.exp2(np.arange(width) % 9 - 4)).astype(numpy_dtype(dtype))


def documents(store: Store) -> dict[str, dict[str, Any]]:
    """As stored: without what is derived, and what has its default."""
    found = {}
    for document in store.metadata():
        del document["prompt_sha256"]
        found[document["key"]] = {name: value for name, value in document.items() if value not in (None, {})}
    return found


def assert_same(path: Path, expected: dict[str, Arrays]) -> None:
    """What the independent reader gets is what the library gets, and its activations are those put."""
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


def encodings(path: Path) -> dict[str, set[str]]:
    with actstore.open(path) as store:
        return {point["dtype"]: set(point["encodings"]) for point in store.info()["points"]}


@pytest.mark.parametrize("codec", _core.codecs())
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


@pytest.mark.parametrize("codec", _core.codecs())
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
    if codec == "planes":
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
    with actstore.create(tmp_path / "s") as store:
        store.put(
            key="k", activations={"m.a": gauss("bfloat16", 64, 64), "m.b": counts, "m.c": noise("int8", (64, 64), 1)}
        )
    assert set().union(*encodings(tmp_path / "s").values()) == {"stored", "zstd", "planes"}
    assert set(read_store(tmp_path / "s")["k"].activations) == {"m.a", "m.b", "m.c"}


def test_packed_activations(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s", dtype="float16", overflow="saturate") as store:
        store.put(key="k", activations={"m.a": np.array([[1.0, 1e9, -np.inf]], np.float32)})
    assert_same(tmp_path / "s", {"k": {"m.a": np.array([[1.0, 65504.0, -np.inf]], np.float16)}})


@pytest.mark.parametrize("codec", _core.codecs())
@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_a_store_with_a_history(codec: str, durability: str, tmp_path: Path) -> None:
    expected: dict[str, Arrays] = {}

    def put(store: Store, key: str, seed: int, **rest: Any) -> None:
        arrays = {"hook_embed": noise("bfloat16", (3, 16), seed), "logits": gauss("float32", 40, 20, seed)}
        store.put(key=key, activations=arrays, **rest)
        expected[key] = arrays

    def delete(store: Store, key: str) -> None:
        assert store.delete(key) == 1
        del expected[key]

    with actstore.create(tmp_path / "s", codec=codec, durability=durability, on_conflict="replace") as store:
        put(store, "ключ 🗝", 1, prompt='¿qué?\n\t\0"\\', response="\u2028é\U0001f600", metadata=ODD_METADATA)
        put(store, "a", 2, token_ids=[], prompt_length=0)
        put(store, "b", 3, token_ids=[0, 2**32 - 1, 7], prompt_length=2, positions=[(0, 2), (5, 6)])
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
    assert all(f"`{codec}`" in text for codec in _core.codecs())
    for _, (name, size) in independent_reader.DTYPES.items():
        assert DTYPES[name] == size
