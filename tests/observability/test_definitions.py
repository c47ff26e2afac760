"""The table of metrics holds what the code says, and a running gateway all that the table promises."""

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.observability.metrics.definitions import DEFINITIONS, DEFINITIONS_BY_NAME, METRIC_PREFIX
from tests.support.gateway import gateway_running
from tests.support.needs import need
from tests.support.redis import RedisServer
from tests.support.tls import make_certificate

ROOT = Path(__file__).parents[2]
CODE = "\n".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))
SECRET = "s" * 32
CONFIG: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}, "tickets": {"lifetime": "5m"}},
    "limits": {"connections_per_user": 2},
    "channels": {
        "user.{id}": {
            "from": [{"source": "hooks", "topic": "u.{id}"}],
            "access": {"claims": {"sub": "{id}"}},
            "stale_after": "1h",
        },
    },
}

OF_A_FILE = {
    METRIC_PREFIX + name
    for name in (
        "config_last_reload_successful",
        "config_last_reload_success_timestamp_seconds",
    )
}
"""Gauges of the reload, which binds them where there is a file."""


def literals(pattern: str) -> set[str]:
    return set(re.findall(pattern, CODE))


def test_names_and_types_follow_the_rules() -> None:
    """Prometheus's naming practices: who reads a name knows what it is."""
    assert len(DEFINITIONS_BY_NAME) == len(DEFINITIONS)
    for each in DEFINITIONS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", each.name)
        assert each.name.startswith((METRIC_PREFIX, "process_"))
        assert (each.type == "counter") == each.name.endswith("_total"), each.name
        assert (each.type == "histogram") == bool(each.buckets), each.name
        assert each.buckets == tuple(sorted(each.buckets)), each.name
        assert each.help_text[0].isupper() or each.help_text.startswith("1 "), each.name
        assert not each.help_text.endswith("."), each.name
        assert not each.label_values or len(each.labels) == 1, each.name


def test_no_label_can_be_a_client() -> None:
    """A label of strangers' making grows without bound, and tells who they are."""
    labels = {label for each in DEFINITIONS for label in each.labels}
    assert labels == {"channel", "reason", "result", "source", "task", "version"}


def test_what_ends_and_refuses_streams_is_in_the_table() -> None:
    """A reason that is not there from the start has its first increase lost to rate()."""
    ends = literals(r'\.(?:end|abort)\("(\w+)"\)') | literals(r'closing = "(\w+)"')
    ends |= literals(r'(?m)closing = "(\w+)" if') | literals(r'else "(client_lost)"')
    ends |= {"max_age"} | literals(r'expiry = (?:[^"\n]+, )?"(\w+)"')
    assert ends <= set(DEFINITIONS_BY_NAME[METRIC_PREFIX + "disconnects_total"].label_values)
    told = (ROOT / "docs/http.md").read_text().partition("### Statuses")[2].partition("### On every path")[0]
    told += " `invalid_token`"
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (?:200|40\d) \|.*$", told))))
    documented -= {"retry", "refuse", "Allow", "not_found", "method_not_allowed"}  # no refused streams
    assert documented == set(DEFINITIONS_BY_NAME[METRIC_PREFIX + "refused_total"].label_values)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        (
            "gaps_total",
            r'_encode_gaps\([^\n]*"(\w+)"|\breason = "(\w+)" if|else "(slow_client)"|(?:SOURCE_INTERRUPTED|NO_RESUME_POINT) = "(\w+)"|_start_with_gaps\([^\n]*"(\w+)"',
        ),
        ("jwks_fetches_total", r'jwks_fetches\.labels\("(\w+)"\)'),
        ("forward_auth_total", r'forward_auth\.labels\("(\w+)"\)'),
        ("tls_reloads_total", r'_reload_counter\.labels\("(\w+)"\)'),
        ("tls_handshake_failures_total", r'_failures\.labels\("(\w+)"(?: if [^\n]+ else "(\w+)")?\)'),
    ],
)
def test_other_label_values_are_in_the_table(name: str, pattern: str) -> None:
    """Else an alert on the first failure never fires."""
    found = {
        word for words in re.findall(pattern, CODE) for word in ([words] if isinstance(words, str) else words)
    }
    assert found - {""} == set(DEFINITIONS_BY_NAME[METRIC_PREFIX + name].label_values)


