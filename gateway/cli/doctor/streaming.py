"""Verdicts on the times of a stream's bytes: buffering, heartbeats, its end, and resuming. Pure."""

from dataclasses import dataclass

from gateway.cli.doctor.transcript import EndReason, Transcript
from gateway.cli.finding import Finding, bad, ok, skip, warn
from gateway.core.sse import is_valid_last_event_id

COMMON_PROXY_TIMEOUT_SECONDS = 60.0
"""Idle timeout of nginx, and of many load balancers and CDNs."""

DISABLE_BUFFERING_FIX = (
    "switch response buffering off for this path (nginx: proxy_buffering off;"
    " and no proxy_ignore_headers X-Accel-Buffering)"
)

POLYFILL_TIMEOUT_SECONDS = 45.0
"""Silence after which event-source-polyfill reconnects."""

_LATE_FACTOR = 1.5
"""Intervals between two heartbeats, beyond which they count as late."""

_BUNCH_FRACTION = 0.1
"""Heartbeats within this part of their interval, at most `_MAX_BUNCH_SECONDS`, count as bunched."""

_MAX_BUNCH_SECONDS = 0.5

_CLOSE_REASON_FIXES = {
    "max_age": "raise the gateway's timeouts.connection, which defaults to an hour",
    "draining": "the node is shutting down: run this again after the rollout",
    "overloaded": "limits.connections of the node is reached: raise it, or add nodes",
    "connect_rate": "limits.connect_rate is reached: run this again when fewer clients connect",
    "unavailable": "the node does not reach its log: see its /readyz",
    "unacknowledged": "ack is on, and this command acknowledges no heartbeats: use shorter --seconds",
}
_RECONNECT_REASONS = ("max_age", "draining", "unacknowledged")


@dataclass(frozen=True, slots=True)
class ProbeTimeouts:
    """How long each step waits, in seconds."""

    listen_seconds: float = 70.0
    """Longer than `COMMON_PROXY_TIMEOUT_SECONDS`, or such a timeout would not show."""
    heartbeat_seconds: float = 15.0
    """The gateway's ``timeouts.heartbeat``."""
    connect_seconds: float = 10.0
    """For a lookup, for a connection, for a handshake."""
    response_seconds: float = 10.0
    """For the head of a response, and for the first bytes of its body after that."""
    late_seconds: float = 2.0
    """First bytes that arrive later than this after the head were buffered."""


def unanswered_verdict(waited_seconds: float, head_status: int | None) -> Finding:
    """Return the verdict on a missing response; ``head_status`` is the status of a HEAD request."""
    if head_status == 200:
        found = f"HEAD succeeds, but GET got no headers within {waited_seconds:g} s: a proxy buffers it"
        return bad("first bytes", found, DISABLE_BUFFERING_FIX)
    found = f"no response within {waited_seconds:g} s"
    return bad("first bytes", found, "check that the proxy reaches the gateway, and the gateway's /healthz")


def first_bytes_verdict(transcript: Transcript, timeouts: ProbeTimeouts) -> Finding:
    """Return whether the first event arrived with the headers, as the gateway sends it."""
    check, head = "first bytes", f"headers after {_format_seconds(transcript.head_at_seconds)}"
    if not transcript.arrivals:
        if transcript.end_reason is not EndReason.STILL_OPEN:
            return bad(check, f"{head}, then the response ended without a byte", "see the proxy's log")
        waited = transcript.end_at_seconds - transcript.head_at_seconds
        found = f"{head}, then no byte within {waited:.1f} s: a proxy buffers the stream"
        return bad(check, found, DISABLE_BUFFERING_FIX)
    first = transcript.arrivals[0]
    delay = first.at_seconds - transcript.head_at_seconds
    if delay > timeouts.late_seconds:
        found = f"{head}, the first bytes {_format_seconds(delay)} later: a proxy buffered them"
        return bad(check, found, DISABLE_BUFFERING_FIX)
    if transcript.open_event is None and transcript.close_reason is None:
        found = f"{head}, but the stream does not start with stream.open"
        return warn(check, found, "this is another server than sse-gateway, or a proxy rewrites the stream")
    if transcript.head_at_seconds > timeouts.late_seconds:
        return warn(
            check, f"{head}, the first bytes with them", "check the load of the proxy and the gateway"
        )
    return ok(check, f"{head}, the first event {_format_seconds(first.at_seconds)} after the request")


def heartbeat_verdict(transcript: Transcript, timeouts: ProbeTimeouts) -> Finding:
    """Return whether heartbeats arrived one by one and in time."""
    check, due = "heartbeat", timeouts.heartbeat_seconds
    bunched = _count_bunched(transcript, due)
    beats = sum(each.heartbeats for each in transcript.arrivals)
    if bunched:
        return bad(
            check,
            f"{bunched} of {beats} heartbeats arrived together with another one: a proxy buffers the stream",
            DISABLE_BUFFERING_FIX,
        )
    later = len(transcript.arrivals) - 1
    silence = max([*transcript.silences, transcript.last_silence])
    late = silence > due * _LATE_FACTOR + timeouts.late_seconds
    if later < 1 and transcript.end_reason is EndReason.STILL_OPEN:
        return _silence_verdict(transcript.last_silence, due, late)
    if later < 1:
        return skip(
            check, f"none before the stream ended, after {_format_seconds(transcript.end_at_seconds)}"
        )
    if late or silence > POLYFILL_TIMEOUT_SECONDS:
        return warn(
            check,
            f"up to {_format_seconds(silence)} without a byte; one is due every {due:g} s,"
            f" and some clients give up after {POLYFILL_TIMEOUT_SECONDS:g} s",
            "set the gateway's timeouts.heartbeat below that; if it is, find what delays the bytes",
        )
    return ok(
        check, f"{beats} heartbeats, bytes arrived {later} times, never over {_format_seconds(silence)} apart"
    )


