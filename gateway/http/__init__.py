"""Thin handlers; nothing here holds state."""
