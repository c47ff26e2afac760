"""A token that ends while a stream is open: its stream ends with it, and a renewed one carries on."""

import time
from pathlib import Path

import jwt
import pytest

from tests.clients.catalog import CLIENTS
from tests.clients.expected import check
from tests.clients.tap import Tap
from tests.clients.trial import HOOKS, STOPS, WHOLE, all_of, outcome, publish_orders, settled, trying
from tests.clients.zoo import Client
from tests.support.expiry import end_tokens
from tests.support.gateway import gateway_running, merged

pytestmark = pytest.mark.extended

SECRET, NEXT_SECRET = "s" * 32, "t" * 32
CONFIG = merged(
    HOOKS,
    {
        "auth": {
            "jwt": {"algorithms": ["HS256"], "secret": SECRET, "leeway": "0s"},
            "tickets": {"lifetime": "1m"},
        },
        "channels": {"orders": {"access": "token"}},
        "limits": {"connections_per_user": 100},
    },
)


def token(secret: str) -> str:
    """Return a token that outlives the test."""
    claims = {"sub": "42", "channels": ["orders"], "exp": time.time() + 600}
    return jwt.encode(claims, secret, "HS256")


def refusals(client: Client) -> int:
    """Return how often it was told 401."""
    return sum(1 for line in client.tap.lines if line.status == 401)


def became(client: Client) -> str:
    """Return what it does about a 401."""
    if refusals(client) == 0:
        return outcome(client, [1, 2])
    return STOPS if client.is_over else "retries for ever"


@pytest.mark.parametrize("renewed", [False, True], ids=["old", "renewed"])
async def test_a_token_ends(tmp_path: Path, renewed: bool) -> None:
    """A page whose token ends loses events though it has a new one; or retries for ever with the old one."""
    file = tmp_path / "token"
    file.write_text(token(SECRET))
    async with gateway_running(CONFIG) as gateway:
        taps = {name: Tap(gateway.port) for name in CLIENTS}
        async with trying(taps, token=file) as clients:
            await publish_orders(gateway, [1])
            await settled(clients.values(), 1)
            # From here on the old token is refused, and a renewed one is not.
            await gateway.reconfigure({"auth": {"jwt": {"secret": NEXT_SECRET}}})
            if renewed:
                file.write_text(token(NEXT_SECRET))
            end_tokens(gateway)

            def ended(client: Client) -> bool:
                return any(b'"reason":"token_expired"' in line.answered for line in client.tap.lines)

            await all_of(clients.values(), ended)
            await publish_orders(gateway, [2])
            # Three refusals in a row: it does not even slow down to think about it.
            await all_of(
                clients.values(),
                lambda client: client.is_over or refusals(client) > 2 or outcome(client, [1, 2]) == WHOLE,
            )
            found = {name: became(client) for name, client in clients.items()}
            check("token renewed" if renewed else "token expired", found)