def _silence_verdict(silence: float, heartbeat_seconds: float, is_late: bool) -> Finding:
    if is_late:
        found = f"none in {_format_seconds(silence)}, but one is due every {heartbeat_seconds:g} s"
        fix = f"{DISABLE_BUFFERING_FIX}; set a longer timeouts.heartbeat below {POLYFILL_TIMEOUT_SECONDS:g} s"
        return bad("heartbeat", found, fix)
    found = f"none in {_format_seconds(silence)}; one is due every {heartbeat_seconds:g} s"
    return warn("heartbeat", found, f"listen longer: --seconds {2 * heartbeat_seconds + 10:g}")


def ending_verdict(transcript: Transcript, timeouts: ProbeTimeouts) -> Finding:
    """Return what ended the stream, if it ended."""
    check = "idle timeout"
    if transcript.close_reason is not None:
        return _closed_verdict(transcript)
    if transcript.end_reason is EndReason.STILL_OPEN:
        if transcript.end_at_seconds < COMMON_PROXY_TIMEOUT_SECONDS:
            return warn(
                check,
                f"none within {_format_seconds(transcript.end_at_seconds)};"
                f" the common one of {COMMON_PROXY_TIMEOUT_SECONDS:g} s would not show",
                f"listen longer: --seconds {COMMON_PROXY_TIMEOUT_SECONDS + 10:g}",
            )
        return ok(check, f"none: still open after {_format_seconds(transcript.end_at_seconds)}")
    idle = transcript.last_silence
    how = "cut" if transcript.end_reason is EndReason.CONNECTION_LOST else "ended"
    if any(silence > idle for silence in transcript.silences):  # so it was not the silence that ended it
        return bad(
            check,
            f"{how} {_format_seconds(transcript.end_at_seconds)} after the request without stream.close,"
            " though bytes arrived in time: a limit on the duration of requests, or a restarted proxy",
            "raise that limit, or set the gateway's timeouts.connection below it, so that it closes streams",
        )
    return bad(
        check,
        f"{how} after {_format_seconds(idle)} without a byte: the idle timeout of a proxy is shorter than the"
        f" heartbeat ({timeouts.heartbeat_seconds:g} s)",
        "raise it (nginx: proxy_read_timeout 1h;), or lower the gateway's timeouts.heartbeat"
        f" below {_format_seconds(idle)}",
    )


def _closed_verdict(transcript: Transcript) -> Finding:
    reason = transcript.close_reason or "no reason"
    found = f"the gateway closed the stream after {_format_seconds(transcript.end_at_seconds)}: {reason}"
    fix = _CLOSE_REASON_FIXES.get(reason, "see the reason in docs/operations.md")
    if transcript.open_event is not None and reason in _RECONNECT_REASONS:
        return warn("closed", found, fix)
    return bad("closed", found, fix)


def _count_bunched(transcript: Transcript, heartbeat_seconds: float) -> int:
    """Return how many heartbeats arrived with, or just behind, another one."""
    near = min(_MAX_BUNCH_SECONDS, heartbeat_seconds * _BUNCH_FRACTION)
    bunched, last = 0, None
    for arrival in transcript.arrivals:
        if not arrival.heartbeats:
            continue
        is_near = last is not None and arrival.at_seconds - last < near
        bunched += arrival.heartbeats - (0 if is_near else 1)
        last = arrival.at_seconds
    return bunched


def _format_seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def resume_verdict(first: Transcript, resumed: Transcript | None) -> Finding:
    """Return whether a reconnect resumes; ``resumed`` is None if it failed."""
    check = "resume"
    if first.open_event is None:
        return skip(check, "the stream had no stream.open")
    if not first.last_id:
        return skip(check, "this channel has no ids (history: none), so there is nothing to resume")
    if not is_valid_last_event_id(first.last_id):
        found = "the last id holds control characters: clients and proxies do not send it as Last-Event-ID"
        fix = "find what changes the ids: the gateway's are two numbers with a dash between"
        return bad(check, found, fix)
    if resumed is None:
        return bad(check, "the second request was not answered as the first one", "see the proxy's log")
    if resumed.open_event is None:
        reason = f": {resumed.close_reason}" if resumed.close_reason else ""
        return bad(check, f"the second stream did not start{reason}", "run this again; see the gateway's log")
    if resumed.open_event.resume == "complete":
        return ok(check, "Last-Event-ID reaches the gateway, and the stream resumes")
    if resumed.open_event.resume == "gap":
        found = "the second request reached a gateway without the events after the Last-Event-ID"
        fix = "let all nodes share one log (broker.url sqlite:// or redis://), and see the channel's history"
        return bad(check, found, fix)
    return bad(
        check,
        "Last-Event-ID does not reach the gateway: clients that reconnect lose events",
        'let the proxy forward it (nginx: no proxy_set_header Last-Event-ID ""; a CDN: add it to the'
        " forwarded headers)",
    )
