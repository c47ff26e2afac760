"""Rules between the keys of one section: what one of them means for the others.

Like `checks` they read the raw data and step over whatever has the wrong shape, so that a mistake in one key
hides none in another. Each fault is told at the key that has to change.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config.loader.issues import ConfigIssue, ConfigPath
from gateway.config.model.auth import HMAC_KEY_BYTES, is_secure_url
from gateway.config.model.verify import VERIFY_METHODS
from gateway.config.placeholders import Expression

RawSection = Mapping[str, Any]

_JWT_KEY_SETTINGS = ("secret", "public_key_file", "jwks_url")


def check_sections(root: RawSection) -> Iterator[ConfigIssue]:
    """Yield every fault that a section shows when its keys are seen together."""
    auth = _as_mapping(root.get("auth"))
    yield from _check_auth(auth)
    for path, jwt in jwt_issuers(auth):
        yield from _check_jwt(jwt, path)
    yield from _check_url("url", _as_mapping(auth.get("forward")), ("auth", "forward"))
    for name, source in _as_mapping(root.get("sources")).items():
        tls = _as_mapping(_as_mapping(source).get("tls"))
        if tls.get("key") is not None and tls.get("certificate") is None:
            yield ConfigIssue(
                ("sources", name, "tls", "key"), "does nothing without certificate, whose key it is", True
            )
        if isinstance(verify := _as_mapping(source).get("verify"), dict):
            yield from _check_verify(verify, ("sources", name, "verify"))


def jwt_issuers(auth: RawSection) -> Iterator[tuple[ConfigPath, RawSection]]:
    """Yield the issuers of ``auth.jwt`` with their paths: one mapping, or a list of them."""
    jwt = auth.get("jwt")
    if isinstance(jwt, dict):
        yield ("auth", "jwt"), jwt
    for index, each in enumerate(jwt if isinstance(jwt, list) else ()):
        if isinstance(each, dict):
            yield ("auth", "jwt", index), each


def _check_auth(auth: RawSection) -> Iterator[ConfigIssue]:
    if auth.get("jwt") is None:
        for key in ("tickets", "cookie", "query"):
            if auth.get(key) is not None:
                what = "tickets are given for" if key == "tickets" else "holds"
                yield ConfigIssue(
                    ("auth", key),
                    f"{what} tokens, and there is no auth.jwt that says how to check them",
                    True,
                )
    several = list(jwt_issuers(auth))
    names: set[str] = set()
    secrets: set[str] = set()
    for path, jwt in several:
        issuer, secret = jwt.get("issuer"), jwt.get("secret")
        if len(several) > 1 and issuer is None:
            yield ConfigIssue(
                path, "several issuers are told apart by their iss claim: give each its own issuer"
            )
        elif isinstance(issuer, str) and issuer in names:
            yield ConfigIssue(
                (*path, "issuer"), "is another one's too, and they are told apart by it: give each its own"
            )
        elif isinstance(issuer, str):
            names.add(issuer)
        if isinstance(secret, str) and secret and secret in secrets:
            yield ConfigIssue(
                (*path, "secret"),
                "two issuers have one secret, so either can sign for the other; give each its own",
            )
        elif isinstance(secret, str):
            secrets.add(secret)


def _check_jwt(jwt: RawSection, path: ConfigPath) -> Iterator[ConfigIssue]:
    algorithms = jwt.get("algorithms")
    known = [each for each in algorithms if isinstance(each, str)] if isinstance(algorithms, list) else []
    kinds = {name[:2] for name in known if name[:2] in ("HS", "RS", "ES", "Ed")}
    given = [key for key in _JWT_KEY_SETTINGS if jwt.get(key) is not None]
    if len(kinds) > 1 and (given != ["jwks_url"] or "HS" in kinds):
        # One list for two kinds would let a public key be used as an HMAC secret (RFC 8725 §2.1).
        yield ConfigIssue(
            (*path, "algorithms"),
            "all algorithms must be of one kind: HS, RS, ES or EdDSA; a key is of one kind",
        )
        kinds = set()
    if len(given) != 1:
        found = f"; found {' and '.join(given)}" if given else ""
        yield ConfigIssue(
            path,
            "give exactly one of secret (HS algorithms), public_key_file, jwks_url (RS, ES, EdDSA)" + found,
            True,
        )
    elif kinds and (kinds == {"HS"}) != (given == ["secret"]):
        wanted = "secret" if "HS" in kinds else "public_key_file or jwks_url"
        yield ConfigIssue((*path, given[0]), f"is no key for {', '.join(known)}, which needs {wanted}", True)
    secret = jwt.get("secret")
    needed = max((HMAC_KEY_BYTES.get(name, 0) for name in known), default=0)
    if isinstance(secret, str) and len(secret.encode()) < needed:
        yield ConfigIssue(
            (*path, "secret"),
            f"is shorter than the {needed} bytes that RFC 7518 §3.2 asks for;"
            " make one with: openssl rand -base64 64",
        )
    yield from _check_url("jwks_url", jwt, path)


def _check_url(key: str, section: RawSection, path: ConfigPath) -> Iterator[ConfigIssue]:
    url = section.get(key)
    if not isinstance(url, str) or section.get("allow_http") in (True, "true"):
        return
    try:
        is_well = not url.startswith("http:") or is_secure_url(url)
    except ValueError:
        return  # the model tells it
    if not is_well:
        yield ConfigIssue(
            (*path, key),
            "is http://, so whoever is between could answer; use https, or say allow_http: true",
        )


def _check_verify(verify: RawSection, path: ConfigPath) -> Iterator[ConfigIssue]:
    given = [name for name in VERIFY_METHODS if verify.get(name) is not None]
    if len(given) != 1:
        found = f"; found {' and '.join(given)}" if given else ""
        yield ConfigIssue(
            path,
            f"give exactly one of {', '.join(VERIFY_METHODS[:-1])} and none: true{found}",
            is_on_key=True,
        )
    yield from _check_hmac(_as_mapping(verify.get("hmac")), (*path, "hmac"))


def _check_hmac(hmac: RawSection, path: ConfigPath) -> Iterator[ConfigIssue]:
    content = hmac.get("content", "{body}")
    try:
        names = Expression(content).placeholder_names if isinstance(content, str) else None
    except ValueError:
        return  # the model tells it
    if names is None:
        return
    where = (*path, "content")
    unknown = sorted(set(names) - {"body", "id", "timestamp"})
    if unknown:
        yield ConfigIssue(where, f"holds {{{unknown[0]}}}; it may hold {{body}}, {{id}} and {{timestamp}}")
    elif "body" not in names:
        yield ConfigIssue(where, "does not hold {body}: the signature would hold for any body")
    for place in ("id", "timestamp"):
        if place in names and hmac.get(f"{place}_header") is None:
            yield ConfigIssue(
                path, f"content holds {{{place}}}, and no {place}_header says where that is", True
            )
        elif place not in names and hmac.get(f"{place}_header") is not None:
            why = f"content does not hold {{{place}}}, so anybody may change that header of a message"
            yield ConfigIssue(
                (*path, f"{place}_header"), f"{why}: sign it in content, or leave {place}_header out"
            )


def _as_mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
