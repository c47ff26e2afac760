"""From YAML text to a validated `Config`, or to a list of errors with positions."""
