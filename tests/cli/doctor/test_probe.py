"""The walk, along a real gateway and a real nginx that is set up wrongly in one way after the other."""

import dataclasses
import itertools
from pathlib import Path

import pytest
from aiohttp import web

from gateway.cli.finding import Level
from tests.cli.doctor.authority import Authority
from tests.cli.doctor.examined import BRIEF, CONFIG, examine
from tests.cli.doctor.relay import relay
from tests.support.gateway import eventually, gateway_running, merged
from tests.support.issuer import serving
from tests.support.nginx import nginx_running
from tests.support.tls import make_certificate

PATH = "/events/orders"
HASTY = dataclasses.replace(BRIEF, response_seconds=5.0)
"""For what never comes."""

BRISK = dataclasses.replace(BRIEF, listen_seconds=0.3)
"""For what is seen before the first heartbeat."""

PROXIED = "proxy_http_version 1.1;"


@pytest.mark.idle_clock
async def test_a_gateway_that_is_well_has_nothing_bad() -> None:
    """A false alarm makes operators search for faults that are not there."""
    async with gateway_running(CONFIG) as gateway:
        seen = await examine(gateway.url + PATH)
    assert seen.bad == set()
    assert seen.checks == [
        "name", "tcp", "http version", "status", "content type", "compression", "headers", "cors", "vary",
        "first bytes", "heartbeat", "idle timeout", "resume", "preflight",
    ]  # fmt: skip
    warned = {finding.check for finding in seen.findings if finding.level is not Level.OK}
    assert warned == {"http version", "idle timeout"}  # no HTTP/2, and 2.5 s prove nothing about 60 s


@pytest.mark.idle_clock
async def test_its_streams_are_closed() -> None:
    """An examination that leaves streams open takes places from clients."""
    async with gateway_running(CONFIG) as gateway:
        await examine(gateway.url + PATH, patience=BRISK)

        async def is_empty() -> bool:
            return await gateway.metric("active_connections") == 0

        await eventually(is_empty)


@pytest.mark.idle_clock
async def test_a_gateway_with_tls(tmp_path: Path) -> None:
    """A certificate of the gateway's own TLS that expires tomorrow is reported in time."""
    chain, key = make_certificate(tmp_path)
    over = merged(CONFIG, {"server": {"tls": {"certificate": str(chain), "key": str(key)}}})
    async with gateway_running(over) as gateway:
        url = f"https://127.0.0.1:{gateway.port}{PATH}"
        seen = await examine(url, ca=str(chain), patience=BRISK)
        assert seen.bad == set()
        assert seen["tls"].message == "TLSv1.3"
        assert seen["certificate"].level is Level.WARN
        seen = await examine(url, token="canary-token")
        assert seen.bad == {"certificate"}
        assert "self-signed" in seen["certificate"].message
        assert seen.checks[-1] == "the rest"
        assert await gateway.metric("connections_total") == 2  # the token never went there


@pytest.mark.extended
async def test_nginx_as_it_should_be(tmp_path: Path) -> None:
    """HTTP/2, a chain that ends in a known root, and the plain proxy_pass of nginx, are well."""
    authority = Authority(tmp_path)
    chain, key = authority.leaf("localhost", "127.0.0.1")
    tls = f"ssl_certificate {chain}; ssl_certificate_key {key};"
    async with gateway_running(CONFIG) as gateway:
        with nginx_running(gateway.port, server=tls, listen="ssl http2") as port:
            seen = await examine(f"https://127.0.0.1:{port}{PATH}", ca=str(authority.root), patience=BRISK)
    assert seen.bad == set()
    assert seen["http version"].level is Level.OK
    assert "(89 days)" in seen["certificate"].message
    assert "nginx keeps" in seen["headers"].message


@pytest.mark.extended
async def test_buffering_that_holds_the_headers_too() -> None:
    """nginx's buffering: nothing comes, and an operator looks for the fault in the gateway."""
    async with gateway_running(CONFIG) as gateway:
        with nginx_running(gateway.port, "proxy_ignore_headers X-Accel-Buffering;") as port:
            seen = await examine(f"http://127.0.0.1:{port}{PATH}", patience=HASTY)
    assert seen.bad == {"first bytes"}
    assert "GET got no headers" in seen["first bytes"].message
    assert "proxy_buffering off;" in seen["first bytes"].fix
    assert {"cors", "preflight", "headers"} <= set(seen.checks)  # by HEAD, which is not buffered


