"""The docs agree with the code: generated tables, reasons, codes, routes and examples."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from tests.support.config import loads

ROOT = Path(__file__).parents[1]
DOCS = {path.name: path.read_text() for path in [*ROOT.glob("docs/*.md"), ROOT / "README.md"]}
CODE = {path: path.read_text() for path in (ROOT / "gateway").rglob("*.py")}


def test_the_generated_tables_are_current() -> None:
    """A key, metric or option is not documented; `make docs` writes the tables."""
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    assert DOCS["configuration.md"] == reference["configuration"]()
    assert DOCS["metrics.md"] == reference["metrics"]()
    assert DOCS["commands.md"] == reference["commands"]()


def literals(pattern: str) -> set[str]:
    return {found for text in CODE.values() for found in re.findall(pattern, text)}


def test_every_code_and_reason_is_documented() -> None:
    """Clients and dashboards match on a code or reason that no page explains."""
    codes = literals(r'code="(\w+)"') | literals(r'^    code = "(\w+)"'.replace("^", r"(?m:^)"))
    internal = {
        "internal",
        "bad_request",
        "unauthorized",
        "forbidden",
        "rejected",
        "source",
        "fenced",
        "startup",
        "config",
        "http_error",
        "expectation_failed",
    }
    text = DOCS["http.md"] + DOCS["operations.md"]
    missing = {code for code in codes - internal if f"`{code}`" not in text}
    assert not missing
    ends = literals(r'\.(?:close|abort)\("(\w+)"\)') | literals(r'close_reason = "(\w+)"') | {"drain_timeout"}
    assert len(ends) > 5
    assert not {reason for reason in ends if f"`{reason}`" not in DOCS["operations.md"]}


def test_every_route_is_documented() -> None:
    """Users do not find a route that no page mentions."""
    paths = (
        literals(r'add_get\("(/\w+)"')
        | literals(r'add_resource\("([^"]+)"\)')
        | set(literals(r'"(/(?:events|hooks|client)[^"]*)"'))
    )
    assert {"/metrics", "/hooks/{source}", "/events/{channel}"} <= paths
    for path in paths:
        assert path in DOCS["http.md"], path


def test_the_yaml_of_the_readme_is_good() -> None:
    """Ops paste the example of the README, and the gateway rejects it."""
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCS["README.md"], re.DOTALL)
    loads(text, environ={"REDIS_URL": "redis://127.0.0.1", "WEBHOOK_TOKEN": "t"})


def test_links_lead_somewhere() -> None:
    """A relative link leads nowhere."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(
    "target",
    [
        "run",
        "demo",
        "test",
        "check",
        "install",
        "image",
        "bench",
        "format",
        "docs",
        "client",
        "types",
        "release",
    ],
)
def test_make_targets_exist(target: str) -> None:
    """README and CONTRIBUTING name a target that does not exist."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_default_file_shows_every_section() -> None:
    """The annotated example misses a section."""
    text = (ROOT / "config/gateway.yaml").read_text()
    data = yaml.safe_load(text)
    for section in ("server", "logging", "broker", "cors", "timeouts", "limits", "sources", "channels"):
        assert section in data
    for word in ("tls:", "auth:", "slow_client:", "history:", "payload:", "format:", "verify:"):
        assert word in text


def test_the_threat_model_names_tests_that_exist() -> None:
    """A defence is documented whose test is gone."""
    text = DOCS["threat-model.md"]
    files = re.findall(r"`(tests/[\w/]+\.py)`", text)
    names = re.findall(r"`(test_\w+)`", text)
    assert len(files) > 20
    assert len(names) > 10
    assert not [file for file in files if not (ROOT / file).exists()]
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in names if f"def {name}(" not in tests]
