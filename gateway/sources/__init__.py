"""Upstreams, and the way of a record from them to a draft."""
