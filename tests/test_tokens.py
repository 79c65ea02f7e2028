"""Token vectors of many entries at once are those of the entries one by one, on every backend and codec."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import actstore
from actstore import arrays
from actstore.errors import ActstoreError, CorruptError, InvalidInputError, NotFoundError
from actstore.store import Store
from allocated import Allocated
from backends import CHOICES
from dtypes import noise
from processes import run_python

POINT = "resid_post.1"
STORED_POINT = "blocks.1.hook_resid_post"
BELOW = "resid_post.0"
WIDTH = 24


def fill(store: Store, counts: list[int], dtype: str = "bfloat16") -> None:
    """Entries of `counts` tokens, the first half of each its prompt; every third one stores some positions only."""
    random = np.random.default_rng(0)
    with store.writer() as writer:
        for number, count in enumerate(counts):
            stored = [n for n in range(count) if number % 3 or n % 4 != 1]
            below = random.standard_normal((len(stored), WIDTH)).astype(arrays.numpy_dtype(dtype))
            array = (below.astype(np.float32) * 1.01 + number).astype(below.dtype)
            writer.put(
                key=f"key {number}",
                token_ids=range(count),
                prompt_length=count // 2,
                positions=stored,
                activations={BELOW: below, POINT: array},
            )
        writer.put(key="without", activations={"embed": np.ones((2, 3), np.float32)})


COUNTS = [5, 1, 0, 12, 300, 7, 2, 40]


@pytest.fixture(params=CHOICES, ids=lambda choice: " ".join([choice[0], *choice[1].values()]))
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of each backend and codec with entries of different lengths."""
    backend, options = request.param
    with actstore.create(None if backend == "memory" else tmp_path / "s", backend, **options) as store:
        fill(store, COUNTS)
        yield store


Token = tuple[str, int, bytes]
"""Key, position, and bytes of the vector."""


def one_by_one(store: Store, selection: str | list[int] = "all", point: str = POINT) -> list[Token]:
    """What `Store.tokens` must give, in order, from one entry after the other."""
    found: list[Token] = []
    for entry in store:
        if point in entry:
            rows = entry.numpy(point, selection)
            positions = entry.positions or range(len(rows))
            chosen = {
                "all": positions,
                "last": positions[-1:],
                "prompt": [n for n in positions if n < (entry.prompt_length or 0)],
                "response": [n for n in positions if n >= (entry.prompt_length or 0)],
            }
            at = chosen[selection] if isinstance(selection, str) else [positions[n] for n in selection]
            found += [(entry.key, n, row.tobytes()) for n, row in zip(at, rows, strict=True)]
    return found


def as_bytes(rows: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in rows.view(torch.uint8)]


def batches(store: Store, *arguments: Any, **options: Any) -> list[list[Token]]:
    """Batches of `Store.tokens`, taken apart."""
    return [
        list(zip(batch.keys, batch.positions.tolist(), as_bytes(batch.activations), strict=True))
        for batch in store.tokens(POINT, *arguments, **options)
    ]


def joined(parts: list[list[Token]]) -> list[Token]:
    return [token for part in parts for token in part]


@pytest.mark.parametrize("selection", ["all", "prompt", "response"])
def test_tokens_come_in_the_order_of_writing(selection: str, filled: Store) -> None:
    expected = one_by_one(filled, selection)
    assert len(expected) > 100
    for size in (1, 64, 4096):
        parts = batches(filled, selection, batch_size=size)
        assert joined(parts) == expected
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert 0 < len(parts[-1]) <= size


def test_last_tokens_are_one_an_entry(filled: Store) -> None:
    assert joined(batches(filled, "last")) == one_by_one(filled, "last")


def test_a_shuffled_order_is_that_of_its_seed(filled: Store) -> None:
    expected = one_by_one(filled)
    shuffled = joined(batches(filled, shuffle=True))
    assert shuffled != expected
    assert sorted(shuffled) == sorted(expected)
    for size in (7, 100):
        assert joined(batches(filled, shuffle=True, batch_size=size)) == shuffled
    assert joined(batches(filled, shuffle=True, seed=1)) != shuffled
    assert joined(batches(filled, shuffle=False, seed=1)) == expected


def test_gather_is_indexing(filled: Store) -> None:
    tokens = one_by_one(filled)
    random = np.random.default_rng(1)
    asked = [tokens[n] for n in random.integers(0, len(tokens), 500)]
    gathered = filled.gather(POINT, [key for key, _, _ in asked], [position for _, position, _ in asked])
    assert (gathered.dtype, tuple(gathered.shape)) == (torch.bfloat16, (500, WIDTH))
    assert as_bytes(gathered) == [row for _, _, row in asked]


