"""`info`, `show`, `verify` and `doctor`: what they print, and their exit status."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

import actstore

Run = Callable[..., Result]


def test_info(run: Run, small_store: Path) -> None:
    result = run("info", small_store)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"store    {small_store} (shards, format 0)" in result.stdout
    assert "entries  3" in result.stdout
    assert "tokens   12" in result.stdout
    row = next(line.split() for line in result.stdout.splitlines() if "blocks.1.hook_resid_post" in line)
    assert row[:6] == ["blocks.1.hook_resid_post", "float32", "3", "12", "384", "B"]


def test_info_as_json(run: Run, small_store: Path) -> None:
    report = json.loads(run("info", small_store, "--format", "json").stdout)
    with actstore.open(small_store) as store:
        assert report == {
            "path": str(small_store),
            "backend": "shards",
            "settings": store.settings,
            **store.info(),
            "damage": [],
        }
    assert [point["nonfinite"] for point in report["points"]] == [1, 1]


def test_show_by_the_beginning_of_a_key(run: Run, small_store: Path) -> None:
    result = run("show", small_store, "odd")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "key         odd 1" in result.stdout
    assert "'[bold]prompt 1'" in result.stdout
    assert "blocks.1.hook_resid_post" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [["0", "5"], ["1", "6"], ["2", "7"], ["3", "8"]]
    assert rows[1][-5:] == ["5.657", "2", "2", "2", "2"]


def test_show_as_json(run: Run, small_store: Path) -> None:
    report = json.loads(run("show", small_store, "even 0", "--point", "resid_post.0", "--format", "json").stdout)
    assert (report["key"], report["at"]) == ("even 0", "blocks.0.hook_resid_post")
    assert report["metadata"] == {"model": "demo", "index": 0}
    assert report["points"][1] == {"point": "blocks.1.hook_resid_post", "dtype": "float32", "shape": [4, 8]}
    first = report["rows"][0]
    assert (first["row"], first["position"], first["token_id"], first["norm"]) == (0, 0, 5, 1.5)
    assert first["values"] == [1.5, 0.0, 0.0, 0.0]
    assert isinstance(first["token"], str)
    assert len(report["rows"]) == 4


def test_show_limits_its_rows(run: Run, small_store: Path) -> None:
    result = run("show", small_store, "odd", "--limit", 2)
    assert "2 of 4 rows; `--limit 0` shows all" in result.stdout
    assert len(json.loads(run("show", small_store, "odd", "--limit", 0, "--format", "json").stdout)["rows"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("e",), "2 keys begin with `e`, such as `even 0`, `even 2`; give more of it"),
        (("x",), "no key of `STORE` is or begins with `x`"),
        (("odd", "--point", "logits"), "`logits`"),
        (("odd", "--point", "nowhere"), "hook point `nowhere` does not exist"),
    ],
)
def test_show_what_is_not_there(arguments: tuple[str, ...], message: str, run: Run, small_store: Path) -> None:
    result = run("show", small_store, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert message.replace("STORE", str(small_store)) in result.stderr
    assert result.stderr.count("\n") == 1


def test_verify(run: Run, small_store: Path) -> None:
    result = run("verify", small_store)
    assert result.exit_code == 0
    assert result.stdout.startswith("3 entries, ")
    assert result.stdout.endswith(" read: all good\n")
    assert "3/3 entries" in result.stderr
    assert run("--quiet", "verify", small_store).stderr == ""


def test_no_progress_where_tqdm_is_switched_off(run: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert run("verify", small_store).stderr == ""


def test_verify_names_what_is_lost(run: Run, small_store: Path) -> None:
    largest = max((path for path in small_store.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    for offset in range(0, len(data), 64):
        largest.write_bytes(data[:offset] + bytes([data[offset] ^ 255]) + data[offset + 1 :])
        result = run("verify", small_store)
        if "entries that lost something" in result.stdout:
            break
    else:
        pytest.fail("no byte was missed")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "entries that lost something: `even 0`"
    assert "of entry `even 0`: it does not match its checksum" in result.stdout
    result = run("verify", small_store, "--format", "json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["damage"][0]["kind"] in ("checksum", "malformed", "truncated")


def test_doctor(run: Run) -> None:
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "ready"
    report = json.loads(run("doctor", "--format", "json").stdout)
    assert (report["ready"], report["problems"]) == (True, [])
    names = [check["name"] for check in report["checks"]]
    assert names == ["actstore", "python", "numpy", "torch", "transformers", "ml_dtypes", "disk", "store"]


def test_doctor_says_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    real = metadata.version

    def version(package: str) -> str:
        if package == "transformers":
            raise metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(metadata, "version", version)
    result = run("doctor")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == (
        'not ready: `transformers` is not installed, so models cannot be captured: pip install "actstore[hf]"'
    )
    assert json.loads(run("doctor", "--format", "json").stdout)["ready"] is False


def test_doctor_tells_of_a_store_that_does_not_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/proc")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/proc")
    result = run("doctor")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("not ready: a store in `/proc` cannot be written and read: ")


def test_warnings_are_one_line(run: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: object) -> None:
        warnings.warn("`store` is damaged: somewhere", stacklevel=2)
        raise LookupError("end")

    monkeypatch.setattr("actstore.store.Store.info", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run("info", small_store).stderr == "warning: `store` is damaged: somewhere\nerror: end\n"


@pytest.mark.parametrize("command", ["info", "verify", "show"])
def test_errors_are_one_sentence(command: str, run: Run, tmp_path: Path) -> None:
    arguments = [command, tmp_path / "nowhere", *(["key"] if command == "show" else [])]
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert "nowhere" in result.stderr
    assert result.stderr.count("\n") == 1
    result = run("--debug", *arguments)
    assert isinstance(result.exception, actstore.errors.NotFoundError)


def test_errors_of_others_are_one_sentence_too(run: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("actstore.store.Store.info", fail)
    assert run("info", small_store).stderr == "error: first line\n"

    def fail_silently(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("actstore.store.Store.info", fail_silently)
    assert run("info", small_store).stderr == "error: RuntimeError\n"


def test_an_interruption_is_no_error(run: Run, small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("actstore.store.Store.info", interrupt)
    result = run("info", small_store)
    assert (result.exit_code, result.stderr) == (130, "stopped\n")


@pytest.mark.parametrize("arguments", [("nonsense",), ("info",), ("info", "x", "--format", "yaml"), ("info", "--what")])
def test_wrong_usage(arguments: tuple[str, ...], run: Run) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def actstore_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "actstore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_version() -> None:
    done = actstore_cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"actstore {actstore.__version__}\n", "")


def test_a_process_ends_with_the_status(tmp_path: Path) -> None:
    done = actstore_cli("info", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" in actstore_cli("--debug", "info", str(tmp_path)).stderr


def test_help_names_every_command() -> None:
    done = actstore_cli("--help")
    assert done.returncode == 0
    for name in ("capture", "demo", "doctor", "info", "migrate", "show", "verify"):
        assert f" {name} " in done.stdout


@pytest.mark.filterwarnings("ignore:.* is damaged:UserWarning")
def test_info_says_what_is_damaged(run: Run, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s") as store:
        store.put(key="k", activations={0: np.ones((2, 3), np.float32)})
    shard = tmp_path / "s" / "shards" / "0-000001.shard"
    shard.write_bytes(shard.read_bytes()[:200])
    report = json.loads(run("info", tmp_path / "s", "--format", "json").stdout)
    assert len(report["damage"]) == 1
    assert "0-000001.shard" in report["damage"][0]
    assert "damage" in run("info", tmp_path / "s").stdout


def test_info_names_what_a_backend_calls_its_codec(run: Run, tmp_path: Path) -> None:
    for backend, line in [
        ("lmdb", "codec    planes, dtype as captured"),
        ("json", "encoding  text, dtype as captured"),
    ]:
        actstore.create(tmp_path / backend, backend).close()
        assert line in run("info", tmp_path / backend).stdout
