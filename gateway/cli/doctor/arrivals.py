"""Verdicts on when bytes arrived: buffering, heartbeats, and what ends a stream. Pure."""

from gateway.cli.doctor.finding import Finding, bad, ok, skip, warn
from gateway.cli.doctor.timeouts import COMMON_TIMEOUT, Patience
from gateway.cli.doctor.transcript import End, Heard
from gateway.core.sse import can_be_sent

UNBUFFER = (
    "switch response buffering off for this path (nginx: proxy_buffering off;"
    " and no proxy_ignore_headers X-Accel-Buffering)"
)

WATCHDOG = 45.0
"""Seconds of silence after which event-source-polyfill reconnects."""

_SLACK = 1.5
"""Heartbeats may come this many intervals apart before they count as late."""

_TOGETHER = 0.1
"""Heartbeats nearer than this part of their interval, at most `_TOGETHER_SECONDS`, came in a bunch."""

_TOGETHER_SECONDS = 0.5

_REASONS = {
    "max_age": "timeouts.connection of the gateway is shorter than that; an hour is its default",
    "draining": "the node is being shut down: examine again when the roll-out is over",
    "overloaded": "limits.connections of the node is reached: raise it, or add nodes",
    "connect_rate": "limits.connect_rate is reached: examine again when the herd is in",
    "unavailable": "the node does not reach its log: see its /readyz",
    "unacknowledged": "ack is on, and the doctor answers no heartbeats: listen for less with --seconds",
}
_COMES_BACK = ("max_age", "draining", "unacknowledged")


def unanswered_verdict(waited: float, head_answer: int | None) -> Finding:
    """Return what it means that no head came in ``waited`` seconds; ``head_answer`` is HEAD's status."""
    if head_answer == 200:
        return bad(
            "first bytes",
            f"HEAD is answered at once, but of the stream not even the headers came within {waited:g} s:"
            " a proxy buffers it",
            UNBUFFER,
        )
    return bad(
        "first bytes",
        f"no answer within {waited:g} s",
        "check that the proxy reaches the gateway, and the gateway's /healthz",
    )


def first_bytes_verdict(heard: Heard, patience: Patience) -> Finding:
    """Return whether the first event came with the headers, as the gateway writes it."""
    check, head = "first bytes", f"headers after {_time(heard.head_at)}"
    if not heard.arrivals:
        if heard.end is not End.TIME:
            return bad(check, f"{head}, then the answer ended without a byte", "see the log of the proxy")
        waited = heard.over_at - heard.head_at
        return bad(check, f"{head}, then no byte within {waited:.1f} s: a proxy buffers the stream", UNBUFFER)
    first = heard.arrivals[0]
    delay = first.at - heard.head_at
    if delay > patience.late:
        return bad(check, f"{head}, the first bytes {_time(delay)} later: a proxy held them", UNBUFFER)
    if heard.opened is None and heard.close_reason is None:
        return warn(
            check,
            f"{head}, but the stream does not begin with stream.open",
            "this is another server than sse-gateway, or something rewrites the stream",
        )
    if heard.head_at > patience.late:
        return warn(
            check,
            f"{head}, the first bytes with them",
            "see what delays it: the proxy, or the gateway's load",
        )
    return ok(check, f"{head}, the first event {_time(first.at)} after the request")


def heartbeat_verdict(heard: Heard, patience: Patience) -> Finding:
    """Return whether bytes kept arriving, one by one and in time."""
    check, due = "heartbeat", patience.heartbeat
    bunched = _bunched(heard, due)
    beats = sum(each.beats for each in heard.arrivals)
    if bunched:
        return bad(
            check,
            f"{bunched} of {beats} heartbeats came together with another one:"
            " a proxy gathers bytes before it passes them on",
            UNBUFFER,
        )
    later = len(heard.arrivals) - 1
    silence = max([*heard.silences, heard.last_silence])
    late = silence > due * _SLACK + patience.late
    if later < 1 and heard.end is End.TIME:
        return _silent(heard.last_silence, due, late)
    if later < 1:
        return skip(check, f"none came before the stream ended, after {_time(heard.over_at)}")
    if late or silence > WATCHDOG:
        return warn(
            check,
            f"up to {_time(silence)} without a byte; one is due every {due:g} s,"
            f" and some clients give up after {WATCHDOG:g} s",
            "set timeouts.heartbeat of the gateway below that; if it is, see what holds bytes back",
        )
    return ok(check, f"{beats} heartbeats, bytes arrived {later} times, never over {_time(silence)} apart")


