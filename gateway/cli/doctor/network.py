"""Name lookups, TCP connections and TLS handshakes."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from gateway.cli.doctor.tls import ServerCertificate, TlsHandshake
from gateway.cli.http_client import describe_network_error

MAX_ADDRESSES = 8
"""Addresses of one name that are tried."""


@dataclass(frozen=True, slots=True)
class ConnectAttempt:
    """A connection to one address: the seconds it took, and the error if it failed."""

    address: str
    seconds: float
    error: str = ""


async def resolve(host: str, port: int, seconds: float) -> Sequence[str]:
    """Return the addresses of a name. Raises OSError, or TimeoutError after ``seconds``."""
    async with asyncio.timeout(seconds):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:MAX_ADDRESSES]


async def connect_all(addresses: Sequence[str], port: int, seconds: float) -> Sequence[ConnectAttempt]:
    """Connect to all addresses at once, for at most ``seconds``, and close the connections."""
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
    """Perform a handshake as a browser would; if it fails, again without verification, to see why."""
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
    """Perform a handshake with any server. No data is sent over that connection."""
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
        return None  # the library is stricter than OpenSSL, whose verdict is reported


def _subject_names(made: x509.Certificate) -> list[str]:
    try:
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]
