"""One picture of a run: the time of an operation in each job, and the bytes on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from report import duration

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["draw"]

COLOURS = {"ours": "#c2410c", "rival": "#94a3b8", "bound": "#e2e8f0"}
COLUMNS = 3


def draw(run: dict[str, Any], machine: dict[str, Any], path: Path) -> None:
    """A panel a job, the fastest on top; whoever did k of all operations says so."""
    panels = len(run["jobs"]) + 1
    rows = -(-panels // COLUMNS)
    names = max(len(run["sizes"]), 1)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(18, rows * (1 + 0.24 * names)), layout="constrained")
    axes = list(grid.flat)
    sizes = {name: (of["ratio"], "") for name, of in run["sizes"].items()}
    bars(axes[0], "bytes on disk / raw bytes", sizes, run["kinds"], lambda value: f"{value:.3f}")
    for axis, job in zip(axes[1:], run["jobs"].values(), strict=False):
        bars(axis, f"{job['title']}: time of one {job['unit']}", times(job), run["kinds"], duration)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    for axis in axes[panels:]:
        axis.set_axis_off()
    plan = run["plan"]
    figure.suptitle(
        f"{plan['data']}, {plan['dtype']}, {run['data']['entries']:,} entries; median of {run['rounds']} rounds; "
        f"{machine['cpu']}, {machine['cores']} cores; {machine['date']}, commit {machine['commit']}"
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def times(job: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """Seconds of an operation by name, each in the largest case that it was in."""
    found: dict[str, tuple[float, str]] = {}
    for case in job["cases"]:
        part = "" if case["operations"] == case["of"] else f" ({case['operations']:,} of {case['of']:,})"
        for name, of in case["rows"].items():
            found.setdefault(name, (of["median"] / case["operations"], part))
    return found


def bars(axis: Axes, title: str, values: dict[str, tuple[float, str]], kinds: dict[str, str], shown: Any) -> None:
    ordered = sorted(values, key=lambda name: values[name][0], reverse=True)
    heights = [values[name][0] for name in ordered]
    drawn = axis.barh(ordered, heights, color=[COLOURS[kinds[name]] for name in ordered])
    axis.bar_label(
        drawn,
        [shown(value) + values[name][1] for name, value in zip(ordered, heights, strict=True)],
        padding=3,
        fontsize=8,
    )
    axis.set_title(title, fontsize=11)
    axis.tick_params(labelsize=9)
    axis.margins(x=0.25)
    axis.spines[["top", "right"]].set_visible(False)
