"""Rules that span several keys or sections, and warnings about valid but suspicious settings."""
