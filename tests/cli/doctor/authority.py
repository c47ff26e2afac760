"""A certificate authority of a test's own: a root, an intermediate, and leaves of any kind."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey
NOW = datetime.datetime.now(datetime.UTC)


def days(number: float) -> datetime.datetime:
    """Return the time so many days from now."""
    return NOW + datetime.timedelta(days=number)


class Authority:
    """Signs by an intermediate. Its files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root_key, self._key = _key(), _key()
        root = _made("Test Root", self._root_key, "Test Root", self._root_key, is_authority=True)
        self._intermediate = _made("Test CA", self._key, "Test Root", self._root_key, is_authority=True)
        self.root = folder / "root.pem"
        self.root.write_bytes(_pem(root))

    def leaf(
        self,
        *names: str,
        begins: datetime.datetime = days(-2),  # noqa: B008 -- a constant of this run
        ends: datetime.datetime = days(90),  # noqa: B008 -- a constant of this run
        with_chain: bool = True,
        is_self_signed: bool = False,
    ) -> tuple[Path, Path]:
        """Write a certificate, by default with its chain, and its key; return the files."""
        key = _key()
        issuer, issuer_key = (names[0], key) if is_self_signed else ("Test CA", self._key)
        made = _made(names[0], key, issuer, issuer_key, names=names, begins=begins, ends=ends)
        chain, key_file = self._folder / "leaf.pem", self._folder / "leaf.key"
        chain.write_bytes(_pem(made) + (_pem(self._intermediate) if with_chain else b""))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return chain, key_file


def server_context(files: tuple[Path, Path]) -> ssl.SSLContext:
    """Return a server's context for a certificate and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


def _key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(made: x509.Certificate) -> bytes:
    return made.public_bytes(serialization.Encoding.PEM)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _made(
    subject: str,
    key: Key,
    issuer: str,
    issuer_key: Key,
    *,
    names: tuple[str, ...] = (),
    begins: datetime.datetime = days(-2),  # noqa: B008 -- a constant of this run
    ends: datetime.datetime = days(365),  # noqa: B008 -- a constant of this run
    is_authority: bool = False,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
