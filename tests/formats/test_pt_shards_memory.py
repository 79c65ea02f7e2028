"""Document 002's data, layer by layer, where a layer is larger than the memory that is allowed."""

from pathlib import Path

import pytest
import torch

import actstore
from actstore.formats import import_store
from old_trees import SETTINGS, residuals, write_split
from processes import run_python

LAYERS, SHARDS, ROWS, WIDTH = 2, 48, 512, 2048
LAYER_BYTES = SHARDS * ROWS * WIDTH * 2
"""100 MB."""
ALLOWED = 32 << 20
"""Batches, what a codec needs, and what is kept to be used again: the same for layers of any size."""

READ = """
    import sys
    import torch
    import actstore
    from memory import Peak, anonymous_bytes

    def total(part):
        return int(part.view(torch.int16).numpy().sum())  # torch would convert all of it first

    with actstore.open(sys.argv[1], memory="4 MiB") as store:
        def scanned(layer):
            return (array for _, array in store.scan(layer))

        def tokens(layer):
            return (batch.activations for batch in store.tokens(layer, batch_size=512))

        def shuffled(layer):
            return (batch.activations for batch in store.tokens(layer, batch_size=512, shuffle=True))

        total(next(scanned(0)))  # brings the libraries in
        before = anonymous_bytes()
        for vectors in (scanned, tokens, shuffled):
            with Peak() as peak:
                sums = [sum(map(total, vectors(layer))) for layer in range(2)]
            print(peak.bytes - before, *sums)
"""

READ_TREE = """
    import sys
    from pathlib import Path
    import torch
    from actstore.formats import find
    from memory import Peak, anonymous_bytes

    def loaded():
        return (pending.load() for pending in find("pt-shards").read(Path(sys.argv[1])).entries)

    def total(part):
        return int(part.view(torch.int16).numpy().sum())

    sum(map(total, next(loaded()).activations.values()))
    before, sums = anonymous_bytes(), [0, 0]
    with Peak() as peak:
        for entry in loaded():
            for layer in range(2):
                sums[layer] += total(entry.activations[f"blocks.{layer}.hook_resid_post"])
    print(peak.bytes - before, *sums)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    layers = [list(layer_rows(layer).split(ROWS)) for layer in range(LAYERS)]
    shards = [[shard.clone() for shard in layer] for layer in layers]
    write_split(root, shards, {**SETTINGS, "total_examples": SHARDS * ROWS, "hidden_dim": WIDTH})
    return root


@pytest.fixture(scope="module")
def stores(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tree imported, and the same rows in longer entries as a capture of all positions has them."""
    folder = tmp_path_factory.mktemp("stores")
    import_store(tree, folder / "imported")
    with actstore.create(folder / "captured") as store, store.writer() as writer:
        layers = [layer_rows(layer).split(64) for layer in range(LAYERS)]
        for index, rows in enumerate(zip(*layers, strict=True)):
            writer.put(key=str(index), token_ids=range(64), activations=dict(enumerate(rows)))
    return {name: folder / name for name in ("imported", "captured")}


def layer_rows(layer: int) -> torch.Tensor:
    return residuals(layer, SHARDS * ROWS, width=WIDTH)


def require(printed: str, allowed: int) -> None:
    """That every value was read, in no more memory than that."""
    peak, *sums = printed.split()
    expected = [int(layer_rows(layer).view(torch.int16).numpy().sum()) for layer in range(LAYERS)]
    assert list(map(int, sums)) == expected
    assert int(peak) < allowed < LAYER_BYTES, f"{int(peak):,} bytes for layers of {LAYER_BYTES:,}"


@pytest.mark.parametrize("name", ["imported", "captured"])
def test_e7_a_layer_is_read_in_less_memory_than_it_has(name: str, stores: dict[str, Path]) -> None:
    lines = run_python(READ, stores[name]).splitlines()
    assert len(lines) == len(("scan", "tokens", "tokens, shuffled"))
    for line in lines:
        require(line, ALLOWED)


def test_e7_shards_of_the_old_tree_are_mapped_and_never_a_layer_of_them(tree: Path) -> None:
    require(run_python(READ_TREE, tree), 8 << 20)
