"""``sse-gateway token``: signs a test JWT that the configuration accepts."""

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.auth.grant import Grant
from gateway.auth.jwt import Issuer, TokenVerifier
from gateway.auth.keys import is_key_for, read_pem
from gateway.auth.rules import CHANNELS_CLAIM, authorize
from gateway.cli.arguments import parse_positive_duration
from gateway.config.channel_catalog import ChannelCatalog, DeclaredChannel
from gateway.config.loader.issues import suggest_nearest
from gateway.config.loader.partial import TOKEN_KEYS, PartialConfig
from gateway.config.model.auth import JwtConfig
from gateway.config.model.config import ClaimsAccessConfig, Config
from gateway.config.template import fill_fields
from gateway.core.errors import Forbidden, GatewayError, NotFound, StartupError, Unauthorized
from gateway.core.sanitize import escape_unprintable, redact_url


def required_claims(
    catalog: ChannelCatalog, channels: Iterable[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ``given`` claims plus those that allow all of these channels.

    Raises NotFound for an unknown channel, Forbidden for one that no token allows.
    """
    claims: dict[str, Any] = dict(given)
    for name in channels:
        match = catalog.resolve(name)
        if match is None and "*" not in name:
            raise NotFound(f"no channel is called {name!r}; {suggest_nearest(name, catalog.declared)}")
        access = "token" if match is None else match.declared.config.access
        if access == "forward":
            raise Forbidden(f"{name} has access: forward, so auth.forward.url decides, not a token alone")
        if match is not None and isinstance(access, ClaimsAccessConfig):
            for claim, rule in access.claims.items():
                _set_claim(claims, claim, fill_fields(rule, match.fields), name)
        elif access == "token":
            listed = claims.get(CHANNELS_CLAIM, [])
            listed = [listed] if isinstance(listed, str) else list(listed) if isinstance(listed, list) else []
            claims[CHANNELS_CLAIM] = [*listed, *([] if name in listed else [name])]
    return claims


def _set_claim(claims: dict[str, Any], claim: str, value: str, name: str) -> None:
    present = claims.setdefault(claim, value)
    values = present if isinstance(present, list) else [present]
    if value not in map(str, values):
        raise Forbidden(f"{name} requires the claim {claim} to be {value!r}, but it is {present!r}")


def channel_access(
    catalog: ChannelCatalog, grant: Grant, requested: Sequence[str]
) -> list[tuple[str, bool, str]]:
    """Return name, whether the grant allows it, and its access rule, for each channel.

    The ``requested`` ones come first, then all others that are allowed, but for templates.
    """
    rows = []
    for name in requested:
        match = catalog.resolve(name)
        if match is not None:
            try:
                authorize([match], grant)
                rows.append((name, True, describe_access(match.declared)))
            except (Forbidden, Unauthorized) as error:
                rows.append((name, False, error.message))
    for declared in catalog.declared.values():
        match = catalog.resolve(declared.name)
        if match is not None and declared.name not in requested:
            with suppress(GatewayError):
                authorize([match], grant)
                rows.append((declared.name, True, describe_access(declared)))
    return rows


def describe_access(declared: DeclaredChannel) -> str:
    """Return a channel's access rule as text."""
    access = declared.config.access
    if isinstance(access, ClaimsAccessConfig):
        return "claims " + ", ".join(f"{claim} = {value}" for claim, value in access.claims.items())
    texts = {"token": "the channels claim lists it", "forward": "auth.forward.url decides"}
    return texts.get(access, access)


DEFAULT_LIFETIME_SECONDS = 3600.0
COMPUTED_CLAIMS = frozenset({"exp", "iat"})
"""Claims that are set by the program."""

EPILOG = """exit status:
  0    the token is on standard output, and the channels that it allows on standard error
  1    it cannot be signed, or would not allow all of --channels; or an invalid configuration
  2    wrong usage"""

_TEXT_CLAIMS = frozenset({"sub", "iss"})
"""Claims that RFC 7519 defines as text: 42 is not taken for a number."""

_CLAIM_OPTION = re.compile(r"([^=\s]+)=(.*)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser."""
    parser.add_argument("--subject", metavar="NAME", help="the sub claim: the user")
    parser.add_argument(
        "--channels", metavar="A,B", type=_split_names, default=[],
        help="channels it must allow: names, instances (user.42), globs (room.*); sets the claims for them",
    )  # fmt: skip
    parser.add_argument(
        "--claim", metavar="NAME=VALUE", type=_parse_claim, action="append", default=[],
        help="another claim; JSON values are parsed: 'roles=[\"admin\"]'",
    )  # fmt: skip
    parser.add_argument(
        "--expires",
        metavar="DURATION",
        type=parse_positive_duration,
        default=DEFAULT_LIFETIME_SECONDS,
        help="lifetime; default 1h",
    )
    parser.add_argument("--issuer", metavar="NAME", help="issuer of auth.jwt, if it has several")
    parser.add_argument(
        "--key",
        metavar="FILE",
        help="PEM file of the private key, for issuers without a secret (RS, ES, EdDSA)",
    )
    parser.add_argument("--kid", metavar="ID", help="key id, for issuers with several keys")


def run(options: argparse.Namespace, load_sections: Callable[..., PartialConfig]) -> int:
    """Print a token and return the exit status. Raises StartupError if it cannot be signed."""
    loaded = load_sections(*TOKEN_KEYS).config
    try:
        issuer = _select_issuer(loaded, options.issuer)
        claims = _build_claims(options, issuer, ChannelCatalog(loaded.channels))
        algorithm, key = _signing_key(issuer, options.key)
        headers = {"kid": options.kid} if options.kid else None
        token = jwt.encode(claims, key, algorithm, headers)
        verified = _verify(loaded, issuer, token)
    except StartupError:
        raise
    except GatewayError as error:
        raise StartupError(f"no token: {error.message}") from None
    explanation = _explain(options, loaded, issuer, claims, algorithm, verified)
    print(explanation, file=sys.stderr, flush=True)
    print(token, flush=True)
    return 0


def _select_issuer(config: Config, name: str | None) -> JwtConfig:
    issuers = config.auth.jwt if config.auth is not None else None
    if not issuers:
        raise StartupError("the configuration has no auth.jwt, so no token allows anything")
    for each in issuers:
        if name is None or each.issuer == name:
            return each
    known = ", ".join(str(each.issuer) for each in issuers)
    raise StartupError(f"--issuer {name!r} is not in auth.jwt, which has: {known}")


def _build_claims(options: argparse.Namespace, issuer: JwtConfig, catalog: ChannelCatalog) -> dict[str, Any]:
    if options.expires > issuer.max_lifetime:
        raise StartupError(
            f"--expires is longer than auth.jwt.max_lifetime ({issuer.max_lifetime:g} s): use a shorter one"
        )
    named = {"iss": issuer.issuer, "aud": issuer.audience, "sub": options.subject}
    given: dict[str, Any] = {claim: value for claim, value in named.items() if value is not None}
    now = int(time.time())
    return required_claims(catalog, options.channels, given | dict(options.claim)) | {
        "iat": now,
        "exp": now + max(1, round(options.expires)),
    }


def _signing_key(issuer: JwtConfig, file: str | None) -> tuple[str, Any]:
    """Return the issuer's algorithm and the key to sign with."""
    if issuer.secret is not None:
        if file is not None:
            raise StartupError(f"{', '.join(issuer.algorithms)} signs with auth.jwt.secret: leave out --key")
        return issuer.algorithms[0], issuer.secret.get_secret_value()
    if file is None:
        raise StartupError(_private_key_hint(issuer))
    try:
        key: Any = load_pem_private_key(Path(file).read_bytes(), None)
    except OSError as error:
        raise StartupError(f"cannot read --key {file}: {error.strerror}") from None
    except TypeError:
        raise StartupError(f"--key {file} is encrypted: openssl pkey -in {file} writes it without") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartupError(f"--key {file} holds no PEM private key") from None
    for algorithm in issuer.algorithms:
        if hasattr(key, "public_key") and is_key_for(key.public_key(), algorithm):
            return algorithm, key
    raise StartupError(f"--key {file} is not a key for {', '.join(issuer.algorithms)}")


def _private_key_hint(issuer: JwtConfig) -> str:
    name = f"the issuer {issuer.issuer}" if issuer.issuer else "the issuer"
    if issuer.jwks_url is not None:
        return (
            f"only {name} has the private key: the gateway has public keys from {redact_url(issuer.jwks_url)}"
            "; get a token from it, or use --key (and --kid) if the private key is yours"
        )
    return f"only {name} has the private key to {issuer.public_key_file}: use --key with it"


def _verify(config: Config, issuer: JwtConfig, token: str) -> Grant | None:
    """Return the grant of the token as the gateway verifies it; None if that fetches the issuer's key."""
    if issuer.jwks_url is not None:
        return None
    if issuer.secret is not None:
        key: Any = issuer.secret.get_secret_value()
    else:
        key = read_pem(str(issuer.public_key_file), issuer.algorithms)
    claims = jwt.decode(token, options={"verify_signature": False})
    try:
        return asyncio.run(TokenVerifier([Issuer(issuer, key)], claims).resolve(token))
    except GatewayError as error:
        raise StartupError(f"no token: the gateway would reject it: {error.message}") from None


def _explain(
    options: argparse.Namespace,
    config: Config,
    issuer: JwtConfig,
    claims: dict[str, Any],
    algorithm: str,
    grant: Grant | None,
) -> str:
    ends = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(claims["exp"]))
    given = {name: value for name, value in claims.items() if name not in COMPUTED_CLAIMS}
    text = escape_unprintable(json.dumps(given, ensure_ascii=False))
    lines = [f"signed with {algorithm}, valid until {ends}: {text}"]
    if grant is None:
        lines.append(f"not verified: the gateway fetches the keys of {redact_url(issuer.jwks_url or '')}")
        grant = Grant(subject=claims.get("sub"), claims=claims, expires=claims["exp"])
    rows = channel_access(ChannelCatalog(config.channels), grant, options.channels)
    denied = [f"no token: {name} is not allowed: {rule}" for name, is_allowed, rule in rows if not is_allowed]
    if denied:
        raise StartupError("\n".join(denied))
    lines += [f"  allows {name} ({rule})" for name, _, rule in rows]
    others = [name for name in config.channels if name not in {name for name, _, _ in rows}]
    if others:
        lines.append(f"  not, or by instance: {', '.join(others)}")
    return "\n".join(lines)


def _split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _parse_claim(text: str) -> tuple[str, Any]:
    match = _CLAIM_OPTION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError("must be name=value")
    if match[1] in COMPUTED_CLAIMS:
        raise argparse.ArgumentTypeError(f"{match[1]} is set by --expires")
    if match[1] in _TEXT_CLAIMS:
        return match[1], match[2]
    try:
        return match[1], json.loads(match[2])
    except ValueError:
        return match[1], match[2]
