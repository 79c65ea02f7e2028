"""`migrate`: what it prints, how it goes on, and its exit status."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import actstore
from actstore import _core
from backends import ON_DISK

Run = Callable[..., Result]


def same(path: Path, other: Path) -> bool:
    with actstore.open(path) as left, actstore.open(other) as right:
        return [entry.content_id for entry in left] == [entry.content_id for entry in right]


@pytest.mark.parametrize("backend", ON_DISK)
def test_the_plain_way(backend: str, run: Run, small_store: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "new"
    result = run("migrate", "shards", backend, "--source", small_store, "--target", target)
    assert result.exit_code == 0, result.stderr
    last = result.stdout.splitlines()[-2:]
    assert last[0].startswith("3 entries migrated, 768 B raw, ")
    assert "/s" in last[0]
    assert last[1].startswith(f"in {target} ({backend}, ")
    progress = result.stderr.splitlines()[-1]
    assert progress.startswith("3/3 entries  ")
    assert "B/s" in progress
    assert "ETA 0:00" in progress
    assert same(small_store, target)
    again = run("--quiet", "migrate", "auto", "auto", "--source", small_store, "--target", target)
    assert again.stdout.startswith("0 entries migrated and 3 skipped, ")
    assert again.stderr == ""


def test_verify(run: Run, small_store: Path, tmp_path: Path) -> None:
    arguments = ("migrate", "auto", "shards", "--source", small_store, "--target", tmp_path / "new", "--verify")
    result = run(*arguments, "--codec", "raw")
    assert result.exit_code == 0
    assert ", 3 verified" in result.stdout
    assert "3/3 verified" in result.stderr


def test_differences_are_named_and_are_a_failure(
    run: Run, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _core.migrate

    def loses_one(source: Any, target: Any, _: Any, *rest: Any) -> str:
        return real(source, target, ["even 0", "odd 1"], *rest)

    monkeypatch.setattr(_core, "migrate", loses_one)
    arguments = ("migrate", "auto", "shards", "--source", small_store, "--target", tmp_path / "new", "--verify")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "differs: entry `even 2` is not in the target" in result.stdout
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["differences"] == [{"key": "even 2", "message": "entry `even 2` is not in the target"}]
    assert report["verified"] == report["entries"] - 1


def test_as_json(run: Run, small_store: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    result = run("migrate", "auto", "shards", "--source", small_store, "--target", target, "--format", "json")
    report = json.loads(result.stdout)
    assert report.pop("seconds") > 0
    assert report.pop("stored_bytes") > 0
    assert report.pop("file_bytes") > 0
    assert report == {
        "source": str(small_store),
        "target": str(target),
        "backend": "shards",
        "entries": 3,
        "migrated": 3,
        "skipped": 0,
        "conflicts": 0,
        "copied": 3,
        "encoded": 0,
        "raw_bytes": 768,
        "verified": None,
        "differences": [],
        "dry_run": False,
        "left_out": [],
        "notes": [],
    }


def test_a_dry_run(run: Run, small_store: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    arguments = ("migrate", "auto", "shards", "--source", small_store, "--target", target, "--dry-run")
    result = run(*arguments, "--codec", "raw", "--layers", "1")
    assert result.exit_code == 0, result.stderr
    fields = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    fields = {name: value.strip() for name, value in fields.items()}
    assert fields["target"] == f"{target} (shards)"
    assert fields["to migrate"] == "3 of 3 entries"
    assert fields["frames"] == "copied of 0 entries, encoded of 3"
    assert fields["stored"] == "about 384 B (ratio 1.000)"
    assert not target.exists()
    assert json.loads(run(*arguments, "--format", "json").stdout)["dry_run"] is True


def test_a_part(run: Run, small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("even 2\r\n\n", encoding="utf-8")
    options = ("--key", "odd 1", "--keys-from", tmp_path / "keys", "--points", "resid_post", "--layers", "-1")
    arguments = ("--source", small_store, "--target", tmp_path / "new", "--dtype", "float16", "--overflow", "keep")
    result = run("migrate", "auto", "shards", *arguments, *options)
    assert result.exit_code == 0, result.stderr
    with actstore.open(tmp_path / "new") as store:
        assert store.keys() == ["odd 1", "even 2"]
        assert store["odd 1"].points == ["blocks.1.hook_resid_post"]
        assert store["odd 1"].dtype("resid_post.1") == "float16"
        assert store.settings["overflow"] == "keep"


def test_conflicts(run: Run, small_store: Path, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "new") as store:
        store.put(key="odd 1", activations={})
    arguments = ("migrate", "auto", "shards", "--source", small_store, "--target", tmp_path / "new")
    warning = "warning: the first conflict will end the migration; `--on-conflict` has other rules\n"
    assert run(*arguments, "--dry-run").stderr == warning
    assert run(*arguments, "--dry-run", "--on-conflict", "skip").stderr == ""
    result = run(*arguments)
    assert result.exit_code == 1
    assert "error: key `odd 1` is stored in the target with other content" in result.stderr
    result = run(*arguments, "--on-conflict", "number")
    assert result.exit_code == 0
    assert "1 key was there with other content" in result.stdout


def test_ctrl_c_says_how_to_go_on(run: Run, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("migrate", "auto", "shards", "--source", small_store, "--target", tmp_path / "new")
    from actstore.cli import migrate

    follow = migrate._Follower.__call__

    def interrupt(self: Any, done: int, total: int, raw_bytes: int) -> None:
        follow(self, done, total, raw_bytes)
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(migrate._Follower, "__call__", interrupt)
    result = run(*arguments)
    assert result.exit_code == 130
    assert result.stderr.endswith("stopped at 2/3 entries; run the same command again to continue\n")
    monkeypatch.undo()
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("1 entry migrated and 2 skipped, ")
    assert same(small_store, tmp_path / "new")


def test_ctrl_c_while_verifying(run: Run, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(_core, "compare", interrupt)
    arguments = ("migrate", "auto", "shards", "--source", small_store, "--target", tmp_path / "new", "--verify")
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith("stopped at 0/3 verified; run the same command again to continue\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("auto", "auto"), "does not exist; say what to create there with `target_format`"),
        (("nonsense", "shards"), "unknown `source_format` `nonsense`; one of `auto`, `shards`"),
        (("auto", "shards", "--codec", "gzip"), "unknown codec `gzip`"),
        (("auto", "shards", "--shard-size", "2"), "`shard_size` is for the format `pt-shards`, not for `shards`"),
        (("auto", "npy-layers", "--layers", "1"), "`layers` cannot be given from `auto` to `npy-layers`; leave it out"),
        (("auto", "shards", "--key", "none"), "no entry `none`"),
        (("auto", "shards", "--keys-from", "keys"), "`keys` is not UTF-8"),
        (("auto", "shards", "--keys-from", "missing"), "cannot read `missing`: No such file or directory"),
        (("auto", "shards", "--layers", "7"), "layers `7` are not stored; stored are `0`, `1`"),
        (("auto", "shards", "--points", "logits"), "hook point `logits` is not stored"),
    ],
)
def test_errors(
    options: tuple[str, ...], message: str, run: Run, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").write_bytes(b"\xff")
    result = run("migrate", *options, "--source", small_store, "--target", tmp_path / "new")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_wrong_usage(run: Run, small_store: Path) -> None:
    for arguments in (("auto",), ("auto", "shards"), ("auto", "shards", "--source", small_store)):
        assert run("migrate", *arguments).exit_code == 2
