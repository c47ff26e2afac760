"""The end of tokens, brought forward to when a test wants it, however long its clients took to open their streams."""

from tests.support.gateway import Gateway


def end_tokens(gateway: Gateway) -> None:
    """End the streams of a gateway as when their tokens end. Raises AssertionError if one would live longer."""
    streams = gateway.daemon.streams
    for stream in list(streams.active):
        assert stream.expiry_reason == "token_expired"
        streams.heartbeats.close_if_expired(stream, stream.expires_at, within=0.0)
