"""`doctor`: what is installed, whether a store works here, what is missing and how to get it."""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from actstore.cli.app import FormatOption, command
from actstore.cli.output import print_fields, print_json
from actstore.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_GET_CAPTURE = 'pip install "actstore[hf]"'


@dataclass(frozen=True)
class Check:
    """One thing looked at; `problem` is why actstore cannot do all its work, with the command that helps."""

    name: str
    value: str
    problem: str | None = None


@command
def doctor(context: typer.Context, report_format: FormatOption = "text") -> None:
    """Check the installation.

    The last line is `ready` or the reason why not, which the exit status repeats.
    """
    del context
    checks = list(_checks())
    problems = [check.problem for check in checks if check.problem]
    if report_format == "json":
        print_json({"ready": not problems, "problems": problems, "checks": [asdict(check) for check in checks]})
    else:
        print_fields((check.name, check.value) for check in checks)
        typer.echo("\n".join(f"not ready: {problem}" for problem in problems) or "ready")
    if problems:
        raise typer.Exit(1)


def _checks() -> Iterator[Check]:
    import numpy as np

    from actstore import _core

    yield Check("actstore", f"{_core.__version__}, store format {_core.FORMAT_VERSION}")
    yield Check("python", f"{platform.python_version()} on {platform.platform()}")
    yield Check("numpy", np.__version__)
    yield _torch()
    yield _package("transformers")
    yield Check("ml_dtypes", _version("ml_dtypes") or "not installed; NumPy shows bfloat16 as uint16 without it")
    yield Check("disk", f"{format_bytes(shutil.disk_usage('.').free)} free in `{Path.cwd()}`")
    yield _store()


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Check:
    version = _version(name)
    problem = None if version else f"`{name}` is not installed, so models cannot be captured: {_GET_CAPTURE}"
    return Check(name, version or "not installed", problem)


def _torch() -> Check:
    found = _package("torch")
    if found.problem:
        return found
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", f"{found.value}, broken", f"`torch` does not import: {error}; {_GET_CAPTURE}")
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.device_count()} x {torch.cuda.get_device_name()})"
    else:
        device = f"cpu ({torch.get_num_threads()} threads), no CUDA device"
    return Check("torch", f"{found.value}, {device}")


def _store() -> Check:
    import numpy as np

    import actstore

    started = time.perf_counter()
    rows = np.arange(6 * 64, dtype=np.float32).reshape(6, 64)
    try:
        with tempfile.TemporaryDirectory(prefix="actstore-doctor-") as directory:
            with actstore.create(Path(directory) / "store") as store:
                store.put(key="doctor", token_ids=list(range(6)), activations={"resid_post.0": rows})
            with actstore.open(Path(directory) / "store") as store:
                same = bool(np.array_equal(store["doctor"].numpy("resid_post.0"), rows))
    except (actstore.ActstoreError, OSError) as error:
        return Check("store", "fails", f"a store in `{tempfile.gettempdir()}` cannot be written and read: {error}")
    if not same:
        return Check("store", "fails", f"a store in `{tempfile.gettempdir()}` did not read back what was written")
    milliseconds = (time.perf_counter() - started) * 1000
    return Check("store", f"writes and reads in `{tempfile.gettempdir()}` ({milliseconds:.0f} ms)")
