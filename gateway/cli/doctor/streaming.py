"""Verdicts on when bytes arrived: buffering, heartbeats, and what ends a stream. Pure."""

from gateway.cli.doctor.timeouts import COMMON_PROXY_TIMEOUT_SECONDS, ProbeTimeouts
from gateway.cli.doctor.transcript import EndReason, Transcript
from gateway.cli.finding import Finding, bad, ok, skip, warn
from gateway.core.sse import is_valid_last_event_id

DISABLE_BUFFERING_FIX = (
    "switch response buffering off for this path (nginx: proxy_buffering off;"
    " and no proxy_ignore_headers X-Accel-Buffering)"
)

POLYFILL_TIMEOUT_SECONDS = 45.0
"""Seconds of silence after which event-source-polyfill reconnects."""

_LATE_FACTOR = 1.5
"""Heartbeats may come this many intervals apart before they count as late."""

_BUNCH_FRACTION = 0.1
"""Heartbeats nearer than this part of their interval, at most `_MAX_BUNCH_SECONDS`, came in a bunch."""

_MAX_BUNCH_SECONDS = 0.5

_CLOSE_REASON_FIXES = {
    "max_age": "timeouts.connection of the gateway is shorter than that; an hour is its default",
    "draining": "the node is being shut down: examine again when the roll-out is over",
    "overloaded": "limits.connections of the node is reached: raise it, or add nodes",
    "connect_rate": "limits.connect_rate is reached: examine again when the herd is in",
    "unavailable": "the node does not reach its log: see its /readyz",
    "unacknowledged": "ack is on, and the doctor answers no heartbeats: listen for less with --seconds",
}
_RECONNECT_REASONS = ("max_age", "draining", "unacknowledged")


def unanswered_verdict(waited_seconds: float, head_status: int | None) -> Finding:
    """Return what it means that no head came in ``waited`` seconds; ``head_answer`` is HEAD's status."""
    if head_status == 200:
        return bad(
            "first bytes",
            f"HEAD is answered at once, but of the stream not even the headers came within {waited_seconds:g} s:"
            " a proxy buffers it",
            DISABLE_BUFFERING_FIX,
        )
    return bad(
        "first bytes",
        f"no answer within {waited_seconds:g} s",
        "check that the proxy reaches the gateway, and the gateway's /healthz",
    )


def first_bytes_verdict(transcript: Transcript, timeouts: ProbeTimeouts) -> Finding:
    """Return whether the first event came with the headers, as the gateway writes it."""
    check, head = "first bytes", f"headers after {_format_seconds(transcript.head_at_seconds)}"
    if not transcript.arrivals:
        if transcript.end_reason is not EndReason.STILL_OPEN:
            return bad(check, f"{head}, then the answer ended without a byte", "see the log of the proxy")
        waited = transcript.end_at_seconds - transcript.head_at_seconds
        return bad(
            check,
            f"{head}, then no byte within {waited:.1f} s: a proxy buffers the stream",
            DISABLE_BUFFERING_FIX,
        )
    first = transcript.arrivals[0]
    delay = first.at_seconds - transcript.head_at_seconds
    if delay > timeouts.late_seconds:
        return bad(
            check,
            f"{head}, the first bytes {_format_seconds(delay)} later: a proxy held them",
            DISABLE_BUFFERING_FIX,
        )
    if transcript.open_event is None and transcript.close_reason is None:
        return warn(
            check,
            f"{head}, but the stream does not begin with stream.open",
            "this is another server than sse-gateway, or something rewrites the stream",
        )
    if transcript.head_at_seconds > timeouts.late_seconds:
        return warn(
            check,
            f"{head}, the first bytes with them",
            "see what delays it: the proxy, or the gateway's load",
        )
    return ok(check, f"{head}, the first event {_format_seconds(first.at_seconds)} after the request")


def heartbeat_verdict(transcript: Transcript, timeouts: ProbeTimeouts) -> Finding:
    """Return whether bytes kept arriving, one by one and in time."""
    check, due = "heartbeat", timeouts.heartbeat_seconds
    bunched = _count_bunched(transcript, due)
    beats = sum(each.heartbeats for each in transcript.arrivals)
    if bunched:
        return bad(
            check,
            f"{bunched} of {beats} heartbeats came together with another one:"
            " a proxy gathers bytes before it passes them on",
            DISABLE_BUFFERING_FIX,
        )
    later = len(transcript.arrivals) - 1
    silence = max([*transcript.silences, transcript.last_silence])
    late = silence > due * _LATE_FACTOR + timeouts.late_seconds
    if later < 1 and transcript.end_reason is EndReason.STILL_OPEN:
        return _silence_verdict(transcript.last_silence, due, late)
    if later < 1:
        return skip(
            check, f"none came before the stream ended, after {_format_seconds(transcript.end_at_seconds)}"
        )
    if late or silence > POLYFILL_TIMEOUT_SECONDS:
        return warn(
            check,
            f"up to {_format_seconds(silence)} without a byte; one is due every {due:g} s,"
            f" and some clients give up after {POLYFILL_TIMEOUT_SECONDS:g} s",
            "set timeouts.heartbeat of the gateway below that; if it is, see what holds bytes back",
        )
    return ok(
        check, f"{beats} heartbeats, bytes arrived {later} times, never over {_format_seconds(silence)} apart"
    )


