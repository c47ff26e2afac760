"""The guard of the admin port: strangers, pages of other origins, names that lead here."""

import asyncio
from typing import Any

import pytest

from gateway.admin.app import ADMIN_HEADERS
from tests.support.gateway import Gateway, gateway_running

TOKEN = "t0ken-" * 4
LOCKED: dict[str, Any] = {"server": {"admin_token": TOKEN}}


async def ask(
    gateway: Gateway, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Ask the admin port: status, headers in lower case, and the body (parsed where it is JSON)."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"http://127.0.0.1:{gateway.daemon.admin_listener.port}{path}"
    async with gateway.session.request(method, url, headers=sent) as answer:
        is_json = answer.content_type == "application/json" and method != "HEAD"
        body = await answer.json() if is_json else await answer.text()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, body


@pytest.mark.parametrize("path", ["/metrics", "/status", "/nothing"])
async def test_a_token_is_asked_for(path: str) -> None:
    """Without it nobody sees a metric, a status, or which paths there are."""
    async with gateway_running(LOCKED) as gateway:
        status, headers, body = await ask(gateway, path)
        assert (status, headers["www-authenticate"], body["error"]) == (401, "Bearer", "missing_token")
        for wrong in ("Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \udcff"):
            status, headers, body = await ask(gateway, path, Authorization=wrong)
            assert (status, body["error"]) == (401, "invalid_token"), wrong
            assert headers["www-authenticate"] == 'Bearer error="invalid_token"'
        for right in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
            status, _, _ = await ask(gateway, path, Authorization=right)
            assert status == (404 if path == "/nothing" else 200)


async def test_probes_need_no_token_and_learn_no_more_than_a_status() -> None:
    """A kubelet sends none; what a stranger learns must not name sources or their troubles."""
    async with gateway_running(LOCKED) as gateway:
        for path, word in (("/healthz", "alive"), ("/readyz", "ready")):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert (await ask(gateway, path, **headers))[::2] == (200, {word: True})
        _, _, details = await ask(gateway, "/readyz", Authorization=f"Bearer {TOKEN}")
        assert details["sources"] == {"hooks": "up"}
        gateway.daemon.streams.is_draining = True
        assert (await ask(gateway, "/readyz"))[::2] == (503, {"ready": False})


HOSTS = [
        ("localhost", 200), ("LOCALHOST:9090", 200), ("127.0.0.1:1", 200), ("[::1]:9090", 200), ("10.1.2.3", 200),
        ("evil.example", 403), ("evil.example:9090", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
        ("evil@127.0.0.1", 403), ("[::1", 403), ("", 403), (":9090", 403),
]  # fmt: skip


async def test_a_name_that_leads_to_loopback_is_refused(gateway: Gateway) -> None:
    """DNS rebinding: a page gives its own name our address, and is of the same origin then."""
    for host, status in HOSTS:
        found, _, body = await ask(gateway, "/status", Host=host)
        assert found == status, host
        assert status == 200 or body["error"] == "host_refused", host


async def test_a_port_that_is_open_to_all_goes_by_its_names() -> None:
    """Without a token, a page that gives its own name our address would read and end everything."""
    name = "gateway.monitoring.svc"
    for hosts, status in (([], 403), ([name.upper()], 200)):
        server = {"admin": "0.0.0.0:0", "admin_open": True, "admin_hosts": hosts}
        async with gateway_running({"server": server}) as gateway:
            for host, expected in [*HOSTS, ("gateway", 200), ("gateway:9090", 200), (name, status)]:
                found, _, body = await ask(gateway, "/status", Host=host)
                assert found == expected, host
                assert found == 200 or body["error"] == "host_refused"
            evil = {"Host": "evil.example:9090", "Origin": "http://evil.example:9090"}
            for method, path in (("POST", "/reload"), ("DELETE", "/streams")):
                found, _, body = await ask(gateway, path, method, **evil)
                assert (found, body["error"]) == (403, "host_refused")
            assert await gateway.reconfigure({"server": {"admin_hosts": ["other.example"]}}) == 0
            assert (await ask(gateway, "/status", Host="other.example"))[0] == 200
            assert (await ask(gateway, "/status", Host=name))[0] == 403


async def test_where_a_token_is_required_any_name_will_do() -> None:
    """Prometheus scrapes a service's name; the token keeps pages out there."""
    async with gateway_running({"server": {"admin": "0.0.0.0:0", "admin_token": TOKEN}}) as gateway:
        headers = {"Host": "gateway.monitoring.svc", "Authorization": f"Bearer {TOKEN}"}
        assert (await ask(gateway, "/status", **headers))[0] == 200


async def test_the_host_of_the_file_may_ask_by_its_name() -> None:
    """Who writes localhost into the file asks for localhost."""
    async with gateway_running({"server": {"admin": "localhost:0"}}) as gateway:
        assert (await ask(gateway, "/status", Host="localhost"))[0] == 200


async def test_a_client_of_http_1_0_needs_no_host(gateway: Gateway) -> None:
    """Some health checkers speak it; browsers never do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.daemon.admin_listener.port)
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert b" 200 " in await reader.readline()
    writer.close()


LINK = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}


PAGES: list[tuple[str, dict[str, str], int]] = [
    ("GET", {"Origin": "https://evil.example"}, 403),
    ("GET", {"Origin": "null"}, 403),
    ("GET", {"Origin": "http://localhost:3000"}, 403),
    ("OPTIONS", {"Origin": "https://evil.example", "Access_Control_Request_Method": "GET"}, 403),
    ("POST", {"Origin": "https://evil.example"}, 403),
    ("POST", {"Sec_Fetch_Site": "cross-site"}, 403),
    ("POST", {"Sec_Fetch_Site": "same-site"}, 403),
    ("POST", LINK, 403),
    ("GET", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}, 403),
    ("GET", {"Origin": "http://localhost:9090", "Host": "localhost:9090"}, 200),
    ("POST", {"Origin": "http://localhost:9090", "Host": "localhost:9090"}, 405),
    ("GET", {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"}, 200),
    ("GET", {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"}, 200),
    ("GET", LINK, 200),
    ("HEAD", LINK, 200),
    ("GET", {}, 200),
]


async def test_pages_of_other_origins_may_not_ask(gateway: Gateway) -> None:
    """CSRF: a page that a developer looks at must not read or do anything on the developer's machine."""
    for method, headers, status in PAGES:
        found, answered, body = await ask(gateway, "/status", method, **headers)
        assert found == status, (method, headers)
        assert "access-control-allow-origin" not in answered
        assert status != 403 or body["error"] == "cross_origin"


@pytest.mark.parametrize("over", [{}, LOCKED], ids=["open", "locked"])
async def test_every_answer_has_the_headers(over: dict[str, Any]) -> None:
    """Errors too: no answer may be framed, sniffed, cached or loaded by a page."""
    async with gateway_running(over) as gateway:
        for path in ("/metrics", "/healthz", "/readyz", "/status", "/nothing"):
            for sent in ({}, {"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Expect": "x"}):
                for method in ("GET", "DELETE"):
                    _, headers, _ = await ask(gateway, path, method, **sent)
                    for name, value in ADMIN_HEADERS.items():
                        assert headers[name.lower()] == value, (path, sent, method)
                    assert headers["x-content-type-options"] == "nosniff"
                    assert headers["server"] == "sse-gateway"
