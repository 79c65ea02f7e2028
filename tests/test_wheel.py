"""The wheel works where no compiler is: installed into an empty environment, it runs the demo."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist = tmp_path_factory.mktemp("dist")
    run("make", "wheel", f"DIST={dist}")
    return next(dist.glob("actstore-*.whl"))


def test_the_wheel_is_for_every_python_from_3_11_on(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("py.typed", "_core.pyi", "_core.abi3.so", "demo/questions.jsonl", "demo/model/model.safetensors"):
        assert f"actstore/{needed}" in names
    assert not [name for name in names if name.startswith(("tests/", "benches/", "demo_model/"))]


@pytest.mark.timeout(600)
def test_the_demo_runs_from_the_wheel_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run(TOOLS / "uv", "venv", "--quiet", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    run(TOOLS / "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", python, f"{wheel}[hf]")
    path = f"{environment / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    for tool in ("cargo", "rustc", "maturin"):
        assert shutil.which(tool, path=path) is None
    command = environment / "bin" / "actstore-cli"
    shown = run(command, "demo", "--store", tmp_path / "stores", PATH=path, PYTHONPATH="", HF_HUB_OFFLINE="1")
    assert "bit for bit" in shown
