"""Detects the format of a post, and parses it. Pure.

The order matters: explicit formats come before those guessed from the content. See ``docs/webhooks.md``.
"""

from collections.abc import Callable, Mapping

from gateway.config.model.sources import FormatName
from gateway.core.errors import RecordRejected
from gateway.webhooks.formats import cloud_batches as clouds
from gateway.webhooks.formats import cloudevents, plain, rest_proxy
from gateway.webhooks.formats.base import ParsedPost, Post, unsupported_type_error


def parse_post(post: Post, format: FormatName = "auto") -> ParsedPost:
    """Return the records of a post. Raises only BadRequest, RecordRejected and PayloadTooLarge."""
    if post.path == "records:batch":
        return rest_proxy.parse_batch(post)
    if format != "auto":
        return _PARSERS[format](post)
    if cloudevents.matches(post):
        return cloudevents.parse(post)
    if rest_proxy.matches(post):
        return rest_proxy.parse(post)
    if post.path == "messages" or post.content_type == clouds.EVENT_HUBS_BATCH_TYPE:
        return clouds.parse_event_hubs(post)
    if clouds.may_hold_kafka_records(post):
        found = clouds.parse_kafka_records(post)
        if found is not None:
            return found
    return plain.parse_auto(post)


def check_path(post: Post, format: FormatName) -> None:
    """Raise RecordRejected for a path of REST Proxy v3 if the source accepts another format only."""
    if post.path in ("records", "records:batch") and format not in ("auto", "rest-proxy"):
        raise unsupported_type_error(f"this source accepts {format} only")


def _parse_rest_proxy(post: Post) -> ParsedPost:
    if not rest_proxy.matches(post):
        raise unsupported_type_error("this source accepts application/vnd.kafka.json.v2+json and the like")
    return rest_proxy.parse(post)


def _parse_cloudevents(post: Post) -> ParsedPost:
    if not cloudevents.matches(post):
        raise unsupported_type_error("this source accepts CloudEvents")
    return cloudevents.parse(post)


def _parse_kafka_records(post: Post) -> ParsedPost:
    found = clouds.parse_kafka_records(post)
    if found is None:
        raise RecordRejected("the body holds no Kafka records as AWS sends them", code="bad_records")
    return found


_PARSERS: Mapping[FormatName, Callable[[Post], ParsedPost]] = {
    "single": plain.parse_single,
    "array": plain.parse_array,
    "lines": plain.parse_lines,
    "cloudevents": _parse_cloudevents,
    "rest-proxy": _parse_rest_proxy,
    "kafka-records": _parse_kafka_records,
    "event-hubs": clouds.parse_event_hubs,
}
