"""Every Python block of the README and the guide, and every command after a `$`, runs, in an empty directory."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actstore.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block that is to run."""
    return re.findall(r"^```(python|console)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run_commands(console: str) -> None:
    for line in console.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "actstore-cli", line
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    assert blocks(page), f"{page.name} has no example"
    for language, block in blocks(page):
        if language == "console":
            run_commands(block)
        else:
            exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs" / "decisions").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to `{target}`"
