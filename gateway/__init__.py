"""sse-gateway: events from Redis, webhooks and Kafka to browsers, over SSE."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sse-gateway")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
