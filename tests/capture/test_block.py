"""Entering and leaving a block: what is stored, what is removed, which error is raised, and which store is used."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import models
import pytest
import torch
from oracle import Oracle, same_bits, watch, watch_output

import actstore
from actstore import Recorder
from actstore.capture import CaptureStats
from actstore.capture.drain import Filled
from actstore.capture.staging import Stage
from actstore.errors import (
    ActstoreError,
    AlreadyExistsError,
    CaptureError,
    InvalidInputError,
    KeyConflictError,
    ReadOnlyError,
)

BATCH = models.padded([3, 6], "left")


class UnluckyError(Exception):
    """What a user's own code raises."""


@pytest.fixture
def llama() -> Any:
    """A model of the test's own: hooks that a failing test leaves behind stay with it."""
    return models.tiny("llama")


@pytest.fixture(autouse=True)
def _untouched(llama: Any) -> Iterator[None]:
    yield
    require_untouched(llama)


def require_untouched(model: Any) -> None:
    """No hook of ours is left, `generate` is the method of the class, no thread of ours lives."""
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_hooks_with_kwargs
    assert not {"generate", "generate_batch", "_is_captured_by_actstore"} & set(vars(model))
    assert not [thread for thread in threading.enumerate() if thread.name == "actstore-drain"]


def forward(model: Any, seed: int) -> list[str]:
    """A forward of two rows of tokens of their own; their keys."""
    batch = models.padded([3, 6], "left", seed=seed)
    model(**batch)
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [actstore.key_of_ids(ids[mask.bool()].tolist()) for ids, mask in rows]


def fail_in(model: Any, error: BaseException, layer: int = 1) -> Any:
    """Makes the forward of a block raise `error`."""

    def raising(*_: Any) -> None:
        raise error

    return model.model.layers[layer].register_forward_pre_hook(raising)


def test_after_the_block(llama: Any) -> None:
    with actstore.capture(llama) as recorder:
        keys = forward(llama, 0)
        inside = recorder.stats
    require_untouched(llama)
    llama(**BATCH)
    assert recorder.store.keys() == keys
    assert inside.entries <= recorder.stats.entries == 2
    for call in (recorder.label, lambda: recorder.generate(["a"])):
        refused(ReadOnlyError, "closed", call)
    refused(ReadOnlyError, "closed", recorder.__enter__)
    refused(ReadOnlyError, "closed", lambda: actstore.capture(llama).store)


@pytest.mark.parametrize("error", [UnluckyError("mine"), KeyboardInterrupt(), SystemExit(3), torch.OutOfMemoryError()])
@pytest.mark.parametrize("where", ["between", "forward", "generate", "step"])
def test_an_exception_of_the_user(llama: Any, tmp_path: Path, error: BaseException, where: str) -> None:
    """It comes out as it went in; complete entries are durable, the call in progress leaves nothing."""
    keys: list[str] = []

    def block() -> None:
        with recorder:
            keys.extend(forward(llama, 0))
            if where == "between":
                raise error
            if where == "step":
                llama.generate(**BATCH, max_new_tokens=9, logits_processor=[raise_at(10, error)])
            hooks.append(fail_in(llama, error))
            if where == "forward":
                llama(**BATCH)
            llama.generate(**BATCH, max_new_tokens=3)

    hooks: list[Any] = []
    recorder = actstore.capture(llama, store=tmp_path / "acts")
    with pytest.raises(type(error)) as caught:
        block()
    for hook in hooks:
        hook.remove()
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    assert recorder.store.keys() == keys
    with actstore.open(tmp_path / "acts") as store:
        assert store.keys() == keys
        assert store.verify()["damage"] == []


def raise_at(length: int, error: BaseException) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == length:
            raise error
        return scores

    return process


def test_an_exception_that_the_user_catches(llama: Any) -> None:
    """The call in progress is dropped and its slot is free again; the block goes on."""
    with actstore.capture(llama, memory="1 MiB") as recorder:
        keys = forward(llama, 2)
        hook = fail_in(llama, UnluckyError())
        for _ in range(9):
            with pytest.raises(UnluckyError):
                llama(**BATCH)
            with pytest.raises(UnluckyError):
                llama.generate(**BATCH, max_new_tokens=2)
        hook.remove()
        # Nothing is left of it that could be in the way, in this thread or in another.
        thread = threading.Thread(target=lambda: keys.extend(forward(llama, 1)))
        thread.start()
        thread.join()
        llama.generate(**BATCH, max_new_tokens=2)
    assert recorder.store.keys()[:4] == keys
    assert len(recorder.store) == 6


