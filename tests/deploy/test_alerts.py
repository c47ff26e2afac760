"""The alerts: promtool reads and tests them, and each names what exists and leads to its section."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.promql import faults, names, promtool, unknown

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/prometheus"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
TESTS = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]


def test_promtool_takes_the_rules() -> None:
    """Prometheus does not start with rules that it cannot read."""
    checked = promtool("check", "rules", str(FOLDER / "alerts.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_promtool_finds_that_they_fire_when_they_should() -> None:
    """An alert that never fires, or always does, is worse than none."""
    tested = promtool("test", "rules", str(FOLDER / "alerts_test.yaml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    """Ops paste it. Only the token's file is missing here."""
    token = tmp_path / "token"
    token.write_text("t")
    text = (FOLDER / "prometheus.yaml").read_text()
    assert "/etc/prometheus/sse-gateway.token" in text
    file = tmp_path / "prometheus.yaml"
    file.write_text(text.replace("/etc/prometheus/sse-gateway.token", str(token)))
    (tmp_path / "alerts.yaml").write_bytes((FOLDER / "alerts.yaml").read_bytes())
    checked = promtool("check", "config", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_has_a_case_that_fires_and_one_that_is_quiet() -> None:
    """Both halves of every threshold are held fast."""
    cases = [case for test in TESTS for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    quiet = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fires == quiet == {rule["alert"] for rule in RULES}


def test_a_day_without_trouble_is_quiet_for_all() -> None:
    """The first test has every series that an alert asks for; one without series is quiet for nothing."""
    series = {re.match(r"\w+", each["series"])[0] for each in TESTS[0]["input_series"]}  # type: ignore[index]
    asked = set().union(*(names(rule["expr"])[0] for rule in RULES))
    assert asked <= series
    assert {case["alertname"] for case in TESTS[0]["alert_rule_test"]} == {rule["alert"] for rule in RULES}


def test_the_series_of_the_tests_exist(tmp_path: Path) -> None:
    """A rule and its test may agree on a name that no gateway has."""
    for test in TESTS:
        for each in test["input_series"]:
            assert not unknown(each["series"]), each["series"]
    assert not faults({each["series"] for test in TESTS for each in test["input_series"]}, tmp_path)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_names_what_exists_and_says_what_to_do(rule: dict[str, Any]) -> None:
    """At three in the morning: what is broken, what clients see, and where to read on."""
    assert not unknown(rule["expr"])
    assert re.fullmatch(r"SseGateway[A-Z]\w+", rule["alert"])
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url"}
    assert told["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    assert len(told["summary"]) < 130
    assert told["description"].endswith(".")


def test_rendered_texts_have_no_holes() -> None:
    """A label that the expression does not keep is an empty word in the page."""
    for test in TESTS:
        for case in test["alert_rule_test"]:
            for alert in case["exp_alerts"]:
                for text in alert["exp_annotations"].values():
                    assert "  " not in text
                    assert "no value" not in text
                    assert "{{" not in text
                    assert not text.startswith(" ")