@pytest.mark.extended
@pytest.mark.parametrize(
    ("location", "server", "bad", "word"),
    [
        ("", "gzip on; gzip_types text/event-stream; gzip_proxied any;", "compression", "gzip"),
        ("proxy_hide_header Access-Control-Allow-Origin;", "", "cors", "only sees an error"),
        ("add_header Access-Control-Allow-Origin '*';", "", "cors", "more than once"),
        ("proxy_hide_header Vary;", "", "vary", "no Vary: Origin"),
        ('proxy_set_header Last-Event-ID "";', "", "resume", "does not reach"),
        ("if ($request_method = OPTIONS) { return 401; }", "", "preflight", "401"),
    ],
)
async def test_what_nginx_breaks(location: str, server: str, bad: str, word: str) -> None:
    """Each fault is reported by its own check, and misleads no other check."""
    async with gateway_running(CONFIG) as gateway:
        with nginx_running(gateway.port, location, server=server) as port:
            seen = await examine(f"http://127.0.0.1:{port}{PATH}", patience=BRISK)
    assert word in seen[bad].message
    assert seen[bad].fix
    # A doubled or missing header is that of the preflight too.
    assert seen.bad - {"preflight"} <= {bad}


@pytest.mark.extended
async def test_a_timeout_shorter_than_the_heartbeat() -> None:
    """Streams that are cut while idle reconnect for ever; the operator needs the seconds."""
    async with gateway_running(merged(CONFIG, {"timeouts": {"heartbeat": "30s"}})) as gateway:
        with nginx_running(gateway.port, f"{PROXIED} proxy_read_timeout 1s;") as port:
            patience = dataclasses.replace(BRIEF, listen_seconds=20.0, heartbeat_seconds=30.0)
            seen = await examine(f"http://127.0.0.1:{port}{PATH}", patience=patience)
    assert seen.bad == {"idle timeout"}
    assert "the heartbeat (30 s)" in seen["idle timeout"].message
    assert "proxy_read_timeout" in seen["idle timeout"].fix


@pytest.mark.idle_clock
async def test_a_stream_without_heartbeats() -> None:
    """Silence for longer than two heartbeats says that something holds them back."""
    async with gateway_running(merged(CONFIG, {"timeouts": {"heartbeat": "60s"}})) as gateway:
        patience = dataclasses.replace(BRIEF, listen_seconds=1.5, heartbeat_seconds=0.2, late_seconds=0.5)
        seen = await examine(gateway.url + PATH, patience=patience)
    assert seen.bad == {"heartbeat"}


@pytest.mark.extended
async def test_a_redirect_names_where_it_ends() -> None:
    """Two redirects, and a ticket in the URL that must not be shown."""
    async with gateway_running(CONFIG) as gateway:
        final = f"{gateway.url}{PATH}?ticket=canary"
        with (
            nginx_running(gateway.port, f"return 302 {final};") as second,
            nginx_running(gateway.port, f"return 301 http://127.0.0.1:{second}/;") as first,
        ):
            seen = await examine(f"http://127.0.0.1:{first}{PATH}?ticket=canary")
    assert seen.bad == {"redirect"}
    assert f"301 to {final.replace('canary', '…')}" in seen["redirect"].message
    assert "canary" not in str(seen.findings)


@pytest.mark.extended
async def test_a_circle_of_redirects_ends() -> None:
    """The walk must not run in circles."""
    with nginx_running(9, "return 301 /;") as port:
        seen = await examine(f"http://127.0.0.1:{port}/")
    assert "its target fails" in seen["redirect"].message


@pytest.mark.idle_clock
@pytest.mark.parametrize(
    ("path", "word"),
    [
        (
            "/events/nope",
            "404 ends an EventSource for good; it says unknown_channel: there is no such channel",
        ),
        ("/events/private", "missing_token"),
        ("/events/orders?last=x", "bad_query"),
    ],
)
async def test_refusals_are_told_in_the_words_of_the_gateway(path: str, word: str) -> None:
    """The gateway says why; a bare status would send the operator to its log."""
    private = {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}
    auth = {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}}
    async with gateway_running(merged(CONFIG, {"auth": auth, "channels": {"private": private}})) as gateway:
        seen = await examine(gateway.url + path)
    assert seen.bad == {"status"}
    assert word in seen["status"].message
    assert seen["cors"].level is Level.OK  # a page can read the refusal


@pytest.mark.extended
async def test_a_refusal_that_the_proxy_compressed() -> None:
    """Its words are what the operator needs, and a doctor that offers gzip must read it."""
    async with gateway_running(CONFIG) as gateway:
        server = "gzip on; gzip_types application/json; gzip_min_length 1; gzip_proxied any;"
        with nginx_running(gateway.port, PROXIED, server=server) as port:
            seen = await examine(f"http://127.0.0.1:{port}/events/nope")
    assert "there is no such channel" in seen["status"].message


@pytest.mark.extended
async def test_compression_that_cannot_be_declined() -> None:
    """A coding that is not installed here must be named, and not end the walk as an error."""
    async with gateway_running(CONFIG) as gateway:
        with nginx_running(gateway.port, "add_header Content-Encoding br;") as port:
            seen = await examine(f"http://127.0.0.1:{port}{PATH}", origin=None)
    assert seen.bad == {"compression"}
    assert seen["heartbeat"].message == "not checked: the stream is always compressed"


