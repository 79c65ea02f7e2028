"""What a store costs: bytes on disk, and memory while it is written and read."""

from pathlib import Path

import numpy as np
import pytest

import actstore
from processes import run_python


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_raw_stores_cost_two_percent_at_most(tmp_path: Path) -> None:
    """2,000 entries of 7 x [64, 384] bf16."""
    import ml_dtypes

    random = np.random.default_rng(0)
    raw = 0
    with actstore.create(tmp_path / "s", codec="raw") as store, store.writer() as writer:
        for index in range(2000):
            bits = random.integers(0, 2**16, (7, 64, 384), np.uint16)
            raw += bits.nbytes
            writer.put(
                prompt=f"prompt {index}",
                response=f"response {index}",
                token_ids=range(64),
                prompt_length=50,
                activations={layer: bits[layer].view(ml_dtypes.bfloat16) for layer in range(7)},
                metadata={"model": "demo", "row": index},
            )
    assert size_of(tmp_path / "s") <= 1.02 * raw


@pytest.mark.parametrize("codec", ["raw", "planes"])
def test_an_entry_costs_a_kilobyte_at_most(codec: str, tmp_path: Path) -> None:
    with actstore.create(tmp_path / "s", codec=codec) as store, store.writer() as writer:
        for index in range(2000):
            writer.put(prompt=f"prompt {index}", activations={0: np.array([index], np.float32)})
    assert size_of(tmp_path / "s") <= 2000 * 1000


def peak_of(entries: int, path: Path) -> int:
    """Most anonymous bytes of a process that writes and then reads `entries` entries."""
    script = """
        import sys
        import numpy as np
        import actstore
        from memory import Peak

        count, path = int(sys.argv[1]), sys.argv[2]
        random = np.random.default_rng(0)
        arrays = [random.standard_normal((16, 64)).astype(np.float32) for _ in range(100)]
        with Peak() as peak:
            with actstore.create(path, memory="8 MiB") as store, store.writer() as writer:
                for index in range(count):
                    writer.put(
                        prompt=f"prompt {index}", token_ids=range(16), prompt_length=8,
                        activations={layer: arrays[(index + layer) % 100] for layer in range(4)},
                    )
            with actstore.open(path, memory="8 MiB") as store:
                read = sum(1 for _ in store.scan(3)) + sum(entry.numpy(0).shape[0] > 0 for entry in store)
        assert read == 2 * count
        print(peak.bytes)
    """
    return int(run_python(script, entries, path))


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    few, many = peak_of(2000, tmp_path / "few"), peak_of(20_000, tmp_path / "many")
    assert many <= 1.1 * few, f"{few} bytes for 2,000 entries, {many} bytes for 20,000"


def test_an_entry_of_json_is_held_once(tmp_path: Path) -> None:
    """Writing and reading an entry takes 1.2 times its bytes and 64 MB at most, the caller's own arrays not counted."""
    script = """
        import sys
        import numpy as np
        import actstore
        from memory import Peak, anonymous_bytes

        random = np.random.default_rng(0)
        arrays = {layer: random.standard_normal((6000, 1000)).astype(np.float16) for layer in range(8)}
        before = anonymous_bytes()
        with Peak() as writing, actstore.create(sys.argv[1], "json") as store:
            store.put(key="large", activations=arrays)
        with Peak() as reading, actstore.open(sys.argv[1]) as store:
            entry = store["large"]
            read = {point: entry.numpy(point) for point in entry}
        assert all(np.array_equal(read[f"blocks.{layer}.hook_resid_post"], array) for layer, array in arrays.items())
        print(sum(array.nbytes for array in arrays.values()), writing.bytes - before, reading.bytes - before)
    """
    raw, written, read = map(int, run_python(script, tmp_path / "s").split())
    assert written <= 1.2 * raw + 64e6, f"{written} bytes to write {raw}"
    assert read <= 1.2 * raw + 64e6, f"{read} bytes to read {raw}"
