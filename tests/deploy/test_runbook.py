"""The runbook: a section for each alert, and every command, query and name in it works."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest
import yaml

from gateway.admin.status_report import SourceStatus
from gateway.observability.metrics.definitions import METRIC_PREFIX
from tests.support.deadline import safety_net
from tests.support.needs import need
from tests.support.node import Node
from tests.support.promql import defined, faults, unknown
from tests.support.redis import RedisServer

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/runbook.md").read_text()
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
CODE = "\n".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))


OUTSIDE = {"container_cpu_cfs_throttled_seconds_total"}
"""What others measure."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what a link can lead to, as GitHub names it."""
    titles = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_each_alert_has_its_section() -> None:
    """A page at night leads there; and a section without an alert is read by nobody."""
    assert re.findall(r"(?m)^## (.+)$", TEXT) == ALERTS


def test_a_section_says_something() -> None:
    """Not only a title: what it means, and what to do."""
    for section in TEXT.split("\n## ")[1:]:
        assert len(section.split()) > 30, section[:60]


def test_links_lead_to_sections() -> None:
    """One that leads nowhere costs the minutes that count."""
    for page, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", TEXT):
        assert anchor in anchors(ROOT / "docs" / (page or "runbook.md")), f"{page}#{anchor}"


def test_metrics_and_queries_exist(tmp_path: Path) -> None:
    """They are pasted into Prometheus."""
    queries = [line for block in blocks("promql") for line in block.splitlines()]
    assert len(queries) > 25
    for query in queries:
        assert not unknown(query), query
    assert not faults(queries, tmp_path)
    for name in re.findall(rf"`(?:rate\()?({METRIC_PREFIX}\w+|[a-z_]+_total)", TEXT):
        assert defined(name) is not None or name in OUTSIDE, name


def test_keys_and_log_lines_exist() -> None:
    """Somebody greps for them."""
    keys = (ROOT / "docs/configuration.md").read_text()
    sections = "server|log|broker|cors|timeouts|limits|auth"
    for key in re.findall(rf"`((?:{sections})\.[a-z_.]+)`", TEXT):
        assert f"`{key}" in keys, key
    events = set(re.findall(r'\.event == "(\w+)"', TEXT))
    assert len(events) > 10
    assert not {event for event in events if f'"{event}"' not in CODE}
    reasons = {word for word in re.findall(r"`(\w+_\w+)`", TEXT) if not word.startswith(("sse_", "process_"))}
    known = CODE + keys
    assert not {word for word in reasons - OUTSIDE if not re.search(rf"\b{word}\b", known)}


async def test_its_commands_run(tmp_path: Path, redis: RedisServer) -> None:
    """Each is pasted as it is, by somebody who has no time to mend it."""
    for program in ("jq", "curl"):
        need(program, program)
    config = {
        "server": {"admin_token": "t0ken-" * 4},
        "sources": {
            "app": {"type": "redis-pubsub", "url": redis.url},
            "hooks": {"type": "webhook", "verify": {"none": True}, "stale_after": "1h"},
        },
        "channels": {
            "orders": {
                "from": [{"source": name, "topic": "orders"} for name in ("app", "hooks")],
                "access": "public",
            }
        },
    }
    node = Node(tmp_path, config)
    try:
        await node.start()
        async with aiohttp.ClientSession() as session:
            await session.post(f"http://127.0.0.1:{node.port}/hooks/hooks?topic=none", data="1")
            await session.get(f"http://127.0.0.1:{node.port}/events/none")
        first, *others = blocks("sh")
        own = f"ADMIN=http://127.0.0.1:{node.admin}\nlogs() {{ cat '{node.log}'; }}\n"
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SSE_GATEWAY_ADMIN_TOKEN": "t0ken-" * 4,
            "SSE_GATEWAY_CONFIG": str(ROOT / "config/gateway.yaml"),
        }
        for block in others:
            shell = await asyncio.create_subprocess_exec(
                *("bash", "-euo", "pipefail", "-c", first + own + block),
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment,
            )  # fmt: skip
            async with safety_net():
                said, _ = await shell.communicate()
            assert shell.returncode == 0, f"{block}\n{said.decode()}"
            if "rejected" in block and "why" in block:
                assert json.loads(said)["reason"] == "no_route"
            if "stream_refused" in block and "origin" in block:
                assert json.loads(said)["code"] == "unknown_channel"
    finally:
        await node.kill()


@pytest.mark.parametrize("field", sorted(set(re.findall(r"\.sources\[\].*?\{(.+?)\}", TEXT))))
def test_fields_of_the_status_exist(field: str) -> None:
    """jq shows null for a field that is not there, and nobody doubts it."""
    known = {each.encode_name for each in msgspec.structs.fields(SourceStatus)}
    assert set(re.findall(r"\w+", field)) <= known
