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

import numpy as np
import pytest

import actstore
import independent_reader
from actstore import _core
from actstore.errors import ActstoreError, AlreadyExistsError, CorruptError, UnsupportedVersionError
from actstore.store import Store
from dtypes import DTYPES, noise
from independent_reader import (
    COMMIT,
    ENTRY,
    SEAL,
    Damaged,
    Records,
    Unsupported,
    align,
    crc32c,
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
        # Two extents, and three numbers.
        at = after(payload, b"blocks.3.x", 2 * 8 + 3 * 8)
        assert payload[at : at + 5] == b"\0\1\0\0\0"
        payload[at] = 2


def without_bytes(kind: int, _: int, payload: bytearray) -> None:
    if kind == ENTRY:
        at = after(payload, b"blocks.3.x", 8)
        assert payload[at : at + 8] == (4).to_bytes(8, "little")
        payload[at : at + 8] = bytes(8)


def unchanged(kind: int, sequence: int, payload: bytearray) -> None:
    pass


SWAPPED = (b"blocks.2.x", b"blocks.?.x"), (b"blocks.3.x", b"blocks.2.x"), (b"blocks.?.x", b"blocks.3.x")
WRONG_ENTRIES: dict[str, Change] = {
    "content id": other_content_id,
    "has-model byte": perhaps_a_model,
    "a frame without bytes": without_bytes,
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
