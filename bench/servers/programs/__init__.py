"""Small servers written the usual way with a library, and what pushpin asks."""
