"""The hook in real React, of today and of before: in Chromium, and on a server."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.client.package import FOLDER, SOURCE, run, tool
from tests.support.browser import browser_running
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.needs import need, need_npm

pytestmark = pytest.mark.extended

REACTS = {"18": "-18", "19": ""}


def bundled(page: str, react: str, folder: Path, *options: str) -> Path:
    """Bundle a page, as an application would be, with one of the Reacts. Development mode: StrictMode does its work."""
    need_npm(FOLDER)
    out = folder / "bundle.js"
    done = run(
        tool("esbuild/bin/esbuild"), f"hook/{page}", "--bundle", "--jsx=automatic", f"--outfile={out}", "--log-level=warning",
        f"--alias:react=./node_modules/react{REACTS[react]}",
        f"--alias:react-dom=./node_modules/react-dom{REACTS[react]}",
        f"--alias:sse-gateway-client/react={SOURCE / 'react.js'}",
        '--define:process.env.NODE_ENV="development"', *options,
        folder=FOLDER,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return out


@dataclass
class Shown:
    """A page that shows the component, and the gateway that it is subscribed to."""

    page: Page
    gateway: Gateway
    troubles: list[str] = field(default_factory=list)

    async def says(self, text: str | re.Pattern[str]) -> None:
        """Wait until the component shows this: round, state, reason, whether there is a stream."""
        await expect(self.page.locator("p")).to_have_text(text)

    async def saw(self, *events: list[Any]) -> None:
        """Wait until its handlers were called with these, and no others, in order."""
        wanted = [list(event) for event in events]
        await eventually(lambda: self._has_seen(wanted))

    async def _has_seen(self, wanted: list[list[Any]]) -> bool:
        return bool(await self.page.evaluate("seen") == wanted)

    def channels(self) -> list[tuple[str, ...]]:
        """Return what the streams that the gateway has are subscribed to."""
        return [stream.subscription.channels for stream in self.gateway.daemon.streams.active]

    async def subscribed(self, *channels: str) -> None:
        """Wait until there is one stream, of these channels."""
        await eventually(lambda: self.channels() == [channels])


@asynccontextmanager
async def shown(react: str, folder: Path, **over: Any) -> AsyncIterator[Shown]:
    """Show the component in StrictMode."""
    script = bundled("page.jsx", react, folder, "--format=esm")
    async with (
        browser_running() as browser,
        gateway_running({"cors": {"origins": [browser.origin()]}, **over}) as gateway,
    ):
        page = await browser.page()
        found = Shown(page, gateway)
        page.on("pageerror", lambda error: found.troubles.append(str(error)))
        page.on("console", lambda line: found.troubles.append(line.text) if line.type != "info" else None)
        await page.add_script_tag(path=script, type="module")
        await page.wait_for_function("typeof show === 'function'")
        yield found
        assert found.troubles == []


@pytest.mark.parametrize(("react", "is_shared"), [("18", False), ("19", False), ("19", True)])
async def test_a_component_is_subscribed_while_it_is_shown(
    react: str, is_shared: bool, tmp_path: Path
) -> None:
    """StrictMode mounts twice: one stream is left, and none when the component is gone."""
    async with shown(react, tmp_path) as found:
        await found.page.evaluate("isShared => Object.assign(window, { isShared })", is_shared)
        await found.page.evaluate("url => show(url)", found.gateway.url)
        await found.says("0 open - there")
        await found.subscribed("orders")
        await found.gateway.post("orders", "1")
        await found.saw([0, "orders", 1])
        await found.page.evaluate("rerender(false)")
        await eventually(lambda: found.channels() == [])
        await found.page.evaluate("url => rerender(url)", found.gateway.url)
        await found.says("0 open - there")
        await found.subscribed("orders")
        await found.page.evaluate("rerender(null)")  # nobody is signed in any more
        await found.says("0 closed - none")
        await eventually(lambda: found.channels() == [])


async def test_a_render_changes_handlers_and_no_connection(tmp_path: Path) -> None:
    """Each render makes options and handlers anew; only other values are a reason to connect."""
    async with shown("19", tmp_path) as found:
        await found.page.evaluate("url => show(url)", found.gateway.url)
        await found.says("0 open - there")
        await found.subscribed("orders")
        (stream,) = found.gateway.daemon.streams.active
        for round_ in (1, 2):
            await found.page.evaluate(
                f"setRound({round_}), setChannels([...['orders']]), setToken(() => () => '')"
            )
            await found.says(f"{round_} open - there")
        # A token where there was none is one reason; another function is none.
        await eventually(lambda: list(found.gateway.daemon.streams.active) != [stream])
        await found.subscribed("orders")
        (stream,) = found.gateway.daemon.streams.active
        await found.page.evaluate("setRound(3), setToken(() => () => null)")
        await found.says("3 open - there")
        await found.gateway.post("orders", "1")
        await found.saw([3, "orders", 1])
        assert list(found.gateway.daemon.streams.active) == [stream]


async def test_other_channels_are_another_stream(tmp_path: Path) -> None:
    """The old one ends, and what comes on the new one is heard; the page can tell that there is a new one."""
    async with shown("19", tmp_path) as found:
        await found.page.evaluate("url => show(url)", found.gateway.url)
        await found.says("0 open - there")
        assert await found.page.evaluate("streams.size") == 1
        await found.page.evaluate("setChannels(['orders', 'stock'])")
        await found.subscribed("orders", "stock")
        await found.says("0 open - there")
        assert await found.page.evaluate("streams.size") == 2
        await found.gateway.post("stock", '"more"')
        await found.saw([0, "stock", "more"])
        await found.page.evaluate("setChannels(['nothing'])")
        await found.says("0 closed unknown_channel none")
        assert found.channels() == []
        # The browser itself writes the refused request's 404 there.
        found.troubles = [each for each in found.troubles if "404" not in each]


async def test_a_gap_is_told_and_the_stream_stays_the_same(tmp_path: Path) -> None:
    """A page that was away: it shows that, goes on where it was, and hears of what it can no longer have."""
    short = {"orders": {"history": {"events": 1}}}
    async with shown("19", tmp_path, channels=short, timeouts={"retry": "20ms"}) as found:
        await found.page.evaluate("url => show(url)", found.gateway.url)
        await found.says("0 open - there")
        await found.gateway.post("orders", "1")
        await found.saw([0, "orders", 1])
        await found.page.context.set_offline(True)
        await found.says(re.compile("0 offline (offline|network) there"))
        await eventually(lambda: found.channels() == [])
        for number in ("2", "3"):
            await found.gateway.post("orders", number)
        await found.page.context.set_offline(False)
        await found.saw([0, "orders", 1], [0, "gap", "expired"], [0, "orders", 3])
        await found.says("0 open - there")
        assert await found.page.evaluate("streams.size") == 1
        # The browser itself writes what it could not load there.
        found.troubles = [each for each in found.troubles if "ERR_INTERNET_DISCONNECTED" not in each]


@pytest.mark.parametrize("react", REACTS)
def test_a_server_renders_and_connects_to_nothing(react: str, tmp_path: Path) -> None:
    """No request is made, nothing is left running, and React has nothing to complain of."""
    script = bundled(
        "server.jsx", react, tmp_path, "--platform=node", "--log-override:empty-import-meta=silent"
    )
    done = run(need("node", "nodejs"), script, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "connecting null\nclosed null\n", "")
    assert json.loads((FOLDER / "package.json").read_text())["dependencies"][f"react{REACTS[react]}"]
