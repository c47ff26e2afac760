"""Heartbeats that clients acknowledge."""
