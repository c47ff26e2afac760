"""The Kafka source without a broker."""

import pytest

from gateway.config.model.sources import KafkaConfig
from gateway.core.errors import SourceError
from gateway.sources.kafka import KafkaSource


async def test_an_aiokafka_without_what_is_needed_says_so() -> None:
    """A newer version may have another inside: the source's line names it, and other sources go on."""
    source = KafkaSource(
        "k", KafkaConfig.model_validate({"type": "kafka", "brokers": "127.0.0.1:1"}), (), frozenset()
    )
    with pytest.raises(SourceError, match="install aiokafka"):
        await source.fetch_metadata(object())
