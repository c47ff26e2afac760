"""Rules between keys and sections, and warnings about valid but suspicious settings."""
