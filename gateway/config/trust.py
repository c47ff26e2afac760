"""Whom the gateway trusts upstream: what the file allows and an operator should be reminded of. Pure."""

from collections.abc import Iterator

from gateway.config.model import Config
from gateway.config.redis_url import RedisUrl
from gateway.config.sources import Kafka, Webhook


def unchecked_hosts(config: Config) -> Iterator[str]:
    """Yield the keys of connections that take the certificate of any host, if its authority is trusted."""
    urls = {"broker.url": config.broker.url.get_secret_value()}
    for name, source in config.sources.items():
        if isinstance(source, Kafka):
            if source.tls is not None and not source.tls.check_hostname:
                yield f"sources.{name}.tls.check_hostname"
        elif not isinstance(source, Webhook):
            urls[f"sources.{name}.url"] = source.url.get_secret_value()
    for key, url in urls.items():
        if url.startswith("rediss") and not RedisUrl.parse(url).checks_host:
            yield key
