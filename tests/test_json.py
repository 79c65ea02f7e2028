"""A `json` store under the hands of people and other programs: edited, rewritten, made by a script, damaged, shared."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import actstore
from actstore.errors import (
    ActstoreError,
    CorruptError,
    InvalidInputError,
    KeyConflictError,
    LimitExceededError,
    NotFoundError,
)

POINT = "blocks.0.hook_resid_post"
ROWS = np.array([[1e-05, 0.1], [-0.0, 3.0], [np.nan, np.inf]], np.float32)
METADATA = {"model": "m", "rate": 1e-05, "list": [1.5, 1e22, None, "é"]}


def file_of(root: Path, key: str) -> Path:
    return root / "activations" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of the entries `a`, `b` and `c`."""
    with actstore.create(tmp_path / "s", "json") as store, store.writer() as writer:
        for key in "abc":
            writer.put(
                key=key,
                prompt=f"prompt {key}",
                response="yes",
                token_ids=[1, 2, 3],
                prompt_length=2,
                metadata=METADATA,
                activations={POINT: ROWS},
            )
    return tmp_path / "s"


def listed(root: Path) -> dict[str, Any]:
    return json.loads((root / "metadata.json").read_text())["entries"]


def edit(root: Path, change: Callable[[dict[str, Any]], object], **how: Any) -> None:
    """Changes the file of `b` as a script would, through `json`."""
    document = json.loads(file_of(root, "b").read_text())
    change(document)
    file_of(root, "b").write_text(json.dumps(document, **how))


def assert_same(root: Path, response: str = "yes") -> str:
    """`b` is there, all of it, and gets listed; gives its content id."""
    with actstore.open(root, "a") as store:
        assert store.keys() == ["a", "b", "c"]
        found = store["b"]
        assert (found.response, found.metadata, found.token_ids) == (response, METADATA, [1, 2, 3])
        assert found.numpy(POINT).tobytes() == ROWS.tobytes()
        assert store.verify()["damage"] == []
        content_id = store.core.entry("b").content_id
    assert listed(root)["b"]["response"] == response
    return content_id


def refusal(root: Path, kind: type[ActstoreError] = CorruptError) -> ActstoreError:
    """What reading `b` says; the others are there, and opening warns of it."""
    with pytest.warns(UserWarning, match="is damaged: the entry in"):
        store = actstore.open(root)
    with store:
        assert store["a"].numpy(POINT).tobytes() == store["c"].numpy(POINT).tobytes() == ROWS.tobytes()
        with pytest.raises(kind) as raised:
            store["b"]
    with pytest.raises(kind, match="nothing can be appended to the damaged store"):
        actstore.open(root, "a")
    return raised.value


def test_an_edit_is_kept_by_doing_what_the_messages_say(root: Path) -> None:
    before = assert_same(root)
    file = file_of(root, "b")
    text = file.read_text().replace('"response":"yes"', '"response":"no"')
    file.write_text(text)
    error = refusal(root)
    assert error.kind == "checksum"
    assert error.message.endswith("to keep a change made by hand, take it and `content_id` out")
    seal = text.index(',"xxh3"')
    text = text[:seal] + text[text.index("}", seal) :]
    file.write_text(text)
    error = refusal(root)
    assert error.kind == "checksum"
    assert error.message.endswith("to keep a change made by hand, take `content_id` out")
    mark = text.index(',"content_id"')
    file.write_text(text[:mark] + text[text.index("}", mark) :])
    assert assert_same(root, "no") != before


@pytest.mark.parametrize("how", [{"indent": 2}, {"separators": (",", ":")}, {"sort_keys": True, "indent": "\t"}])
def test_a_file_that_python_wrote_again_is_the_same_entry(root: Path, how: dict[str, Any]) -> None:
    before = assert_same(root)
    edit(root, dict, **how)
    assert assert_same(root) == before
    edit(root, lambda document: document.pop("index"), ensure_ascii=False, **how)
    assert assert_same(root) == before