@pytest.mark.idle_clock
async def test_an_origin_that_is_not_allowed() -> None:
    """An origin that is refused, and cannot read the response, is reported with the setting to change."""
    async with gateway_running(CONFIG) as gateway:
        seen = await examine(gateway.url + PATH, origin="https://other.example")
    assert seen.bad == {"status", "cors", "preflight"}
    assert "allow it in cors.origins" in seen["status"].message


@pytest.mark.idle_clock
async def test_without_an_origin_nothing_is_said_about_cors() -> None:
    """A guess about a page would be wrong; the line says how to ask."""
    async with gateway_running() as gateway:
        seen = await examine(
            gateway.url + PATH, origin=None, patience=dataclasses.replace(BRIEF, listen_seconds=1.0)
        )
    assert seen["cors"].level is Level.SKIP
    assert "--origin" in seen["cors"].message
    assert "preflight" not in seen.checks


@pytest.mark.extended
@pytest.mark.parametrize(
    ("location", "bad", "word"),
    [
        ("return 204;", "status", "204"),
        ("default_type text/html; return 200 '<html>';", "content type", "text/html"),
        ("proxy_pass http://127.0.0.1:9;", "status", "502"),
    ],
)
async def test_answers_that_are_no_stream(location: str, bad: str, word: str) -> None:
    """An EventSource gives up for good on all of them."""
    if location.startswith("proxy_pass"):
        location, upstream = "", 9
    else:
        upstream = 80
    with nginx_running(upstream, location) as port:
        seen = await examine(f"http://127.0.0.1:{port}{PATH}", origin=None)
    assert seen.bad == {bad}
    assert word in seen[bad].message


@pytest.mark.idle_clock
async def test_an_overloaded_gateway() -> None:
    """A 200 with stream.close looks healthy to clients that check the status only."""
    async with gateway_running(merged(CONFIG, {"limits": {"connections": 1}})) as gateway:
        await gateway.subscribe(PATH)
        seen = await examine(gateway.url + PATH)
    assert seen.bad == {"closed"}
    assert "overloaded" in seen["closed"].message
    assert "limits.connections" in seen["closed"].fix


@pytest.mark.idle_clock
async def test_a_stream_that_the_gateway_ends() -> None:
    """timeouts.connection is no idle timeout of a proxy."""
    over = merged(CONFIG, {"timeouts": {"connection": "1s"}})
    async with gateway_running(over) as gateway:
        seen = await examine(gateway.url + PATH, patience=dataclasses.replace(BRIEF, listen_seconds=20.0))
    assert seen.bad == set()
    assert "max_age" in seen["closed"].message
    assert seen["resume"].level is Level.OK


@pytest.mark.idle_clock
async def test_another_node_that_does_not_share_the_log() -> None:
    """Two gateways with memory:// behind one balancer: every reconnect has a gap."""
    async with gateway_running(CONFIG) as one, gateway_running(CONFIG) as other:
        await one.post("orders", "{}")
        ports = itertools.chain(
            [one.port, one.port], itertools.repeat(other.port)
        )  # probe, stream, reconnect
        async with relay(lambda: next(ports)) as port:
            patience = dataclasses.replace(BRIEF, listen_seconds=1.0)
            seen = await examine(f"http://127.0.0.1:{port}{PATH}", origin=None, patience=patience)
    assert "share one log" in seen["resume"].fix


@pytest.mark.idle_clock
async def test_a_proxy_that_gathers_bytes() -> None:
    """Events that come in bunches are buffering too, though bytes do arrive."""
    async with (
        gateway_running(merged(CONFIG, {"timeouts": {"heartbeat": "200ms"}})) as gateway,
        relay(lambda: gateway.port, gather=0.7) as port,
    ):
        patience = dataclasses.replace(BRIEF, heartbeat_seconds=0.2, listen_seconds=2.5)
        seen = await examine(f"http://127.0.0.1:{port}{PATH}", origin=None, patience=patience)
    assert seen.bad == {"heartbeat"}
    assert "arrived together" in seen["heartbeat"].message


@pytest.mark.idle_clock
async def test_nothing_listens() -> None:
    """One line, and no traceback."""
    seen = await examine(f"http://127.0.0.1:9{PATH}")
    assert seen.bad == {"tcp"}
    assert seen.checks == ["name", "tcp", "the rest"]


@pytest.mark.idle_clock
async def test_a_name_that_does_not_resolve() -> None:
    """The commonest slip of all."""
    seen = await examine(f"https://no-such-host.invalid{PATH}")
    assert seen.bad == {"name"}


@pytest.mark.idle_clock
@pytest.mark.parametrize("id", ["1\x01", "1\x7f-0", "\x1b[2J"])
async def test_an_id_with_control_characters_is_a_finding(id: str) -> None:
    """Another server's ids, or a broken proxy's: the command ended in a traceback."""
    first = f'id: {id}\nevent: stream.open\ndata: {{"resume":"none"}}\n\n'

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=first, content_type="text/event-stream")

    async with serving(serve) as url:
        seen = await examine(f"{url}{PATH}", patience=BRISK)
    assert seen["resume"].level is Level.BAD
    assert "control characters" in seen["resume"].message