def test_gather_takes_one_position_for_all_and_counts_from_the_end(filled: Store) -> None:
    keys = ["key 4", "key 0", "key 4", "key 3"]
    last = {key: row for key, _, row in one_by_one(filled, "last")}
    for positions in (-1, np.int32(-1), [-1] * 4, np.full(4, -1, np.int8), torch.full((4,), -1)):
        assert as_bytes(filled.gather(POINT, keys, positions)) == [last[key] for key in keys]
    first = filled["key 4"].numpy(POINT, [0]).tobytes()
    assert as_bytes(filled.gather(POINT, iter(["key 4"]), np.array([0], np.uint64))) == [first]


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "int64", "float8_e5m2"]),
    choice=st.sampled_from([choice for choice in CHOICES if choice[0] == "memory"]),
    size=st.integers(1, 50),
    seed=st.integers(0, 2**64 - 1),
    asked=st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
)
@settings(deadline=None, max_examples=60)
def test_any_tokens_are_those_of_the_entries(
    counts: list[int], dtype: str, choice: tuple[str, dict[str, str]], size: int, seed: int, asked: list[int]
) -> None:
    with actstore.create(None, choice[0], **choice[1]) as store:  # pyright: ignore[reportArgumentType]
        fill(store, counts, dtype)
        expected = one_by_one(store)
        assert joined(batches(store, batch_size=size)) == expected
        shuffled = joined(batches(store, batch_size=size, shuffle=True, seed=seed))
        assert sorted(shuffled) == sorted(expected)
        if expected:
            chosen = [expected[n % len(expected)] for n in asked]
            gathered = store.gather(POINT, [key for key, _, _ in chosen], [position for _, position, _ in chosen])
            assert as_bytes(gathered) == [row for _, _, row in chosen]


@given(shape=st.tuples(st.integers(1, 9), st.integers(0, 5)), indices=st.lists(st.integers(-9, 8), max_size=5))
@settings(deadline=None, max_examples=60)
def test_named_positions_are_those_of_every_entry(shape: tuple[int, int], indices: list[int]) -> None:
    indices = [index for index in indices if -shape[0] <= index < shape[0]]
    with actstore.create(None, "memory") as store:
        for number in range(3):
            array = noise("float32", shape, number)
            store.put(key=str(number), token_ids=range(shape[0]), activations={POINT: array})
        taken = joined(batches(store, indices, batch_size=4))
        assert sorted(taken) == sorted(one_by_one(store, indices))
        assert taken == one_by_one(store, indices)


def test_rows_that_are_not_tied_to_tokens_have_their_number() -> None:
    with actstore.create(None, "memory") as store:
        array = np.arange(6.0).reshape(3, 2)
        store.put(key="k", activations={POINT: array})
        (batch,) = store.tokens(POINT)
        assert (batch.keys, batch.positions.tolist(), batch.activations.tolist()) == (
            ["k"] * 3,
            [0, 1, 2],
            array.tolist(),
        )
        assert repr(batch) == "TokenBatch(3 x 2)"


def test_a_store_without_the_point_says_what_it_has(store: Store) -> None:
    assert list(store.tokens(POINT)) == []
    store.put(key="empty", activations={POINT: np.ones((0, 4), np.float32)})
    assert list(store.tokens(POINT)) == []
    with pytest.raises(
        NotFoundError, match=f"`logits` is not stored in entry `empty`; stored: `{STORED_POINT}`"
    ) as caught:
        next(store.tokens("logits"))
    assert caught.value.kind == "point_not_stored"


def test_an_entry_put_later_is_not_seen(filled: Store) -> None:
    expected = one_by_one(filled)
    parts = filled.tokens(POINT, batch_size=100, shuffle=True)
    seen = len(next(parts))
    filled.put(key="later", activations={POINT: np.ones((50, WIDTH), np.float32)})
    assert seen + sum(len(batch) for batch in parts) == len(expected)


@pytest.mark.parametrize("change", ["delete", "replace"])
def test_what_is_gone_is_what_it_was_or_refused(change: str, store: Store, tmp_path: Path) -> None:
    path = None if store.path is None else tmp_path / "other"
    with actstore.create(path, store.backend, on_conflict="replace") as changing:
        fill(changing, COUNTS)
        expected = one_by_one(changing)
        parts = changing.tokens(POINT, batch_size=50)
        seen = as_bytes(next(parts).activations)
        changing.delete("key 4") if change == "delete" else changing.put(
            key="key 4", activations={POINT: np.zeros((300, WIDTH), np.float32)}
        )
        gone = "entry `key 4` was replaced or deleted after it was looked up"
        refusing = store.backend != "shards"
        with pytest.raises(NotFoundError, match=gone) if refusing else nullcontext() as caught:
            for batch in parts:
                seen += as_bytes(batch.activations)
        assert (caught is not None and caught.value.kind == "no_such_key") if refusing else len(seen) == len(expected)
        assert seen == [row for _, _, row in expected][: len(seen)]
        if change == "delete":
            with pytest.raises(NotFoundError, match="`key 4`") as caught:
                changing.gather(POINT, ["key 4"], 0)
            assert caught.value.kind == "no_such_key"
        else:
            assert changing.gather(POINT, ["key 0", "key 0"], [0, -1]).shape == (2, WIDTH)