def _silence_verdict(silence: float, heartbeat_seconds: float, is_late: bool) -> Finding:
    if is_late:
        return bad(
            "heartbeat",
            f"none in {_format_seconds(silence)}, though one is due every {heartbeat_seconds:g} s: something holds them back",
            f"{DISABLE_BUFFERING_FIX}; if timeouts.heartbeat is longer, set it below {POLYFILL_TIMEOUT_SECONDS:g} s",
        )
    return warn(
        "heartbeat",
        f"none in {_format_seconds(silence)}; one is due every {heartbeat_seconds:g} s",
        f"listen longer: --seconds {2 * heartbeat_seconds + 10:g}",
    )


def ending_verdict(transcript: Transcript, timeouts: ProbeTimeouts) -> Finding:
    """Return what ended the stream, if anything did."""
    check = "idle timeout"
    if transcript.close_reason is not None:
        return _closed_verdict(transcript)
    if transcript.end_reason is EndReason.STILL_OPEN:
        if transcript.end_at_seconds < COMMON_PROXY_TIMEOUT_SECONDS:
            return warn(
                check,
                f"none within {_format_seconds(transcript.end_at_seconds)}; the common one of {COMMON_PROXY_TIMEOUT_SECONDS:g} s would not show",
                f"listen longer: --seconds {COMMON_PROXY_TIMEOUT_SECONDS + 10:g}",
            )
        return ok(check, f"none: still open after {_format_seconds(transcript.end_at_seconds)}")
    idle = transcript.last_silence
    how = "cut" if transcript.end_reason is EndReason.CONNECTION_LOST else "ended"
    if any(silence > idle for silence in transcript.silences):  # so it was not the silence that ended it
        return bad(
            check,
            f"{how} {_format_seconds(transcript.end_at_seconds)} after the request without stream.close, though bytes came in time:"
            " a limit on the duration of requests, or a proxy that was restarted",
            "raise that limit, or set timeouts.connection of the gateway below it: then streams end politely",
        )
    return bad(
        check,
        f"{how} after {_format_seconds(idle)} without a byte, by something on the way:"
        f" its idle timeout is shorter than the heartbeat ({timeouts.heartbeat_seconds:g} s)",
        "raise it (nginx: proxy_read_timeout 1h;), or lower timeouts.heartbeat of the gateway"
        f" below {_format_seconds(idle)}",
    )


def _closed_verdict(transcript: Transcript) -> Finding:
    reason = transcript.close_reason or "no reason"
    found = f"the gateway closed the stream after {_format_seconds(transcript.end_at_seconds)}: {reason}"
    mend = _CLOSE_REASON_FIXES.get(reason, "docs/operations.md says what the reason means")
    if transcript.open_event is not None and reason in _RECONNECT_REASONS:
        return warn("closed", found, mend)
    return bad("closed", found, mend)


def _count_bunched(transcript: Transcript, heartbeat_seconds: float) -> int:
    """Return how many heartbeats came with or right behind another one."""
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


# The verdict on a reconnect: does the Last-Event-ID reach a node that knows it? Pure.


def resume_verdict(first: Transcript, resumed: Transcript | None) -> Finding:
    """Return what became of the reconnect; ``again`` is None if it was not answered."""
    check = "resume"
    if first.open_event is None:
        return skip(check, "the stream had no stream.open to go on after")
    if not first.last_id:
        return skip(check, "this channel gives no ids (history: none), so there is nothing to go on after")
    if not is_valid_last_event_id(first.last_id):
        return bad(
            check,
            "the last id holds control characters: clients and proxies refuse to send it as Last-Event-ID",
            "see where the ids come from: those of a gateway are two numbers with a dash between",
        )
    if resumed is None:
        return bad(
            check, "the second request was not answered as the first one was", "see the log of the proxy"
        )
    if resumed.open_event is None:
        reason = f": {resumed.close_reason}" if resumed.close_reason else ""
        return bad(check, f"the second stream did not begin{reason}", "examine again; see the gateway's log")
    if resumed.open_event.resume == "complete":
        return ok(check, "Last-Event-ID reaches the gateway, and the stream goes on after it")
    if resumed.open_event.resume == "gap":
        return bad(
            check,
            "the gateway that was reached the second time does not have what follows the Last-Event-ID",
            "let all nodes share one log (broker.url sqlite:// or redis://), and see the channel's history",
        )
    return bad(
        check,
        "Last-Event-ID does not reach the gateway: who reconnects loses what was sent meanwhile",
        'let the proxy pass it on (nginx: no proxy_set_header Last-Event-ID ""; a CDN: put it on the list'
        " of headers that are passed)",
    )
