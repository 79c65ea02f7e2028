"""Pickles read as data: what real picklers write comes back, and nothing that a pickle asks for is run."""

import collections
import contextlib
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

import pickles
from actstore import _core
from actstore.errors import ActstoreError, UntrustedInputError
from dtypes import DTYPES, noise
from pickles import MARK, STOP, call, named, number, numbers, proto, raw, stream, tensor, text
from processes import run_python

PROTOCOLS = range(6)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
keys = scalars | st.tuples(scalars, scalars)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner) | inner.map(lambda v: [v, v])
    ),
    max_leaves=20,
)


@given(values, st.sampled_from(PROTOCOLS))
def test_values_come_back(value: object, protocol: int) -> None:
    # Representations, so that types, signs of zeros, NaN and the order of dicts count.
    assert repr(_core.unpickle(pickle.dumps(value, protocol))) == repr(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_has_no_type_of_its_own_comes_back_as_plain_values(protocol: int) -> None:
    given = [
        collections.OrderedDict([("b", 1), ("a", 2)]),
        np.float16(1.5),
        np.float64(-0.0),
        np.int8(-3),
        np.uint32(2**32 - 1),
        np.bool_(True),
        np.array([[1, None], ["a", (2,)]], object),
    ]
    read = _core.unpickle(pickle.dumps(given, protocol))
    assert repr(read) == repr([{"b": 1, "a": 2}, 1.5, -0.0, -3, 2**32 - 1, True, [[1, None], ["a", (2,)]]])


def same(read: Any, expected: np.ndarray) -> bool:
    return (read.dtype, read.shape, read.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@given(st.data(), st.sampled_from(sorted(set(DTYPES) - {"bfloat16", "float8_e4m3fn", "float8_e5m2"})))
def test_arrays_of_numpy_come_back(data: st.DataObject, dtype: str) -> None:
    base = noise(dtype, data.draw(nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)), 1)
    if dtype == "bool":
        base = base.view(np.uint8) % 2 == 1
    view = base.transpose(data.draw(st.permutations(range(base.ndim))))
    view = view[data.draw(nps.basic_indices(view.shape, allow_newaxis=True))]
    array = np.asfortranarray(view) if data.draw(st.booleans()) else np.asarray(view)
    assert same(_core.unpickle(pickle.dumps(array, data.draw(st.sampled_from(PROTOCOLS)))), array)


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda base: base,
    "transposed": lambda base: base.transpose(0, 2),
    "rows": lambda base: base[1:],
    "columns": lambda base: base[:, :, 1:3],
    "steps": lambda base: base[:, ::2, ::3],
    "one": lambda base: base[1, 2, 3],
    "none": lambda base: base[:0],
    "repeated": lambda base: base[0, :1].expand(7, 4),
    "reshaped": lambda base: base.view(6, 4).t(),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("view", TENSORS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "int8", "bool"])
def test_tensors_of_torch_come_back(dtype: str, view: str, protocol: int) -> None:
    base = noise("uint8", (2, 3, 4, 8), 2)
    if dtype == "bool":
        base = base % 2
    given = TENSORS[view](
        torch.from_numpy(base[..., : DTYPES[dtype].itemsize].copy()).view(getattr(torch, dtype))[..., 0]
    )
    read = _core.unpickle(pickle.dumps([given, None, given], protocol))
    flat = given.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if given.numel() else b""
    assert read[1] is None
    for array in (read[0], read[2]):
        assert (array.dtype, array.shape, array.tobytes()) == (DTYPES[dtype], tuple(given.shape), flat)


def forged(location: str) -> bytes:
    storage = stream(np.arange(6, dtype=np.float32).tobytes(), 6, location=location)
    return tensor(storage, number(1), numbers(2, 2), numbers(1, 2))


def test_a_tensor_that_was_on_a_gpu_is_read_without_one() -> None:
    expected = np.array([[1, 3], [2, 4]], np.float32)
    # The hand-made pickle is what torch writes: torch reads it, where it lies on the processor.
    assert np.array_equal(pickle.loads(forged("cpu")).numpy(), expected)
    assert np.array_equal(_core.unpickle(forged("cpu")), expected)
    assert np.array_equal(_core.unpickle(forged("cuda:3")), expected)


