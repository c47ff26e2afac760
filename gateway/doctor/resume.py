"""The verdict on a reconnect: does the Last-Event-ID reach a node that knows it? Pure."""

from gateway.doctor.finding import Finding, bad, ok, skip
from gateway.doctor.heard import Heard
from gateway.sse import can_be_sent


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