def refused(kind: str, message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ActstoreError, match=message) as caught:
        call()
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (noise("float16", (2, WIDTH), 0), "of `24` bfloat16 .* `key 0` and of `24` float16 values in entry `x`"),
        (noise("bfloat16", (2, 3), 0), "of `24` bfloat16 .* `key 0` and of `3` bfloat16 values in entry `x`"),
        (noise("bfloat16", (2,), 0), r"`blocks.1.*` of entry `x` has the shape `\[2\]`, not \[positions, d\]"),
        (noise("bfloat16", (2, 3, 4), 0), r"`blocks.1.hook_resid_post` of entry `x` has the shape `\[2, 3, 4\]`, not"),
    ],
)  # fmt: skip
def test_vectors_that_one_array_cannot_hold_are_refused(other: np.ndarray, message: str, store: Store) -> None:
    fill(store, COUNTS)
    store.put(key="x", activations={POINT: other}, token_ids=[1, 2])
    refused("invalid_tensor", message, lambda: list(store.tokens(POINT)))
    refused("invalid_tensor", message, lambda: store.gather(POINT, ["key 0", "x"], 0))


@pytest.mark.parametrize(
    ("keys", "positions", "kind", "message"),
    [
        (["key 0", "no"], 0, "no_such_key", "no entry `no` in the store"),
        (["key 0", "without"], 0, "point_not_stored", "is not stored in entry `without`; stored: `hook_embed`"),
        (["key 0", "key 1"], [0, 1], "unknown_position", "`1` is not stored in entry `key 1`; stored are 0 to 0"),
        (["key 0"], [1], "unknown_position", "position `1` is not stored in entry `key 0`; stored are 0 to 0, 2 to 4"),
        (["key 2"], -1, "unknown_position", "position `-1` is not stored in entry `key 2`; stored are none"),
        (["key 0", "key 0"], [0], "invalid_option", "`2` keys and `1` positions; give one position for each key"),
        ([], [], "invalid_option", "`keys` is empty; without an entry a vector has neither dtype nor width"),
        ("key 0", 0, "invalid_key", "`keys` is the string `key 0`; give a sequence of keys"),
        (["key 0", 5], 0, "invalid_key", "`5` among `keys` is a `int`, not a string"),
        (["key 0"], [0.0], "unknown_position", r"`positions` is `\[0.0\]`; an int, or as many ints as keys"),
        (["key 0"], True, "unknown_position", "`positions` is `True`; an int"),
        (["key 0"], "last", "unknown_position", "`positions` is `'last'`; an int"),
        (["key 0"], [[0]], "unknown_position", r"`positions` is `\[\[0\]\]`; an int"),
        (["key 0"], [2**64 - 1], "unknown_position", r"`positions` is `\[18446744073709551615\]`; an int"),
        (["key 0"], 2**70, "unknown_position", "`positions` is `1180591620717411303424`; an int"),
    ],
)  # fmt: skip
def test_gather_refuses_what_it_cannot_answer(keys: Any, positions: Any, kind: str, message: str, store: Store) -> None:
    fill(store, COUNTS)
    refused(kind, message, lambda: store.gather(POINT, keys, positions))


def test_selections_that_an_entry_lacks_are_refused(store: Store) -> None:
    fill(store, [3, 4])
    store.put(key="untied", activations={POINT: noise("bfloat16", (2, WIDTH), 0)})
    refused(
        "unknown_position",
        "of `blocks.1.*` in entry `untied` are not tied to positions",
        lambda: list(store.tokens(POINT, "last")),
    )
    refused(
        "unknown_position", "in entry `untied` are not tied to positions", lambda: store.gather(POINT, ["untied"], 0)
    )
    refused("unknown_position", "unknown positions `some`", lambda: list(store.tokens(POINT, "some")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is `0`; give a whole number from 1"),
        ({"batch_size": 2.0}, "`batch_size` is `2.0`; give a whole number"),
        ({"batch_size": True}, "`batch_size` is `True`; give a whole number"),
        ({"seed": -1, "shuffle": True}, "`seed` is `-1`; give a whole number from 0 to 18446744073709551615"),
        ({"seed": 2**64, "shuffle": True}, "`seed` is `18446744073709551616`; give a whole number"),
        ({"seed": "0", "shuffle": True}, "`seed` is `'0'`; give a whole number"),
        ({"seed": None, "shuffle": True}, "`seed` is `None`; give a whole number"),
    ],
)  # fmt: skip
def test_options_of_tokens_that_cannot_be(options: dict[str, Any], message: str, store: Store) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        store.tokens(POINT, **options)
    assert caught.value.kind == "invalid_option"


