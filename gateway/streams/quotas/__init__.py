"""Limits per address, user and client."""
