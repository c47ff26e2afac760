"""``python mq_bridge_run.py BROKERS TOPIC URL``: carries a Kafka topic's records to a URL until it is empty."""

import sys

from mq_bridge import Route

brokers, topic, url = sys.argv[1:]
route = Route.from_config(
    {
        "input": {"kafka": {"url": brokers, "topic": topic, "group_id": "bridge"}},
        "output": {"http": {"url": url, "batch_concurrency": 1}},
        "reconnect_interval_ms": 300,
        "exit_on_empty": True,
    },
    "route",
)
route.start()
route.join()