def test_a_number_spelled_otherwise_is_a_change(root: Path) -> None:
    before = assert_same(root)
    text = file_of(root, "b").read_text()
    file_of(root, "b").write_text(json.dumps(json.loads(text)).replace("1e-05", "0.00001", 1))
    assert refusal(root).message.endswith("take `content_id` out")
    edit(root, lambda document: document["entry"].pop("content_id"))
    text = file_of(root, "b").read_text()
    file_of(root, "b").write_text(text.replace("1e-05", "0.00001", 1))
    assert assert_same(root) != before


def script(key: str, entry: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """What a script of a few lines writes: nothing but what it must."""
    tensor = {
        "dtype": "float32",
        "shape": list(ROWS.shape),
        "xxh3": xxhash.xxh3_64_hexdigest(ROWS.tobytes()),
        "data": [[1e-05, np.float32(0.1).item()], [-0.0, 3], ["NaN", "Infinity"]],
    }
    return {"entry": {"key": key, **(entry or {})}, "activations": {POINT: {**tensor, **changes}}}


def test_a_file_that_a_script_made_is_an_entry(root: Path) -> None:
    file_of(root, "new").write_text(json.dumps(script("new", {"prompt": "p", "token_ids": [7], "metadata": {"n": 1}})))
    digest = hashlib.sha256(b"text").hexdigest()
    (root / "activations" / f"{digest}.json").write_text(json.dumps(script(digest, {"response": None})))
    with actstore.open(root, "a") as store:
        assert sorted(store.keys()[3:]) == sorted(["new", digest])
        assert (store["new"].prompt, store["new"].token_ids, store["new"].metadata) == ("p", [7], {"n": 1})
        for key in ("new", digest):
            assert store[key].numpy(POINT).tobytes() == ROWS.tobytes()
        assert store.verify()["damage"] == []
        before = store.core.entry("new").content_id
        with actstore.create(backend="memory") as other:
            actstore.migrate(store, other, verify=True)
            assert other.core.entry("new").content_id == before
    assert listed(root)["new"]["timestamp"] == 0


TENSORS: list[tuple[dict[str, Any], str, str]] = [
    ({"xxh3": "0" * 16}, "checksum", "its values do not match its `xxh3`"),
    ({"xxh3": 5}, "malformed", "`xxh3` is `5`, not text"),
    ({"dtype": "f32"}, "malformed", "unknown dtype `f32`: one of float16"),
    ({"dtype": None}, "malformed", "`dtype` is `null`, not text"),
    ({"shape": [2, 2]}, "malformed", "`data` has more rows than the `2` of its shape"),
    ({"shape": [4, 2]}, "malformed", "`data` has `3` rows of the `4` of its shape"),
    ({"shape": [3, -2]}, "malformed", "`shape` is `[3, -2]`, not a list of integers from 0 on"),
    ({"shape": "3"}, "malformed", '`shape` is `"3"`, not a list'),
    ({"data": [[1, 2], [3, 4], [5, float("nan")]]}, "malformed", 'what is no number is text, such as `"NaN"`'),
    ({"data": [[1, 2], [3, 4], [5, 10**400]]}, "malformed", "no value of float32"),
    ({"data": [[1, 2], [3, 4], [5, "nan"]]}, "malformed", "no value of float32"),
    ({"data": None}, "malformed", "no `[` at byte"),
    ({"encoding": "gzip"}, "malformed", "unknown encoding `gzip`; `base64`, or leave it out"),
    ({"encoding": "base64", "data": "AAAA"}, "malformed", "is not the base64 of `24` bytes"),
    ({"encoding": "base64", "data": "@" * 32}, "checksum", "is not base64"),
]
ENTRIES: list[tuple[dict[str, Any], str]] = [
    ({"key": 5}, "`key` is `5`, not text"),
    ({"key": "x"}, "it holds the entry `x`, whose file is `2d711642"),
    ({"key": None}, "`` is no key"),
    ({"key_recipe": "mine"}, '`key_recipe` is `"mine"`, not `prompt`, `ids` or `user`'),
    ({"prompt": ["p"]}, '`prompt` is `["p"]`, not text'),
    ({"prompt": "\ud800"}, '`prompt` is `"\\ud800"`, not text'),
    ({"metadata": [1]}, "`metadata` is `[1]`, not an object"),
    ({"created": "now"}, '`created` is `"now"`, not a number of seconds'),
    ({"number": -1}, "`number` is `-1`, not an integer from 0 on"),
    ({"token_ids": [2**32]}, "`token_ids` is `[4294967296]`, not a list of integers from 0 to 4294967295"),
    ({"token_ids": [1], "prompt_length": 2}, "`prompt_length` is `2` of `1` tokens"),
    ({"token_ids": [1], "positions": [[0, 3]]}, "positions up to `2` of a sequence of `1` tokens"),
    ({"positions": [[0, 2]]}, "has `3` rows, which are not its positions"),
    ({"positions": [[3, 1]]}, "positions `[3, 1)` are not ascending"),
    ({"content_id": "xyz"}, "`content_id` is not 64 hex digits"),
]


def test_what_a_script_got_wrong_is_said_in_plain_words(root: Path) -> None:
    for changes, kind, message in TENSORS:
        file_of(root, "b").write_text(json.dumps(script("b", **changes)))
        error = refusal(root)
        assert error.kind == kind, changes
        assert f"`{POINT}`: " in error.message, changes
        assert message in error.message, changes
        assert error.message.count("/activations/") == 1, "one path is enough"
    for entry, message in ENTRIES:
        file_of(root, "b").write_text(json.dumps(script("b", entry)))
        error = refusal(root)
        assert error.kind == "malformed", entry
        assert message in error.message, (entry, error.message)
    file_of(root, "b").write_text(json.dumps(script("b", shape=[10**12, 2])))
    assert refusal(root, LimitExceededError).message.endswith("is above the limit of 16 GiB")


def head(members: str) -> bytes:
    return f'{{"entry":{{"key":"b",{members}}},"activations":{{}}}}'.encode()


BYTES = [
    (b"", "truncated", "it ends at byte `0`, in the middle of a value"),
    (b" \n", "truncated", "it ends at byte `2`"),
    (b"null", "malformed", "no `{` at byte `0`"),
    (b"{}", "malformed", "`entry` is missing"),
    (b'{"all_layers_activations":[null]}', "malformed", "`entry` is missing"),
    (b'{"entry":{"key":"b"}}', "malformed", "`activations` is missing"),
    (b"\xef\xbb\xbf" + head('"prompt":""'), "malformed", "no `{` at byte `0`"),
    (head('"prompt":""').decode().encode("utf-16"), "malformed", "no `{` at byte `0`"),
    (head('"prompt":"?"').replace(b"?", b"\xff"), "malformed", "`entry` is not UTF-8"),
    (head('"prompt":"","prompt":"x"'), "malformed", "`prompt` is given twice"),
    (b'{"entry":{},"entry":{}}', "malformed", "`entry` is given twice"),
    (head('"metadata":{"n":NaN}'), "malformed", "`entry` cannot be read"),
    (head('"created":1e999'), "malformed", "`created` is `1e999`, not a number of seconds"),
    (head('"metadata":' + "[" * 10_000 + "]" * 10_000), "malformed", "more than 128 values within each other"),
    (head('"prompt":""') + b"x", "malformed", "something after the end"),
]


def test_bad_bytes_are_damage_to_one_entry(root: Path) -> None:
    whole = file_of(root, "b").read_bytes()
    for content, kind, message in BYTES:
        file_of(root, "b").write_bytes(content)
        error = refusal(root)
        assert (error.kind, message in error.message) == (kind, True), error.message
    file_of(root, "b").write_bytes(whole[: len(whole) // 2])
    with actstore.open(root) as store, pytest.raises(CorruptError) as raised:
        store["b"].numpy(POINT)
    assert raised.value.kind in ("truncated", "malformed")
    file_of(root, "b").write_bytes(whole)
    assert_same(root)


def test_what_is_no_file_is_refused_without_waiting(root: Path) -> None:
    file = file_of(root, "b")
    file.unlink()
    makers: list[Callable[[], object]] = [file.mkdir, lambda: os.mkfifo(file), lambda: file.symlink_to("/etc/passwd")]
    for make in makers:
        make()
        error = refusal(root, InvalidInputError)
        assert error.kind == "unsafe_path"
        assert "is not a regular file" in error.message
        file.rmdir() if file.is_dir() else file.unlink()
    with actstore.open(root, "a") as store:
        assert store.keys() == ["a", "c"]
    assert list(listed(root)) == ["a", "c"]


@pytest.mark.parametrize("depth", [60, 70, 120])
def test_deep_metadata_is_sound_and_can_be_written_again(tmp_path: Path, depth: int) -> None:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    with actstore.create(tmp_path / "s", "json") as store:
        store.put(key="k", metadata={"deep": value}, activations={POINT: ROWS})
        assert store.verify()["damage"] == []
    file = file_of(tmp_path / "s", "k")
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    with actstore.open(tmp_path / "s", "a") as store:
        assert store["k"].metadata == {"deep": value}


def test_the_list_of_entries_is_always_of_the_files(root: Path) -> None:
    catalogue = root / "metadata.json"
    whole = catalogue.read_bytes()
    for content in (None, b"", whole[:-2], whole[:100], b"[]", whole.replace(b"prompt a", b"prompt x")[:-1]):
        catalogue.unlink(missing_ok=True)
        if content is not None:
            catalogue.write_bytes(content)
        with actstore.open(root) as store:
            assert store.keys() == ["a", "b", "c"]
        actstore.open(root, "a").close()
        assert catalogue.read_bytes() == whole
    # Neither a key nor a time is content: the content ids are what they were.
    edit(root, lambda document: document["entry"].update(created=5.5))
    actstore.open(root, "a").close()
    assert listed(root)["b"]["timestamp"] == 5.5
    edit(root, lambda document: document["entry"].update(key="renamed"))
    file_of(root, "b").rename(file_of(root, "renamed"))
    actstore.open(root, "a").close()
    assert list(listed(root)) == ["a", "renamed", "c"]
    assert root / listed(root)["renamed"]["activation_file"] == file_of(root, "renamed")


def test_a_file_removed_by_hand_while_a_store_is_written(root: Path) -> None:
    with actstore.open(root, "a") as store:
        store.put(key="d", activations={})
        file_of(root, "b").unlink()
        with pytest.raises(CorruptError) as raised:
            store["b"]
        assert raised.value.kind == "missing_file"
    assert list(listed(root)) == ["a", "c", "d"]
    with actstore.open(root, "a") as store:
        assert store.keys() == ["a", "c", "d"]
        store.delete("d")
        file_of(root, "a").write_text("{")
        with pytest.raises(CorruptError, match=r"`metadata\.json` is not made anew: entry `a` in ") as raised:
            store.close()
        assert raised.value.kind == "truncated"


@pytest.mark.parametrize("on_conflict", ["error", "skip", "replace", "number"])
def test_a_prompt_as_a_key_never_takes_the_file_of_its_digest(tmp_path: Path, on_conflict: str) -> None:
    digest = hashlib.sha256(b"the prompt").hexdigest()
    with actstore.create(tmp_path / "s", "json", on_conflict=on_conflict) as store:
        for first, second in ((digest, "the prompt"), ("the prompt", digest)):
            store.put(key=first, activations={POINT: ROWS})
            with pytest.raises(KeyConflictError) as raised:
                store.put(key=second, activations={})
            expected = f"`{file_of(tmp_path / 's', 'the prompt')}`, which holds entry `{first}`; give another key"
            assert raised.value.message.endswith(expected)
            assert store.keys() == [first]
            assert store[first].numpy(POINT).tobytes() == ROWS.tobytes()
            assert store.delete(first) == 1


def test_keys_that_a_file_system_could_mix_up(tmp_path: Path) -> None:
    keys = ["Key", "key", "é", "e\u0301", "A" * 64, "a" * 64, "k" * 1024, "con", "x.json", "a b", "日本語 🦀"]
    with actstore.create(tmp_path / "s", "json") as store:
        for key in keys:
            store.put(key=key, response=key, activations={})
    with actstore.open(tmp_path / "s") as store:
        assert [(found.key, found.response) for found in store] == [(key, key) for key in keys]
    assert len({name.name.lower() for name in (tmp_path / "s" / "activations").iterdir()}) == len(keys)


KILLED = """
import sys, numpy, actstore
with actstore.open(sys.argv[1], "a") as store:
    for number in range(10**6):
        store.put(key=f"{sys.argv[2]}.{number}", activations={"logits": numpy.full((300, 64), number, "float32")})
        print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(root: Path) -> None:
    for run in range(3):
        command = [sys.executable, "-c", KILLED, str(root), str(run)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(5 + run):
                child.stdout.readline()
            time.sleep(0.01 * run)
            child.kill()
            acknowledged = 5 + run + len(child.stdout.read().split())
        with actstore.open(root, "a") as store:
            keys = store.keys()
            assert keys[:3] == ["a", "b", "c"]
            assert keys[3:] == sorted(keys[3:], key=lambda key: [int(number) for number in key.split(".")])
            assert {f"{run}.{number}" for number in range(acknowledged)} <= set(keys)
            assert store.verify()["damage"] == []
        assert list(listed(root)) == keys
        assert {name.suffix for name in (root / "activations").iterdir()} == {".json"}


def test_what_a_writer_deletes_is_never_called_damage(root: Path) -> None:
    """Neither by its own readers, in the middle of a deletion, nor by those of another handle, which learn it late."""
    store, reader, done, found = actstore.open(root, "a"), actstore.open(root), threading.Event(), []

    def read(handle: actstore.Store) -> None:
        while not done.is_set():
            try:
                rows = handle["b"].numpy(POINT)
                assert (rows == rows[0, 0]).all() or rows.tobytes() == ROWS.tobytes()
                handle.info()
                found.extend(handle.verify()["damage"])
            except NotFoundError as error:
                if error.kind != "no_such_key":
                    found.append(error)
            except BaseException as error:
                found.append(error)

    threads = [threading.Thread(target=read, args=(handle,)) for handle in (store, store, reader)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert store.delete("b") == 1
        store.put(key="b", activations={POINT: np.full((50, 8), 7, np.float32)})
    store.delete("b")
    done.set()
    for thread in threads:
        thread.join()
    assert found == []
    with pytest.raises(NotFoundError) as raised:
        reader["b"]
    assert raised.value.kind == "no_such_key"
    assert reader.verify()["damage"] == []
    reader.close()
    store.close()


def test_closing_under_a_reader_is_said_plainly(root: Path) -> None:
    found: list[BaseException] = []

    def read(store: actstore.Store) -> None:
        try:
            while True:
                assert store["b"].numpy(POINT).tobytes() == ROWS.tobytes()
        except BaseException as error:
            found.append(error)

    for _ in range(20):
        store = actstore.open(root)
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.005)
        store.close()
        for thread in threads:
            thread.join()
    assert {getattr(error, "kind", repr(error)) for error in found} == {"closed"}
