"""What the Rust sources promise about themselves: who knows whom, where `unsafe` is, who writes files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "rust"
CORE = ROOT / "core" / "src"

LAYERS = (
    ("error", "lock", "shuffle"),
    ("tensor", "hook_point", "pool", "buffers"),
    ("entry",),
    ("codec", "files", "pickle"),
    ("format", "staging"),
    ("manifest",),
    ("fitting",),
    ("store",),
    ("encode",),
    ("committer",),
    ("writer", "reader"),
    ("actlog", "batch", "columns", "inspect", "migrate"),
)
"""Bottom to top: a module may use those of lower layers, and itself."""

UNSAFE = {
    "core/src/codec/simd.rs",
    "core/src/staging.rs",
    "core/src/store/lmdb/environment.rs",
    "python/src/buffer.rs",
}


def sources(folder: Path) -> list[Path]:
    # What building writes is no source.
    return sorted(source for source in folder.rglob("*.rs") if "target" not in source.relative_to(folder).parts)


def without_tests(source: Path) -> str:
    return re.split(r"^#\[cfg\(test\)\]\s*\nmod ", source.read_text(), maxsplit=1, flags=re.MULTILINE)[0]


def module_of(source: Path) -> str:
    return source.relative_to(CORE).parts[0].removesuffix(".rs")


def test_every_module_has_its_layer() -> None:
    modules = {module_of(source) for source in sources(CORE)} - {"lib"}
    assert modules == {module for layer in LAYERS for module in layer}


@pytest.mark.parametrize("source", sources(CORE), ids=lambda source: str(source.relative_to(CORE)))
def test_a_lower_module_never_uses_a_higher_one(source: Path) -> None:
    if source.name in ("lib.rs", "contract.rs"):
        return
    rank = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    own = module_of(source)
    used = set(re.findall(r"\bcrate::(\w+)", without_tests(source))) - {own}
    assert {module for module in used if rank[module] >= rank[own]} == set()


def test_unsafe_is_where_the_design_allows_it_and_says_why() -> None:
    found: set[str] = set()
    for source in sources(ROOT):
        lines = without_tests(source).splitlines()
        for number, line in enumerate(lines):
            if re.search(r"\bunsafe\b(?! fn)", line.split("//")[0]):
                found.add(str(source.relative_to(ROOT)))
                assert "SAFETY" in "\n".join(lines[max(0, number - 5) : number]), f"{source.name}:{number + 1}"
    assert found == UNSAFE


def test_only_files_rs_changes_files() -> None:
    changing = r"\bFile::create|\bOpenOptions|fs::(write|rename|remove|create_dir)|set_len|sync_(all|data)"
    assert [str(s.relative_to(CORE)) for s in sources(CORE) if re.search(changing, without_tests(s))] == ["files.rs"]


def test_the_core_knows_no_python() -> None:
    assert "pyo3" not in (ROOT / "core" / "Cargo.toml").read_text()
    assert not [source for source in sources(CORE) if "pyo3" in source.read_text()]
