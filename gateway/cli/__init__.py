"""The ``sse-gateway`` command; see `gateway.cli.main`."""
