"""A simulated shop: orders are created, paid and shipped at random."""

import random
import time
from dataclasses import asdict, dataclass, replace

MAX_ORDERS = 100
"""Orders that are kept: the newest."""

MAX_OPEN_ORDERS = 12
"""Orders that are not shipped yet; beyond that no new one is created."""

_NEXT = {"created": "paid", "paid": "shipped"}
_CITIES = (
    "Bogotá",
    "Hanoi",
    "Kraków",
    "Lagos",
    "Lisbon",
    "Malmö",
    "Nagoya",
    "Perth",
    "Québec",
    "Tromsø",
    "Zürich",
)
_ITEMS = (
    ("tea", 480),
    ("coffee", 890),
    ("a teapot", 3_900),
    ("two cups", 1_700),
    ("a grinder", 6_450),
    ("honey", 720),
)


@dataclass(frozen=True, slots=True)
class Order:
    """The state of an order. ``version`` increases with each change, so that the newer of two is known."""

    number: int
    version: int
    city: str
    items: str
    cents: int
    status: str
    at: int
    """Time of the last change, in Unix milliseconds."""


class Shop:
    """All orders; `step` changes one."""

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._number = 1_000
        self.changes = 0

    def step(self) -> Order:
        """Create or change one order, and return it."""
        waiting = [order for order in self._orders.values() if order.status in _NEXT]
        if not waiting or (len(waiting) < MAX_OPEN_ORDERS and random.random() < 0.4):
            order = self._taken()
        else:
            old = random.choice(waiting)
            order = replace(old, version=old.version + 1, status=_NEXT[old.status], at=_now())
        self._orders[order.number] = order
        self.changes += 1
        if len(self._orders) > MAX_ORDERS:
            del self._orders[min(self._orders)]
        return order

    def snapshot(self) -> dict[str, object]:
        """Return the state that the page starts with: every order."""
        return {"changes": self.changes, "orders": [asdict(order) for order in self._orders.values()]}

    def _taken(self) -> Order:
        self._number += 1
        chosen = random.sample(_ITEMS, k=random.randint(1, 2))
        items, cents = " and ".join(name for name, _ in chosen), sum(price for _, price in chosen)
        return Order(self._number, 1, random.choice(_CITIES), items, cents, "created", _now())


def _now() -> int:
    return round(time.time() * 1_000)
