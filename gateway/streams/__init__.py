"""Streams: the connections of clients, their heartbeats, limits and acknowledgements."""
