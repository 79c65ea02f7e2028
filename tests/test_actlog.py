"""LMDB logs of document 000 are read as they were written, in every era, and nothing of theirs is changed or run."""

import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

import actstore
from actstore import _core
from actstore.errors import ActstoreError, NotFoundError
from old_logs import ERAS, FIELDS, FLAT, HALVES, KEY, NONE, SAID, ZSTD_B, packed, wrapped, write, write_log, zstd
from pickles import named


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def require_layer(layer: _core.LoggedLayer | None, expected: np.ndarray | None) -> None:
    if layer is None or expected is None:
        assert layer is expected
        return
    assert (layer.dtype, tuple(layer.shape)) == (expected.dtype.name, expected.shape)
    assert (bytes(layer), memoryview(layer).readonly) == (expected.tobytes(), True)


def require_layers(layers: Any, expected: Any) -> None:
    assert type(layers) is type(expected)
    if isinstance(expected, dict):
        assert list(layers) == list(expected)
        layers, expected = list(layers.values()), list(expected.values())
    assert len(layers) == len(expected)
    for layer, own in zip(layers, expected, strict=True):
        require_layer(layer, own)


@pytest.mark.parametrize("said", [None, SAID], ids=["alone", "with metadata"])
@pytest.mark.parametrize("era", ERAS)
def test_every_era_is_read(era: str, said: dict[str, object] | None, tmp_path: Path) -> None:
    value, fields, compression, layers = ERAS[era]
    log = _core.ActlogLmdb(str(write_log(tmp_path / "activations.lmdb", value, said)))
    assert (len(log), log.keys()) == (1, [KEY])
    entry = log.get(KEY)
    assert entry.era == era
    assert list(entry.fields.items()) == list(fields.items())
    assert entry.compression == compression
    for metadata in (entry.metadata, log.metadata(KEY)):
        assert metadata == said
        assert list(metadata or {}) == list(said or {})
    read = entry.layers
    del log, entry
    require_layers(read, layers)


