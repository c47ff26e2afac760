"""The scenarios, in the order of the report."""

from bench.scenarios import (
    abuse,
    append,
    channels,
    fanout,
    health,
    heartbeats,
    herd,
    idle,
    ingest,
    large,
    redis_herd,
    redis_latency,
    restart,
    scaling,
    signin,
    slow,
    storm,
    takeover,
    throughput,
    tls,
)
from bench.scenarios.base import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        idle.SCENARIO,
        idle.OWN_SCENARIO,
        fanout.SCENARIO,
        throughput.SCENARIO,
        channels.SCENARIO,
        channels.UNRELATED_SCENARIO,
        storm.SCENARIO,
        signin.SCENARIO,
        herd.SCENARIO,
        heartbeats.SCENARIO,
        health.SCENARIO,
        slow.SCENARIO,
        abuse.SCENARIO,
        large.SCENARIO,
        tls.SCENARIO,
        scaling.SCENARIO,
        scaling.MANY_SCENARIO,
        append.SCENARIO,
        ingest.SCENARIO,
        redis_latency.SCENARIO,
        redis_herd.SCENARIO,
        restart.SCENARIO,
        takeover.SCENARIO,
    )
}