def test_arrays_are_the_caller_s_own() -> None:
    pickled = bytearray(pickle.dumps(np.arange(4)))
    read = _core.unpickle(pickled)
    read[0] = 7
    pickled[:] = bytes(len(pickled))
    assert read.tolist() == [7, 1, 2, 3]


RUN = "open('ran', 'w').close()"
NAMES: dict[tuple[str, str], tuple[object, ...]] = {
    ("os", "system"): ("touch ran",),
    ("posix", "system"): ("touch ran",),
    ("nt", "system"): ("touch ran",),
    ("os", "popen"): ("touch ran",),
    ("os", "execv"): ("/usr/bin/touch", ["touch", "ran"]),
    ("os", "remove"): ("kept",),
    ("os", "_exit"): (1,),
    ("sys", "exit"): (1,),
    ("subprocess", "Popen"): (["touch", "ran"],),
    ("subprocess", "check_output"): (["touch", "ran"],),
    ("builtins", "eval"): (RUN,),
    ("builtins", "exec"): (RUN,),
    ("__builtin__", "eval"): (RUN,),
    ("builtins", "open"): ("ran", "w"),
    ("builtins", "compile"): (RUN, "f", "exec"),
    ("builtins", "getattr"): (RUN, "upper"),
    ("builtins", "setattr"): ({}, "a", 1),
    ("builtins", "__import__"): ("os",),
    ("builtins", "map"): (RUN, [1]),
    ("builtins", "type"): ("T", (), {}),
    ("builtins", "bytearray"): (9,),
    ("builtins", "object"): (),
    ("importlib", "import_module"): ("antigravity",),
    ("runpy", "run_path"): ("ran",),
    ("timeit", "timeit"): (RUN,),
    ("cProfile", "run"): (RUN,),
    ("pdb", "run"): (RUN,),
    ("code", "interact"): (),
    ("ctypes", "CDLL"): ("libc.so.6",),
    ("marshal", "loads"): (b"",),
    ("pickle", "loads"): (b"cos\nsystem\n(Vtouch ran\ntR.",),
    ("_pickle", "loads"): (b"cos\nsystem\n(Vtouch ran\ntR.",),
    ("copyreg", "_reconstructor"): (1, 2, 3),
    ("functools", "partial"): (RUN,),
    ("operator", "attrgetter"): ("system",),
    ("operator", "methodcaller"): ("system", "touch ran"),
    ("types", "CodeType"): (),
    ("types", "FunctionType"): (),
    ("shutil", "rmtree"): ("kept",),
    ("socket", "create_connection"): (("127.0.0.1", 9),),
    ("webbrowser", "open"): ("http://127.0.0.1:9",),
    ("pathlib", "PosixPath"): ("ran",),
    ("torch", "load"): ("ran",),
    ("torch.serialization", "load"): ("ran",),
    ("torch.hub", "load"): ("ran", "ran"),
    ("torch.jit", "load"): ("ran",),
    ("torch._utils", "_rebuild_parameter"): (1, 2, 3),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"): (),
    ("torch", "QInt8Storage"): (1,),
    ("torch", "Size"): ((1,),),
    ("numpy", "load"): ("ran",),
    ("numpy", "matrix"): (1,),
    ("numpy", "memmap"): ("ran",),
    ("numpy", "fromfile"): ("ran",),
    ("numpy.ma.core", "_mareconstruct"): (1,),
    ("numpy.testing._private.utils", "runstring"): (RUN, {}),
    ("collections", "defaultdict"): (RUN,),
    ("collections", "OrderedDict.__init__.__globals__"): (),
    ("_codecs", "decode"): (b"", "zip"),
    ("Torch", "HalfStorage"): (1,),
    ("torch", "HalfStorage "): (1,),
    ("", ""): (),
}


def dumped(value: object) -> bytes:
    """The instructions alone of a value, without memo."""
    body = pickle.dumps(value, 2)
    return body[2:-1]


