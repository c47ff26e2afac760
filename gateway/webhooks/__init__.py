"""HTTP bodies and headers to records, or a refusal. Pure."""