def _silent(silence: float, due: float, late: bool) -> Finding:
    if late:
        return bad(
            "heartbeat",
            f"none in {_time(silence)}, though one is due every {due:g} s: something holds them back",
            f"{UNBUFFER}; if timeouts.heartbeat is longer, set it below {WATCHDOG:g} s",
        )
    return warn(
        "heartbeat",
        f"none in {_time(silence)}; one is due every {due:g} s",
        f"listen longer: --seconds {2 * due + 10:g}",
    )


def ending_verdict(heard: Heard, patience: Patience) -> Finding:
    """Return what ended the stream, if anything did."""
    check = "idle timeout"
    if heard.close_reason is not None:
        return _closed(heard)
    if heard.end is End.TIME:
        if heard.over_at < COMMON_TIMEOUT:
            return warn(
                check,
                f"none within {_time(heard.over_at)}; the common one of {COMMON_TIMEOUT:g} s would not show",
                f"listen longer: --seconds {COMMON_TIMEOUT + 10:g}",
            )
        return ok(check, f"none: still open after {_time(heard.over_at)}")
    idle = heard.last_silence
    how = "cut" if heard.end is End.CUT else "ended"
    if any(silence > idle for silence in heard.silences):  # so it was not the silence that ended it
        return bad(
            check,
            f"{how} {_time(heard.over_at)} after the request without stream.close, though bytes came in time:"
            " a limit on the duration of requests, or a proxy that was restarted",
            "raise that limit, or set timeouts.connection of the gateway below it: then streams end politely",
        )
    return bad(
        check,
        f"{how} after {_time(idle)} without a byte, by something on the way:"
        f" its idle timeout is shorter than the heartbeat ({patience.heartbeat:g} s)",
        "raise it (nginx: proxy_read_timeout 1h;), or lower timeouts.heartbeat of the gateway"
        f" below {_time(idle)}",
    )


def _closed(heard: Heard) -> Finding:
    reason = heard.close_reason or "no reason"
    found = f"the gateway closed the stream after {_time(heard.over_at)}: {reason}"
    mend = _REASONS.get(reason, "docs/operations.md says what the reason means")
    if heard.opened is not None and reason in _COMES_BACK:
        return warn("closed", found, mend)
    return bad("closed", found, mend)


def _bunched(heard: Heard, due: float) -> int:
    """Return how many heartbeats came with or right behind another one."""
    near = min(_TOGETHER_SECONDS, due * _TOGETHER)
    bunched, last = 0, None
    for arrival in heard.arrivals:
        if not arrival.beats:
            continue
        is_near = last is not None and arrival.at - last < near
        bunched += arrival.beats - (0 if is_near else 1)
        last = arrival.at
    return bunched


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


# The verdict on a reconnect: does the Last-Event-ID reach a node that knows it? Pure.


def resume_verdict(first: Heard, again: Heard | None) -> Finding:
    """Return what became of the reconnect; ``again`` is None if it was not answered."""
    check = "resume"
    if first.opened is None:
        return skip(check, "the stream had no stream.open to go on after")
    if not first.last_id:
        return skip(check, "this channel gives no ids (history: none), so there is nothing to go on after")
    if not can_be_sent(first.last_id):
        return bad(
            check,
            "the last id holds control characters: clients and proxies refuse to send it as Last-Event-ID",
            "see where the ids come from: those of a gateway are two numbers with a dash between",
        )
    if again is None:
        return bad(
            check, "the second request was not answered as the first one was", "see the log of the proxy"
        )
    if again.opened is None:
        reason = f": {again.close_reason}" if again.close_reason else ""
        return bad(check, f"the second stream did not begin{reason}", "examine again; see the gateway's log")
    if again.opened.resume == "complete":
        return ok(check, "Last-Event-ID reaches the gateway, and the stream goes on after it")
    if again.opened.resume == "gap":
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
