"""Webhooks: parses HTTP bodies into records, and verifies their senders. Pure."""
