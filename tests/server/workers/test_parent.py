"""What the parent of several workers says for itself."""

from gateway.observability.metrics import Metrics
from gateway.server.workers.parent import Parent
from tests.support.config import loads

CONFIG = """
broker: {url: "sqlite:///never-opened.db"}
sources: {hooks: {type: webhook, verify: {none: true}}}
channels: {orders: {from: [{source: hooks, topic: orders}], access: public}}
"""


async def test_without_a_worker_the_gauges_say_none() -> None:
    """A gauge that is gone fires no alert, and an autoscaler without figures does nothing."""
    parent = Parent(loads(CONFIG, environ={}), 2, Metrics())
    told = {family.name: family.samples[0][2] for family in await parent.metric_families() if family.samples}
    for name in ("ready", "draining", "workers", "active_connections", "worker_restarts"):
        assert told[f"sse_gateway_{name}"] == 0
    assert told["process_resident_memory_bytes"] > 0
