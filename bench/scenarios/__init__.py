"""The scenarios, in the order of the report."""

from bench.scenarios import append, fanout, ingest, redis_herd, redis_latency, takeover
from bench.scenarios.base import Scenario

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (fanout, append, ingest, redis_latency, redis_herd, takeover)
}
