"""Every backend does the same: whatever is done to all of them, each gives the same answers as the others."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import actstore
from actstore import _core
from actstore.errors import ActstoreError
from actstore.store import Store
from dtypes import DTYPES
from ragged import entry

KEYS = st.sampled_from(["a", "B", "b", "ä 🦀", "data:train:0", "0" * 64, "F" * 64])
NUMBERS = st.integers(0, 40).filter(lambda number: number not in (3, 4, 5))
"""Of entries of `ragged`, without those whose metadata is large."""
SELECTIONS = st.sampled_from(["all", "prompt", "response", "last"]) | st.lists(st.integers(-3, 9), max_size=3)


class Everywhere(RuleBasedStateMachine):
    """The same calls to a store of each backend."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="actstore-test-"))

    def teardown(self) -> None:
        for store in self.stores.values():
            store.close()
        shutil.rmtree(self.directory)

    @initialize(
        dtype=st.sampled_from([None, "float16", "bfloat16"]),
        on_conflict=st.sampled_from(["error", "skip", "replace", "number"]),
        durability=st.sampled_from(["commit", "interval"]),
    )
    def create(self, dtype: str | None, on_conflict: str, durability: str) -> None:
        options: dict[str, Any] = {"on_conflict": on_conflict, "durability": durability, "overflow": "saturate"}
        self.stores = {
            backend: actstore.create(
                None if backend == "memory" else self.directory / backend, backend, dtype=dtype, **options
            )
            for backend in _core.backends()
        }

    def same(self, ask: Callable[[Store], Any]) -> Any:
        """What every store answers; an error counts as an answer, but for the path in its message."""
        answers: dict[str, Any] = {}
        for backend, store in self.stores.items():
            try:
                answers[backend] = ask(store)
            except ActstoreError as error:
                place = "memory" if store.path is None else str(store.path)
                answers[backend] = (type(error), error.kind, str(error).replace(f"`{place}`", "`store`"))
        first = answers["shards"]
        assert all(answer == first for answer in answers.values()), answers
        return first

    @rule(key=KEYS, number=NUMBERS)
    def put(self, key: str, number: int) -> None:
        self.same(lambda store: store.put(**entry(number, key)))

    @rule(pairs=st.lists(st.tuples(KEYS, NUMBERS), max_size=6))
    def put_many(self, pairs: list[tuple[str, int]]) -> None:
        def put_all(store: Store) -> dict[str, Any]:
            with store.writer() as writer:
                for key, number in pairs:
                    writer.put(**entry(number, key))
            counted = ("entries", "duplicates", "rejected", "tokens", "raw_bytes")
            return {name: count for name, count in writer.stats.items() if name in counted}

        self.same(put_all)

    @rule(keys=st.lists(KEYS))
    def delete(self, keys: list[str]) -> None:
        self.same(lambda store: store.delete(keys))

    @rule()
    def reopen(self) -> None:
        for backend, store in self.stores.items():
            if store.path is not None:
                store.close()
                self.stores[backend] = actstore.open(store.path, "a")

    @rule(key=KEYS, selection=SELECTIONS)
    def read(self, key: str, selection: str | list[int]) -> None:
        points = self.same(lambda store: (store[key].points, store[key].token_ids))[0]
        if not isinstance(points, list):
            return
        for point in [*points, "mlp_out.7"]:

            def rows(store: Store, point: str = point) -> tuple[Any, ...]:
                array = store[key].numpy(point, selection)
                return array.dtype, array.shape, array.tobytes()

            self.same(rows)

    @rule(selection=SELECTIONS, size=st.integers(1, 20), seed=st.none() | st.integers(0, 3))
    def tokens(self, selection: str | list[int], size: int, seed: int | None) -> None:
        def tokens(store: Store) -> list[Any]:
            batches = store.tokens("resid_post.0", selection, size, shuffle=seed is not None, seed=seed or 0)
            return [(batch.keys, batch.positions.tolist(), batch.activations.tolist()) for batch in batches]

        self.same(tokens)

    @rule(keys=st.lists(KEYS, max_size=4), position=st.integers(-3, 9))
    def gather(self, keys: list[str], position: int) -> None:
        self.same(lambda store: store.gather("resid_post.0", keys, position).tolist())

    @rule()
    def verify(self) -> None:
        assert self.same(lambda store: store.verify()["damage"]) == []

    @rule()
    def counts(self) -> None:
        def counts(store: Store) -> Any:
            info = store.info()
            points = [
                {name: count for name, count in point.items() if name not in ("stored_bytes", "encodings")}
                for point in info["points"]
            ]
            return info["entries"], info["tokens"], info["raw_bytes"], points

        self.same(counts)

    @invariant()
    def same_entries(self) -> None:
        def listed(store: Store) -> list[Any]:
            documents = [{**document, "created": None} for document in store.metadata()]
            return [
                (key, key in store, store.core.entry(key).content_id, document)
                for key, document in zip(store.keys(), documents, strict=True)
            ]

        self.same(lambda store: (len(store), listed(store)))


TestEverywhere = Everywhere.TestCase
TestEverywhere.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("number", range(len(DTYPES) * 2))
def test_every_dtype_comes_back_bit_for_bit(number: int, store: Store) -> None:
    given = entry(number)
    store.put(**given)
    stored = store[given["key"]]
    for point, array in given["activations"].items():
        read = stored.numpy(point)
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert (stored.metadata, stored.token_ids) == (given["metadata"], given["token_ids"])


@pytest.mark.parametrize(("backend", "option", "other"), [("json", "codec", "encoding"), ("lmdb", "encoding", "codec"),
    ("shards", "encoding", "codec"), ("memory", "encoding", "codec")])  # fmt: skip
def test_an_option_that_does_not_fit_says_which_does(backend: str, option: str, other: str, tmp_path: Path) -> None:
    path = None if backend == "memory" else tmp_path / "s"
    options: dict[str, Any] = {option: "raw"}
    with pytest.raises(ActstoreError, match=f"`{option}` is `raw`, but .* leave it out; `{other}` chooses") as caught:
        actstore.create(path, backend, **options)
    assert caught.value.kind == "invalid_option"
    assert not (tmp_path / "s").exists()
