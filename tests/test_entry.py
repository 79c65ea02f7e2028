"""Arrays in and out of an entry: every dtype, shape and kind of array comes back bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import actstore
from actstore.errors import InvalidInputError, NotFoundError
from actstore.store import Store
from backends import CHOICES
from dtypes import DTYPES
from processes import run_python

POINT = "resid_post.1"


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def activations(draw: st.DrawFn) -> np.ndarray:
    """An array of any dtype and shape; its bytes are random, so NaN payloads and negative zeros are among them."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), DTYPES[dtype]).reshape(shape)


@given(array=activations(), choice=st.sampled_from(CHOICES))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_activation_comes_back_bit_for_bit(
    array: np.ndarray, choice: tuple[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    backend, codec = choice
    path = None if backend == "memory" else tmp_path_factory.mktemp("store") / "s"
    with actstore.create(path, backend, **codec) as store:
        store.put(key="k", activations={POINT: array})
        entry = store["k"]
        assert (entry.dtype(POINT), entry.shape(POINT)) == (array.dtype.name, array.shape)
        stored = entry.numpy(POINT)
        assert (stored.dtype, stored.shape, stored.tobytes()) == (array.dtype, array.shape, array.tobytes())
        tensor = entry.torch(POINT)
        assert (tuple(tensor.shape), torch_bytes(tensor)) == (array.shape, array.tobytes())
        assert store.verify()["damage"] == []


@given(metadata=st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=20,
))  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_any_metadata_comes_back_equal(metadata: Any) -> None:
    with actstore.create(backend="memory") as store:
        store.put(key="k", activations={}, metadata={"value": metadata})
        stored = store["k"].metadata["value"]
        assert stored == metadata
        assert repr(stored) == repr(metadata)  # also tells 1 from 1.0 and True, and 0.0 from -0.0


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_torch_tensors_of_every_dtype(dtype: str, store: Store) -> None:
    data = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, 6 * 5 * DTYPES[dtype].itemsize, np.uint8)
    tensor = torch.from_numpy(data.copy()).view(getattr(torch, dtype)).reshape(6, 5)
    store.put(key="whole", activations={POINT: tensor})
    store.put(key="turned", activations={POINT: tensor.T})
    store.put(key="sliced", activations={POINT: tensor[1:5:2, ::2]})
    for key, expected in (("whole", tensor), ("turned", tensor.T), ("sliced", tensor[1:5:2, ::2])):
        stored = store[key][POINT]
        assert (stored.dtype, stored.shape) == (tensor.dtype, expected.shape)
        assert torch_bytes(stored) == torch_bytes(expected)
        assert store[key].numpy(POINT).dtype.name == dtype


def test_tensors_with_a_gradient_a_lazy_negation_and_no_dimension(store: Store) -> None:
    parameter = torch.nn.Parameter(torch.arange(4.0))
    negated = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    whole = torch._neg_view(  # pyright: ignore[reportPrivateImportUsage]
        torch.tensor([3.0, -1.0])
    )
    assert negated.is_neg()
    assert whole.is_neg()
    store.put(key="k", activations={0: parameter, 1: negated, 3: whole, 2: torch.tensor(2.5), "embed": np.float64(1.5)})
    entry = store["k"]
    assert entry[0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert entry[1].tolist() == [-2.0, 4.0]
    assert entry[3].tolist() == [-3.0, 1.0]
    assert (entry.shape(2), entry[2].item(), entry["embed"].item()) == ((), 2.5, 1.5)
    assert entry["embed"].dtype == torch.float64


def test_numpy_arrays_of_other_layouts(store: Store) -> None:
    array = np.arange(24, dtype=">i4").reshape(4, 6)
    fortran = np.asfortranarray(np.arange(24.0).reshape(4, 6))
    read_only = np.arange(24, dtype=np.int8).reshape(4, 6)
    read_only.flags.writeable = False
    store.put(key="k", activations={0: array, 1: fortran, 2: array[::-2, 1::2], 3: read_only})
    for layer, expected in enumerate((array, fortran, array[::-2, 1::2], read_only)):
        stored = store["k"].numpy(layer)
        assert stored.dtype.isnative
        np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "`blocks.1.hook_resid_post` is a `list`; give a NumPy array or a torch tensor"),
        (1.0, "`blocks.1.hook_resid_post` is a `float`; give a NumPy array or a torch tensor"),
        (np.ma.masked_array([1.0], [True]), "`blocks.1.hook_resid_post` is a `MaskedArray`; give a NumPy array"),
        (None, "`blocks.1.hook_resid_post` is a `NoneType`; give a NumPy array or a torch tensor"),
        (np.array([1j]), "`blocks.1.hook_resid_post` has dtype `complex128`; one of bfloat16, bool, float16, "),
        (np.array(["a"]), "`blocks.1.hook_resid_post` has dtype `str32`; one of "),
        (np.array([1], np.uint16), "for the bits of bfloat16 use `view(ml_dtypes.bfloat16)` or a torch tensor"),
        (np.array([None]), "`blocks.1.hook_resid_post` has dtype `object`; one of "),
        (torch.tensor([1j]), "`blocks.1.hook_resid_post` has dtype `complex64`; one of "),
        (torch.eye(2).to_sparse(), "is a torch.sparse_coo tensor on `cpu`; give a dense one with data"),
        (torch.empty(2, device="meta"), "is a torch.strided tensor on `meta`; give a dense one with data"),
        (np.zeros((1,) * 17, np.int8), "rank `17`"),
    ],
)
def test_what_is_no_activation(value: Any, message: str, store: Store) -> None:
    store.put(key="before", activations={POINT: np.ones((2, 2))})
    with pytest.raises(InvalidInputError) as caught:
        store.put(key="k", activations={POINT: value})
    assert caught.value.kind == "invalid_tensor"
    assert message in str(caught.value)
    assert store.keys() == ["before"]
    np.testing.assert_array_equal(store["before"].numpy(POINT), np.ones((2, 2)))


