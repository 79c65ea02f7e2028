"""What a store promises, over every backend; then what only stores with files can do."""

import copy
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import polars
import pyarrow
import pytest
import torch

import actstore
from actstore.errors import ActstoreError, InvalidInputError, KeyConflictError, NotFoundError, ReadOnlyError
from actstore.store import Store
from memory import Peak, anonymous_bytes
from processes import python

POINT = "resid_post.1"
STORED_POINT = "blocks.1.hook_resid_post"


def rows(count: int, seed: int = 0, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def put_some(store: Store, count: int = 5) -> None:
    with store.writer() as writer:
        for index in range(count):
            writer.put(
                prompt=f"prompt {index}",
                response=f"response {index}",
                token_ids=range(4),
                prompt_length=3,
                activations={POINT: rows(4, index)},
                metadata={"index": index, "even": index % 2 == 0},
                key=f"key {index}",
            )


def test_put_and_get(store: Store) -> None:
    array = rows(3)
    before = time.time()
    store.put(
        prompt="who?",
        response="me",
        token_ids=[5, 6, 7],
        prompt_length=2,
        activations={POINT: array, "embed": array[:, :2]},
        metadata={"split": "train", "scores": (1, 2.5, None, True), "deep": {"ä": "ö"}},
    )
    assert len(store) == 1
    key = actstore.key_of_prompt("who?")
    assert key in store
    assert 5 not in store
    entry = store[key]
    assert (entry.key, entry.key_recipe, entry.prompt, entry.response) == (key, "prompt", "who?", "me")
    assert (entry.token_ids, entry.prompt_length, entry.positions) == ([5, 6, 7], 2, [0, 1, 2])
    assert entry.metadata == {"split": "train", "scores": [1, 2.5, None, True], "deep": {"ä": "ö"}}
    assert entry.document["prompt_sha256"] == key
    assert before <= entry.created <= time.time()
    assert entry.points == ["hook_embed", STORED_POINT]
    np.testing.assert_array_equal(entry.numpy(POINT), array)


def test_the_key_is_that_of_the_ids_where_there_is_no_prompt(store: Store) -> None:
    store.put(token_ids=[1, 2], activations={POINT: rows(2)})
    entry = store[actstore.key_of_ids([1, 2])]
    assert (entry.key_recipe, entry.prompt, entry.response, entry.metadata) == ("ids", None, None, {})


def test_a_mapping_in_the_order_of_writing(store: Store) -> None:
    put_some(store, 5)
    assert store.keys() == [f"key {index}" for index in range(5)]
    assert [entry.key for entry in store] == store.keys()
    assert store.delete(["key 1", "key 3", "no such key"]) == 2
    assert store.delete("key 4") == 1
    assert store.keys() == ["key 0", "key 2"]
    with pytest.raises(NotFoundError, match="key 1") as caught:
        store["key 1"]
    assert caught.value.kind == "no_such_key"
    assert isinstance(caught.value, KeyError)
    put_some(store, 5)
    assert sorted(store.keys()) == [f"key {index}" for index in range(5)]


def test_the_same_content_again_changes_nothing(store: Store) -> None:
    put_some(store)
    created = [entry.created for entry in store]
    with store.writer() as writer:
        for index in range(5):
            writer.put(
                prompt=f"prompt {index}",
                response=f"response {index}",
                token_ids=range(4),
                prompt_length=3,
                activations={STORED_POINT: torch.from_numpy(rows(4, index))},
                metadata={"even": index % 2 == 0, "index": index},
                key=f"key {index}",
            )
        writer.flush()
        assert (writer.stats["entries"], writer.stats["duplicates"]) == (0, 5)
    assert [entry.created for entry in store] == created


@pytest.mark.parametrize("policy", ["error", "skip", "replace", "number"])
def test_conflicts(policy: str, backend: str, tmp_path: Path) -> None:
    path = None if backend == "memory" else tmp_path / "store"
    with actstore.create(path, backend, on_conflict=policy) as store:
        put_some(store, 2)
        if policy == "error":
            with pytest.raises(KeyConflictError, match="key 0") as caught:
                store.put(key="key 0", activations={POINT: rows(1, 9)})
            assert caught.value.kind == "key_conflict"
        else:
            store.put(key="key 0", activations={POINT: rows(1, 9)})
        kept = rows(1, 9) if policy == "replace" else rows(4, 0)
        np.testing.assert_array_equal(store["key 0"].numpy(POINT), kept)
        assert store.keys() == ["key 0", "key 1"] + (["key 0#1"] if policy == "number" else [])
        if policy == "number":
            np.testing.assert_array_equal(store["key 0#1"].numpy(POINT), rows(1, 9))
        np.testing.assert_array_equal(store["key 1"].numpy(POINT), rows(4, 1))


def test_search(store: Store) -> None:
    put_some(store, 5)
    assert store.search() == store.keys()
    assert store.search(even=True) == ["key 0", "key 2", "key 4"]
    assert store.search(even=True, response="response 2") == ["key 2"]
    assert store.search(prompt="prompt 3") == store.search(key="key 3") == ["key 3"]
    assert store.search(lambda document: document["metadata"]["index"] > 2, even=False) == ["key 3"]
    assert store.search(no_such_field=None) == []


def test_metadata_as_dicts(store: Store) -> None:
    put_some(store, 3)
    table = store.metadata()
    assert len(table) == 3
    assert table.dicts() == list(table)
    first = table.dicts()[0]
    assert (first["key"], first["prompt"], first["metadata"]["index"]) == ("key 0", "prompt 0", 0)
    assert first == store["key 0"].document
    assert repr(table) == "MetadataTable(3 rows)"


def test_metadata_as_arrow(store: Store) -> None:
    put_some(store, 3)
    table = store.metadata()
    frame = polars.DataFrame(table)
    assert frame["key"].to_list() == store.keys()
    assert frame["prompt"].to_list() == [entry.prompt for entry in store]
    assert frame["prompt_length"].to_list() == [3, 3, 3]
    arrow = pyarrow.table(table)
    arrow.validate(full=True)
    assert arrow.num_rows == 3
    assert arrow["index"].to_pylist() == [entry.metadata["index"] for entry in store]
    assert arrow["even"].to_pylist() == [True, False, True]
    assert frame.filter(polars.col("even"))["key"].to_list() == ["key 0", "key 2"]
    store.delete(store.keys())
    assert polars.DataFrame(store.metadata()).height == 0


def test_scan_reads_in_order_and_at_positions(store: Store) -> None:
    put_some(store, 5)
    store.put(key="other", activations={"embed": rows(1)})
    scanned = list(store.scan(POINT))
    assert [key for key, _ in scanned] == [f"key {index}" for index in range(5)]
    assert all(isinstance(array, torch.Tensor) for _, array in scanned)
    for index, (_, array) in enumerate(scanned):
        np.testing.assert_array_equal(array.numpy(), rows(4, index))
    for index, (_, array) in enumerate(store.scan(1, "response")):
        np.testing.assert_array_equal(array.numpy(), rows(4, index)[3:])
    chosen = store.search(lambda document: document["metadata"].get("index", 0) > 2)
    assert [key for key, _ in store.scan(POINT, keys=reversed(chosen))] == ["key 4", "key 3"]


def test_scan_says_what_is_missing(store: Store) -> None:
    assert list(store.scan(POINT)) == []
    put_some(store, 2)
    with pytest.raises(NotFoundError, match=f"logits.*{STORED_POINT}") as caught:
        list(store.scan("logits"))
    assert caught.value.kind == "point_not_stored"
    with pytest.raises(InvalidInputError, match="position") as invalid:
        list(store.scan(POINT, [7]))
    assert invalid.value.kind == "unknown_position"


def test_scan_goes_over_many_windows_and_can_stop_early(store: Store) -> None:
    activation = np.zeros((1024, 2048), np.float32)  # 8 MiB, so that four make a window
    with store.writer() as writer:
        for index in range(11):
            activation[0, 0] = index
            writer.put(key=str(index), activations={POINT: activation})
    assert [(key, array[0, 0].item()) for key, array in store.scan(POINT)] == [(str(i), i) for i in range(11)]
    before = threading.active_count()
    for key, _ in store.scan(POINT):
        if key == "1":
            break
    assert threading.active_count() <= before


def test_scan_holds_few_arrays_however_many_there_are(store: Store) -> None:
    activation = np.zeros((1024, 2048), np.float32)  # 8 MiB: more than a window has
    with store.writer() as writer:
        for index in range(24):
            writer.put(key=str(index), activations={POINT: activation})
    before = anonymous_bytes()
    with Peak() as peak:
        assert sum(1 for _ in store.scan(POINT)) == 24
    # One that is used, one decoded meanwhile, what a backend needs to decode one, and memory kept to be used again.
    assert peak.bytes - before < 12 * activation.nbytes


def test_a_store_can_change_while_it_is_scanned(store: Store) -> None:
    put_some(store, 3)
    for key, _ in store.scan(POINT):
        store.put(key=f"copy of {key}", activations={POINT: rows(1)})
    assert len(store) == 6


def test_info_counts(store: Store) -> None:
    assert store.info()["entries"] == 0
    put_some(store, 5)
    info = store.info()
    assert (info["entries"], info["tokens"], info["raw_bytes"]) == (5, 20, 5 * 4 * 8 * 4)
    (point,) = info["points"]
    assert (point["point"], point["dtype"], point["entries"], point["rows"]) == (STORED_POINT, "float32", 5, 20)
    assert (point["raw_bytes"], point["nonfinite"], point["saturated"]) == (640, 0, 0)


def test_nonfinite_values_are_stored_exactly_and_counted(store: Store) -> None:
    array = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    store.put(key="odd", activations={POINT: array})
    assert store["odd"].numpy(POINT).tobytes() == array.tobytes()
    assert store.info()["points"][0]["nonfinite"] == 3


def test_verify_reports_progress(store: Store) -> None:
    put_some(store, 5)
    calls: list[tuple[int, int]] = []
    report = store.verify(lambda done, total: calls.append((done, total)))
    assert (report["entries"], report["damage"]) == (5, [])
    assert report["bytes"] > 0
    assert calls[-1] == (5, 5)
    assert store.verify()["entries"] == 5


def test_an_error_in_the_progress_of_verify_is_raised(store: Store) -> None:
    put_some(store, 3)

    def fail(_done: int, _total: int) -> None:
        raise LookupError("from the callback")

    with pytest.raises(LookupError, match="from the callback"):
        store.verify(fail)
    assert store.verify()["damage"] == []


def test_the_block_of_a_writer_commits_what_was_put_and_raises_what_went_wrong(store: Store) -> None:
    writer = store.writer()
    with pytest.raises(LookupError, match="of the user"), writer:  # noqa: PT012  # the block is what is tested
        writer.put(key="whole", activations={POINT: rows(2)})
        raise LookupError("of the user")
    assert store.keys() == ["whole"]
    with pytest.raises(ReadOnlyError) as caught:
        writer.put(key="late", activations={POINT: rows(2)})
    assert caught.value.kind == "closed"
    writer.close()


def test_writer_stats(store: Store) -> None:
    with store.writer() as writer:
        writer.put(key="one", token_ids=[1, 2], activations={POINT: rows(2)})
        writer.flush()
        assert len(store) == 1
        stats = writer.stats
    assert (stats["entries"], stats["tokens"], stats["raw_bytes"]) == (1, 2, 64)
    assert stats["queue_bytes"] == 0
    assert stats["queue_peak_bytes"] >= 64
    assert stats["wait_seconds"] >= 0.0


def test_put_copies_before_it_returns(store: Store) -> None:
    array = rows(64)
    with store.writer() as writer:
        for index in range(20):
            array[:] = index
            writer.put(key=str(index), activations={POINT: array})
        array[:] = -1.0
    assert all((store[str(index)].numpy(POINT) == index).all() for index in range(20))


def test_a_writer_takes_entries_of_many_threads(store: Store) -> None:
    def put_own(thread: int) -> None:
        for index in range(20):
            writer.put(key=f"{thread}-{index}", activations={POINT: rows(3, thread * 100 + index)})

    with store.writer() as writer:
        threads = [threading.Thread(target=put_own, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(store) == 80
    for thread in range(4):
        for index in range(20):
            expected = rows(3, thread * 100 + index)
            np.testing.assert_array_equal(store[f"{thread}-{index}"].numpy(POINT), expected)


def test_repr_is_one_line(store: Store) -> None:
    put_some(store, 5)
    name = "in memory" if store.path is None else repr(str(store.path))
    assert repr(store).startswith(f"Store({name}: 5 entries, 1 hook point, ")
    assert repr(store).endswith(f"B, {store.backend})")
    assert "5 entries" in store._repr_html_()
    store.close()
    assert repr(store) == f"Store({name}: closed)"
    assert "closed" in store._repr_html_()


def test_settings_and_properties(store: Store, backend: str) -> None:
    assert store.backend == backend
    assert (store.mode, store.closed, store.core.closed) == ("a", False, False)
    settings = store.settings
    codec = {"codec": None, "encoding": "text"} if backend == "json" else {"codec": "planes", "encoding": None}
    assert {name: settings[name] for name in codec} == codec
    assert (settings["dtype"], settings["overflow"]) == (None, "error")
    assert (settings["on_conflict"], settings["durability"]) == ("error", "commit")
    assert settings["token_convention"] == "at"
    assert settings["store_id"]


@pytest.mark.parametrize("codec", ["raw", "zstd", "planes"])
@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_reopened_stores_are_the_same(codec: str, durability: str, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s", codec=codec, durability=durability) as store:
        put_some(store, 5)
        store.delete("key 2")
        documents, store_id = store.metadata().dicts(), store.settings["store_id"]
    with actstore.open(tmp_path / "s", "a") as store:
        store.put(key="more", activations={POINT: rows(1)})
    with actstore.open(tmp_path / "s") as store:
        assert store.mode == "r"
        assert store.settings["store_id"] == store_id
        assert (store.settings["codec"], store.settings["durability"]) == (codec, durability)
        assert store.metadata().dicts()[:4] == documents
        assert store.keys() == ["key 0", "key 1", "key 3", "key 4", "more"]
        np.testing.assert_array_equal(store["key 3"].numpy(POINT), rows(4, 3))


def test_a_reader_beside_a_writer_sees_what_was_committed_when_it_opened(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s") as store:
        put_some(store, 2)
        with actstore.open(tmp_path / "s") as reader:
            store.put(key="later", activations={POINT: rows(1)})
            assert reader.keys() == ["key 0", "key 1"]
            np.testing.assert_array_equal(reader["key 1"].numpy(POINT), rows(4, 1))
        with actstore.open(tmp_path / "s") as reader:
            assert "later" in reader


def test_a_put_is_durable_on_return(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s") as store:
        for index in range(3):
            store.put(key=str(index), activations={POINT: rows(1)})
            with actstore.open(tmp_path / "s") as reader:
                assert len(reader) == index + 1


def test_packing_to_float16(backend: str, tmp_path: Path) -> None:
    path = None if backend == "memory" else tmp_path / "store"
    with actstore.create(path, backend, dtype="float16") as store:
        store.put(key="fits", activations={POINT: rows(4)})
        entry = store["fits"]
        assert entry.dtype(POINT) == "float16"
        np.testing.assert_array_equal(entry.numpy(POINT), rows(4).astype(np.float16))


@pytest.mark.parametrize("overflow", ["error", "saturate", "keep"])
def test_float16_overflow(overflow: str, backend: str, tmp_path: Path) -> None:
    path = None if backend == "memory" else tmp_path / "store"
    large = np.array([[1.0, 1e6, -1e6]], np.float32)
    with actstore.create(path, backend, dtype=torch.float16, overflow=overflow) as store:
        store.put(key="before", activations={POINT: rows(4)})
        if overflow == "error":
            with pytest.raises(InvalidInputError, match="float16") as caught:
                store.put(key="large", activations={POINT: large})
            assert caught.value.kind == "float16_overflow"
            assert store.keys() == ["before"]
        else:
            store.put(key="large", activations={POINT: large})
            stored = store["large"].numpy(POINT)
            expected = large if overflow == "keep" else np.clip(large, -65504, 65504).astype(np.float16)
            assert stored.dtype == expected.dtype
            np.testing.assert_array_equal(stored, expected)
            assert sum(point["saturated"] for point in store.info()["points"]) == (0 if overflow == "keep" else 2)
        np.testing.assert_array_equal(store["before"].numpy(POINT), rows(4).astype(np.float16))


def test_stores_opened_for_reading_pickle_as_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with actstore.create(tmp_path / "s") as store:
        put_some(store, 2)
        with pytest.raises(TypeError, match="mode `r`"):
            pickle.dumps(store)
    monkeypatch.chdir(tmp_path)
    with actstore.open("s") as reader:
        data = pickle.dumps(reader)
        with copy.copy(reader) as copied:
            assert copied.keys() == reader.keys()
    monkeypatch.chdir("/")
    with pickle.loads(data) as again:
        assert again.mode == "r"
        np.testing.assert_array_equal(again["key 1"].numpy(POINT), rows(4, 1))


def test_memory_stores_do_not_pickle() -> None:
    with actstore.create(backend="memory") as store, pytest.raises(TypeError, match="mode `r`"):
        pickle.dumps(store)


@pytest.mark.parametrize("size", [1 << 20, "1 MiB", "1MB", "1.5 GiB", "65536 B", "64kB"])
def test_sizes_of_memory(size: int | str) -> None:
    with actstore.create(backend="memory", memory=size) as store:
        put_some(store, 20)
        assert len(store) == 20


@pytest.mark.parametrize("size", [0, -1, "0 B", "", "1", "GiB", "1 XB", "1 iB", "-1 GiB", True, 1.5, None, 1 << 70])
def test_sizes_that_are_none(size: object) -> None:
    with pytest.raises(InvalidInputError, match=r"`memory` is `.*`; give a number of bytes or a size") as caught:
        actstore.create(backend="memory", memory=size)  # pyright: ignore[reportArgumentType]
    assert caught.value.kind == "invalid_option"


def test_every_call_after_close_is_refused(store: Store) -> None:
    put_some(store, 2)
    entry, writer = store["key 0"], store.writer()
    writer.close()
    table, batches = store.metadata(), store.tokens(POINT, batch_size=1)
    assert len(next(batches)) == 1
    store.close()
    store.close()
    assert store.closed
    calls = [
        lambda: len(store),
        lambda: "key 0" in store,
        lambda: store["key 0"],
        store.keys,
        lambda: list(store),
        lambda: table.dicts(),
        lambda: table.__arrow_c_stream__(),
        lambda: entry.numpy(POINT),
        lambda: list(store.scan(POINT)),
        lambda: list(store.tokens(POINT)),
        lambda: list(batches),
        lambda: store.gather(POINT, ["key 0"], 0),
        lambda: store.put(key="x", activations={}),
        store.writer,
        lambda: store.delete("key 0"),
        store.info,
        store.verify,
        lambda: writer.put(key="x", activations={}),
        writer.flush,
    ]
    for call in calls:
        with pytest.raises(ActstoreError) as caught:
            call()
        assert caught.value.kind == "closed", call
        assert isinstance(caught.value, ReadOnlyError)


def test_a_writer_that_nobody_closed_fails_aloud(tmp_path: Path) -> None:
    script = """
        import sys
        import numpy as np
        import actstore

        store = actstore.create(sys.argv[1])
        writer = store.writer()
        for value in (1, 2):
            writer.put(key="k", activations={0: np.full((2, 3), value, np.float32)})
        del writer
    """
    done = python(script, tmp_path / "s")
    assert done.returncode == 0
    assert "key `k` is stored with other content" in done.stderr
    with actstore.open(tmp_path / "s") as store:
        assert store["k"].numpy(0).max() == 1
