"""Upstream sources: read records, route them to channels, and append them to the log."""
