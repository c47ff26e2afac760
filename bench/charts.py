"""Charts of the report, as SVG."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import in_short

_BARS = (
    ("fanout", "fanout.svg", "CPU us per delivery", "CPU per delivery, us"),
    ("idle", "memory.svg", "PSS KB per stream", "memory per idle stream, KB"),
    ("storm", "storm.svg", "CPU us per handshake", "CPU per handshake in a storm, us"),
    ("throughput", "throughput.svg", "CPU us per delivery", "CPU per delivery at 1,000 events a second, us"),
)
"""Scenario, file, column, title."""

_OURS, _THEIRS = "#1f6feb", "#9aa4b2"
_WIDTH = 7.5
"""Inches."""


def charts(scenarios: Mapping[str, Any], folder: Path) -> dict[str, list[str]]:
    """Draw what is there into a folder, and return the files by scenario. Without matplotlib: none."""
    try:
        import matplotlib  # noqa: PLC0415  # of the extra bench
    except ModuleNotFoundError:
        return {}
    matplotlib.use("svg")
    # The same figures give the same file, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 10})
    drawn: dict[str, list[str]] = {}
    for name, file, column, title in _BARS:
        rows = [row for row in scenarios.get(name, {}).get("rows", ()) if column in row["figures"]]
        if rows:
            draw = partial(_bars, rows=rows, column=column, title=title)
            _draw(folder / file, 0.6 + 0.38 * len(rows), draw)
            drawn.setdefault(name, []).append(file)
    series = [row for row in scenarios.get("slow", {}).get("rows", ()) if row["series"]]
    if series:
        _draw(folder / "slow-memory.svg", 3.0, lambda axes: _lines(axes, series))
        drawn["slow"] = ["slow-memory.svg"]
    return drawn


def _draw(file: Path, height: float, paint: Callable[[Any], None]) -> None:
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(_WIDTH, height), layout="constrained")
    paint(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], column: str, title: str) -> None:
    names = [_name(row) for row in rows]
    values = [float(row["figures"][column]) for row in rows]
    colors = [_OURS if row["server"] == "sse-gateway" else _THEIRS for row in rows]
    bars = axes.barh(names, values, color=colors, height=0.7)
    axes.bar_label(bars, [in_short(value) for value in values], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, loc="left")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)


def _lines(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        color = _OURS if row["server"] == "sse-gateway" else _THEIRS
        seconds, values = zip(*row["series"], strict=True)
        axes.plot(seconds, values, color=color, label=_name(row))
    axes.set_ylim(bottom=0)
    axes.set_title("memory (PSS) while one client in ten never reads, MB", loc="left")
    axes.set_xlabel("seconds")
    axes.legend(frameon=False)


def _name(row: Mapping[str, Any]) -> str:
    workers = row["workers"] or 1
    return str(row["server"]) if workers == 1 else f"{row['server']}, {workers} workers"