def spellings(module: str, name: str, arguments: tuple[object, ...]) -> list[bytes]:
    """Pickles that call a name: in text, by texts on the stack, and where a tensor would be."""
    made = dumped(arguments)
    stacked = text(module) + text(name) + b"\x93"
    called = named(module, name) + made + b"R"
    return [
        proto(2, called),
        proto(4, stacked + made + b"R"),
        proto(4, b"](" + number(1) + call(pickles.REBUILD, called) + b"e"),
        # What a storage has within it is read likewise.
        tensor(pickles.MAGIC + proto(2, called), number(0), numbers(1), numbers(1)),
        proto(2, named("numpy", "ndarray") + b")\x81" + called),
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: with one file, which stays the only one."""
    (tmp_path / "kept").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(pickled: bytes) -> tuple[str, str]:
    with pytest.raises(ActstoreError) as caught:
        _core.unpickle(pickled)
    assert [path.name for path in Path().iterdir()] == ["kept"]
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize("module_name", NAMES, ids=".".join)
@pytest.mark.usefixtures("folder")
def test_names_are_not_looked_up(module_name: tuple[str, str]) -> None:
    *named_, allocated = spellings(*module_name, NAMES[module_name])
    for pickled in named_:
        kind, message = refusal(pickled)
        assert kind == "untrusted_input"
        assert (
            f": it names `{'.'.join(module_name)}`, which is no part of an array of torch or NumPy; nothing was run"
            in message
        )
    assert refusal(allocated) == (
        "untrusted_input",
        "byte `18` of a pickle: `NEWOBJ` makes what is no data of an array or entry; nothing was run",
    )


class Calls:
    """An object whose pickle calls."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


LIVE: dict[str, tuple[str, Calls]] = {
    "system": ("system", Calls(os.system, "touch ran")),  # pyright: ignore[reportDeprecated]
    "eval": ("eval", Calls(eval, RUN)),
    "exec": ("exec", Calls(exec, RUN)),
    "mkdir": ("mkdir", Calls(os.mkdir, "ran")),
    "check_output": ("check_output", Calls(subprocess.check_output, ["touch", "ran"])),
    "getattr": ("getattr", Calls(getattr, Calls(eval, RUN + " or ''"), "upper")),
    "nested": ("eval", Calls(eval, Calls(eval, repr(RUN)))),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("gadget", LIVE)
def test_gadgets_that_run_in_python_do_not_run_here(gadget: str, protocol: int, folder: Path) -> None:
    name, calls = LIVE[gadget]
    around = {"prompt": "p", "all_layers_activations": [torch.zeros(2), calls]}
    kind, message = refusal(pickle.dumps(around, protocol))
    assert kind == "untrusted_input"
    assert f"{name}`, which is no part of an array" in message
    # It would have.
    pickle.loads(pickle.dumps(around, protocol))
    assert (folder / "ran").exists()


def test_the_error_has_a_class_of_its_own() -> None:
    with pytest.raises(
        UntrustedInputError, match=r"^byte `2` of a pickle: it names `os\.system`, which is no part of an"
    ):
        _core.unpickle(proto(2, named("os", "system") + b")R"))


def framed(values: bytes, count: int, head: bytes) -> bytes:
    """A tensor of 1 value over a stream whose first pickles are `head`."""
    storage = head + pickle.dumps(["7"], 2) + count.to_bytes(8, "little", signed=True) + values
    return tensor(storage, number(0), numbers(1), numbers(1))


def view(offset: bytes, shape: bytes, strides: bytes, count: int = 6) -> bytes:
    return tensor(stream(bytes(24), count), offset, shape, strides)


def big(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def numpy_array(shape: bytes, code: str, data: bytes, order: str = "<") -> bytes:
    """An array as protocols up to 4 have it."""
    return proto(
        3,
        call(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), numbers(0), raw(b"b"))
        + MARK
        + number(1)
        + shape
        + dtype_of(code, order)
        + b"\x89"
        + data
        + b"tb",
    )


def dtype_of(code: str, order: str = "<") -> bytes:
    state = MARK + number(3) + text(order) + b"NNN" + number(-1) + number(-1) + number(0) + b"t"
    return call(named("numpy", "dtype"), text(code), b"\x89", b"\x88") + state + b"b"


def buffer(shape: bytes, order: str, *axes: bytes) -> bytes:
    """An array of 6 floats as protocol 5 has it."""
    return proto(
        5, call(named("numpy._core.numeric", "_frombuffer"), raw(bytes(24)), dtype_of("f4"), shape, text(order), *axes)
    )


HALF = named("torch", "HalfStorage")
HEAD = pickles.MAGIC + pickles.VERSION
VIEW = proto(
    2,
    MARK
    + text("storage")
    + named("torch", "FloatStorage")
    + text("7")
    + text("cpu")
    + number(1)
    + numbers(0, 1)
    + b"tQ",
)
PARTS = call(named("numpy", "dtype"), text("f4")) + MARK + number(3) + text("<") + b"N" + numbers(1) + b"}tb"
SELF = b"]q\x00h\x00a"
"""A list within itself."""


def doubled(first: bytes, times: int, collect: bytes) -> bytes:
    """A value whose size doubles with each of a few instructions."""
    return first + b"".join(bytes([0x71, i, 0x68, i]) + collect for i in range(times))


STRUCTURES: dict[str, tuple[bytes, str, str]] = {
    "instance": (
        MARK + text("touch ran") + b"ios\nsystem\n.",
        "untrusted_input",
        "byte `15` of a pickle: `INST` makes",
    ),
    "object": (MARK + HALF + b"o.", "untrusted_input", "`OBJ` makes"),
    "new object": (HALF + b")\x81.", "untrusted_input", "`NEWOBJ` makes"),
    "new object with names": (HALF + b")}\x92.", "untrusted_input", "`NEWOBJ_EX` makes"),
    "extension 1": (b"\x82\x01.", "untrusted_input", "byte `0` of a pickle: `EXT1` makes"),
    "extension 2": (b"\x83\x01\x00.", "untrusted_input", "`EXT2` makes"),
    "extension 4": (b"\x84\x01\x00\x00\x00.", "untrusted_input", "`EXT4` makes"),
    "persistent line": (b"Pid\n.", "untrusted_input", "`PERSID` makes"),
    "persistent id": (text("id") + b"Q.", "untrusted_input", "`BINPERSID` makes"),
    "set": (b"\x8f.", "untrusted_input", "`EMPTY_SET` makes"),
    "frozen set": (MARK + b"\x91.", "untrusted_input", "`FROZENSET` makes"),
    "buffer elsewhere": (b"\x97.", "untrusted_input", "`NEXT_BUFFER` makes"),
    "readonly buffer": (b"N\x98.", "untrusted_input", "`READONLY_BUFFER` makes"),
    "text of Python 2": (b"S'a'\n.", "untrusted_input", "`STRING` makes"),
    "short text of Python 2": (b"U\x01a.", "untrusted_input", "`SHORT_BINSTRING` makes"),
    "call of a text": (text("os.system") + b")R.", "untrusted_input", "it calls a text"),
    "call of a call": (pickles.HOOKS + b")R.", "untrusted_input", "it calls a dict"),
    "state of a dict": (b"}}b.", "untrusted_input", "sets the state (BUILD) of a dict"),
    "state of a name": (HALF + b"}b.", "untrusted_input", "(BUILD) of the name `torch.HalfStorage`"),
    "state of a tensor": (
        view(number(0), numbers(1), numbers(1))[:-1] + b"}b.",
        "untrusted_input",
        "(BUILD) of an array",
    ),
    "name as a value": (HALF + STOP, "malformed", "it has the name `torch.HalfStorage` where a value is due"),
    "dtype as a value": (dtype_of("f4") + STOP, "malformed", "it has a dtype where a value is due"),
    "array without state": (
        numpy_array(numbers(1), "f4", b"")[:-1].split(MARK + number(1))[0] + STOP,
        "malformed",
        "an array without a state where",
    ),
    "ordered dict of pairs": (
        call(named("collections", "OrderedDict"), b"]") + STOP,
        "malformed",
        "`collections.OrderedDict`: byte `28` of a pickle: it is never called so",
    ),
    "bytes of a number": (call(named("builtins", "bytes"), number(9)) + STOP, "malformed", "`builtins.bytes`: "),
    "storage type called": (call(HALF, number(9)) + STOP, "malformed", "`torch.HalfStorage`: "),
    "encoding": (
        call(named("_codecs", "encode"), text("a"), text("zip")) + STOP,
        "malformed",
        "the encoding is not `latin1`",
    ),
    "memo of nothing": (b"h\x05.", "malformed", "nothing was remembered as `5`"),
    "memo of none": (b"q\x05.", "malformed", "there is no value to take"),
    "lists doubled": (doubled(b"]", 60, b"\x86") + STOP, "limit_exceeded", "more than `8` times its length"),
    "dicts doubled": (
        b"}q\x000" + b"}(K\x01h\x00K\x02h\x00uq\x000" * 60 + b"h\x00.",
        "limit_exceeded",
        "more than `8` times its length",
    ),
    "text again and again": (
        MARK + b"X" + (9999).to_bytes(4, "little") + b"a" * 9999 + b"q\x00" + b"h\x00" * 2000 + b"l.",
        "limit_exceeded",
        "more than `8`",
    ),
    "bytes again and again": (
        MARK + raw(bytes(9999)) + b"q\x00" + b"h\x00" * 2000 + b"l.",
        "limit_exceeded",
        "more than `8`",
    ),
    "storage again and again": (
        MARK
        + call(pickles.LOAD, raw(stream(bytes(40000), 10000)))
        + b"q\x000"
        + call(pickles.REBUILD, b"h\x00", number(0), numbers(10000), numbers(1))
        + b"q\x01"
        + b"h\x01" * 2000
        + b"l.",
        "limit_exceeded",
        "more than `8`",
    ),
    "list within itself": (SELF + STOP, "limit_exceeded", "its containers lie more than `100` deep in each other"),
    "long list within itself": (b"]q\x00(" + b"h\x00" * 100_000 + b"e.", "limit_exceeded", "more than `8`"),
    "dict within itself": (b"}q\x00K\x01h\x00s.", "limit_exceeded", "more than `100` deep"),
    "deep lists": (b"]" * 200_000 + b"a" * 199_999 + STOP, "limit_exceeded", "more than `100` deep"),
    "deep tuples": (b")" + b"\x85" * 200_000 + STOP, "limit_exceeded", "more than `100` deep"),
    "deep marks": (MARK * 200_000 + b"t" * 199_999 + STOP, "malformed", "it ends with more than one value"),
    "huge bytes": (b"\x8e" + b"\xff" * 8 + STOP, "truncated", "`18446744073709551615` bytes are due, and `1` are left"),
    "huge text": (b"\x8d" + (2**62).to_bytes(8, "little") + STOP, "truncated", "`4611686018427387904` bytes are due"),
    "huge number": (b"\x8b" + b"\xff" * 4 + STOP, "truncated", "`4294967295` bytes are due"),
    "number of 65 bits": (b"\x8a\x09" + b"\x01" * 9 + STOP, "limit_exceeded", "an integer has more than 64 bits"),
    "line of 65 bits": (b"L" + b"9" * 50 + b"L\n.", "limit_exceeded", "an integer has more than 64 bits"),
    "no number": (b"Iabc\n.", "malformed", "`abc` is no number"),
    "no instruction": (b"\xff.", "malformed", "byte `0` of a pickle: `0xff` is no instruction"),
    "protocol": (b"\x80\x06N.", "unsupported_version", "protocol `6` is unknown; this build reads `0` to `5`"),
    "nothing": (b"", "truncated", "byte `0` of a pickle: `1` bytes are due, and `0` are left"),
    "no value": (STOP, "malformed", "there is no value to take"),
    "two values": (b"NN.", "malformed", "it ends with more than one value"),
    "more behind": (b"N.N.", "malformed", "byte `2` of a pickle: `2` bytes follow the end of the pickle"),
    "list as a key": (b"}]Ns.", "malformed", "a key of a dict is `list`"),
    "key without a value": (b"(Nd.", "malformed", "a key of a dict has no value"),
    "item of a text": (text("a") + b"Na.", "malformed", "it puts an item into a text"),
    "item of a tuple": (b")Na.", "malformed", "it puts an item into a tuple"),
    "no text": (b"X\x01\x00\x00\x00\xff.", "malformed", "a text is not UTF-8"),
    "half a surrogate": (b"V\\ud800\n.", "malformed", "an escape of a text is no character"),
    "long name": (named("a" * 9999, "b") + STOP, "untrusted_input", "it names `" + "a" * 200 + "`"),
    "name that is not printed": (named("\x1b[2J", "b") + STOP, "untrusted_input", r"it names `\u{1b}[2J.b`"),
    "names of numbers": (b"K\x01K\x02\x93.", "malformed", "it has an int where a text is due"),
    "offset beyond": (
        view(number(5), numbers(2), numbers(1)),
        "malformed",
        "shape `[2]`, strides `[1]` and offset `5` do not fit `6` values",
    ),
    "stride beyond": (view(number(0), numbers(2, 2), numbers(5, 1)), "malformed", "strides `[5, 1]`"),
    "shape beyond": (view(number(0), numbers(2, 4), numbers(4, 1)), "malformed", "shape `[2, 4]`"),
    "negative offset": (view(number(-1), numbers(1), numbers(1)), "malformed", "`-1` is negative"),
    "negative shape": (view(number(0), numbers(-1), numbers(1)), "malformed", "`-1` is negative"),
    "negative stride": (view(number(5), numbers(6), numbers(-1)), "malformed", "`-1` is negative"),
    "strides for other axes": (view(number(0), numbers(2, 3), numbers(1)), "malformed", "strides `[1]`"),
    "stride that overflows": (view(number(0), numbers(3), MARK + big(2**63 - 1) + b"t"), "malformed", "do not fit"),
    "shape that overflows": (
        view(number(0), MARK + big(2**62) * 4 + b"t", numbers(0, 0, 0, 0)),
        "limit_exceeded",
        "is above the limit of 16 GiB",
    ),
    "value repeated": (
        view(number(0), numbers(1_000_000), numbers(0)),
        "limit_exceeded",
        "more than `8` times its length",
    ),
    "too many axes": (
        view(number(0), numbers(*[1] * 17), numbers(*[1] * 17)),
        "malformed",
        "a tuple has `17` values, above `16`",
    ),
    "storage of a number": (
        proto(2, call(pickles.REBUILD, number(1), number(0), numbers(1), numbers(1))),
        "malformed",
        "it has an int where a storage is due",
    ),
    "conjugated": (
        proto(
            2,
            call(
                pickles.REBUILD,
                call(pickles.LOAD, raw(stream(bytes(8), 2))),
                number(0),
                numbers(1),
                numbers(1),
                b"\x89",
                pickles.HOOKS,
                b"}",
            ),
        ),
        "malformed",
        "a tensor has a state that values do not show",
    ),
    "storage of more values": (
        view(number(0), numbers(1), numbers(1), count=7),
        "truncated",
        "`28` bytes are due, and `24` are left",
    ),
    "storage of fewer values": (
        view(number(0), numbers(1), numbers(1), count=5),
        "malformed",
        "`4` bytes follow the values of a storage",
    ),
    "storage of less than no values": (
        view(number(0), numbers(1), numbers(1), count=-1),
        "malformed",
        "`-1` is negative",
    ),
    "zip instead of a stream": (
        tensor(b"PK\x03\x04" + bytes(40), number(0), numbers(1), numbers(1)),
        "malformed",
        "its bytes are no stream of `torch.save`",
    ),
    "stream of another version": (
        framed(bytes(4), 1, pickles.MAGIC + proto(2, b"M\xea\x03")),
        "malformed",
        "has another version",
    ),
    "stream of another order": (
        framed(bytes(4), 1, HEAD + pickle.dumps({"little_endian": False}, 2)),
        "malformed",
        "is not little-endian",
    ),
    "stream of a view": (
        framed(bytes(4), 1, HEAD + pickles.MACHINE + VIEW),
        "malformed",
        "the id of a storage names no storage, or a view of one",
    ),
    "stream with long keys": (
        framed(bytes(4), 1, HEAD + proto(2, b"}" + text("a" * 400_000) + b"q\x000(" + b"h\x00N" * 200_000 + b"u")),
        "malformed",
        "is not little-endian",
    ),
    "numpy bytes too few": (
        numpy_array(numbers(3), "f4", raw(bytes(8))),
        "malformed",
        "shape `[3]` needs `12` bytes, not `8`",
    ),
    "numpy shape that overflows": (
        numpy_array(MARK + big(2**62) * 3 + b"t", "f4", raw(bytes(8))),
        "limit_exceeded",
        "is above the limit of 16 GiB",
    ),
    "numpy big-endian": (
        numpy_array(numbers(2), "f4", raw(bytes(8)), ">"),
        "invalid_tensor",
        "`>` is no dtype or byte order",
    ),
    "numpy dates": (
        numpy_array(numbers(1), "M8", raw(bytes(8))),
        "invalid_tensor",
        "`M8` is no dtype or byte order of an activation",
    ),
    "numpy dtype of many signs": (
        numpy_array(numbers(2), "<" * 99 + "f4", raw(bytes(8))),
        "invalid_tensor",
        "`" + "<" * 40 + "` is no dtype",
    ),
    "numpy records": (numpy_array(numbers(1), "V8", raw(bytes(8))), "invalid_tensor", "`V8` is no dtype"),
    "numpy parts": (PARTS + STOP, "malformed", "a dtype has parts"),
    "numpy objects too few": (
        numpy_array(numbers(3), "O", b"]N" + b"a"),
        "malformed",
        "shape `[3]` does not have `1` objects",
    ),
    "numpy objects that call": (
        numpy_array(numbers(1), "O", b"]" + named("os", "system") + b"a"),
        "untrusted_input",
        "it names `os.system`",
    ),
    "numpy order": (buffer(numbers(6), "Z"), "malformed", "`Z` is no order of bytes"),
    "numpy axes twice": (buffer(numbers(2, 3), "K", numbers(0, 0)), "malformed", "`[0, 0]` orders no axes"),
    "numpy axes beyond": (buffer(numbers(2, 3), "K", numbers(0, 2)), "malformed", "`[0, 2]` orders no axes"),
    "numpy number of objects": (
        proto(2, call(named("numpy.core.multiarray", "scalar"), dtype_of("O"), raw(b""))),
        "malformed",
        "it makes a number of an object",
    ),
    "numpy number of other bytes": (
        proto(2, call(named("numpy.core.multiarray", "scalar"), dtype_of("f4"), raw(b"abc"))),
        "malformed",
        "a number of `4` bytes has `3`",
    ),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.usefixtures("folder")
def test_what_no_pickler_of_data_writes_is_refused(structure: str) -> None:
    pickled, kind, said = STRUCTURES[structure]
    found, message = refusal(pickled)
    assert (found, said in message) == (kind, True), message


@pytest.mark.parametrize("sample", pickles.samples())
@pytest.mark.usefixtures("folder")
def test_the_beginning_of_a_pickle_is_truncated(sample: str) -> None:
    pickled = pickles.samples()[sample]
    for length in range(len(pickled)):
        assert refusal(pickled[:length])[0] == "truncated"


@pytest.mark.usefixtures("folder")
def test_damaged_pickles_are_refused_or_read() -> None:
    for pickled in pickles.samples().values():
        for at in range(0, len(pickled), 3):
            for changed in (0, pickled[at] ^ 1, pickled[at] ^ 0x80, ord("R"), ord("c"), 0xFF):
                # Any other error, or the end of the process, is what this looks for.
                with contextlib.suppress(ActstoreError):
                    _core.unpickle(pickled[:at] + bytes([changed]) + pickled[at + 1 :])
    assert [path.name for path in Path().iterdir()] == ["kept"]


MEASURED = """
    from contextlib import suppress
    from actstore import _core
    from actstore.errors import ActstoreError
    from memory import Peak, anonymous_bytes

    bodies = [b"N", b")", b"N\\x85", b"]Na", b"}NNs", b"N\\x94", b"V\\n", b"\\x85"]
    pickles = [b"N(" + body * (size // len(body)) + b"l." for body in bodies for size in (1 << 18, 1 << 22)]
    # As long as it is, it might hold millions of the values that it shares.
    blob = b"B" + (32 << 20).to_bytes(4, "little") + bytes(32 << 20) + b"0"
    pickles.append(blob + b"(" + b"N" * 1000 + b"lq\\x000(" + b"h\\x00" * 4000 + b"l.")
    worst = 0
    for pickled in pickles:
        before = anonymous_bytes()
        with Peak() as peak, suppress(ActstoreError):
            _core.unpickle(pickled)
        worst = max(worst, peak.bytes - before)
    print(worst)
"""


def test_instructions_and_values_take_bounded_memory() -> None:
    worst = int(run_python(MEASURED))
    assert worst < 48 << 20, f"{worst} bytes"


@pytest.mark.parametrize("given", ["text", None, 3])
def test_other_than_bytes_are_refused(given: Any) -> None:
    with pytest.raises((TypeError, ActstoreError)):
        _core.unpickle(given)
