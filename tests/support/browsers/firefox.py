"""Firefox ESR of Debian, by WebDriver BiDi and nothing between."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from bench.process import Process, running
from tests.support.browsers.tab import call
from tests.support.browsers.weight import process_of
from tests.support.browsers.wire import Wire, wired
from tests.support.gateway import eventually
from tests.support.needs import need

PREFERENCES = {
    # A process for each tab: with four for a site, as it is shipped, a tab that is killed takes others with it.
    "dom.ipc.processCount.webIsolated": 16,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
}


class FirefoxTab:
    """A tab, which BiDi calls a browsing context."""

    def __init__(self, profile: "FirefoxProfile", context: str) -> None:
        self._profile = profile
        self._ask = profile.wire.ask
        self.context = context

    async def open(self, url: str) -> None:
        await self._ask("browsingContext.navigate", context=self.context, url=url, wait="complete")

    async def evaluate(self, function: str, *arguments: Any) -> Any:
        return await call(self._call, function, arguments)

    async def _call(self, function: str, text: str) -> Any:
        result = await self._ask(
            "script.callFunction",
            functionDeclaration=function,
            arguments=[{"type": "string", "value": text}],
            target={"context": self.context},
            awaitPromise=True,
        )
        assert result["type"] == "success", result["exceptionDetails"]["text"]
        return result["result"]["value"]

    async def back(self) -> None:
        await self._traverse(-1)

    async def forward(self) -> None:
        await self._traverse(1)

    async def _traverse(self, delta: int) -> None:
        await self._ask("browsingContext.traverseHistory", context=self.context, delta=delta)

    async def show(self) -> None:
        await self._ask("browsingContext.activate", context=self.context)

    async def close(self) -> None:
        await self._ask("browsingContext.close", context=self.context)

    async def kill(self) -> None:
        os.kill(await process_of(self._profile.process, self.evaluate), signal.SIGKILL)

    async def noise(self) -> list[str]:
        return [text for context, text in self._profile.log if context == self.context]


class FirefoxProfile:
    """A user context: the tabs of another one have other cookies."""

    def __init__(self, process: Process, wire: Wire, log: list[tuple[str, str]], user: str) -> None:
        self.process = process
        self.wire = wire
        self.log = log
        self._user = user

    async def tab(self, url: str) -> FirefoxTab:
        made = await self.wire.ask("browsingContext.create", type="tab", userContext=self._user)
        tab = FirefoxTab(self, made["context"])
        await tab.open(url)
        return tab

    async def go_offline(self) -> None:
        await self._network({"type": "offline"})

    async def go_online(self) -> None:
        await self._network(None)

    async def _network(self, conditions: dict[str, str] | None) -> None:
        order = "emulation.setNetworkConditions"
        await self.wire.ask(order, networkConditions=conditions, userContexts=[self._user])


class Firefox:
    """One process with its children; headless."""

    title: ClassVar[str] = "Firefox"
    can_go_offline: ClassVar[bool] = True
    can_kill: ClassVar[bool] = True
    can_hide: ClassVar[bool] = True
    worker_stays: ClassVar[bool] = True
    worker_says_goodbye: ClassVar[bool] = True
    keeps_pages_with_requests: ClassVar[bool] = False

    def __init__(self, process: Process) -> None:
        self._process = process
        self._log: list[tuple[str, str]] = []
        self.wire: Wire

    def listen(self, method: str, parameters: dict[str, Any]) -> None:
        """Keep what a console says."""
        if method == "log.entryAdded":
            context = parameters["source"].get("context", "")
            self._log.append((context, f"{parameters['level']}: {parameters['text']}"))

    @asynccontextmanager
    async def profile(self) -> AsyncIterator[FirefoxProfile]:
        """Make a user context; it ends with all its tabs, and without their being asked."""
        user = (await self.wire.ask("browser.createUserContext"))["userContext"]
        try:
            yield FirefoxProfile(self._process, self.wire, self._log, user)
        finally:
            await self.wire.ask("browser.removeUserContext", userContext=user)


@asynccontextmanager
async def firefox_running() -> AsyncIterator[Firefox]:
    """Run a Firefox with a profile folder of its own; both end with the block."""
    program = need("firefox-esr", "firefox-esr")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        lines = [f"user_pref({json.dumps(key)}, {json.dumps(value)});" for key, value in PREFERENCES.items()]
        (folder / "user.js").write_text("\n".join(lines))
        command = [program, "--headless", "--no-remote", "--profile", str(folder)]
        process = stack.enter_context(
            running(*command, "--remote-debugging-port", "0", HOME=str(folder), MOZ_CRASHREPORTER_DISABLE="1")
        )
        said = folder / "WebDriverBiDiServer.json"
        await eventually(lambda: said.exists() and said.read_text().endswith("}"))
        address = json.loads(said.read_text())
        engine = Firefox(process)
        url = f"ws://{address['ws_host']}:{address['ws_port']}/session"
        engine.wire = await stack.enter_async_context(wired(url, engine.listen))
        await engine.wire.ask("session.new", capabilities={})
        await engine.wire.ask("session.subscribe", events=["log.entryAdded"])
        yield engine
        # Asked to go it would ask back, where a tab was killed.
        process.signal(signal.SIGKILL)
