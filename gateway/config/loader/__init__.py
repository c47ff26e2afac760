"""Loads YAML text to a validated configuration, or to a list of errors with positions."""
