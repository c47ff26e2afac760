"""What a page does to listen, natively or with the client, and what the test asks it then."""

from typing import Any

from tests.support.browser import LISTEN
from tests.support.browsers.tab import Tab

# `tokens` are what a function gives, one after the other, and never again one that was refused, whichever tab had given
# it; `asked` is what it was called with.
CONNECT = """
async (from, base, options, tokens) => {
  const { connect } = await import(from);
  window.got = [];
  window.states = [];
  window.asked = [];
  if (tokens) options.token = (refused) => {
    asked.push(refused ?? null);
    const next = refused ? tokens.indexOf(refused) + 1 : asked.length - 1;
    return tokens[Math.min(next, tokens.length - 1)];
  };
  window.stream = connect(base, options);
  stream.on("*", ({ type, reason, payload }) => got.push(type === "stream.gap" ? `gap ${reason}` : payload));
  stream.on("state", (change) => states.push(change));
}
"""


async def listen(tab: Tab, url: str, **options: Any) -> None:
    """Open a native EventSource."""
    await tab.evaluate(LISTEN, [url, options])


async def connect(
    tab: Tab,
    base: str,
    *channels: str,
    tokens: list[str] | None = None,
    client: str = "/client.js",
    **options: Any,
) -> None:
    """Open a stream of the client, which is imported from the URL ``client``."""
    await tab.evaluate(CONNECT, client, base, {"channels": channels, **options}, tokens)


async def got(tab: Tab) -> list[Any]:
    """Return the payloads that came."""
    return list(await tab.evaluate("() => got"))


async def have(tabs: list[Tab], wanted: list[Any]) -> bool:
    """Tell whether each of the tabs has got just these, in this order."""
    return all([await got(tab) == wanted for tab in tabs])


async def state(tab: Tab) -> str:
    """Return the state of the client's stream, with the reason where it has one."""
    return str(await tab.evaluate("() => [stream.state, stream.reason].filter(Boolean).join(' ')"))


async def ready_state(tab: Tab) -> int:
    """Return the ``readyState`` of the EventSource."""
    return int(await tab.evaluate("() => source.readyState"))