def stop(store: Path, how: signal.Signals) -> tuple[int, str]:
    """Captures two entries in a process of its own, then sends it `how` in the middle of a third; how it ends."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import actstore, models
model = models.tiny("llama", max_position_embeddings=100_000)
with actstore.capture(model, models.byte_tokenizer(), store={str(store)!r}) as recorder:
    recorder.generate(["first", "second"], max_new_tokens=2)
    print("ready", flush=True)
    recorder.generate(["third"], max_new_tokens=90_000)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        child.send_signal(how)
        _, errors = child.communicate(timeout=60)
    return child.returncode, errors


def require_first_two(path: Path) -> None:
    with actstore.open(path) as store:
        assert store.keys() == [actstore.key_of_prompt("first"), actstore.key_of_prompt("second")]
        assert store.verify()["damage"] == []


def test_a_real_interrupt(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a generation leaves a valid store with what was complete."""
    code, errors = stop(tmp_path / "acts", signal.SIGINT)
    assert code != 0
    assert "KeyboardInterrupt" in errors
    require_first_two(tmp_path / "acts")


def test_c6_a_killed_run_has_what_was_complete(tmp_path: Path) -> None:
    """Nothing is kept in memory for the end, which a process that is killed never comes to."""
    code, _ = stop(tmp_path / "acts", signal.SIGKILL)
    assert code == -signal.SIGKILL
    require_first_two(tmp_path / "acts")


def test_an_earlier_generate_of_the_instance_comes_back(llama: Any) -> None:
    def own(*args: Any, **kwargs: Any) -> Any:
        return type(llama).generate(llama, *args, **kwargs)

    llama.generate = own
    try:
        with actstore.capture(llama) as recorder:
            llama.generate(**BATCH, max_new_tokens=2)
            assert llama.generate is not own
        assert vars(llama)["generate"] is own
    finally:
        del llama.generate
    assert len(recorder.store) == 2


def test_one_capture_of_a_model_at_a_time(llama: Any) -> None:
    other = models.tiny("llama", seed=1)
    with actstore.capture(llama) as outer:
        refused(CaptureError, "unsupported_model", actstore.capture(llama).__enter__, "captured already")
        with actstore.capture(other) as inner:
            keys = forward(llama, 0)
            assert forward(other, 1) != keys
        forward(llama, 2)
    assert (len(outer.store), len(inner.store)) == (4, 2)
    require_untouched(other)


def test_one_call_at_a_time(llama: Any) -> None:
    """A call from another thread, while one is under way, is refused, and harms neither."""
    errors: list[ActstoreError] = []

    def other_thread() -> None:
        for call in (lambda: llama(**BATCH), lambda: llama.generate(**BATCH, max_new_tokens=1)):
            errors.append(refused(CaptureError, "unsupported_model", call, "one call at a time"))

    def meanwhile(*_: Any) -> None:
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()

    with actstore.capture(llama) as recorder:
        hook = llama.model.norm.register_forward_pre_hook(meanwhile)
        keys = forward(llama, 0)
        llama.generate(**models.padded([2], "left"), max_new_tokens=1)
        hook.remove()
        thread = threading.Thread(target=forward, args=(llama, 1))
        thread.start()
        thread.join()
    assert len(errors) == 4
    assert recorder.store.keys()[:2] == keys
    assert len(recorder.store) == 5


def test_parts_called_by_themselves_are_refused(llama: Any) -> None:
    with actstore.capture(llama) as recorder:
        refused(CaptureError, "unsupported_model", lambda: llama.model(**BATCH), "call the model itself")
        keys = forward(llama, 0)
    assert recorder.store.keys() == keys


