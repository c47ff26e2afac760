"""Heartbeats that clients answer: what finds a stream that nobody hears, behind any proxy."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from gateway.config.section import Section, preset
from gateway.config.units import Duration, Positive, fault

SHORTEST = 1.0
"""Seconds: each question is a request of each client."""


def _interval(value: float) -> float:
    if value < SHORTEST:
        raise fault(f"must be at least {SHORTEST:g}s: each client sends a request that often")
    return value


class Ack(Section):
    """Heartbeats that clients answer: after so many misses in a row a stream is closed."""

    interval: Annotated[Duration, AfterValidator(_interval)] = preset("30s", "how often a client is asked")
    timeout: Duration = preset("60s", "a question that is not answered within this is a miss")
    retry_limit: Positive = Field(3, description="misses in a row after which the stream is closed")

    @property
    def patience(self) -> float:
        """Seconds after which a client that never answered is closed, at the latest but for the sweep."""
        return self.interval * self.retry_limit + self.timeout


def _ack(value: Any) -> Any:
    if isinstance(value, (dict, Ack)) or value == "none":
        return value
    raise fault("must be none, or {interval: 30s, timeout: 60s, retry_limit: 3}")


AckSetting = Annotated[Literal["none"] | Ack, Field(union_mode="left_to_right"), BeforeValidator(_ack)]
