"""Whom the gateway trusts upstream: what the file allows and an operator should be reminded of. Pure."""

from collections.abc import Iterator

from gateway.config.auth import is_safe
from gateway.config.faults import Path
from gateway.config.model import Config
from gateway.config.redis_url import RedisUrl
from gateway.config.sources import Kafka, Webhook


def unchecked_hosts(config: Config) -> Iterator[Path]:
    """Yield the keys of connections that take the certificate of any host, if its authority is trusted."""
    urls: dict[Path, str] = {("broker", "url"): config.broker.url.get_secret_value()}
    for name, source in config.sources.items():
        if isinstance(source, Kafka):
            if source.tls is not None and not source.tls.check_hostname:
                yield "sources", name, "tls", "check_hostname"
        elif not isinstance(source, Webhook):
            urls["sources", name, "url"] = source.url.get_secret_value()
    for key, url in urls.items():
        if url.startswith("rediss") and not RedisUrl.parse(url).checks_host:
            yield key


def unsafe_urls(config: Config) -> Iterator[Path]:
    """Yield the keys of URLs whose answers decide who reads, and that anybody between could answer."""
    if config.auth is None:
        return
    issuers = config.auth.jwt or ()
    for index, jwt in enumerate(issuers):
        if jwt.jwks_url is not None and not is_safe(jwt.jwks_url):
            yield ("auth", "jwt", index, "jwks_url") if len(issuers) > 1 else ("auth", "jwt", "jwks_url")
    if config.auth.forward is not None and not is_safe(config.auth.forward.url):
        yield "auth", "forward", "url"