def test_a_damaged_frame_is_named_and_costs_its_own_vectors(tmp_path: Path) -> None:
    rows = {key: noise("float32", (2000, WIDTH), number) for number, key in enumerate("abc")}
    with actstore.create(tmp_path / "s", codec="raw") as store, store.writer() as writer:
        for key, array in rows.items():
            writer.put(key=key, token_ids=range(2000), activations={POINT: array})
    (shard,) = (tmp_path / "s" / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[content.index(rows["b"][1000].tobytes())] ^= 1
    shard.write_bytes(content)
    with actstore.open(tmp_path / "s") as store:
        message = f"`{STORED_POINT}` of entry `b`: frame `.*`: it does not match its checksum"
        calls: list[Callable[[], object]] = [
            lambda: store.gather(POINT, ["a", "b"], [0, 1000]),
            lambda: list(store.tokens(POINT)),
            lambda: list(store.tokens(POINT, shuffle=True, batch_size=100)),
        ]
        for call in calls:
            with pytest.raises(CorruptError, match=message) as caught:
                call()
            assert caught.value.kind == "checksum"
        assert as_bytes(store.gather(POINT, ["a", "b", "c"], [1000, 0, -1])) == [
            rows["a"][1000].tobytes(),
            rows["b"][0].tobytes(),
            rows["c"][-1].tobytes(),
        ]


def test_three_batches_are_held_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    with actstore.create(None, "memory") as store:
        fill(store, COUNTS)
        allocated = Allocated(monkeypatch)
        assert sum(len(batch) for batch in store.tokens(POINT, batch_size=10, shuffle=True)) > 100
    assert 2 <= allocated.peak <= 3


def test_shuffled_batches_are_the_same_with_little_memory(tmp_path: Path) -> None:
    """With much of it all vectors are held, with little each batch is read by itself."""
    with actstore.create(tmp_path / "s") as store:
        fill(store, COUNTS)
    with actstore.open(tmp_path / "s") as much, actstore.open(tmp_path / "s", memory=1024) as little:
        for selection in ("all", "prompt", "response"):
            options: dict[str, Any] = {"positions": selection, "batch_size": 7, "shuffle": True, "seed": 3}
            assert batches(much, **options) == batches(little, **options)


def test_damage_is_the_error_of_the_batch_that_has_it(tmp_path: Path) -> None:
    """Also where all vectors are read at first."""
    with actstore.create(tmp_path / "s", codec="raw") as store:
        fill(store, COUNTS)
        expected = joined(batches(store, batch_size=1, shuffle=True))
    shard = next((tmp_path / "s" / "shards").iterdir())
    damaged = bytearray(shard.read_bytes())
    victim = next(row for key, _, row in expected if key != expected[0][0])
    damaged[damaged.index(victim)] ^= 1
    shard.write_bytes(damaged)
    with actstore.open(tmp_path / "s") as store:
        read = store.tokens(POINT, batch_size=1, shuffle=True)
        assert as_bytes(next(read).activations) == [expected[0][2]]
        with pytest.raises(CorruptError, match="checksum"):
            list(read)


def test_memory_is_that_of_batches_and_keys(tmp_path: Path) -> None:
    """Ten times the entries, of large metadata and in a shuffled order, take no more than their keys."""
    script = """
        import sys
        import numpy as np
        import actstore
        from memory import Peak, anonymous_bytes

        count, path = int(sys.argv[1]), sys.argv[2]
        array = np.ones((8, 64), np.float32)
        with actstore.create(path, codec="raw", memory="8 MiB") as store, store.writer() as writer:
            for index in range(count):
                activations = {layer: array for layer in range(2)}
                writer.put(prompt=f"prompt {index}" * 100, token_ids=range(8), activations=activations)
        with actstore.open(path, memory="8 MiB") as store:
            next(store.tokens(0))
            before = anonymous_bytes()
            with Peak() as peak:
                read = sum(len(batch) for batch in store.tokens(1, shuffle=True, batch_size=1024))
        assert read == 8 * count
        print(peak.bytes - before)
    """
    few, many = (int(run_python(script, count, tmp_path / str(count))) for count in (1000, 10_000))
    assert many <= few + 5_000_000, f"{few} bytes for 1,000 entries, {many} bytes for 10,000"
