"""Redis pub/sub and Redis streams as sources."""
