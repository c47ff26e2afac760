"""The dashboard: Grafana can load it, it fits any data source, and it shows what exists."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.observability.metrics.definitions import DEFINITIONS
from tests.support.promql import TARGET, defined, faults, names, unknown

FILE = Path(__file__).parents[2] / "deploy/grafana/sse-gateway.json"
DASHBOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OWN = {"type": "prometheus", "uid": "${datasource}"}


def expressions() -> Iterator[str]:
    """Yield all PromQL, Grafana's variables replaced by what they may stand for."""
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    queries += [each["expr"] for each in DASHBOARD["annotations"]["list"] if "expr" in each]
    for variable in DASHBOARD["templating"]["list"]:
        found = re.fullmatch(r"label_values\((.+), \w+\)", variable.get("definition", ""))
        if found:
            queries.append(found[1])
    for query in queries:
        yield re.sub(r"\$(job|instance)\b", ".*", query.replace("$__rate_interval", "5m"))


def test_it_is_a_dashboard_of_todays_schema() -> None:
    """Grafana takes the uid to find it again when it is loaded anew, and ids to find its panels."""
    assert DASHBOARD["uid"] == "sse-gateway"
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 39
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_no_data_source_is_fixed() -> None:
    """Every Grafana has a uid of its own for its Prometheus."""
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    places = [*PANELS, *(target for panel in PANELS for target in panel["targets"])]
    places += [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    places += [each for each in DASHBOARD["annotations"]["list"] if "expr" in each]
    assert {json.dumps(place["datasource"]) for place in places} == {json.dumps(OWN)}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    """Who looks at it for the first time is in trouble."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["legendFormat"]
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        kept = re.search(r" by \(([^)]*)\)", target["expr"])
        if kept is not None:
            labels = set(kept[1].replace(" ", "").split(","))
        else:
            metrics = [defined(series) for series in names(target["expr"])[0]]
            labels = {label for each in metrics if each is not None for label in each.labels} | TARGET
        assert named <= labels, target["expr"]


def test_titles_are_told_apart() -> None:
    """Two panels of one name cannot be spoken of."""
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)


def test_panels_do_not_overlap() -> None:
    """Grafana would move them about at every load."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.extended
def test_it_names_what_exists(tmp_path: Path) -> None:
    """A panel of a metric that was renamed is empty, and looks like peace."""
    found = list(expressions())
    assert len(found) > 60
    assert {query: unknown(query) for query in found if unknown(query)} == {}
    assert not faults(found, tmp_path)


def test_every_query_asks_the_chosen_nodes_only() -> None:
    """Prometheus holds many jobs, and several gateways."""
    for panel in PANELS:
        for target in panel["targets"]:
            for selector in re.findall(r"\w+\{([^}]*)\}", target["expr"]):
                assert selector.startswith('job=~"$job", instance=~"$instance"')
            assert len(re.findall(r"\{", target["expr"])) == len(
                re.findall(r"(?:sse_gateway|process)_\w+", target["expr"])
            )


def test_every_metric_is_shown() -> None:
    """What is measured and shown nowhere is found by nobody when it counts."""
    shown = {defined(series) for query in expressions() for series in names(query)[0]}
    assert {each.name for each in DEFINITIONS} - {each.name for each in shown if each is not None} == set()
