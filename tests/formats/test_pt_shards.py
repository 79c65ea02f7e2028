"""`pt-shards`: document 002's tree, in and out."""

import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import actstore
from actstore.errors import AlreadyExistsError, CorruptError, InvalidInputError
from actstore.formats import export_store, format_of, import_store
from actstore.store import Store
from old_trees import SETTINGS, residuals, write_split

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def memory(source: Path) -> tuple[Store, Any]:
    store = actstore.create(backend="memory", codec="raw")
    return store, import_store(source, store, verify=True)


def shards_of(rows: torch.Tensor, size: int = 4) -> list[torch.Tensor]:
    return [part.clone() for part in rows.split(size)]


def small_tree(root: Path, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> Path:
    layers = [shards_of(residuals(layer, 10, dtype)) for layer in range(2)]
    return write_split(root, layers, {**SETTINGS, **settings})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_e4_every_row_comes_in_with_its_dtype(dtype: torch.dtype, level: int, tmp_path: Path) -> None:
    place = small_tree(tmp_path / "old", dtype)
    root = [tmp_path / "old", *[place.parents[1 - step] for step in range(2)], place][level]
    before = {path: path.read_bytes() for path in place.rglob("*.pt")}
    assert format_of(root).name == "pt-shards"  # pyright: ignore[reportOptionalMemberAccess]
    store, report = memory(root)
    assert (report.entries, report.migrated, report.verified, report.left_out, report.notes) == (10, 10, 10, (), ())
    assert store.keys() == [f"SP_test:EM:{row}" for row in range(10)]
    for row, entry in enumerate(store):
        known = entry.metadata.pop("imported_from")
        assert entry.metadata == {"model": "unsloth/Test-1B", "dataset": "SP_test", "split": "EM", "row": row}
        assert (known["layer_counting"], known["token_convention"], known["padding_side"]) == ("blocks", "at", "left")
        assert (known["positions"], known["dtypes"]) == ("last", [str(dtype).removeprefix("torch.")])
        assert known["settings"] == SETTINGS
        for layer in range(2):
            values = entry.torch(f"resid_post.{layer}")
            assert values.dtype == dtype
            assert values.equal(residuals(layer, 10, dtype)[row : row + 1])
        assert entry.points == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert {path: path.read_bytes() for path in place.rglob("*.pt")} == before


def test_names_come_from_directories_where_no_file_says_them(tmp_path: Path) -> None:
    write_split(tmp_path, [[residuals(0, 3)]], split="Neutral")
    store, _ = memory(tmp_path)
    assert store.keys() == [f"SP_test:Neutral:{row}" for row in range(3)]
    assert store["SP_test:Neutral:0"].metadata["model"] == "unsloth_Test-1B"


def test_e3_shards_and_layers_are_counted_as_numbers(tmp_path: Path) -> None:
    place = write_split(tmp_path, [[]], {**SETTINGS, "total_examples": 1002})
    for layer in (0, 100):
        (place / f"layer_{layer:02d}").mkdir(exist_ok=True)
        for number in range(1002):
            torch.save(
                torch.full((1, 3), number + layer / 1000), place / f"layer_{layer:02d}" / f"shard_{number:03d}.pt"
            )
    store, _ = memory(tmp_path)
    assert len(store) == 1002
    for row in (0, 99, 100, 999, 1000, 1001):
        entry = store[f"SP_test:EM:{row}"]
        assert entry.points == ["blocks.0.hook_resid_post", "blocks.100.hook_resid_post"]
        assert entry.torch("resid_post.0")[0, 0] == row


def test_e2_shards_of_an_earlier_run_are_left_out(tmp_path: Path) -> None:
    layers = [[*shards_of(residuals(layer, 6)), residuals(7, 4), residuals(8, 4)] for layer in range(2)]
    place = write_split(tmp_path, layers, {**SETTINGS, "total_examples": 6})
    store, report = memory(tmp_path)
    assert store.keys() == [f"SP_test:EM:{row}" for row in range(6)]
    expected = (
        f"shards from `2` on in `{place}` are left out: the 6 examples of `metadata.json` are complete before them"
    )
    assert report.notes[0].startswith(expected)


def test_e2_a_shard_that_is_partly_stale_is_refused(tmp_path: Path) -> None:
    small_tree(tmp_path, total_examples=9)
    with pytest.raises(CorruptError, match=r"ends at row 10, but `total_examples` in `metadata.json` is 9") as caught:
        memory(tmp_path)
    assert caught.value.kind == "malformed"


def test_e1_rows_that_a_crashed_run_did_not_write_are_named(tmp_path: Path) -> None:
    place = small_tree(tmp_path, total_examples=12)
    store, report = memory(tmp_path)
    # However many are missing, they are one part of the source.
    assert (len(store), report.entries, report.migrated) == (10, 11, 10)
    (damage,) = report.left_out
    assert (damage["key"], damage["kind"]) == ("SP_test:EM:10", "missing_file")
    assert damage["message"] == f"`{place}` has 10 rows, but `total_examples` counts 12; the run did not end"
    (place / "metadata.json").write_text(json.dumps({**SETTINGS, "total_examples": 10**18}))
    assert len(memory(tmp_path)[1].left_out) == 1


def test_settings_that_metadata_cannot_hold_are_kept_as_text(tmp_path: Path) -> None:
    place = small_tree(tmp_path / "old", loss=float("nan"), seeds=[1, 2**70])
    store, report = memory(tmp_path / "old")
    assert (len(store), report.left_out) == (10, ())
    known = store["SP_test:EM:3"].metadata["imported_from"]
    assert (known["settings"]["loss"], known["settings"]["seeds"]) == ("NaN", [1, str(2**70)])
    assert known["as_text"] == [["imported_from", "settings", "loss"], ["imported_from", "settings", "seeds", 1]]
    export_store(store, tmp_path / "new", "pt-shards", shard_size=4, verify=True)
    settings = tmp_path / "new" / place.relative_to(tmp_path / "old") / "metadata.json"
    assert settings.read_bytes() == (place / "metadata.json").read_bytes()


def test_rows_of_a_damaged_or_missing_shard_are_named(tmp_path: Path) -> None:
    place = small_tree(tmp_path)
    (place / "layer_01" / "shard_001.pt").unlink()
    store, report = memory(tmp_path)
    assert store.keys() == [f"SP_test:EM:{row}" for row in (0, 1, 2, 3, 8, 9)]
    assert {damage["message"] for damage in report.left_out} == {f"layer `1` of `{place}` has no `shard_001.pt`"}
    torch.save(residuals(0, 3), place / "layer_01" / "shard_001.pt")
    _, report = memory(tmp_path)
    assert len(report.left_out) == 4
    assert "has 3 rows, but the shard has 4 in another layer" in report.left_out[0]["message"]


class Gadget:
    def __reduce__(self) -> Any:
        return os.mkdir, ("gone",)


def raw_zip(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


def write_hostile(path: Path, kind: str) -> None:
    if kind == "gadget":
        torch.save({"x": Gadget()}, path)
    elif kind == "dict":
        torch.save({"x": torch.ones(2)}, path)
    elif kind == "three axes":
        torch.save(torch.ones(2, 2, 2), path)
    elif kind == "expanded":
        torch.save(torch.ones(1, 1).expand(4, 10**12), path)
    elif kind == "sparse":
        torch.save(torch.eye(3).to_sparse(), path)
    elif kind == "slip":
        raw_zip(path, "../../gone", b"x")
    elif kind == "legacy":
        torch.save(torch.ones(2, 2), path, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Gadget()))
    elif kind == "cut":
        torch.save(torch.ones(64, 64), path)
        path.write_bytes(path.read_bytes()[:8000])
    elif kind == "forged":
        torch.save(torch.ones(2, 3), path)
        content = path.read_bytes()
        # BININT1 2, BININT1 3 are the shape; 255 and 255 are more than there is.
        assert content.count(b"K\x02K\x03\x86") == 1
        path.write_bytes(content.replace(b"K\x02K\x03\x86", b"K\xffK\xff\x86"))


HOSTILE = ["gadget", "dict", "three axes", "expanded", "sparse", "slip", "legacy", "pickle", "cut", "forged"]


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hostile_shards(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run, nothing is written outside; the rows are named with the file."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    place = small_tree(tmp_path / "old")
    write_hostile(place / "layer_01" / "shard_001.pt", kind)
    store, report = memory(tmp_path / "old")
    assert store.keys() == [f"SP_test:EM:{row}" for row in (0, 1, 2, 3, 8, 9)]
    assert {damage["kind"] for damage in report.left_out} <= {"malformed", "truncated"}
    assert all("shard_001.pt`" in damage["message"] for damage in report.left_out)
    assert list((tmp_path / "here").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "old"]


def test_models_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    place = small_tree(tmp_path / "old")
    other = tmp_path / "old" / "other"
    (tmp_path / "old" / "unsloth_Test-1B").rename(other)
    (place := other / "SP_test" / "EM" / "metadata.json").write_text(
        place.read_text().replace("unsloth/Test-1B", "other")
        if place.exists()
        else json.dumps({**SETTINGS, "model_name": "other"})
    )
    small_tree(tmp_path / "old")
    with pytest.raises(InvalidInputError, match="several models, `other`, `unsloth/Test-1B`") as caught:
        memory(tmp_path / "old")
    assert caught.value.kind == "invalid_option"


def captured(rows: int, splits: tuple[str, ...] = ("EM", "Neutral"), dtype: torch.dtype = torch.bfloat16) -> Store:
    """A store as `capture --dataset --split --positions last` makes it, in the order of another day."""
    store = actstore.create(backend="memory", codec="raw")
    with store.writer() as writer:
        for split in splits:
            for row in reversed(range(rows)):
                writer.put(
                    key=f"SP_test:{split}:{row}",
                    prompt=f"prompt {row}",
                    activations={
                        f"resid_post.{layer}": residuals(layer + len(split), rows, dtype)[row : row + 1]
                        for layer in range(2)
                    },
                    metadata={"model": "unsloth/Test-1B", "dataset": "SP_test", "split": split, "row": row},
                )
    return store


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loader_of_the_document_reads_what_goes_out(dtype: torch.dtype, tmp_path: Path) -> None:
    report = export_store(captured(10, dtype=dtype), tmp_path / "new", "pt-shards", shard_size=4, verify=True)
    assert (report.migrated, report.verified, report.left_out) == (20, 20, ())
    root = tmp_path / "new"
    expected = {
        f"unsloth_Test-1B/SP_test/{split}/{name}"
        for split in ("EM", "Neutral")
        for name in [
            "metadata.json",
            *[f"layer_0{layer}/shard_00{number}.pt" for layer in (0, 1) for number in range(3)],
        ]
    }
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == expected
    for split in ("EM", "Neutral"):
        folder = root / "unsloth_Test-1B" / "SP_test" / split
        settings = {**SETTINGS, "split": split, "batch_size": 1}
        assert (folder / "metadata.json").read_text() == json.dumps(settings, indent=2)
        for layer in range(2):
            shards = [torch.load(path) for path in sorted((folder / f"layer_{layer:02d}").glob("shard_*.pt"))]
            assert [len(shard) for shard in shards] == [4, 4, 2]
            assert torch.cat(shards).equal(residuals(layer + len(split), 10, dtype))
    with zipfile.ZipFile(folder / "layer_00" / "shard_001.pt") as archive:
        assert all(name.startswith("shard_001/") for name in archive.namelist())
        assert archive.getinfo("shard_001/data/0").file_size == 4 * 3 * dtype.itemsize


@pytest.mark.parametrize("asked", DTYPES, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_activations_go_out_in_the_dtype_asked_for(stored: torch.dtype, asked: torch.dtype, tmp_path: Path) -> None:
    store, target = captured(10, ("EM",), stored), tmp_path / "new"
    report = export_store(store, target, "pt-shards", shard_size=4, dtype=asked, verify=True)
    assert (report.migrated, report.verified, report.raw_bytes) == (10, 10, 10 * 2 * 3 * asked.itemsize)
    rounded = 0
    for layer in range(2):
        shards = sorted(target.rglob(f"layer_0{layer}/shard_*.pt"))
        values = residuals(layer + len("EM"), 10, stored)
        assert torch.cat([torch.load(shard) for shard in shards]).equal(values.to(asked))
        rounded += int((values.to(asked).double() != values.double()).sum())
    name = str(asked).removeprefix("torch.")
    assert report.notes == ((f"values were rounded to {name} ({rounded:,} x)",) if rounded else ())
    assert rounded or stored != torch.float32 or asked == stored


def store_of(values: list[torch.Tensor]) -> Store:
    store = actstore.create(backend="memory")
    for row, value in enumerate(values):
        metadata = {"model": "m", "dataset": "d", "split": "s", "row": row}
        store.put(key=f"d:s:{row}", activations={0: value}, metadata=metadata)
    return store


def test_values_beyond_the_dtype_are_an_error_or_its_largest(tmp_path: Path) -> None:
    infinity, nan = float("inf"), float("nan")
    store = store_of([torch.ones(1, 4), torch.tensor([[1.0, -70000.0, infinity, nan]])])
    with pytest.raises(InvalidInputError, match=r"entry `d:s:1` has `-70000` at `blocks.0.hook_resid_post`") as caught:
        export_store(store, tmp_path / "new", "pt-shards", dtype="float16")
    assert caught.value.kind == "float16_overflow"
    assert not (tmp_path / "new" / "m" / "d" / "s").exists()
    report = export_store(store, tmp_path / "new", "pt-shards", dtype="float16", overflow="saturate", verify=True)
    assert report.notes == ("values beyond float16 became its largest (1 x)",)
    rows = torch.load(tmp_path / "new" / "m" / "d" / "s" / "layer_00" / "shard_000.pt")
    assert rows[1, :3].tolist() == [1.0, -65504.0, infinity]
    assert rows[1, 3].isnan()


def test_several_dtypes_become_one(tmp_path: Path) -> None:
    store = store_of([torch.full((1, 4), 1.5, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)])
    with pytest.raises(InvalidInputError, match="`dtype` makes one dtype of several"):
        export_store(store, tmp_path / "new", "pt-shards")
    export_store(store, tmp_path / "new", "pt-shards", dtype="float32", verify=True)
    rows = torch.load(tmp_path / "new" / "m" / "d" / "s" / "layer_00" / "shard_000.pt")
    assert rows.equal(torch.full((2, 4), 1.5))


def test_integers_are_not_converted(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is int8, which is not converted to `float16`") as caught:
        export_store(store_of([torch.ones(1, 4).to(torch.int8)]), tmp_path / "new", "pt-shards", dtype="float16")
    assert caught.value.kind == "invalid_tensor"


def test_an_export_in_another_dtype_does_not_go_on_with_what_one_left(tmp_path: Path) -> None:
    store = captured(10, ("EM",))
    with pytest.raises(KeyboardInterrupt):
        export_store(store, tmp_path / "new", "pt-shards", shard_size=2, progress=stop_at(4))
    export_store(store, tmp_path / "new", "pt-shards", shard_size=2, dtype="float32", verify=True)
    assert {torch.load(shard).dtype for shard in (tmp_path / "new").rglob("*.pt")} == {torch.float32}


def test_migrate_takes_the_size_of_shards(tmp_path: Path) -> None:
    small_tree(tmp_path / "old")
    import_store(tmp_path / "old", tmp_path / "store")
    for name, source in (("a", "old"), ("b", "store")):
        report = actstore.migrate(
            tmp_path / source, tmp_path / name, target_format="pt-shards", shard_size=3, verify=True
        )
        assert report.verified == 10
        layer = tmp_path / name / "unsloth_Test-1B" / "SP_test" / "EM" / "layer_01"
        assert [len(torch.load(shard)) for shard in sorted(layer.iterdir())] == [3, 3, 3, 1]


def test_a_dry_run_counts_the_last_tokens_in_the_dtype_of_the_shards(tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    metadata = {"model": "m", "dataset": "d", "split": "s"}
    for key in ("a", "b"):
        store.put(key=key, metadata=metadata, activations={0: torch.ones(5, 3, dtype=torch.bfloat16)})
    for dtype, size in ((None, 2), ("float32", 4)):
        planned = export_store(store, tmp_path / "new", "pt-shards", dtype=dtype, dry_run=True)
        assert (planned.migrated, planned.raw_bytes, planned.stored_bytes) == (2, 2 * 3 * size, 2 * 3 * size)


def test_migrate_converts_on_the_way_out(tmp_path: Path) -> None:
    small_tree(tmp_path / "old")
    for number, name in enumerate(("pt-shards", "auto")):
        target = tmp_path / str(number)
        options: dict[str, Any] = {"source_format": name, "target_format": "pt-shards", "dtype": "float32"}
        assert actstore.migrate(tmp_path / "old", target, verify=True, **options).verified == 10
        assert {torch.load(shard).dtype for shard in target.rglob("*.pt")} == {torch.float32}


def test_more_layers_than_the_model_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"`layers` is `1`, but `resid_post.1` is stored") as caught:
        export_store(captured(2), tmp_path / "new", "pt-shards", layers=1)
    assert caught.value.kind == "unknown_layer"


def test_what_goes_out_comes_in_again(tmp_path: Path) -> None:
    place = small_tree(tmp_path / "old", extra="kept")
    store, _ = memory(tmp_path / "old")
    export_store(store, tmp_path / "new", "pt-shards", shard_size=4, verify=True)
    for path in place.rglob("*"):
        if path.is_file():
            assert (tmp_path / "new" / path.relative_to(tmp_path / "old")).read_bytes() == path.read_bytes(), path


def test_h8_of_a_longer_entry_the_last_token_goes_out_and_nothing_else(tmp_path: Path) -> None:
    store = actstore.create(backend="memory")
    metadata = {"model": "m", "dataset": "d", "split": "s"}
    values = torch.arange(12.0).reshape(4, 3)
    store.put(key="k", token_ids=[1, 2, 3, 4], activations={0: values, "embed": values}, metadata=metadata)
    report = export_store(store, tmp_path / "new", "pt-shards", verify=True)
    assert report.notes == ("`hook_embed` is left out, the format has residual streams alone (1 x)",)
    shard = tmp_path / "new" / "m" / "d" / "s" / "layer_00" / "shard_000.pt"
    assert torch.load(shard).equal(values[3:])
    assert shard.stat().st_size < 2000


def test_e2_an_earlier_export_is_refused_or_replaced_whole(tmp_path: Path) -> None:
    export_store(captured(10), tmp_path / "new", "pt-shards", shard_size=2)
    with pytest.raises(AlreadyExistsError, match="exists already") as caught:
        export_store(captured(3), tmp_path / "new", "pt-shards", shard_size=2)
    assert caught.value.kind == "store_exists"
    export_store(captured(3), tmp_path / "new", "pt-shards", shard_size=2, overwrite=True, verify=True)
    shards = [path.name for path in (tmp_path / "new" / "unsloth_Test-1B" / "SP_test" / "EM" / "layer_00").iterdir()]
    assert sorted(shards) == ["shard_000.pt", "shard_001.pt"]
    assert list(tmp_path.rglob("*.partial")) == []


def test_e1_a_stopped_export_looks_like_none_and_goes_on(tmp_path: Path) -> None:
    def stop(done: int, *_: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    store = captured(10, ("EM",))
    with pytest.raises(KeyboardInterrupt):
        export_store(store, tmp_path / "new", "pt-shards", shard_size=2, progress=stop)
    assert format_of(tmp_path / "new") is None
    partial = tmp_path / "new" / "unsloth_Test-1B" / "SP_test" / "EM.partial"
    kept = partial / "layer_00" / "shard_000.pt"
    before = kept.stat().st_mtime_ns
    report = export_store(store, tmp_path / "new", "pt-shards", shard_size=2, verify=True)
    assert (report.verified, partial.exists()) == (10, False)
    assert (partial.with_suffix("") / "layer_00" / "shard_000.pt").stat().st_mtime_ns == before


def test_what_another_export_left_is_not_gone_on_with(tmp_path: Path) -> None:
    def stop(done: int, *_: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_store(captured(10, ("EM",)), tmp_path / "new", "pt-shards", shard_size=2, progress=stop)
    export_store(captured(10, ("EM",), torch.float32), tmp_path / "new", "pt-shards", shard_size=2, verify=True)
    store, report = memory(tmp_path / "new")
    assert (len(store), report.left_out) == (10, ())
    assert {entry.dtype("resid_post.0") for entry in store} == {"float32"}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"metadata": {"model": "m", "dataset": "d"}}, "invalid_metadata", "has the `split` `None` in its metadata"),
        ({"metadata": {"model": "m", "dataset": "../d", "split": "s"}}, "unsafe_path", "`../d` cannot be the name"),
        ({"metadata": {"model": "..", "dataset": "d", "split": "s"}}, "unsafe_path", "`..` cannot be the name"),
        ({"activations": {}}, "invalid_tensor", "has other layers, dtypes or widths than `first`"),
        ({"activations": {0: torch.ones(1, 4)}}, "invalid_tensor", "has other layers, dtypes or widths than `first`"),
        ({"activations": {0: torch.ones(3)}}, "invalid_tensor", "has the shape [3], not `[positions, d]`"),
        ({"activations": {0: torch.ones(1, 3).double()}}, "invalid_tensor", "has other layers, dtypes or widths"),
    ],
)
def test_what_has_no_place_in_the_tree_is_refused(
    change: dict[str, Any], kind: str, message: str, tmp_path: Path
) -> None:
    store = actstore.create(backend="memory")
    fields: dict[str, Any] = {
        "activations": {0: torch.ones(1, 3)},
        "metadata": {"model": "m", "dataset": "d", "split": "s"},
    }
    store.put(key="first", **fields)
    store.put(key="second", **{**fields, **change})
    with pytest.raises(InvalidInputError, match=re.escape(message)) as caught:
        export_store(store, tmp_path / "new", "pt-shards")
    assert caught.value.kind == kind
    assert not (tmp_path / "new").exists()


def test_missing_rows_are_said_to_break_the_pairing(tmp_path: Path) -> None:
    store = captured(5, ("EM",))
    store.delete("SP_test:EM:2")
    report = export_store(store, tmp_path / "new", "pt-shards")
    note = (
        "rows of `unsloth_Test-1B/SP_test/EM` are missing or named twice, so that its row i need not be that of another"
    )
    assert report.notes == (f"{note} split (1 x)",)


def test_a_pipe_in_the_place_of_a_shard_is_not_waited_for(tmp_path: Path) -> None:
    place = small_tree(tmp_path)
    for number in range(2):
        (place / "layer_00" / f"shard_00{number}.pt").unlink()
        os.mkfifo(place / "layer_00" / f"shard_00{number}.pt")
    _, report = memory(tmp_path)
    assert (report.migrated, {damage["kind"] for damage in report.left_out}) == (2, {"malformed"})
    assert "shard_000.pt` is neither a file nor a directory" in report.left_out[0]["message"]


def stop_at(count: int) -> Any:
    def stop(done: int, *_: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("stopped", [4, 12])
@pytest.mark.parametrize("overwrite", [False, True])
def test_e2_an_export_of_two_splits_that_was_stopped_goes_on(stopped: int, overwrite: bool, tmp_path: Path) -> None:
    """Also in the second split, when the first is in its place already."""
    target, store = tmp_path / "new", captured(10)
    if overwrite:
        export_store(captured(10, dtype=torch.float32), target, "pt-shards", shard_size=2)
    options: dict[str, Any] = {"shard_size": 2, "overwrite": overwrite}
    with pytest.raises(KeyboardInterrupt):
        export_store(store, target, "pt-shards", progress=stop_at(stopped), **options)
    report = export_store(store, target, "pt-shards", verify=True, **options)
    assert (report.migrated, report.verified, list(target.rglob("*.partial"))) == (20, 20, [])
    shard = target / "unsloth_Test-1B" / "SP_test" / "Neutral" / "layer_00" / "shard_000.pt"
    assert torch.load(shard).dtype == torch.bfloat16


@pytest.mark.parametrize("killed", ["EM.partial", "Neutral.partial"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_export_of_two_splits_that_was_killed_as_one_got_its_name_goes_on(
    killed: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path, target: Path) -> Path:
        result = rename(path, target)
        if path.name == killed:
            raise KeyboardInterrupt
        return result

    target, store, rename = tmp_path / "new", captured(10), Path.rename
    options: dict[str, Any] = {"shard_size": 2, "overwrite": overwrite}
    if overwrite:
        export_store(captured(10, dtype=torch.float32), target, "pt-shards", shard_size=2)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            export_store(store, target, "pt-shards", **options)
    place = target / "unsloth_Test-1B" / "SP_test" / killed.removesuffix(".partial")
    assert memory(place)[1].migrated == 10
    before = {path: path.stat().st_mtime_ns for path in place.glob("layer_*/*.pt")}
    report = export_store(store, target, "pt-shards", verify=True, **options)
    assert (report.migrated, report.verified) == (20, 20)
    # Nothing of it was written once more.
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.pt")} == before
    assert not [path for path in target.rglob("*") if path.name == ".export" or path.suffix == ".partial"]


def test_the_size_of_an_export_is_that_of_its_own_files(tmp_path: Path) -> None:
    small_tree(tmp_path, model_name="another")
    (tmp_path / "large").write_bytes(bytes(100_000))
    report = export_store(store_of([torch.ones(1, 4)]), tmp_path, "pt-shards")
    own = sum(path.stat().st_size for path in (tmp_path / "m").rglob("*") if path.is_file())
    assert report.file_bytes == report.stored_bytes == own


def test_an_export_is_verified_beside_those_of_other_models(tmp_path: Path) -> None:
    small_tree(tmp_path, model_name="unsloth/Test-1B")
    store = actstore.create(backend="memory")
    metadata = {"model": "another", "dataset": "SP_test", "split": "EM", "row": 0}
    store.put(key="SP_test:EM:0", activations={0: torch.ones(1, 3)}, metadata=metadata)
    report = export_store(store, tmp_path, "pt-shards", verify=True)
    assert (report.migrated, report.verified) == (1, 1)


def test_e3_more_shards_than_a_loader_that_sorts_by_name_can_order_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync_nothing(_: int) -> None:
        """A thousand small files are not what this is about."""

    monkeypatch.setattr(os, "fsync", sync_nothing)
    store = actstore.create(backend="memory", codec="raw")
    metadata = {"model": "m", "dataset": "d", "split": "s"}
    with store.writer() as writer:
        for row in range(1001):
            activations = {0: torch.full((1, 2), float(row))}
            writer.put(key=str(row), activations=activations, metadata={**metadata, "row": row})
    report = export_store(store, tmp_path / "one", "pt-shards", shard_size=1)
    assert "`m/d/s` has 1,001 shards a layer, which loaders that sort by name" in report.notes[0]
    assert "with a `shard_size` from 2 they do not" in report.notes[0]
    assert export_store(store, tmp_path / "two", "pt-shards", shard_size=2).notes == ()
