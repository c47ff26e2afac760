"""Rules between the keys of one section: what one of them means for the others.

Like `checks` they read the raw data and step over whatever has the wrong shape, so that a mistake in one key
hides none in another. Each fault is told at the key that has to change.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config.loader.faults import Fault, Path
from gateway.config.model.auth import HMAC_KEY_BYTES, is_safe
from gateway.config.model.verify import METHODS
from gateway.config.placeholders import Expression

Section = Mapping[str, Any]

_KEYS = ("secret", "public_key_file", "jwks_url")


def relations(root: Section) -> Iterator[Fault]:
    """Yield every fault that a section shows when its keys are seen together."""
    auth = _mapping(root.get("auth"))
    yield from _auth(auth)
    for path, jwt in issuers(auth):
        yield from _jwt(jwt, path)
    yield from _url("url", _mapping(auth.get("forward")), ("auth", "forward"))
    for name, source in _mapping(root.get("sources")).items():
        tls = _mapping(_mapping(source).get("tls"))
        if tls.get("key") is not None and tls.get("certificate") is None:
            yield Fault(
                ("sources", name, "tls", "key"), "does nothing without certificate, whose key it is", True
            )
        if isinstance(verify := _mapping(source).get("verify"), dict):
            yield from _verify(verify, ("sources", name, "verify"))


def issuers(auth: Section) -> Iterator[tuple[Path, Section]]:
    """Yield the issuers of ``auth.jwt`` with their paths: one mapping, or a list of them."""
    jwt = auth.get("jwt")
    if isinstance(jwt, dict):
        yield ("auth", "jwt"), jwt
    for index, each in enumerate(jwt if isinstance(jwt, list) else ()):
        if isinstance(each, dict):
            yield ("auth", "jwt", index), each


def _auth(auth: Section) -> Iterator[Fault]:
    if auth.get("jwt") is None:
        for key in ("tickets", "cookie", "query"):
            if auth.get(key) is not None:
                what = "tickets are given for" if key == "tickets" else "holds"
                yield Fault(
                    ("auth", key),
                    f"{what} tokens, and there is no auth.jwt that says how to check them",
                    True,
                )
    several = list(issuers(auth))
    names: set[str] = set()
    secrets: set[str] = set()
    for path, jwt in several:
        issuer, secret = jwt.get("issuer"), jwt.get("secret")
        if len(several) > 1 and issuer is None:
            yield Fault(path, "several issuers are told apart by their iss claim: give each its own issuer")
        elif isinstance(issuer, str) and issuer in names:
            yield Fault(
                (*path, "issuer"), "is another one's too, and they are told apart by it: give each its own"
            )
        elif isinstance(issuer, str):
            names.add(issuer)
        if isinstance(secret, str) and secret and secret in secrets:
            yield Fault(
                (*path, "secret"),
                "two issuers have one secret, so either can sign for the other; give each its own",
            )
        elif isinstance(secret, str):
            secrets.add(secret)


def _jwt(jwt: Section, path: Path) -> Iterator[Fault]:
    algorithms = jwt.get("algorithms")
    known = [each for each in algorithms if isinstance(each, str)] if isinstance(algorithms, list) else []
    kinds = {name[:2] for name in known if name[:2] in ("HS", "RS", "ES", "Ed")}
    given = [key for key in _KEYS if jwt.get(key) is not None]
    if len(kinds) > 1 and (given != ["jwks_url"] or "HS" in kinds):
        # One list for two kinds would let a public key be used as an HMAC secret (RFC 8725 §2.1).
        yield Fault(
            (*path, "algorithms"),
            "all algorithms must be of one kind: HS, RS, ES or EdDSA; a key is of one kind",
        )
        kinds = set()
    if len(given) != 1:
        found = f"; found {' and '.join(given)}" if given else ""
        yield Fault(
            path,
            "give exactly one of secret (HS algorithms), public_key_file, jwks_url (RS, ES, EdDSA)" + found,
            True,
        )
    elif kinds and (kinds == {"HS"}) != (given == ["secret"]):
        wanted = "secret" if "HS" in kinds else "public_key_file or jwks_url"
        yield Fault((*path, given[0]), f"is no key for {', '.join(known)}, which needs {wanted}", True)
    secret = jwt.get("secret")
    needed = max((HMAC_KEY_BYTES.get(name, 0) for name in known), default=0)
    if isinstance(secret, str) and len(secret.encode()) < needed:
        yield Fault(
            (*path, "secret"),
            f"is shorter than the {needed} bytes that RFC 7518 §3.2 asks for;"
            " make one with: openssl rand -base64 64",
        )
    yield from _url("jwks_url", jwt, path)


def _url(key: str, section: Section, path: Path) -> Iterator[Fault]:
    url = section.get(key)
    if not isinstance(url, str) or section.get("allow_http") in (True, "true"):
        return
    try:
        is_well = not url.startswith("http:") or is_safe(url)
    except ValueError:
        return  # the model tells it
    if not is_well:
        yield Fault(
            (*path, key),
            "is http://, so whoever is between could answer; use https, or say allow_http: true",
        )


def _verify(verify: Section, path: Path) -> Iterator[Fault]:
    given = [name for name in METHODS if verify.get(name) is not None]
    if len(given) != 1:
        found = f"; found {' and '.join(given)}" if given else ""
        yield Fault(path, f"give exactly one of {', '.join(METHODS[:-1])} and none: true{found}", on_key=True)
    yield from _hmac(_mapping(verify.get("hmac")), (*path, "hmac"))


def _hmac(hmac: Section, path: Path) -> Iterator[Fault]:
    content = hmac.get("content", "{body}")
    try:
        names = Expression(content).names if isinstance(content, str) else None
    except ValueError:
        return  # the model tells it
    if names is None:
        return
    where = (*path, "content")
    unknown = sorted(set(names) - {"body", "id", "timestamp"})
    if unknown:
        yield Fault(where, f"holds {{{unknown[0]}}}; it may hold {{body}}, {{id}} and {{timestamp}}")
    elif "body" not in names:
        yield Fault(where, "does not hold {body}: the signature would hold for any body")
    for place in ("id", "timestamp"):
        if place in names and hmac.get(f"{place}_header") is None:
            yield Fault(path, f"content holds {{{place}}}, and no {place}_header says where that is", True)
        elif place not in names and hmac.get(f"{place}_header") is not None:
            why = f"content does not hold {{{place}}}, so anybody may change that header of a message"
            yield Fault((*path, f"{place}_header"), f"{why}: sign it in content, or leave {place}_header out")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
