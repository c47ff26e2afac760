"""The report shows everything that was measured, what is missing, and what was missed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report
from bench.figures import Times
from bench.scenarios import SCENARIOS
from bench.scenarios.base import Row, Target, at_least, at_most

ROOT = Path(__file__).parents[2]


def test_a_report_hides_nothing(tmp_path: Path) -> None:
    """Met and missed targets, servers that are not there, and scenarios of earlier runs."""
    rows = [
        Row(
            "sse-gateway",
            1,
            {"CPU us per delivery": 8.5, "p99 ms": 12345.6},
            (at_most("CPU", 8.5, 9, " us"),),
        ),
        Row("sse-gateway", 2, {"CPU us per delivery": 9.5}, (at_least("times", 1.5, 1.8, " x"),)),
        Row("nchan", 1, note="not installed: apt-get install nginx-light"),
    ]
    document = report.load_document(tmp_path)
    report.add(document, "fanout", rows, 12.0)
    report.write(document, tmp_path)
    document = report.load_document(tmp_path)
    report.add(document, "takeover", [Row("sse-gateway", None, {"median s": 2.5})], 1.0)
    report.write(document, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| sse-gateway | 1 | 8.5 | 12,346 | CPU 8.5 us <= 9 us: met |" in text
    assert "times 1.5 x >= 1.8 x: **MISSED**" in text
    assert "not installed: apt-get install nginx-light" in text
    assert SCENARIOS["takeover"].title in text
    assert list(json.loads((tmp_path / "latest.json").read_text())["scenarios"]) == ["fanout", "takeover"]


def test_rows_know_whether_they_are_met() -> None:
    """One missed target is enough."""
    assert Row("a", targets=(Target("x", True), Target("y", True))).met
    assert not Row("a", targets=(Target("x", True), Target("y", False))).met


def test_percentiles_of_merged_times() -> None:
    """Two processes' counts are one."""
    times = Times.merged([([(1_000_000, 98), (5_000_000, 1)], 5_100_000), ([(9_000_000, 1)], 9_050_000)])
    assert times.count == 100
    assert times.percentile(0.5) == pytest.approx(0.001)
    assert times.percentile(0.99) == pytest.approx(0.005)
    assert times.percentile(1) == pytest.approx(0.009)
    assert times.longest == pytest.approx(0.00905)
    assert Times().percentile(0.99) == 0


@pytest.mark.extended
def test_a_quick_run_against_the_gateway(tmp_path: Path) -> None:
    """The command, the gateway, the load client and the report work together."""
    command = [sys.executable, "-m", "bench", "unrelated", "--quick", "--into", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    scenario = json.loads((tmp_path / "latest.json").read_text())["scenarios"]["unrelated"]
    assert [row["figures"]["unrelated channels"] for row in scenario["rows"]] == [10, 300], done.stderr
    assert all(row["figures"]["CPU us per event"] > 0 for row in scenario["rows"])
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