def test_the_design_is_fulfilled() -> None:
    """Dashboards of users rely on the names of the contract."""
    promised = (
        "active_connections channel_connections connections_total disconnects_total refused_total"
        " connection_seconds events_received_total events_rejected_total events_published_total"
        " events_delivered_total bytes_sent_total delivery_lag_seconds replayed_events_total gaps_total"
        " lagging_streams source_up source_last_event_timestamp_seconds broker_up broker_append_seconds"
        " config_reloads_total build_info"
    )
    assert {METRIC_PREFIX + name for name in promised.split()} <= set(DEFINITIONS_BY_NAME)
    assert DEFINITIONS_BY_NAME[METRIC_PREFIX + "active_connections"].labels == ()


def samples(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the labels of each sample, by the name of its metric as the table has it."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = [dict(sample.labels) for sample in family.samples]
    return found


async def test_a_running_gateway_answers_for_every_metric(redis: RedisServer, tmp_path: Path) -> None:
    """A gauge that nobody is bound to is a hole in the dashboard, and an alert that never fires."""
    certificate, key = make_certificate(tmp_path)
    config = {
        **CONFIG,
        "server": {"tls": {"certificate": str(certificate), "key": str(key)}},
        "broker": {"url": redis.url},
        "sources": {"app": {"type": "redis-stream", "url": redis.url, "stale_after": "1h"}},
    }
    config["channels"] = {
        **CONFIG["channels"],
        "app": {"from": [{"source": "app", "topic": "t"}], "access": "public"},
    }
    async with gateway_running(config) as gateway:
        bound = gateway.daemon.metrics.bound_names
        assert {
            name for name, each in DEFINITIONS_BY_NAME.items() if each.type == "gauge"
        } - bound - OF_A_FILE == set()
        status, text = await gateway.admin("/metrics")
        assert status == 200
        found = samples(text)
        assert set(found) == set(DEFINITIONS_BY_NAME) - OF_A_FILE
        for name, each in DEFINITIONS_BY_NAME.items():
            if name in OF_A_FILE:
                continue
            labels = [{key: value for key, value in one.items() if key != "le"} for one in found[name]]
            assert all(set(one) == set(each.labels) for one in labels), name
            for value in each.label_values:
                assert {each.labels[0]: value} in labels, name
            if each.labels == ("channel",) and name != METRIC_PREFIX + "channel_stale":
                assert {one["channel"] for one in labels} == {
                    "orders",
                    "stock",
                    "news",
                    "user.{id}",
                    "app",
                }, name


async def test_no_series_is_a_clients(tmp_path: Path) -> None:
    """Whatever clients and senders write, the set of series stays what the file and the code make of it."""
    headers = {
        "Authorization": f"Bearer {jwt.encode({'exp': time.time() + 60, 'sub': 'zz42'}, SECRET)}",
        "Origin": "https://zz42.example.com",
        "X-Forwarded-For": "203.0.113.42",
    }
    async with gateway_running(CONFIG) as gateway:
        before = await gateway.admin("/metrics")
        stream = await gateway.subscribe(
            "/events/user.zz42?client=zz42", {"Authorization": headers["Authorization"]}
        )
        await gateway.post("u.zz42", "1", **{"Idempotency-Key": "zz42"})
        await stream.next()
        for path in ("/events/zz42", "/events/user.zz42", "/events?channel=orders&types=zz42", "/zz42"):
            refused = await gateway.open(path, headers)
            await refused.rest()
        for path in ("/hooks/zz42", "/hooks/hooks?topic=zz42"):
            async with gateway.session.post(f"{gateway.url}{path}", data="zz42"):
                pass
        _, text = await gateway.admin("/metrics")
        assert "zz42" not in text
        assert "203.0.113" not in text
        assert 'sse_gateway_events_delivered_total{channel="user.{id}"} 1.0' in text
        new = set(re.findall(r"(?m)^[^# ]+(?= )", text)) - set(re.findall(r"(?m)^[^# ]+(?= )", before[1]))
        assert new <= {
            'sse_gateway_events_rejected_total{reason="no_route",source="hooks"}',
            'sse_gateway_events_rejected_total{reason="unknown_source",source=""}',
            'sse_gateway_source_last_event_timestamp_seconds{source="hooks"}',
        }


@pytest.mark.extended
async def test_prometheus_has_nothing_to_say_against_it() -> None:
    """One line that it cannot read, and the whole scrape is lost."""
    promtool = need("promtool", "prometheus")
    odd = 'quo"te\\ back'
    async with gateway_running() as gateway:
        gateway.daemon.metrics.events_received.labels(odd + "\nline").inc()
        _, text = await gateway.admin("/metrics")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, text=True, capture_output=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    (family,) = (
        each
        for each in text_string_to_metric_families(text)
        if each.name == METRIC_PREFIX + "events_received"
    )
    assert {sample.labels["source"] for sample in family.samples} == {"hooks", odd + "\nline"}
