"""Connecting to upstreams: Redis topologies, PEM files, TLS errors, bounded HTTP requests."""
