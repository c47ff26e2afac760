"""What was tried where a target is missed: written by hand, and shown beside it in the report."""

TRIED: dict[tuple[str, str, int | None], str] = {}
"""By scenario, server as in its table, and workers."""
