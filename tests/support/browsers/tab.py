"""What a test does with a browser, whichever it is.

An *engine* runs once for many tests; each test has a *profile* of its own (cookies, storage, connections), and
in that as many *tabs* as a person would have. What an engine cannot do its class says, as `Engine.can_go_offline`.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

ALLOCATE = "(bytes) => { window.weight = new Uint8Array(bytes).fill(1); }"
"""Makes the process of a tab that is to be killed grow, by which it is told from the others."""


class Tab(Protocol):
    """One tab. Every method raises AssertionError when the browser reports an error."""

    async def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""

    async def evaluate(self, function: str, *arguments: Any) -> Any:
        """Call a JavaScript function of the page's; promises are awaited, values pass as JSON."""

    async def back(self) -> None:
        """Go back as the button does; returns when the page before is there."""

    async def forward(self) -> None:
        """Go forward likewise."""

    async def show(self) -> None:
        """Bring it to the front; the one that was there becomes hidden where the browser has that."""

    async def close(self) -> None:
        """Close it as a person does."""

    async def kill(self) -> None:
        """End its process from one instruction to the next: no event handler of the page's runs any more."""

    async def noise(self) -> list[str]:
        """Return what stands in its console."""


class Profile(Protocol):
    """What the tabs of one person share."""

    async def tab(self, url: str) -> Tab:
        """Open a page in a new tab, in front of the others."""

    async def go_offline(self) -> None:
        """Cut the network, as a lost Wi-Fi does."""

    async def go_online(self) -> None:
        """Bring it back."""


class Engine(Protocol):
    """A browser that is installed and runs."""

    title: ClassVar[str]
    """Its name in the docs."""
    can_go_offline: ClassVar[bool]
    """Whether there is an order that takes the network away from its pages."""
    can_kill: ClassVar[bool]
    """Whether it can be driven on when a tab's process was killed."""
    can_hide: ClassVar[bool]
    """Whether a tab that comes to the front hides the others."""
    worker_stays: ClassVar[bool]
    """Whether a SharedWorker goes on when the tab that started it is closed; else another one takes its place."""
    worker_says_goodbye: ClassVar[bool]
    """Whether a SharedWorker runs a moment longer than its last tab, which goes into the back/forward cache."""
    keeps_pages_with_requests: ClassVar[bool]
    """Whether a page whose request is under way when it is left may be in the back/forward cache then."""

    def profile(self) -> AbstractAsyncContextManager[Profile]:
        """Return a new profile; all its tabs are closed at the end of the block."""


def as_text(function: str) -> str:
    """Return a function from JSON text to JSON text that calls ``function`` with the arguments in it.

    So numbers, lists and undefined pass the three protocols alike.
    """
    return f"async (text) => JSON.stringify(await ({function})(...JSON.parse(text))) ?? 'null'"


async def call(ask: Callable[[str, str], Awaitable[Any]], function: str, arguments: tuple[Any, ...]) -> Any:
    """Call a function by ``ask(function, text)``, which has one argument and one result of text."""
    answer = await ask(as_text(function), json.dumps(arguments))
    return json.loads(answer)