def test_a_module_that_is_skipped_or_run_twice_is_refused(llama: Any) -> None:
    """An entry whose points would have fewer or more rows than tokens."""
    mlp = llama.model.layers[0].mlp

    def run_again(_module: Any, args: Any) -> None:
        mlp(*args)

    with actstore.capture(llama, points=["embed", "mlp_out"]) as recorder:
        again = llama.model.norm.register_forward_pre_hook(run_again)
        refused(CaptureError, "rows_not_tokens", lambda: llama(**BATCH), "`3` hook points fired `4` times")
        again.remove()
        layers, llama.model.layers = llama.model.layers, llama.model.layers[:1]
        refused(CaptureError, "rows_not_tokens", lambda: llama(**BATCH), "`3` hook points fired `2` times")
        refused(CaptureError, "rows_not_tokens", lambda: llama.generate(**BATCH, max_new_tokens=2), "fired `2` times")
        llama.model.layers = layers
        keys = forward(llama, 0)
    assert recorder.store.keys() == keys


# Stores


def test_a_path_is_created_then_appended_to(llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "acts"
    recorders = []
    for seed in (0, 1, 0):
        # Recorders stay referenced, as in a notebook; each must have given the lock back.
        with actstore.capture(llama, store=str(path), codec="raw") as recorder:
            forward(llama, seed)
            assert recorder.store.mode == "a"
        recorders.append(recorder)
        assert (recorder.store.mode, recorder.store.path) == ("r", path)
    assert [recorder.stats.entries for recorder in recorders] == [2, 2, 0]
    assert recorders[2].stats.duplicates == 2
    with actstore.open(path, "a") as store:
        assert len(store) == 4
        assert store.settings["codec"] == "raw"


def test_an_open_store_stays_open(llama: Any, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "acts") as store:
        with actstore.capture(llama, store=store) as recorder:
            keys = forward(llama, 0)
        assert recorder.store is store
        assert (store.keys(), store.mode, store.closed) == (keys, "a", False)
        store.put(prompt="more", activations={0: torch.zeros(1, 4)})


def test_without_a_store_entries_stay_in_memory(llama: Any) -> None:
    with actstore.capture(llama, dtype="float16", overflow="saturate") as recorder:
        (key, _) = forward(llama, 0)
    assert (recorder.store.backend, recorder.store.path) == ("memory", None)
    assert recorder.store[key].dtype(0) == "float16"
    assert recorder.store.settings["overflow"] == "saturate"


@pytest.mark.parametrize(
    ("option", "value", "stored"),
    [
        ("backend", "memory", "shards"),
        ("codec", "planes", "raw"),
        ("encoding", "text", "none"),
        ("dtype", "float16", "none"),
        ("overflow", "error", "keep"),
        ("on_conflict", "error", "skip"),
        ("durability", "commit", "interval"),
    ],
)
def test_other_settings_than_the_store_has(llama: Any, tmp_path: Path, option: str, value: str, stored: str) -> None:
    path = tmp_path / "acts"
    actstore.create(path, codec="raw", overflow="keep", on_conflict="skip", durability="interval").close()

    def enter(**options: Any) -> None:
        with actstore.capture(llama, store=path, **options):
            pass

    error = refused(InvalidInputError, "invalid_option", lambda: enter(**{option: value}), f"`{option}` is `{value}`")
    assert f"`{stored}`" in str(error)
    # Neither defaults nor the store's own settings are in the way, and the lock was given back.
    enter()
    enter(codec="raw", overflow="keep", on_conflict="skip", durability="interval")
    with actstore.open(path, "a") as store:
        refused(
            InvalidInputError,
            "invalid_option",
            actstore.capture(llama, store=store, **cast("dict[str, Any]", {option: value})).__enter__,
        )


def test_options_that_do_not_exist(llama: Any, tmp_path: Path) -> None:
    for options in (
        {"codec": "zip"},
        {"dtype": "int3"},
        {"overflow": "wrap"},
        {"durability": "never"},
        {"memory": "much"},
    ):

        def enter(options: dict[str, Any] = options) -> None:
            with actstore.capture(llama, store=tmp_path / "acts", **options):
                pass

        with pytest.raises(InvalidInputError):
            enter()
    assert not (tmp_path / "acts").exists()


def test_stores_that_cannot_be_written(llama: Any, tmp_path: Path) -> None:
    actstore.create(tmp_path / "acts").close()
    (tmp_path / "file").write_text("something")
    with actstore.open(tmp_path / "acts") as store:
        refused(ReadOnlyError, "read_only", actstore.capture(llama, store=store).__enter__)
    refused(ReadOnlyError, "closed", actstore.capture(llama, store=store).__enter__)
    refused(AlreadyExistsError, "store_exists", actstore.capture(llama, store=tmp_path / "file").__enter__)
    with actstore.create(tmp_path / "other"):
        refused(ActstoreError, "already_open", actstore.capture(llama, store=tmp_path / "other").__enter__)


def test_a_store_that_vanishes(llama: Any, tmp_path: Path) -> None:
    """What was to be opened for reading is gone: that is said by leaving."""
    recorder = actstore.capture(llama, store=tmp_path / "acts")

    def block() -> None:
        with recorder:
            forward(llama, 0)
            shutil.rmtree(tmp_path / "acts")

    with pytest.raises(ActstoreError):
        block()


# Failures in the background


def test_a_conflict_is_kept_and_raised(llama: Any, tmp_path: Path) -> None:
    def block(recorder: Recorder) -> None:
        with recorder:
            recorder.label(keys=["a", "b"])
            forward(llama, 0)
            recorder.label(keys=["b", "c"])
            forward(llama, 1)
            for _ in range(200):
                # Every call from then on raises the same.
                time.sleep(0.01)
                forward(llama, 2)

    with actstore.create(tmp_path / "acts") as store:
        recorder = actstore.capture(llama, store=store)
        refused(KeyConflictError, "key_conflict", lambda: block(recorder), "`b`")
        assert recorder.stats.rejected == 1
        assert {"a", "b"} <= set(store.keys())
        assert store.verify()["damage"] == []


def test_a_conflict_is_raised_by_leaving(llama: Any) -> None:
    recorder = actstore.capture(llama)
    refused(KeyConflictError, "key_conflict", lambda: conflict(llama, recorder), "`a`")
    assert recorder.store.keys() == ["a"]


def test_an_overflow_is_kept_and_raised(tmp_path: Path) -> None:
    model = models.tiny("llama")
    keys: list[str] = []

    def block() -> None:
        with recorder:
            keys.extend(forward(model, 0))
            model.model.embed_tokens.weight.data *= 1e6
            forward(model, 1)

    recorder = actstore.capture(model, store=tmp_path / "acts", dtype="float16")
    refused(InvalidInputError, "float16_overflow", block)
    assert recorder.store.keys() == keys
    require_untouched(model)


def test_nan_and_infinities_are_stored_exactly() -> None:
    model = models.tiny("llama")
    model.model.embed_tokens.weight.data[5, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
    with actstore.capture(model, points="embed") as recorder:
        model(input_ids=torch.tensor([[5, 6]]))
    (entry,) = recorder.store
    assert torch.equal(
        entry.torch("embed").view(torch.int32), model.model.embed_tokens.weight.data[5:7].view(torch.int32)
    )


def test_a_failing_drain_stops_every_later_call(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more data than the ring holds: nobody waits for a slot that will not come back."""
    run = Filled.run
    done: list[int] = []

    def failing(self: Filled) -> None:
        if len(done) == 3:
            raise OSError("the device is gone")
        run(self)
        done.append(1)

    def block() -> None:
        with recorder:
            with pytest.raises(OSError, match="gone") as first:
                forwards(llama, 1000)
            errors.append(first.value)
            oracle.forget()
            for call in (lambda: forward(llama, 0), lambda: llama.generate(**BATCH, max_new_tokens=2)):
                with pytest.raises(OSError, match="gone") as again:
                    call()
                errors.append(again.value)
            assert not oracle.seen

    monkeypatch.setattr(Filled, "run", failing)
    errors: list[OSError] = []
    recorder = actstore.capture(llama, memory="1 MiB")
    with pytest.raises(OSError, match="gone") as last, watch(llama) as oracle:
        block()
    assert [error is last.value for error in errors] == [True] * 3
    assert len(recorder.store) == 6


def test_a_failure_is_noted_beside_the_error_of_the_user(llama: Any) -> None:
    with pytest.raises(UnluckyError) as caught:
        conflict(llama, actstore.capture(llama), UnluckyError())
    (note,) = caught.value.__notes__
    assert "key `a` is stored with other content" in note


# Figures


def test_stats(llama: Any, tmp_path: Path) -> None:
    with actstore.capture(llama, store=tmp_path / "acts", codec="raw") as recorder:
        started = time.perf_counter()
        forward(llama, 0)
        forward(llama, 0)
        llama.generate(**models.padded([4, 2], "left", seed=3), max_new_tokens=3)
        spent = time.perf_counter() - started
    stats = recorder.stats
    assert (stats.entries, stats.duplicates, stats.rejected) == (4, 2, 0)
    # The last token of a generation has no row, so it is not counted.
    assert stats.tokens == 3 + 6 + (4 + 2) + (2 + 2)
    assert stats.raw_bytes == stats.tokens * 2 * 32 * 4
    assert stats.raw_bytes <= stats.stored_bytes < 1.2 * stats.raw_bytes
    assert 0.8 < stats.ratio <= 1
    assert spent <= stats.seconds < 60
    assert 0 <= stats.stall_ms < 1000 * stats.seconds
    assert 0 < stats.queue_peak_bytes <= (9 + 9 + 12) * 2 * 32 * 4
    assert stats.tokens_per_second == stats.tokens / stats.seconds
    assert stats.gigabytes_per_second == stats.raw_bytes / stats.seconds / 1e9
    assert recorder.stats == stats


def test_stats_in_one_line() -> None:
    stats = CaptureStats(2, 1, 0, 3400, 5_000_000, 2_500_000, 2.0, 12.4, 700)
    expected = "2 entries, 3,400 tokens, 5.0 MB in 2.5 MB (2.00x), 2.0 s, 1,700 tokens/s, 0.003 GB/s, 12 ms stalled"
    assert str(stats) == f"{expected}, queue peak 700 B, 1 stored already"
    assert "nan" not in str(CaptureStats())


def test_waiting_for_a_slot_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow writer makes the model wait, and loses nothing."""
    model = models.tiny("llama", layers=1, hidden_size=512, max_position_embeddings=4096)
    run, open_slot = Filled.run, Stage.open
    opened: list[int] = []
    all_full = threading.Event()

    def counted(self: Stage, lane: Any) -> None:
        opened.append(1)
        if len(opened) > 4:
            all_full.set()
        open_slot(self, lane)

    def slow(self: Filled) -> None:
        """Takes nothing out of the four slots before the model asks for a fifth, and then not at once."""
        all_full.wait()
        time.sleep(0.25)
        run(self)

    monkeypatch.setattr(Stage, "open", counted)
    monkeypatch.setattr(Filled, "run", slow)
    batch = models.padded([2000, 1000], "left")
    points = ["resid_pre", "resid_post", "mlp_out", "attn_out", "logits"]
    with actstore.capture(model, points=points, memory="96 MiB") as recorder, Oracle() as oracle, torch.no_grad():
        watch_output(oracle, "resid_post.0", model.model.layers[0])
        model(**batch)
    assert 50 < recorder.stats.stall_ms <= 1000 * recorder.stats.seconds
    for row, entry in enumerate(recorder.store):
        real = batch["attention_mask"][row].nonzero().flatten().tolist()
        assert same_bits(entry.torch(0), oracle.rows_of_forward("resid_post.0", real, row))


def test_captured_text_survives_as_metadata(llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "acts"
    with actstore.capture(llama, models.byte_tokenizer(), store=path) as recorder:
        recorder.generate(["né\n\x00 'x' 🙂"], metadata=[{"né": "🙂", "n": [1, 2.5, None]}], max_new_tokens=2)
    (entry,) = recorder.store
    assert entry.prompt == "né\n\x00 'x' 🙂"
    assert entry.metadata == {"né": "🙂", "n": [1, 2.5, None]}
    assert abs(entry.created - time.time()) < 60


def test_importing_does_not_import_torch() -> None:
    script = "import actstore, sys; actstore.Recorder; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def conflict(model: Any, recorder: Recorder, error: Exception | None = None) -> None:
    """Two rows of a call under one key, and an error of the user's, if there is one."""
    with recorder:
        recorder.label(keys=["a", "a"])
        forward(model, 0)
        if error is not None:
            raise error


def forwards(model: Any, count: int) -> None:
    for seed in range(count):
        forward(model, seed)


def refused(of: type[ActstoreError], kind: str, call: Callable[[], object], part: str = "") -> ActstoreError:
    with pytest.raises(of) as caught:
        call()
    message = str(caught.value)
    assert caught.value.kind == kind, message
    assert part in message
    assert not message.endswith(".")
    return caught.value
