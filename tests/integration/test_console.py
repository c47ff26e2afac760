"""The console in a real Chromium: its states at two widths in light and dark, and a whole gateway behind it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.admin.test_guard import LOCKED, TOKEN
from tests.integration.test_workers import config
from tests.support.browser import Browser, browser_running
from tests.support.console import (
    LARGEST_DIFFERENCE,
    NEVER_SILENT,
    NOW,
    channel,
    difference,
    faults,
    frozen,
    over_time,
    picture,
    refusal,
    report,
    source,
)
from tests.support.gateway import eventually, gateway_running
from tests.support.node import Node

pytestmark = pytest.mark.extended

WIDTHS = (360, 1280)
SCHEMES = ("light", "dark")

BUSY = report(
    development=True,
    streams={"active": 12_408, "lagging": 3, "limit": 15_000, "lag_seconds": 1.25},
    totals={
        "opened": 90_000, "refused": 12, "received": 320, "rejected": 2, "published": 310, "delivered": 41_000,
        "bytes_sent": 6_400_000, "gaps": 4, "lag_seconds": 0.9, "lag_count": 300,
    },
    sources=[
        source("app", leader=True),
        source("stream", type="redis-stream", leader=False, last_event_ms=NOW - 90_000),
        source("kafka", type="kafka", leader=True, lag=1_204),
        source("hooks", type="webhook", rejected={"not_json": 42, "too_large": 3}, stale=True),
        source("legacy", status="off", last_error="its url is empty", last_event_ms=None, received=0),
    ],
    channels=[
        channel("orders", 8_200, 200, "app: orders.*", "hooks: orders", "kafka: orders"),
        channel("prices", 3_100, 80, "stream: prices"),
        channel("user.{id}", 1_108, 30, "app: user:{id}"),
        channel("announcements", 12_408, 0, "hooks: announcements", stale=True),
    ],
    recent_errors=[
        refusal("origin_refused", "pages of 'https://evil.example' may not read this; allow it in cors.origins",
                origin="https://evil.example", count=1_207),
        refusal("not_json", "the payload is not JSON: invalid character (byte 0)", kind="source", source="hooks", count=42),
        refusal("address_limit", "limits.connections_per_address (1000) is reached", client="2001:db8:0:12:34:56:78:9a"),
        refusal("missing_token", "this needs Authorization: Bearer, with server.admin_token", kind="admin", client="10.0.3.17"),
    ],
    workers=[
        {"worker": 0, "pid": 4242, "restarts": 0, "uptime_seconds": 7_255.0, "streams": 6_201, "ready": True},
        {"worker": 1, "pid": None, "restarts": 3, "uptime_seconds": None, "streams": None, "ready": False},
    ],
    config={"file": "/etc/sse-gateway/gateway.yaml", "loaded_ms": NOW - 7_260_000, "last_reload": None},
)  # fmt: skip

DOWN = report(
    ready=False,
    not_ready=["broker", "source app"],
    broker={"type": "redis", "up": False, "head": "1763870400000-0"},
    sources=[
        source(
            "app", status="down", since_ms=NOW - 75_000, restarts=9, leader=True,
            last_error="Error 111 connecting to redis-0.redis.svc.cluster.local:6379. Connection refused.",
        )
    ],
)  # fmt: skip

FAILED = report(
    config={
        "file": "config/gateway.yaml",
        "loaded_ms": NOW - 86_400_000,
        "last_reload": {
            "at_ms": NOW - 12_000,
            "result": "failed",
            "message": "config/gateway.yaml has 2 mistakes; nothing was changed",
            "errors": [
                {"line": 17, "column": 5, "path": "channels.orders.form", "message": "unknown key; did you mean 'from'?"},
                {"line": 40, "column": 13, "path": "cors.origins.0", "message": "'app.example.com' needs a scheme: https://app.example.com"},
            ],
        },
    }
)  # fmt: skip

STATES: dict[str, dict[str, Any]] = {
    "idle": {"reports": [report(development=True)]},
    "busy": {"reports": over_time(BUSY)},
    "down": {"reports": [DOWN]},
    "reload-failed": {"reports": [FAILED]},
    "lost": {"reports": over_time(BUSY), "is_lost": True},
    "locked": {"reports": [], "is_locked": True},
}
SIGNS = {
    "idle": "Nobody was refused",
    "busy": "12,408",
    "down": "Not ready: broker, source app",
    "reload-failed": "Reload failed",
    "lost": "Connection lost: the gateway is shutting down.",  # what the second attempt is told
    "locked": "Who asks?",
}
"""What the page says in each state."""


@asynccontextmanager
async def shown(browser: Browser, state: str) -> AsyncIterator[Page]:
    """Show a state that never changes."""
    async with frozen(**STATES[state]) as url:
        page = await browser.context.new_page()
        await page.add_init_script(NEVER_SILENT)
        await page.goto(url)
        await expect(page.get_by_text(SIGNS[state]).first).to_be_visible()
        if STATES[state]["reports"]:
            await eventually(lambda: _is_at_the_last_report(page))
        try:
            yield page
        finally:
            await page.close()


async def _is_at_the_last_report(page: Page) -> bool:
    return bool(await page.evaluate("newest?.now_ms") == NOW)


@pytest.mark.parametrize("state", STATES)
async def test_a_state_is_whole_legible_and_looks_as_it_did(state: str) -> None:
    """Text that is cut, covered, too pale or unknown to a screen reader; a panel that is lost."""
    async with browser_running() as browser, shown(browser, state) as page:
        canvas = await browser.page()
        for width in WIDTHS:
            for scheme in SCHEMES:
                await page.set_viewport_size({"width": width, "height": 900})
                await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
                assert await faults(page) == [], (state, width, scheme)
                unlike = await difference(canvas, f"{state}-{width}-{scheme}", await picture(page))
                assert unlike <= LARGEST_DIFFERENCE[width], (state, width, scheme, unlike)


async def test_the_comparison_sees_what_a_person_would_and_no_other_fonts() -> None:
    """A comparison that cannot fail is decoration; one that a font fails ties the tests to a machine."""
    changes = {
        ".columns > .column:last-child { display: none }": True,
        ".columns { grid-template-columns: minmax(0, 1fr) }": True,
        ":root { --surface: #ffe9c9 }": True,
        "body { font-size: 20px }": True,
        ".figures { display: none }": True,
        "#sources { display: none }": True,
        "body { font-family: 'DejaVu Serif', serif; letter-spacing: -0.03em }": False,
        "body { font-family: 'DejaVu Sans Mono', monospace; letter-spacing: -0.09em }": False,
    }
    async with browser_running() as browser, shown(browser, "busy") as page:
        canvas = await browser.page()
        await page.set_viewport_size({"width": 1280, "height": 900})
        await page.emulate_media(color_scheme="light", reduced_motion="reduce")
        for rules, is_seen in changes.items():
            await _restyle(page, rules)
            unlike = await difference(canvas, "busy-1280-light", await picture(page))
            assert (unlike > LARGEST_DIFFERENCE[1280]) == is_seen, (rules, unlike)


async def test_the_faults_are_found() -> None:
    """Neither are the checks of the layout."""
    changes = {
        "body { min-width: 50rem }": "too wide",
        ".muted, small { color: #b9bec6 !important }": "color-contrast",
        ".figure { height: 3rem }": "clipped",
        ".figure .note { margin-top: -1.6rem }": "overlap",
    }
    async with browser_running() as browser, shown(browser, "busy") as page:
        await page.set_viewport_size({"width": 360, "height": 900})
        await page.emulate_media(color_scheme="light")
        for rules, fault in changes.items():
            await _restyle(page, rules)
            found = await faults(page)
            assert any(fault in each for each in found), (rules, found)


async def _restyle(page: Page, rules: str) -> None:
    # The policy keeps style elements out; sheets that a script makes are the script's own.
    await page.evaluate(
        """(rules) => {
          const sheet = new CSSStyleSheet();
          sheet.replaceSync(rules);
          document.adoptedStyleSheets = [sheet];
        }""",
        rules,
    )


async def test_all_of_it_can_be_reached_and_seen_by_keyboard() -> None:
    """Who uses no mouse must get everywhere, and see where that is."""
    async with browser_running() as browser, shown(browser, "busy") as page:
        await page.emulate_media(reduced_motion="reduce")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"
        reached = []
        for _ in range(20):
            await page.keyboard.press("Tab")
            name, outline = await page.evaluate(
                """() => {
                  const { id, tagName, textContent } = document.activeElement;
                  const name = id || (tagName === "BODY" ? "" : textContent.trim());
                  return [name, getComputedStyle(document.activeElement).outlineStyle];
                }"""
            )
            if not name:
                break  # around
            reached.append(name)
            assert outline != "none", name
        for name in (
            "try-channel",
            "try-listen",
            "try-type",
            "try-payload",
            "Send event",
            "try-log",
            "reload",
            "/status",
        ):
            assert name in reached


async def test_names_of_strangers_are_text() -> None:
    """A channel, an origin or an error that looks like HTML must not become any."""
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;"
    hostile = report(
        development=True,
        not_ready=[evil],
        ready=False,
        version=evil,
        sources=[source(evil, type=evil, status=evil, last_error=evil, rejected={evil: 1})],
        channels=[channel(evil, 1, 1, evil)],
        recent_errors=[refusal(evil, evil, origin=evil, client=evil)],
        config={
            "file": evil, "loaded_ms": NOW,
            "last_reload": {
                "at_ms": NOW, "result": evil, "message": evil,
                "errors": [{"line": 1, "column": 1, "path": evil, "message": evil}],
            },
        },
    )  # fmt: skip
    async with browser_running() as browser, frozen([hostile]) as url:
        page = await browser.context.new_page()
        await page.goto(url)
        await expect(page.locator("#config-errors")).to_contain_text(evil)
        for place in ("#readiness", "#facts", "#sources", "#channels", "#refusals", "#config"):
            await expect(page.locator(place)).to_contain_text(evil)
        assert await page.locator("img").count() == 0
        assert await page.locator("script").count() == 1
        assert "owned" not in await page.title()


async def test_many_channels_are_bounded_and_found_by_name() -> None:
    """Thousands of rows each second would freeze the page of who needs it most."""
    many = report(channels=[channel(f"channel-{number}") for number in range(3000)])
    async with browser_running() as browser, frozen([many]) as url:
        page = await browser.context.new_page()
        await page.goto(url)
        channels = page.get_by_role("region", name="Channels 3,000")
        await expect(channels).to_contain_text("2,900 more")
        assert await channels.locator("tbody tr").count() == 100
        await channels.get_by_role("searchbox").fill("channel-2999")
        await expect(channels.locator("tbody tr")).to_have_count(1)
        await expect(channels.locator("tbody tr")).to_contain_text("channel-2999")
        await channels.get_by_role("searchbox").fill("nothing")
        await expect(channels).to_contain_text("Nothing of that name.")


async def test_an_event_sent_from_the_panel_shows_up_and_figures_move() -> None:
    """A newcomer's first click: listen and send, in one."""
    async with browser_running() as browser, gateway_running({"server": {"development": True}}) as gateway:
        page = await browser.context.new_page()
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
        await page.goto(f"http://127.0.0.1:{gateway.daemon.admin_listener.port}/")
        await expect(page.locator("#readiness")).to_have_text("Ready")
        await page.get_by_label("Event type").fill("order.created")
        await page.get_by_label("Payload").fill('{"id": 12345678901234567890, "note": "<b>\\u00e9</b>"}')
        await page.get_by_role("button", name="Send event").click()
        arrived = page.locator("#try-log li")
        await expect(arrived).to_have_count(1)
        await expect(arrived).to_contain_text("order.created")
        await expect(arrived).to_contain_text('{"id": 12345678901234567890, "note": "<b>\\u00e9</b>"}')
        client = await gateway.subscribe("/events/orders")
        await gateway.post("orders", '{"from":"a webhook"}')
        await expect(arrived.first).to_contain_text('{"from":"a webhook"}')
        await client.next()
        row = page.get_by_role("row", name="orders")
        await expect(row.locator("td").nth(1)).to_have_text("2")
        await expect(page.locator("#figures")).to_contain_text("2 in all")
        await gateway.open("/events/orders", {"Origin": "https://evil.example"})
        await expect(page.locator("#refusals")).to_contain_text("https://evil.example")
        await page.get_by_label("Channel", exact=True).fill("nothing")
        await page.get_by_role("button", name="Send event").click()
        await expect(page.locator("#try-state")).to_contain_text("Refused: there is no such channel")
        await eventually(lambda: len(gateway.daemon.streams.active) == 1)
        # The browser itself writes the refused request's 404 there.
        assert [trouble for trouble in troubles if "404" not in trouble] == []


