"""Values and algorithms without I/O: events, SSE framing, the history ring, errors. Imports no sibling."""