def test_arrays_are_views_of_memory_of_their_own(store: Store) -> None:
    store.put(key="k", activations={POINT: np.ones((4, 4), np.float32)})
    array, tensor = store["k"].numpy(POINT), store["k"].torch(POINT)
    assert array.flags.writeable
    assert array.base is not None
    assert len(array.base) == array.nbytes
    assert tensor.untyped_storage().nbytes() == 64
    array[:] = 2
    tensor[:] = 3
    np.testing.assert_array_equal(store["k"].numpy(POINT), np.ones((4, 4)))


def put_entry(store: Store, **options: Any) -> actstore.Entry:
    array = np.arange(20, dtype=np.float32).reshape(5, 4)
    store.put(key="k", token_ids=[9, 8, 7, 6, 5], activations={POINT: array, "embed": array * 2}, **options)
    return store["k"]


@pytest.mark.parametrize(
    ("positions", "kept"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("prompt", [0, 1, 2]),
        ("response", [3, 4]),
        ("last", [4]),
        ([0], [0]),
        ([1, 3], [1, 3]),
        (range(1, 4), [1, 2, 3]),
        (np.array([0, 4]), [0, 4]),
        (torch.tensor([2]), [2]),
        ([], []),
        ([-1, 0], [4, 0]),
        ([3, 3], [3, 3]),
    ],
)
def test_positions(positions: Any, kept: list[int], store: Store) -> None:
    entry = put_entry(store, prompt_length=3)
    expected = np.arange(20, dtype=np.float32).reshape(5, 4)[kept]
    assert entry.shape(POINT, positions) == expected.shape
    np.testing.assert_array_equal(entry.numpy(POINT, positions), expected)
    np.testing.assert_array_equal(entry.torch("embed", positions).numpy(), expected * 2)


@pytest.mark.parametrize("positions", [[5], [0, 99], "middle", "", 3, None, [0.5], ["last"]])
def test_positions_that_are_none(positions: Any, store: Store) -> None:
    entry = put_entry(store, prompt_length=3)
    with pytest.raises(InvalidInputError) as caught:
        entry.numpy(POINT, positions)
    assert caught.value.kind == "unknown_position"
    assert "`" in str(caught.value)


def test_prompt_and_response_need_a_prompt_length(store: Store) -> None:
    entry = put_entry(store)
    assert entry.prompt_length is None
    for positions in ("prompt", "response"):
        with pytest.raises(InvalidInputError, match="prompt") as caught:
            entry.numpy(POINT, positions)
        assert caught.value.kind == "unknown_position"
    np.testing.assert_array_equal(entry.numpy(POINT, "last"), [[16, 17, 18, 19]])


def test_rows_that_are_not_as_many_as_tokens_have_no_positions(store: Store) -> None:
    arrays = {0: np.zeros((3, 2)), 1: np.zeros((2, 2))}
    store.put(key="k", token_ids=[1, 2, 3], activations=arrays)
    assert store["k"].positions is None


def test_rows_without_tokens_have_no_positions(store: Store) -> None:
    store.put(key="k", activations={POINT: np.arange(6.0).reshape(3, 2)})
    entry = store["k"]
    assert (entry.token_ids, entry.positions) == (None, None)
    np.testing.assert_array_equal(entry.numpy(POINT), np.arange(6.0).reshape(3, 2))
    with pytest.raises(InvalidInputError) as caught:
        entry.numpy(POINT, "last")
    assert caught.value.kind == "unknown_position"


