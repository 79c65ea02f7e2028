"""The shape of the package: exports, imports, who may import whom, and that no call holds up the others."""

import ast
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import actstore
from actstore import _core, errors
from actstore.errors import ActstoreError
from processes import run_python

PACKAGE = Path(actstore.__file__).parent
HEAVY = {"torch", "transformers", "h5py", "chromadb", "fastapi", "ray", "numpy", "typer", "rich", "tqdm", "pyarrow"}

# From the bottom up; DESIGN section 3. A module may import from its own level and from those before it.
LEVELS = [
    {"errors", "sizes", "config", "demo"},
    {"hook_points"},
    {"_core"},
    {"arrays", "metadata", "reports"},
    {"entry", "writer", "scan", "tokens"},
    {"store"},
    {"options"},
    {"capture", "data", "formats"},
    {"migration", "legacy", "pipelines"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]


def test_the_exports_are_sorted_and_complete() -> None:
    assert actstore.__all__ == sorted(actstore.__all__)
    assert len(actstore.__all__) <= 25
    for name in actstore.__all__:
        assert getattr(actstore, name) is not None
    assert actstore.__version__ == _core.__version__


def test_every_public_class_and_function_has_a_docstring() -> None:
    for name in actstore.__all__:
        thing = getattr(actstore, name)
        if callable(thing):
            assert thing.__doc__, name
            assert thing.__module__.startswith("actstore"), name


def test_the_import_is_light() -> None:
    loaded = run_python("import sys, actstore; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert HEAVY & set(loaded) == set()


def test_modules_of_the_command_line_import_nothing_heavy() -> None:
    script = "import sys, actstore.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    assert (HEAVY - {"typer", "rich"}) & set(run_python(script).split()) == set()


def imported_units(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level modules of the package that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "actstore":
                    yield (alias.name.split(".")[1] if "." in alias.name else "__init__"), node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "actstore":
                for alias in node.names:
                    own = (PACKAGE / alias.name).is_dir() or any(PACKAGE.glob(f"{alias.name}.py*"))
                    yield (alias.name if own else "__init__"), node.lineno
            elif node.module is not None and node.module.startswith("actstore."):
                yield node.module.split(".")[1], node.lineno


def test_lower_modules_never_import_higher_ones() -> None:
    level_of = {unit: level for level, units in enumerate(LEVELS) for unit in units}
    checked = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for imported, line in imported_units(path):
            checked += 1
            place = f"{path.relative_to(PACKAGE)}:{line}"
            assert level_of[imported] <= level_of[unit], f"{place}: `{unit}` imports `{imported}`, which is above it"
    assert checked > 20


def all_kinds() -> dict[str, type[ActstoreError]]:
    classes = [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, ActstoreError)]
    return {kind: cls for cls in classes for kind in cls.kinds}


def test_both_languages_have_the_same_kinds() -> None:
    of_python_alone = {"missing_attention_mask", "prompt_too_long", "unsupported_model", "unsupported_generation"}
    assert set(_core.error_kinds()) == set(all_kinds()) - of_python_alone


@pytest.mark.parametrize("kind", sorted(all_kinds()))
def test_every_kind_makes_its_class_and_is_documented_and_tested(kind: str) -> None:
    error = errors.error(kind, "`thing` is broken")
    assert (type(error), error.kind, str(error)) == (all_kinds()[kind], kind, "`thing` is broken")
    assert kind in (errors.__doc__ or "")
    tests = Path(__file__).parent
    texts = (path.read_text() for path in tests.rglob("*.py") if path != Path(__file__))
    assert any(f'"{kind}"' in text for text in texts), f"no test raises `{kind}`"


def test_errors_survive_a_process_boundary() -> None:
    import pickle

    for kind in all_kinds():
        error = pickle.loads(pickle.dumps(errors.error(kind, "message")))
        assert (type(error), error.kind, str(error)) == (all_kinds()[kind], kind, "message")


class Ticker:
    """A thread that wants the interpreter every millisecond, and counts how often it got it."""

    def __enter__(self) -> "Ticker":
        self.ticks = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()
        return self

    def _tick(self) -> None:
        while not self._stopped.is_set():
            time.sleep(0.001)
            self.ticks += 1

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def test_others_run_while_the_core_works(tmp_path: Path) -> None:
    """No call that takes a while keeps the interpreter to itself."""
    array = np.random.default_rng(0).standard_normal((4096, 2048)).astype(np.float32)  # 32 MiB
    took: dict[str, float] = {}

    def call(name: str, function: Callable[[], object]) -> None:
        with Ticker() as ticker:
            start = time.perf_counter()
            function()
            took[name], ticks = time.perf_counter() - start, ticker.ticks
        # A call that holds the interpreter throughout lets the other thread in at its two ends at most.
        assert took[name] < 0.1 or ticks > 2, f"{name} kept the interpreter to itself"

    store = actstore.create(tmp_path / "s", codec="zstd", memory="32 MiB")
    writer = store.writer()
    for index in range(4):
        key, ids = str(index), range(len(array))
        call(f"put {key}", lambda key=key, ids=ids: writer.put(key=key, token_ids=ids, activations={"logits": array}))
    call("flush", writer.flush)
    for index in range(4, 8):
        writer.put(key=str(index), activations={"embed": array})
    call("close the writer", writer.close)
    call("read", lambda: store["0"].numpy("logits"))
    call("scan", lambda: sum(1 for _ in store.scan("logits")))
    call("tokens", lambda: sum(1 for _ in store.tokens("logits", shuffle=True)))
    call("gather", lambda: store.gather("logits", ["1"] * 4096, range(4096)))
    call("verify", store.verify)
    call("delete", lambda: store.delete("0"))
    call("close", store.close)
    call("open", lambda: actstore.open(tmp_path / "s").close())
    # Otherwise the test would say nothing.
    assert any(seconds > 0.1 for seconds in took.values()), json.dumps(took)
