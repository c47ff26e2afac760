"""TLS of the public port: certificates, contexts, and bounded handshakes."""
