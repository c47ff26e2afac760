"""Logging, metrics, and the supervision of background work."""
