"""Parsers of request bodies, one module per family of senders. Pure."""