@pytest.mark.parametrize("compression", [{}, {"compression": "none", "reason": "no activations found"}])
def test_an_entry_without_activations_has_none(compression: dict[str, object], tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", {"data": FIELDS, "metadata": compression})
    entry = _core.ActlogLmdb(str(path)).get(KEY)
    assert (entry.era, entry.layers, entry.fields, entry.compression) == ("V2-none", None, FIELDS, compression)


def test_metadata_lies_within_where_the_path_was_given_with_a_slash(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", ERAS["V2-none"][0], SAID, "_metadata")
    for spelling in (str(path), f"{path}/"):
        assert _core.ActlogLmdb(spelling).metadata(KEY) == SAID


def test_nothing_is_written(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", ERAS["V2-none"][0], SAID)
    for lock in tmp_path.rglob("lock.mdb"):
        lock.unlink()
    for place in [*tmp_path.rglob("*"), tmp_path]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = contents(tmp_path)
    log = _core.ActlogLmdb(str(path))
    require_layers(log.get(log.keys()[0]).layers, ERAS["V2-none"][3])
    assert contents(tmp_path) == before
    assert sorted(before) == ["log/data.mdb", "log_metadata/data.mdb"]
    for place in [tmp_path, path, tmp_path / "log_metadata"]:
        place.chmod(0o755)


def test_what_is_written_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", ERAS["V2-none"][0])
    log = _core.ActlogLmdb(str(path))
    write(path, {"other": FLAT})
    with pytest.raises(
        ActstoreError, match=r"data\.mdb` was written to while it was read; let its writer finish"
    ) as caught:
        log.get(KEY)
    assert caught.value.kind == "locked"
    assert _core.ActlogLmdb(str(path)).keys() == [KEY, "other"]


def test_many_entries_of_any_size_that_were_replaced_and_removed(tmp_path: Path) -> None:
    entries = {f"{number:05}" + "k" * (number % 300): {"prompt": "p" * (number * 7 % 9000)} for number in range(2000)}
    write(tmp_path / "log", dict.fromkeys(entries, b"first" * 50))
    write(tmp_path / "log", entries)
    with lmdb.open(str(tmp_path / "log"), map_size=1 << 28) as environment, environment.begin(write=True) as txn:
        for key in list(entries)[::3]:
            del entries[key]
            txn.delete(key.encode())
    log = _core.ActlogLmdb(str(tmp_path / "log"))
    assert (len(log), log.keys()) == (len(entries), sorted(entries))
    assert all(log.get(key).fields == entry for key, entry in entries.items())
    for missing in ("00000", "a", "zzz", ""):
        with pytest.raises(NotFoundError) as caught:
            log.get(missing)
        assert (caught.value.kind, str(caught.value)) == ("no_such_key", f"the log has no entry `{missing}`")


def test_an_empty_log(tmp_path: Path) -> None:
    write(tmp_path / "log", {})
    log = _core.ActlogLmdb(str(tmp_path / "log"))
    assert (len(log), log.keys()) == (0, [])


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(ActstoreError) as caught:
        _core.ActlogLmdb(str(path)).get(KEY)
    return caught.value.kind, str(caught.value)


def test_where_there_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "data.mdb").write_bytes(b"text" * 5000)
    assert refusal(tmp_path / "gone") == (
        "not_a_store",
        f"`{tmp_path / 'gone'}` is no LMDB environment: it has no `data.mdb`",
    )
    assert refusal(tmp_path / "text") == ("not_a_store", f"`{tmp_path / 'text' / 'data.mdb'}` is not an LMDB file")
    with actstore.create(tmp_path / "own", "lmdb"):
        pass
    with pytest.raises(ActstoreError, match=r"holds the named database `\w+`, which no activation log has") as caught:
        _core.ActlogLmdb(str(tmp_path / "own")).keys()
    assert caught.value.kind == "not_a_store"


FRAME, ABOUT = ZSTD_B
BAD: dict[str, tuple[object, str, str]] = {
    "no dict": ([1], "malformed", "its value is `list`, not a dict"),
    "no prompt": ({"a": 1}, "malformed", "its value has no `prompt`, so it is no entry of an activation log"),
    "data of a number": ({"data": 3, "metadata": NONE}, "malformed", "its data is `int`, not a dict"),
    "activations of a text": (wrapped("all", NONE), "malformed", "its activations are `text`, neither list nor dict"),
    "layer of a number": (wrapped([None, 3], NONE), "malformed", "layer `1` is `int`, not an array"),
    "step of a text": (
        {"prompt": "", "all_layers_activations": {"layer_0": "a"}},
        "malformed",
        "layer `layer_0` is `text`",
    ),
    "step without a name": (
        {"prompt": "", "all_layers_activations": {0: None}},
        "malformed",
        "the name of a layer is `int`",
    ),
    "another compression": (
        wrapped(FRAME, {"compression": "lz4"}),
        "unsupported_version",
        "its compression is `lz4`; none, zstd and bytes are known",
    ),
    "compression of a number": (wrapped(FRAME, {"compression": 1}), "malformed", "its compression is `int`"),
    "nothing compressed": (
        wrapped([None], ABOUT),
        "malformed",
        "its activations are not compressed, though it says so",
    ),
    "no size": (wrapped(FRAME, {"compression": "zstd"}), "malformed", "nothing says to how many bytes they unpack"),
    "a size of less than nothing": (
        wrapped(FRAME, {"compression": "zstd", "original_size": -1}),
        "malformed",
        "`original_size` is no number of bytes",
    ),
    "half a frame": (wrapped(FRAME[: len(FRAME) // 2], ABOUT), "malformed", "zstd frame"),
    "no frame": (wrapped(b"no frame", ABOUT), "malformed", "a zstd frame that cannot be decoded"),
    "more than a frame": (wrapped(FRAME + b"more", ABOUT), "malformed", "a zstd frame has more than its layers"),
    "a frame of more": (
        wrapped(zstd(packed(HALVES) + b"more")[0], ABOUT),
        "malformed",
        "a zstd frame has more than its layers",
    ),
    "a frame of less": (
        wrapped(zstd(packed(HALVES)[:-2])[0], ABOUT),
        "malformed",
        "a zstd frame ends `2` bytes too early",
    ),
    "another size": (wrapped(FRAME, {**ABOUT, "original_size": 5}), "malformed", "and `original_size` says `5`"),
    "layers of a number": (
        wrapped(FRAME, {**ABOUT, "tensor_metadata": 5}),
        "malformed",
        "`tensor_metadata` is no list",
    ),
    "layer without a shape": (
        wrapped(FRAME, {**ABOUT, "tensor_metadata": [{}]}),
        "malformed",
        "has a layer without shape or dtype",
    ),
    "layer of a negative shape": (
        wrapped(FRAME, {**ABOUT, "tensor_metadata": [{"shape": [-1], "dtype": "torch.float16"}]}),
        "malformed",
        "a shape that is no list of extents",
    ),
    "layer of complex numbers": (
        wrapped(FRAME, {**ABOUT, "tensor_metadata": [{"shape": [1], "dtype": "torch.complex64"}]}),
        "invalid_tensor",
        "`complex64`",
    ),
    "bomb of a pickle": (
        wrapped(zstd(bytes(2**23))[0], {"compression": "zstd", "original_size": 2**40}),
        "limit_exceeded",
        "bytes should unpack to `1099511627776`, above the limit of",
    ),
    "bomb of layers": (
        wrapped(
            zstd(bytes(2**23))[0],
            {"compression": "zstd", "tensor_metadata": [{"shape": [2**23], "dtype": "torch.int8"}]},
        ),
        "limit_exceeded",
        "bytes should unpack to `8388608`, above the limit of `4194304`",
    ),
    "pickle within that is none": (
        {"data": b"abc", "metadata": {"compression": "bytes"}},
        "malformed",
        "the pickle within: byte `0` of a pickle: ",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_entries_that_no_era_has_are_refused(bad: str, tmp_path: Path) -> None:
    value, kind, said = BAD[bad]
    found, message = refusal(write_log(tmp_path / "log", value))
    assert (found, said in message, message.startswith(f"entry `{KEY}`: ")) == (kind, True, True), message


GADGET = named("os", "system") + b"X\x09\x00\x00\x00touch ran\x85R"


@pytest.mark.parametrize("place", ["value", "compressed", "within", "metadata"])
def test_nothing_is_run(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame, about = zstd(GADGET + b".")
    value = {
        "value": GADGET + b".",
        "compressed": pickle.dumps(wrapped(frame, about)),
        "within": pickle.dumps({"data": GADGET + b".", "metadata": {"compression": "bytes"}}),
        "metadata": pickle.dumps(ERAS["V2-none"][0]),
    }
    write(tmp_path / "log", {KEY: value[place]})
    write(tmp_path / "log_metadata", {KEY: GADGET + b"."})
    kind, message = refusal(tmp_path / "log")
    assert kind == "untrusted_input"
    assert f"entry `{KEY}`: " in message
    assert "it names `os.system`, which is no part of an array of torch or NumPy; nothing was run" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log_metadata"]


def test_metadata_that_is_no_dict_is_refused(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", ERAS["V2-none"][0], [1])
    assert refusal(path) == ("malformed", f"metadata of entry `{KEY}`: its value is `list`, not a dict")


def read_all(path: Path) -> str:
    """The kind of the error that reading all of a log ends with, or `fine`."""
    try:
        log = _core.ActlogLmdb(str(path))
        list(map(log.get, log.keys()))
    except ActstoreError as error:
        return error.kind
    return "fine"


def test_a_log_that_was_cut_is_refused(tmp_path: Path) -> None:
    data = write_log(tmp_path / "log", ERAS["V2-none"][0]) / "data.mdb"
    whole = data.read_bytes()
    for length in range(0, len(whole), 512):
        data.write_bytes(whole[:length])
        assert read_all(tmp_path / "log") in ("truncated", "not_a_store"), length


DAMAGE = {
    "truncated",
    "malformed",
    "not_a_store",
    "unsupported_version",
    "limit_exceeded",
    "untrusted_input",
    "invalid_tensor",
    "no_such_key",
}


def test_damaged_pages_are_refused_or_read(tmp_path: Path) -> None:
    entries = {f"k{number}" + "k" * 200: pickle.dumps({"prompt": "p" * number * 150}) for number in range(24)}
    write(tmp_path / "log", entries)
    data = tmp_path / "log" / "data.mdb"
    whole = data.read_bytes()
    random, found = np.random.default_rng(0), set[str]()
    # Headers and pointers of every page, and anywhere.
    places = [
        page + at
        for page in range(0, len(whole), 4096)
        for at in (0, 10, 12, 14, 16, 18, 25, 40, 46, 90, 128, 136, 144)
    ]
    for place in [*places, *random.integers(0, len(whole), 150)]:
        for changed in (0, 0xFF, whole[place] ^ 1):
            data.write_bytes(whole[:place] + bytes([changed]) + whole[place + 1 :])
            found.add(read_all(tmp_path / "log"))
    assert found <= DAMAGE | {"fine"}
    assert {"malformed", "fine"} <= found
