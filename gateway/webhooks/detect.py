"""Which format a post is in. Pure.

The order matters: what says what it is comes before what looks like something. See ``docs/webhooks.md``.
"""

from collections.abc import Callable, Mapping

from gateway.config.model.sources import FormatName
from gateway.core.errors import Rejected
from gateway.webhooks.formats import cloud_batches as clouds
from gateway.webhooks.formats import cloudevents, plain, rest_proxy
from gateway.webhooks.formats.base import Parsed, Post, unknown_type


def read(post: Post, format: FormatName = "auto") -> Parsed:
    """Return what a post holds. Raises BadRequest, Rejected or PayloadTooLarge, and nothing else."""
    if post.path == "records:batch":
        return rest_proxy.read_batch(post)
    if format != "auto":
        return _READERS[format](post)
    if cloudevents.is_spoken(post):
        return cloudevents.read(post)
    if rest_proxy.is_spoken(post):
        return rest_proxy.read(post)
    if post.path == "messages" or post.content_type == clouds.EVENT_HUBS_BATCH:
        return clouds.read_event_hubs(post)
    if clouds.is_kafka(post):
        found = clouds.read_kafka(post)
        if found is not None:
            return found
    return plain.detect(post)


def check(post: Post, format: FormatName) -> None:
    """Refuse REST Proxy v3's paths where the source takes another format only. Raises Rejected."""
    if post.path in ("records", "records:batch") and format not in ("auto", "rest-proxy"):
        raise unknown_type(f"this source takes {format} only")


def _rest_proxy(post: Post) -> Parsed:
    if not rest_proxy.is_spoken(post):
        raise unknown_type("this source takes application/vnd.kafka.json.v2+json and its kind")
    return rest_proxy.read(post)


def _cloudevents(post: Post) -> Parsed:
    if not cloudevents.is_spoken(post):
        raise unknown_type("this source takes CloudEvents")
    return cloudevents.read(post)


def _kafka_records(post: Post) -> Parsed:
    found = clouds.read_kafka(post)
    if found is None:
        raise Rejected("the body holds no Kafka records of AWS", code="bad_records")
    return found


_READERS: Mapping[FormatName, Callable[[Post], Parsed]] = {
    "single": plain.single,
    "array": plain.array,
    "lines": plain.lines,
    "cloudevents": _cloudevents,
    "rest-proxy": _rest_proxy,
    "kafka-records": _kafka_records,
    "event-hubs": clouds.read_event_hubs,
}
