"""Rules between keys, of one section or of several.

They read the raw data instead of the model: a file with one error has no model, and all errors have to be
reported at once. Each rule skips values of the wrong shape, which the model reports, and reports its error at
the key that has to change.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config.loader.issues import ConfigIssue, ConfigPath, suggest_nearest
from gateway.config.model.auth import HMAC_KEY_BYTES, is_secure_url
from gateway.config.model.value_types import parse_listen_address
from gateway.config.model.verify import VERIFY_METHODS
from gateway.config.template import field_names
from gateway.config.validation.raw_data import as_list, as_mapping, is_true, parse_template, placeholder_names

RawSection = Mapping[str, Any]

_JWT_KEY_SETTINGS = ("secret", "public_key_file", "jwks_url")
_PLACEHOLDERS_BY_SOURCE_TYPE = {
    "redis-pubsub": ("topic",),
    "redis-stream": ("topic", "id", "fields.…"),
    "webhook": ("topic", "key", "partition", "offset", "headers.…", "ce.…"),
    "kafka": ("topic", "key", "partition", "offset", "headers.…"),
}
"""The placeholders that each type of source has, beside JSON pointers, which all have."""


def check_rules(data: Any) -> Iterator[ConfigIssue]:
    """Yield every violation in the raw data of a file."""
    root = as_mapping(data)
    server, auth, sources = (as_mapping(root.get(name)) for name in ("server", "auth", "sources"))
    yield from _check_server(server, as_mapping(root.get("broker")).get("url"))
    yield from _check_auth(auth)
    has_client_ca = as_mapping(server.get("tls")).get("client_ca") is not None
    for name, source in sources.items():
        yield from _check_source(as_mapping(source), ("sources", name), has_client_ca=has_client_ca)
    has_credentials = is_true(as_mapping(root.get("cors")).get("credentials"))
    yield from _check_credentials(root.get("cors"), ("cors", "origins"), has_credentials)
    skeletons: dict[str, str] = {}
    for name, value in as_mapping(root.get("channels")).items():
        channel = as_mapping(value)
        path = ("channels", name)
        yield from _check_routes(name, channel, sources)
        yield from _check_access(name, channel.get("access"), auth)
        yield from _check_credentials(channel.get("cors"), (*path, "cors", "origins"), has_credentials)
        yield from _check_conflate(channel, path)
        if is_true(channel.get("critical")) and channel.get("stale_after") is None:
            yield ConfigIssue(
                (*path, "critical"), "has no effect without stale_after; set stale_after, or remove critical"
            )
        template = parse_template(name)
        other = name if template is None else skeletons.setdefault(template.skeleton, name)
        if other != name:
            yield ConfigIssue(path, f"matches the same names as {other!r}; remove one of them", True)


def _check_server(server: RawSection, broker_url: Any) -> Iterator[ConfigIssue]:
    if server.get("workers") not in (None, 1, "1") and broker_url in (None, "memory://"):
        yield ConfigIssue(
            ("server", "workers"),
            "several workers need a shared log, and memory:// is private to one process;"
            " set broker.url: sqlite:////var/lib/sse-gateway/log.db, or a redis:// URL",
        )
    if server.get("admin_token") is not None:
        return
    if is_true(server.get("admin_open")):
        if is_true(server.get("development")):
            yield ConfigIssue(
                ("server", "development"),
                "with admin_open, everybody who reaches the admin port could read every channel and publish;"
                ' set admin_token: "${ADMIN_TOKEN}", or development: false',
            )
        return
    try:
        is_private = server.get("admin") is None or parse_listen_address(server["admin"]).is_loopback
    except ValueError:
        return  # the model reports it
    if not is_private:
        yield ConfigIssue(
            ("server", "admin"),
            "would expose metrics and status to everybody who reaches it; listen on 127.0.0.1, or set"
            ' admin_token: "${ADMIN_TOKEN}", or admin_open: true if the network is private',
        )


def jwt_issuers(auth: RawSection) -> Iterator[tuple[ConfigPath, RawSection]]:
    """Yield the issuers of ``auth.jwt`` with their paths: one mapping, or a list of them."""
    jwt = auth.get("jwt")
    if isinstance(jwt, dict):
        yield ("auth", "jwt"), jwt
    for index, each in enumerate(as_list(jwt)):
        if isinstance(each, dict):
            yield ("auth", "jwt", index), each


def _check_auth(auth: RawSection) -> Iterator[ConfigIssue]:
    if auth.get("jwt") is None:
        for key in ("tickets", "cookie", "query"):
            if auth.get(key) is not None:
                what = "tickets are issued for" if key == "tickets" else "carries"
                yield ConfigIssue(
                    ("auth", key), f"{what} tokens, and auth.jwt is missing; add it, or remove this key", True
                )
    issuers = list(jwt_issuers(auth))
    names: set[str] = set()
    secrets: set[str] = set()
    for path, jwt in issuers:
        issuer, secret = jwt.get("issuer"), jwt.get("secret")
        if len(issuers) > 1 and issuer is None:
            yield ConfigIssue(path, "has no issuer, which distinguishes it from the others; set issuer")
        elif isinstance(issuer, str):
            if issuer in names:
                yield ConfigIssue((*path, "issuer"), "is used by another entry too; each needs its own")
            names.add(issuer)
        if isinstance(secret, str):
            if secret and secret in secrets:
                yield ConfigIssue(
                    (*path, "secret"),
                    "is used by another issuer too, so each can sign for the other; use different secrets",
                )
            secrets.add(secret)
    for path, jwt in issuers:
        yield from _check_jwt(jwt, path)
    yield from _check_url("url", as_mapping(auth.get("forward")), ("auth", "forward"))


def _check_jwt(jwt: RawSection, path: ConfigPath) -> Iterator[ConfigIssue]:
    known = [each for each in as_list(jwt.get("algorithms")) if isinstance(each, str)]
    kinds = {name[:2] for name in known if name[:2] in ("HS", "RS", "ES", "Ed")}
    given = [key for key in _JWT_KEY_SETTINGS if jwt.get(key) is not None]
    if len(kinds) > 1 and (given != ["jwks_url"] or "HS" in kinds):
        # One list for two kinds would let a public key be used as an HMAC secret (RFC 8725 §2.1).
        yield ConfigIssue(
            (*path, "algorithms"),
            "mixes kinds of algorithms, and a key is of one kind; list only HS, only RS, only ES, or EdDSA",
        )
        kinds = set()
    if len(given) != 1:
        found = f"; found {' and '.join(given)}" if given else ""
        yield ConfigIssue(
            path,
            f"needs exactly one of secret (HS algorithms), public_key_file, jwks_url (RS, ES, EdDSA){found}",
            True,
        )
    elif kinds and (kinds == {"HS"}) != (given == ["secret"]):
        wanted = "secret" if "HS" in kinds else "public_key_file or jwks_url"
        yield ConfigIssue((*path, given[0]), f"is no key for {', '.join(known)}; set {wanted} instead", True)
    secret = jwt.get("secret")
    needed = max((HMAC_KEY_BYTES.get(name, 0) for name in known), default=0)
    if isinstance(secret, str) and len(secret.encode()) < needed:
        yield ConfigIssue(
            (*path, "secret"),
            f"is shorter than {needed} bytes, the minimum of RFC 7518 §3.2;"
            " make one with: openssl rand -base64 64",
        )
    yield from _check_url("jwks_url", jwt, path)


def _check_url(key: str, section: RawSection, path: ConfigPath) -> Iterator[ConfigIssue]:
    url = section.get(key)
    if not isinstance(url, str) or is_true(section.get("allow_http")):
        return
    try:
        is_insecure = url.startswith("http:") and not is_secure_url(url)
    except ValueError:
        return  # the model reports it
    if is_insecure:
        yield ConfigIssue(
            (*path, key),
            "is http://, so responses can be forged on the way; use https, or set allow_http: true",
        )


def _check_source(source: RawSection, path: ConfigPath, *, has_client_ca: bool) -> Iterator[ConfigIssue]:
    tls = as_mapping(source.get("tls"))
    if tls.get("key") is not None and tls.get("certificate") is None:
        yield ConfigIssue((*path, "tls", "key"), "has no effect without certificate; set both", True)
    if isinstance(source.get("verify"), dict):
        yield from _check_verify(source["verify"], (*path, "verify"), has_client_ca=has_client_ca)
    for key, text in as_mapping(source.get("event")).items():
        yield from _check_placeholders(text, source.get("type"), (*path, "event", key))
    yield from _check_placeholders(source.get("topic"), source.get("type"), (*path, "topic"))


def _check_verify(verify: RawSection, path: ConfigPath, *, has_client_ca: bool) -> Iterator[ConfigIssue]:
    given = [name for name in VERIFY_METHODS if verify.get(name) is not None]
    if len(given) != 1:
        found = f"; found {' and '.join(given)}" if given else ""
        yield ConfigIssue(
            path, f"needs exactly one of {', '.join(VERIFY_METHODS[:-1])} and none: true{found}", True
        )
    if "client_certificate" in given and not has_client_ca:
        yield ConfigIssue(
            (*path, "client_certificate"),
            "clients are not asked for a certificate; set server.tls.client_ca to the PEM file of the CA that"
            " signs the senders' certificates",
            True,
        )
    yield from _check_hmac(as_mapping(verify.get("hmac")), (*path, "hmac"))


def _check_hmac(hmac: RawSection, path: ConfigPath) -> Iterator[ConfigIssue]:
    names = placeholder_names(hmac.get("content", "{body}"))
    if names is None:
        return
    unknown = sorted(set(names) - {"body", "id", "timestamp"})
    if unknown:
        yield ConfigIssue(
            (*path, "content"), f"has {{{unknown[0]}}}; it may have {{body}}, {{id}} and {{timestamp}}"
        )
    elif "body" not in names:
        yield ConfigIssue(
            (*path, "content"), "must have {body}, or the signature would be valid for any body"
        )
    for name in ("id", "timestamp"):
        header = f"{name}_header"
        if name in names and hmac.get(header) is None:
            yield ConfigIssue(path, f"content has {{{name}}}, and {header} is missing; set it", True)
        elif name not in names and hmac.get(header) is not None:
            yield ConfigIssue(
                (*path, header),
                f"content does not have {{{name}}}, so anybody could change that header; sign it in content,"
                f" or remove {header}",
            )


def _check_placeholders(text: Any, source_type: Any, path: ConfigPath) -> Iterator[ConfigIssue]:
    known = _PLACEHOLDERS_BY_SOURCE_TYPE.get(source_type, ()) if isinstance(source_type, str) else ()
    for name in placeholder_names(text) or () if known else ():
        group, dot, _ = name.partition(".")
        if (f"{group}.…" if dot else name) not in known:
            listed = ", ".join(f"{{{each}}}" for each in known)
            yield ConfigIssue(
                path, f"a {source_type} source has no {{{name}}}; it has {listed} and {{/json/pointer}}"
            )


def _check_routes(name: str, channel: RawSection, sources: RawSection) -> Iterator[ConfigIssue]:
    fields = set(field_names(name))
    for index, item in enumerate(as_list(channel.get("from"))):
        route = as_mapping(item)
        path = ("channels", name, "from", index)
        source, topic = route.get("source"), route.get("topic")
        if isinstance(source, str) and source not in sources:
            yield ConfigIssue(
                (*path, "source"), f"no source is named {source!r}; {suggest_nearest(source, sources)}"
            )
        template = parse_template(topic, glob=True)
        if template is None:
            continue
        source_type = as_mapping(sources.get(source)).get("type") if isinstance(source, str) else None
        given = as_mapping(route.get("fields"))
        for field, text in given.items():
            yield from _check_placeholders(text, source_type, (*path, "fields", field))
        for field in sorted(set(given) - fields):
            yield ConfigIssue(
                (*path, "fields", field), f"the channel {name!r} has no field {{{field}}}", True
            )
        for field in sorted(set(given).intersection(template.fields)):
            yield ConfigIssue(
                (*path, "fields", field), f"the topic captures {{{field}}} already; remove one of them", True
            )
        missing = sorted(fields.difference(template.fields, given))
        if missing:
            yield ConfigIssue(
                (*path, "topic"),
                f"does not capture {{{'}, {'.join(missing)}}} of the channel {name!r}; "
                f"put it where the topic has it, such as {name.replace('.', ':')},"
                f" or set fields: {{{missing[0]}: '{{key}}'}}",
            )
        for extra in sorted(set(template.fields) - fields):
            yield ConfigIssue(
                (*path, "topic"),
                f"captures {{{extra}}}, which the channel {name!r} does not have; write '*' for any text",
            )


def _check_access(name: str, access: Any, auth: RawSection) -> Iterator[ConfigIssue]:
    path = ("channels", name, "access")
    if (access == "token" or isinstance(access, dict)) and auth.get("jwt") is None:
        yield ConfigIssue(path, "needs tokens, and auth.jwt is missing; add it: it says how to verify them")
    if access == "forward" and auth.get("forward") is None:
        yield ConfigIssue(path, "needs a forward-auth endpoint; add auth.forward with its url")
    for claim, value in as_mapping(as_mapping(access).get("claims")).items():
        for field in field_names(value) if isinstance(value, str) else ():
            if field not in field_names(name):
                known = ", ".join(f"{{{known}}}" for known in field_names(name)) or "none"
                yield ConfigIssue(
                    (*path, "claims", claim), f"the channel has no field {{{field}}}; its fields: {known}"
                )


def _check_conflate(channel: RawSection, path: ConfigPath) -> Iterator[ConfigIssue]:
    text = as_mapping(channel.get("slow_client")).get("conflate")
    names = placeholder_names(text)
    if names is None:
        return
    path = (*path, "slow_client", "conflate")
    for name in names:
        yield ConfigIssue(
            path, f"has {{{name}}}; a key may only have JSON pointers into the payload, such as {{/symbol}}"
        )
    if channel.get("payload") == "text":
        yield ConfigIssue(path, "needs a JSON payload, and this channel has payload: text")


def _check_credentials(cors: Any, path: ConfigPath, has_credentials: bool) -> Iterator[ConfigIssue]:
    # Browsers refuse a literal '*' with credentials; echoing every origin would hand each site the
    # user's cookies.
    if has_credentials and "*" in as_list(as_mapping(cors).get("origins")):
        yield ConfigIssue(
            path, "'*' with cors.credentials would let every site read as your users; list the origins"
        )