@pytest.mark.parametrize(
    ("given_positions", "stored"),
    [
        ([1, 2, 4], [1, 2, 4]),
        ([(1, 3), (4, 5)], [1, 2, 4]),
        ([range(1, 3), [4, 5]], [1, 2, 4]),
        (np.array([1, 2, 4]), [1, 2, 4]),
        (range(2, 5), [2, 3, 4]),
    ],
)
def test_positions_given_by_the_writer(given_positions: Any, stored: list[int], store: Store) -> None:
    array = np.arange(12.0).reshape(3, 4)
    store.put(key="k", token_ids=range(5), prompt_length=3, positions=given_positions, activations={POINT: array})
    entry = store["k"]
    assert entry.positions == stored
    # Consecutive positions are one range.
    assert entry.document["positions"] == ([[2, 5]] if stored[0] == 2 else [[1, 3], [4, 5]])
    np.testing.assert_array_equal(entry.numpy(POINT, [stored[1]]), array[1:2])
    np.testing.assert_array_equal(entry.numpy(POINT, "response"), array[[p >= 3 for p in stored]])


@pytest.mark.parametrize("positions", ["all", [0.5], [(1, 2, 3)], 5, [range(0, 4, 2)]])
def test_positions_a_writer_cannot_give(positions: Any, store: Store) -> None:
    with pytest.raises(InvalidInputError, match="`positions` is ") as caught:
        store.put(key="k", token_ids=range(5), positions=positions, activations={POINT: np.zeros((3, 4))})
    assert caught.value.kind == "unknown_position"
    assert len(store) == 0


def test_activations_with_other_rows_than_the_positions_can_only_be_read_whole(store: Store) -> None:
    pattern = np.arange(18.0).reshape(2, 3, 3)
    store.put(
        key="k", token_ids=range(3), positions=[0, 1, 2], activations={POINT: np.zeros((3, 4)), "m.attn": pattern}
    )
    np.testing.assert_array_equal(store["k"].numpy("m.attn"), pattern)
    with pytest.raises(InvalidInputError, match=r"the rows of `m\.attn` .* are not tied to positions") as caught:
        store["k"].numpy("m.attn", [0])
    assert caught.value.kind == "unknown_position"


def test_points_by_every_spelling(store: Store) -> None:
    entry = put_entry(store)
    for spelling in (POINT, ("resid_post", 1), 1, np.int64(1), "blocks.1.hook_resid_post"):
        assert spelling in entry
        np.testing.assert_array_equal(entry[spelling].numpy(), entry.numpy(POINT))
    assert "resid_post.2" not in entry
    assert "no point" not in entry
    assert list(entry) == entry.points == ["hook_embed", "blocks.1.hook_resid_post"]


def test_points_that_are_not_stored(store: Store) -> None:
    entry = put_entry(store)
    with pytest.raises(NotFoundError, match=r"hook_embed.*blocks\.1\.hook_resid_post") as missing:
        entry["resid_post.7"]
    assert missing.value.kind == "point_not_stored"
    with pytest.raises(InvalidInputError) as caught:
        entry["no point"]
    assert caught.value.kind == "unknown_point"


def test_the_same_point_twice_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.hook_resid_post") as caught:
        store.put(key="k", activations={POINT: np.zeros(3), "blocks.1.hook_resid_post": np.zeros(3)})
    assert caught.value.kind == "invalid_tensor"
    assert len(store) == 0


def test_repr_reads_nothing(store: Store) -> None:
    assert repr(put_entry(store)) == "Entry('k': hook points: 2, token ids: 5)"


def test_without_torch_and_ml_dtypes(tmp_path: Path) -> None:
    """In a process that has neither, entries are NumPy arrays, and what NumPy lacks shows as bits."""
    with actstore.create(tmp_path / "s") as store:
        tensor = torch.tensor([[1.0, -2.0]])
        store.put(
            key="k",
            activations={0: tensor, 1: tensor.bfloat16(), 2: tensor.to(torch.float8_e5m2)},
        )
    script = """
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "ml_dtypes"):
                    raise ModuleNotFoundError(name)
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name in ("torch", "ml_dtypes") else real(name, *rest)
        sys.meta_path.insert(0, Blocker())
        import numpy as np
        import actstore
        with actstore.open(sys.argv[1]) as store:
            entry = store["k"]
            assert isinstance(entry[0], np.ndarray) and entry[0].tolist() == [[1.0, -2.0]]
            assert entry[1].dtype == np.uint16 and entry[1].tolist() == [[0x3F80, 0xC000]]
            assert entry[2].dtype == np.uint8 and entry[2].tolist() == [[0x3C, 0xC0]]
            assert [entry.dtype(layer) for layer in range(3)] == ["float32", "bfloat16", "float8_e5m2"]
            assert [array.tolist() for _, array in store.scan(0)] == [[[1.0, -2.0]]]
            try:
                entry.torch(0)
            except ImportError:
                print("no torch")
    """
    assert run_python(script, tmp_path / "s") == "no torch\n"


def test_strided_tensors_are_stored_as_they_read(store: Store) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    views = {"a.0": base[:, 0], "a.1": base[::2], "a.2": base[:, :1], "a.3": torch.ones(1).expand(5), "a.4": base.T}
    store.put(key="views", activations=views)
    for point, view in views.items():
        assert torch.equal(store["views"].torch(point), view)
