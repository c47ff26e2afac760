"""The ordered event log behind one interface."""
