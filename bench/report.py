"""What the scenarios showed, as JSON and Markdown."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from bench.charts import charts
from bench.figures import in_short
from bench.machine import machine, versions
from bench.scenarios import SCENARIOS
from bench.scenarios.base import Row
from bench.tried import TRIED

_WIDTH = 115
"""Characters of a line of text."""

Document = dict[str, Any]
"""``{"scenarios": {name: {"title", "how", "date", "seconds", "rows", "machine", "versions"}}}``."""

_HEAD = """# Benchmarks

Written by `python -m bench`; run it as

```
make bench                                 # everything; on Debian as root it installs the peers first
make bench SCENARIOS="fanout idle"         # some of it; the rest of this page stays
```

All servers are driven by the same load client in C, over loopback, on one machine: it shares the cores with
them, so read ratios, not figures. Its own CPU is in the tables where it matters. CPU is user and system
time of all processes of a server, as the kernel counts it, publishing included; memory is their
proportional set size. A server that is not here, or fails, is named with the reason. The gateway runs with
all features on: CORS, JWT, limits, metrics, history. A target that is missed says so, and the exit status
is 1.

`python -m tests.soak --minutes 60` looks for growth under churn, on each log: [soak.md](soak.md).
"""


def load_document(folder: Path) -> Document:
    """Return what earlier runs have shown."""
    file = folder / "latest.json"
    if not file.exists():
        return {"scenarios": {}}
    document: Document = json.loads(file.read_text())
    return document


def add(document: Document, name: str, rows: Sequence[Row], seconds: float) -> None:
    """Put the rows of a scenario in place of those of an earlier run."""
    scenario = SCENARIOS[name]
    document["scenarios"][name] = {
        "title": scenario.title,
        "how": scenario.how,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
    }


def write(document: Document, folder: Path) -> None:
    """Write ``latest.json``, ``README.md`` and the charts."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: document["scenarios"][name] for name in SCENARIOS if name in document["scenarios"]}
    document["scenarios"] = known
    for name, scenario in known.items():
        for row in scenario["rows"]:
            is_missed = not all(target["met"] for target in row["targets"])
            row["tried"] = TRIED.get((name, row["server"], row["workers"]), "") if is_missed else ""
    (folder / "latest.json").write_text(json.dumps(document, indent=1) + "\n")
    drawn = charts(known, folder)
    parts = [_HEAD, *_facts(known), *(_section(name, each, drawn) for name, each in known.items())]
    (folder / "README.md").write_text("\n".join(parts))


def _facts(scenarios: Mapping[str, Any]) -> list[str]:
    """Machines and versions; one table for all scenarios that were run with the same."""
    groups: dict[str, list[str]] = {}
    for name, each in scenarios.items():
        facts = {"date": each["date"], **each["machine"], **each["versions"]}
        groups.setdefault(json.dumps(facts), []).append(name)
    tables = []
    for facts_text, names in groups.items():
        whole = len(groups) == 1
        head = "## Machine and versions\n" if whole else f"## Machine and versions: {', '.join(names)}\n"
        lines = [f"| {name} | {value} |" for name, value in json.loads(facts_text).items()]
        tables.append("\n".join([head, "| | |\n|---|---|", *lines, ""]))
    return tables


def _section(name: str, scenario: Mapping[str, Any], drawn: Mapping[str, Sequence[str]]) -> str:
    rows = scenario["rows"]
    columns = list(dict.fromkeys(column for row in rows for column in row["figures"]))
    has_workers = any(row["workers"] is not None for row in rows)
    has_targets = any(row["targets"] for row in rows)
    has_notes = any(row["note"] for row in rows)
    images = [f"![{scenario['title']}]({file})\n" for file in drawn.get(name, ())]
    head = ["server", *["workers"] * has_workers, *columns, *["targets"] * has_targets, *[""] * has_notes]
    lines = [
        f"## {scenario['title']}\n",
        fill(scenario["how"], _WIDTH) + "\n",
        *images,
    ]
    lines += [_line(head), "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["server"], *[row["workers"] or ""] * has_workers]
        cells += [in_short(row["figures"].get(column, "")) for column in columns]
        cells += [_targets(row["targets"])] * has_targets + [row["note"]] * has_notes
        lines.append(_line(cells))
    lines += [f"\nMissed, {row['server']}: {row['tried']}" for row in rows if row["tried"]]
    return "\n".join([*lines, f"\n`python -m bench {name}`, {scenario['seconds']:.0f} s.\n"])


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _targets(targets: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{each['text']}: {'met' if each['met'] else '**MISSED**'}" for each in targets)
