"""Which metrics and labels a PromQL expression names, and whether promtool can read it."""

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from gateway.observability.metrics.definitions import DEFINITIONS_BY_NAME, MetricDefinition
from tests.support.needs import need

FROM_PROMETHEUS = {"up": frozenset[str]()}
"""Metrics that Prometheus adds, and their labels beside `TARGET`."""

TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus gives to everything that it scrapes."""

_WORDS = {"and", "or", "unless", "bool", "offset"}
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[A-Za-z_:][A-Za-z0-9_:]*|\d[\w.]*|\S')


def tokens(expression: str) -> Iterator[str]:
    """Yield the words and signs of an expression, strings and ranges whole."""
    yield from _TOKEN.findall(expression)


def names(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics that an expression names, and the labels."""
    metrics: set[str] = set()
    labels: set[str] = set()
    found = [*tokens(expression), ""]
    inside = ""  # the closing sign of a list of labels
    for before, token, after in zip(["", *found], found, found[1:], strict=False):
        if inside:
            if token == inside:
                inside = ""
            elif re.match(r"[A-Za-z_]", token):
                labels.add(token)
        elif token == "{":
            inside = "}"
        elif token == "(" and before in _GROUPING:
            inside = ")"
        elif (
            re.match(r"[A-Za-z_:]", token)
            and after not in ("(", "by", "without")
            and token not in _WORDS | _GROUPING
        ):
            metrics.add(token)
    return metrics, labels


def defined(series: str) -> MetricDefinition | None:
    """Return the metric whose series has this name; None if there is none."""
    found = DEFINITIONS_BY_NAME.get(series)
    if found is None:
        parent = DEFINITIONS_BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", series))
        found = parent if parent is not None and parent.type == "histogram" else None
    return None if found is not None and found.type == "histogram" and series == found.name else found


def unknown(expression: str) -> set[str]:
    """Return what an expression names and nobody has: metrics, and labels of none of its metrics."""
    metrics, labels = names(expression)
    known = set(TARGET)
    for series in metrics:
        metric = defined(series)
        if metric is not None:
            known |= {*metric.labels, *(["le"] if series.endswith("_bucket") else [])}
    missing = {series for series in metrics if defined(series) is None and series not in FROM_PROMETHEUS}
    return missing | (labels - known)


def faults(expressions: Iterable[str], folder: Path) -> str:
    """Return what promtool finds wrong with expressions; nothing if it can read them all."""
    rules = [
        {"record": f"expression_{number}", "expr": expression}
        for number, expression in enumerate(expressions)
    ]
    assert rules
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    checked = promtool("check", "rules", str(file))
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Prometheus's own tool."""
    command = [need("promtool", "prometheus"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
