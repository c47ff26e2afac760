"""What was tried where a target is missed: written by hand, and shown beside it in the report."""

_HANDSHAKE = (
    "Began at 200-240 us with an aiohttp handler. A front protocol with aiohttp's parser"
    " (docs/decisions/0009), parser used again, heads and CORS answers remembered, tallies in place of"
    " counters, cached loggers, garbage collector tuned, files asked for late. Counting connections, streams"
    " and their rate by address came later and costs 5 us; it was 20 before the streams of an address shared"
    " one object, what is public was asked about by nobody, and log lines shared their second. Without gain:"
    " libuv without io_uring, writes at the end of the loop's turn, another malloc. An accept loop of our own"
    " without uvloop's transports would save 5 us. Left: kernel half, interpreter a third; one that was built"
    " without optimisation takes half as much again for its part. Slower handshakes also let the client"
    " sleep between them, and waking it is counted here."
)

TRIED: dict[tuple[str, str, int | None], str] = {
    ("storm", "sse-gateway", 1): _HANDSHAKE,
    ("storm", "sse-gateway", 2): _HANDSHAKE,
    ("append", "log in SQLite", None): (
        "One transaction for all that waits, prepared statements, rows by executemany, trimming in batches."
        " The rest is what the bare side has not: order over channels, deduplication, a cursor in the same"
        " transaction."
    ),
}
"""By scenario, server as in its table, and workers."""
