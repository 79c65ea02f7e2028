"""Where, when and of what the figures were made."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["describe", "sentence"]

ROOT = Path(__file__).resolve().parent.parent
CODE = ("rust", "python", "benches/*.py", "Cargo.lock")


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """Processor, cores, memory, date, commit, and the versions of what is installed of `packages`."""
    versions = {name: number for name in packages if (number := installed(name))}
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "date": date.today().isoformat(),
        "commit": commit(),
        "versions": {"rustc": output("rustc", "--version").split()[1], "python": platform.python_version(), **versions},
    }


def sentence(of: dict[str, Any]) -> str:
    """What `describe` found, as reports begin."""
    versions = ", ".join(f"{name} {number}" for name, number in of["versions"].items())
    return (
        f"{of['cpu']}, {of['cores']} cores, {of['memory'] / 2**30:.0f} GiB, {of['system']}; {of['date']}; "
        f"commit {of['commit']}; {versions}"
    )


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    changed = output("git", "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    return output("git", "rev-parse", "--short", "HEAD") + (" and changes not committed" if changed else "")


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
