"""The lines that a frontend developer pastes, run in an empty page of another origin."""

import re
import time
from pathlib import Path

import jwt
import pytest

from tests.docs.pages import ROOT
from tests.support.browser import browser_running
from tests.support.gateway import eventually, gateway_running

pytestmark = pytest.mark.extended

SECRET = "s" * 32
PAGES = [ROOT / "README.md", ROOT / "docs/guides/frontend.md"]

# Functions that the page has already, and lists that the test reads.
OWN = """
window.rendered = [];
window.refetched = [];
window.render = (payload) => rendered.push(payload);
window.refetch = (channel) => refetched.push(channel);
window.getToken = async () => token;
"""


def pasted(page: Path) -> str:
    """Return the first lines of a page that import the client."""
    (lines, *_) = re.findall(
        r'```js\n(import \{ connect \} from "https://.*?)```', page.read_text(), re.DOTALL
    )
    return str(lines)


def test_the_lines_are_the_same_everywhere() -> None:
    """README and guide show different lines; only the URL of the module may differ."""
    first, *others = (re.sub(r"https://\w+\.example\.com(/client\.js)?", "…", pasted(page)) for page in PAGES)
    assert others == [first]
    assert (
        first.replace("…", "sse-gateway-client", 1).replace("…", "https://gw.example.com")
        in (ROOT / "client/README.md").read_text()
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_the_lines_work_in_an_empty_page(page: Path) -> None:
    """The first lines that a developer tries fail: public and own channel, a gap, no console errors."""
    config = {
        "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}},
        "channels": {
            "orders": {"history": {"events": 1}},
            "user.{id}": {
                "from": [{"source": "hooks", "topic": "user.{id}"}],
                "access": {"claims": {"sub": "{id}"}},
            },
        },
    }
    troubles: list[str] = []
    async with (
        browser_running() as browser,
        gateway_running({**config, "cors": {"origins": [browser.origin()]}}) as gateway,
    ):
        tab = await browser.page()
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("console", lambda line: troubles.append(line.text))
        token = jwt.encode({"sub": "42", "exp": time.time() + 600}, SECRET)
        await tab.evaluate(f"window.token = {token!r}; {OWN}")
        lines = re.sub(r"https://\w+\.example\.com", gateway.url, pasted(page))
        await tab.add_script_tag(content=lines, type="module")
        await eventually(lambda: len(gateway.daemon.streams.active) == 1)
        (stream,) = gateway.daemon.streams.active
        assert stream.subscription.channels == ("orders", "user.42")
        await gateway.post("orders", '{"number": 1}')
        await gateway.post("user.42", '{"text": "hello"}')
        await gateway.post("orders", '{"number": 2}')
        await eventually(lambda: tab.evaluate("rendered.length === 2"))
        assert await tab.evaluate("rendered") == [{"number": 1}, {"number": 2}]
        assert troubles == []
        await browser.context.set_offline(True)
        await eventually(lambda: not gateway.daemon.streams.active)
        for number in (3, 4):
            await gateway.post("orders", f'{{"number": {number}}}')
        await browser.context.set_offline(False)
        await eventually(lambda: tab.evaluate("rendered.length === 3"))
        assert await tab.evaluate("[refetched, rendered.at(-1)]") == [["orders"], {"number": 4}]
        assert [each for each in troubles if "net::ERR_" not in each] == []
