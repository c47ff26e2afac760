"""Names, connections and handshakes: what is seen before the first byte of HTTP."""

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from gateway.cli.doctor.tls import ServerCertificate, TlsHandshake

MAX_ADDRESSES = 8
"""Addresses of one name that are tried."""


@dataclass(frozen=True, slots=True)
class ConnectAttempt:
    """A connection to one address: how many seconds it took, or why there is none."""

    address: str
    seconds: float
    error: str = ""


def client_tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return what trusts the system's CAs, and those of a file. Raises OSError (ssl.SSLError is one)."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


async def resolve(host: str, port: int, seconds: float) -> Sequence[str]:
    """Return the addresses of a name. Raises OSError, or TimeoutError after ``seconds``."""
    async with asyncio.timeout(seconds):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:MAX_ADDRESSES]


async def connect_all(addresses: Sequence[str], port: int, seconds: float) -> Sequence[ConnectAttempt]:
    """Connect to each address for at most ``seconds``, all at once, and close again."""
    return await asyncio.gather(*(_connect_once(address, port, seconds) for address in addresses))


async def _connect_once(address: str, port: int, seconds: float) -> ConnectAttempt:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return ConnectAttempt(address, seconds, f"no answer within {seconds:g} s")
    except OSError as error:
        return ConnectAttempt(address, loop.time() - began, describe_network_error(error))
    took = loop.time() - began
    writer.transport.abort()
    return ConnectAttempt(address, took)


async def handshake(host: str, port: int, context: ssl.SSLContext, seconds: float) -> TlsHandshake:
    """Shake hands as a browser would; where that fails, once more without conditions, to say why."""
    try:
        return await _perform_handshake(host, port, context, seconds)
    except ssl.SSLCertVerificationError as error:
        seen = await _handshake_unverified(host, port, seconds)
        return TlsHandshake(
            seen.version or "TLS", seen.alpn, seen.certificate, error.verify_code, error.verify_message
        )
    except (OSError, TimeoutError) as error:
        seen = await _handshake_unverified(host, port, seconds)
        return seen if seen.version else TlsHandshake(failure=describe_network_error(error))


async def _handshake_unverified(host: str, port: int, seconds: float) -> TlsHandshake:
    """Shake hands with anything. Nothing is sent over that connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    try:
        return await _perform_handshake(host, port, context, seconds)
    except (OSError, TimeoutError) as error:
        return TlsHandshake(failure=describe_network_error(error))


async def _perform_handshake(host: str, port: int, context: ssl.SSLContext, seconds: float) -> TlsHandshake:
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with asyncio.timeout(seconds):
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    try:
        made: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = made.getpeercert(binary_form=True)
        return TlsHandshake(
            made.version(), made.selected_alpn_protocol(), _parse_certificate(der) if der else None
        )
    finally:
        writer.transport.abort()


def _parse_certificate(der: bytes) -> ServerCertificate | None:
    try:
        made = x509.load_der_x509_certificate(der)
        issuer = made.issuer.rfc4514_string()
        return ServerCertificate(
            _subject_names(made), issuer, made.not_valid_before_utc, made.not_valid_after_utc
        )
    except ValueError:
        return None  # the library is stricter than OpenSSL, whose verdict counts


def _subject_names(made: x509.Certificate) -> list[str]:
    try:
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def describe_network_error(error: BaseException) -> str:
    """Return an error in words."""
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio's own words name the call, and not the cause
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
