"""The log in one SQLite file, shared by all processes of a host."""
