"""docs/clients.md is what the zoo finds."""

import os
from importlib import metadata
from pathlib import Path

import pytest

from tests.clients.catalog import CLIENTS
from tests.clients.expected import BEST, CUTS, DELIVERY, ENDS, LOSSES, SCENARIOS
from tests.clients.page import PAGE, render, version
from tests.clients.trial import WHOLE

pytestmark = pytest.mark.extended


def test_the_page_is_current() -> None:
    """Docs that say something else than what the tests of this folder assert; `make clients-table` writes them."""
    page = render()
    if os.environ.get("UPDATE_CLIENTS"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page


def test_each_loss_is_one() -> None:
    """An entry that hides another one, names no scenario, or is no loss at all."""
    assert set(LOSSES) <= set(CLIENTS)
    for client, losses in LOSSES.items():
        named = [scenario for loss in losses for scenario in loss.outcomes]
        assert len(named) == len(set(named)), client
        assert set(named) <= set(SCENARIOS), client
        for loss in losses:
            for scenario, outcome in loss.outcomes.items():
                assert outcome != BEST.get(scenario, WHOLE), (client, scenario)


def test_each_scenario_is_run() -> None:
    """The page tells of something that no test does."""
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert not [
        name for name in SCENARIOS if name not in (*CUTS, *ENDS, *DELIVERY) and f'"{name}"' not in tests
    ]


def test_the_versions_are_those_that_run() -> None:
    """The page names another version than the one whose faults it lists."""
    for about in CLIENTS.values():
        if about.home == "PyPI":
            assert metadata.version(about.package) == version(about)