async def test_a_gateway_that_dies_is_told_and_one_that_returns_is_found(tmp_path: Path) -> None:
    """Figures of a dead gateway must not look alive."""
    whole = config(tmp_path, workers=1)
    whole["server"] = {"development": True}
    node = Node(tmp_path, whole)
    try:
        await node.start()
        async with browser_running() as browser:
            page = await browser.context.new_page()
            await page.goto(f"http://127.0.0.1:{node.admin}/")
            await expect(page.locator("#link")).to_have_text("Live")
            await page.get_by_role("button", name="Listen").click()
            await expect(page.locator("#try-state")).to_have_text("Listening to orders.")
            await node.kill()
            await expect(page.locator("#lost")).to_contain_text("Connection lost")
            await expect(page.locator("#readiness")).to_have_text("Unknown")
            await node.start()
            await expect(page.locator("#link")).to_have_text("Live")
            await expect(page.locator("#lost")).to_be_hidden()
            await expect(page.locator("#readiness")).to_have_text("Ready")
            await expect(page.locator("#try-state")).to_have_text("Listening to orders.")
    finally:
        await node.kill()


async def test_a_reload_tells_the_mistake_and_takes_the_mend(tmp_path: Path) -> None:
    """Who edits the file sees in the page what the gateway makes of it, from the gateway's own words."""
    node = Node(tmp_path, config(tmp_path, workers=1) | {"server": {}})
    try:
        await node.start()
        async with browser_running() as browser:
            page = await browser.context.new_page()
            await page.goto(f"http://127.0.0.1:{node.admin}/")
            await expect(page.locator("#config-file")).to_contain_text(str(node.file))
            node.file.write_text("timeouts: {drian: 1s}\n" + node.file.read_text().lstrip("{"))
            await page.get_by_role("button", name="Reload").click()
            await expect(page.locator("#config-result")).to_contain_text("Reload failed")
            await expect(page.locator("#config-errors")).to_be_visible()
            node.write({**node.config, "timeouts": {"drain": "3s"}})
            await expect(page.locator("#config-result")).to_contain_text("Reloaded")
            await expect(page.locator("#config-errors")).to_be_hidden()
    finally:
        await node.kill()


