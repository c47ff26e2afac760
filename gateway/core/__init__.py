"""Values and algorithms without I/O: events, SSE framing, the history, errors."""
