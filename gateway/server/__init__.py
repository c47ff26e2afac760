"""A gateway process: its components, start, reload, and shutdown."""