async def test_the_token_is_asked_for_and_kept_for_the_tab() -> None:
    """A wrong one is told, the right one shows the figures, a reload of the tab does not ask again."""
    async with browser_running() as browser, gateway_running(LOCKED) as gateway:
        page = await browser.context.new_page()
        await page.goto(f"http://127.0.0.1:{gateway.daemon.admin_listener.port}/")
        await page.get_by_label("Token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#token-error")).to_have_text("That is not the token.")
        await expect(page.locator("#told")).to_be_hidden()
        await page.get_by_label("Token").fill(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.locator("#readiness")).to_have_text("Ready")
        await expect(page.locator("#token")).to_be_hidden()
        await expect(page.locator("#try-off")).to_be_visible()
        await page.reload()
        await expect(page.locator("#readiness")).to_have_text("Ready")
        assert TOKEN not in page.url
        assert await browser.context.cookies() == []


async def test_a_fast_channel_does_not_freeze_the_page() -> None:
    """The newest events are shown, and all are counted."""
    async with browser_running() as browser, gateway_running({"server": {"development": True}}) as gateway:
        page = await browser.context.new_page()
        await page.goto(f"http://127.0.0.1:{gateway.daemon.admin_listener.port}/")
        await page.get_by_role("button", name="Listen").click()
        await expect(page.locator("#try-state")).to_have_text("Listening to orders.")
        for thousand in range(1, 6):
            await gateway.post("orders", "[" + ",".join(str(n) for n in range(1000)) + "]")
            await expect(page.locator("#try-log-title")).to_have_text(f"What arrived ({thousand},000)")
        assert await page.locator("#try-log li").count() == 50
        await expect(page.locator("#try-log li").first).to_contain_text("999")
