"""A store against a dictionary: whatever is done in whatever order, both hold the same."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import actstore
from actstore.errors import InvalidInputError, KeyConflictError
from backends import CHOICES

POINTS = ("hook_embed", "blocks.0.hook_resid_post", "logits")
KEYS = st.sampled_from(["a", "b", "ä:1", "data:train:0", "key with space"])
DTYPES = ("float32", "int8", "float64")


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """The arguments of a put: rows tied to tokens, at one to three points."""
    tokens = draw(st.integers(1, 7))
    points = draw(st.lists(st.sampled_from(POINTS), min_size=1, unique=True))
    seed = draw(st.integers(0, 3))
    dtype = draw(st.sampled_from(DTYPES))
    width = draw(st.integers(1, 5))
    random = np.random.default_rng(seed)
    return {
        "prompt": draw(st.sampled_from([None, "why?"])),
        "response": draw(st.sampled_from([None, "because"])),
        "token_ids": list(range(tokens)),
        "prompt_length": draw(st.integers(0, tokens)),
        "metadata": {"seed": seed},
        "activations": {point: random.integers(-99, 99, (tokens, width)).astype(dtype) for point in sorted(points)},
    }


def same_content(one: dict[str, Any], other: dict[str, Any]) -> bool:
    plain = [name for name in one if name != "activations"]
    return all(one[name] == other[name] for name in plain) and (
        {point: (array.dtype, array.shape, array.tobytes()) for point, array in one["activations"].items()}
        == {point: (array.dtype, array.shape, array.tobytes()) for point, array in other["activations"].items()}
    )


class StoreMachine(RuleBasedStateMachine):
    """Puts, conflicts, deletions and reopenings; the model is a dictionary in the order of writing."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="actstore-test-"))
        self.model: dict[str, dict[str, Any]] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    @initialize(
        choice=st.sampled_from(CHOICES),
        on_conflict=st.sampled_from(["error", "skip", "replace", "number"]),
    )
    def create(self, choice: tuple[str, dict[str, Any]], on_conflict: str) -> None:
        backend, codec = choice
        path = None if backend == "memory" else self.directory / "store"
        self.store = actstore.create(path, backend, on_conflict=on_conflict, **codec)
        self.on_conflict = on_conflict

    @rule(key=KEYS, entry=entries())
    def put(self, key: str, entry: dict[str, Any]) -> None:
        conflict = key in self.model and not same_content(self.model[key], entry)
        if conflict and self.on_conflict == "error":
            with pytest.raises(KeyConflictError, match="stored"):
                self.store.put(key=key, **entry)
            return
        self.store.put(key=key, **entry)
        if not conflict or self.on_conflict == "replace":
            self.model.setdefault(key, entry)
            if conflict:
                self.model[key] = entry
        elif self.on_conflict == "number":
            self.number(key, entry)

    def number(self, key: str, entry: dict[str, Any]) -> None:
        suffix = 1
        while f"{key}#{suffix}" in self.model:
            if same_content(self.model[f"{key}#{suffix}"], entry):
                return
            suffix += 1
        self.model[f"{key}#{suffix}"] = entry

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def put_again(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        self.store.put(key=key, **self.model[key])

    @rule(more=st.lists(st.tuples(KEYS, entries()), max_size=4))
    def put_many(self, more: list[tuple[str, dict[str, Any]]]) -> None:
        fresh = {key: entry for key, entry in more if key not in self.model}
        with self.store.writer() as writer:
            for key, entry in fresh.items():
                writer.put(key=key, **entry)
        self.model.update(fresh)

    @rule(keys=st.lists(KEYS, unique=True))
    def delete(self, keys: list[str]) -> None:
        assert self.store.delete(keys) == sum(key in self.model for key in keys)
        for key in keys:
            self.model.pop(key, None)

    @precondition(lambda self: self.store.path is not None)
    @rule(mode=st.sampled_from(["r", "a"]))
    def reopen(self, mode: str) -> None:
        path = self.store.path
        assert path is not None
        self.store.close()
        if mode == "r":
            with actstore.open(path) as reader:
                assert reader.keys() == list(self.model)
        self.store = actstore.open(path, "a")

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        entry, stored = self.model[key], self.store[key]
        tokens = len(entry["token_ids"])
        split = entry["prompt_length"]
        chosen = data.draw(st.lists(st.integers(0, tokens - 1), unique=True).map(sorted))
        selections = {
            "all": slice(None),
            "prompt": slice(split),
            "response": slice(split, None),
            "last": slice(-1, None),
        }
        for point, array in entry["activations"].items():
            for name, rows in selections.items():
                assert stored.numpy(point, name).tobytes() == array[rows].tobytes()
            read = stored.numpy(point, chosen)
            assert (read.dtype, read.shape, read.tobytes()) == (
                array.dtype,
                array[chosen].shape,
                array[chosen].tobytes(),
            )
            with pytest.raises(InvalidInputError):
                stored.numpy(point, [tokens])
        assert (stored.prompt, stored.response) == (entry["prompt"], entry["response"])
        assert (stored.token_ids, stored.metadata) == (entry["token_ids"], entry["metadata"])
        assert stored.points == [point for point in POINTS if point in entry["activations"]]

    @rule()
    def verify(self) -> None:
        assert self.store.verify()["damage"] == []

    @invariant()
    def same_keys(self) -> None:
        assert self.store.keys() == list(self.model)
        assert len(self.store) == len(self.model)

    @invariant()
    def same_scan(self) -> None:
        point = POINTS[1]
        expected = [
            (key, entry["activations"][point]) for key, entry in self.model.items() if point in entry["activations"]
        ]
        if expected:
            scanned = list(self.store.scan(point))
            assert [key for key, _ in scanned] == [key for key, _ in expected]
            for (_, read), (_, array) in zip(scanned, expected, strict=True):
                assert read.numpy().tobytes() == array.tobytes()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
