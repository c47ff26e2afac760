"""Reloading certificates: which files are used, which are not, and what the log says."""

import shutil
import ssl
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.config.model.tls import TlsConfig
from gateway.http.tls.certificates import EXPIRY_WARNING_SECONDS, CertificateWatcher
from gateway.observability.metrics import Metrics
from tests.http.tls.test_tls import handshake
from tests.support.authority import Authority, Pair, serial, serial_of

Lines = Sequence[MutableMapping[str, Any]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def lines() -> Iterator[Lines]:
    with capture_logs() as captured:
        yield captured


class Held:
    """Certificates over files that a test changes, on a clock that it moves."""

    def __init__(self, authority: Authority, folder: Path, pair: Pair, **more: Any) -> None:
        self.authority = authority
        self.files = Pair(folder / "tls.crt", folder / "tls.key")
        self.put(pair)
        self.metrics = Metrics()
        self.late = 0.0
        tls = {"certificate": str(self.files.certificate), "key": str(self.files.key), **more}
        self.of = CertificateWatcher(TlsConfig.model_validate(tls), self.metrics, self._now)

    def put(self, pair: Pair) -> None:
        """Write over both files."""
        shutil.copyfile(pair.certificate, self.files.certificate)
        shutil.copyfile(pair.key, self.files.key)

    def serves(self, pair: Pair, client: ssl.SSLContext | None = None) -> bool:
        """Return whether a new connection gets this certificate."""
        shown = handshake(self.of.context, client or self.authority.client()).getpeercert(binary_form=True)
        assert shown is not None
        return serial(shown) == serial_of(pair.certificate)

    def reloads(self, result: str) -> float:
        """Return tls_reloads_total."""
        name, labels = "sse_gateway_tls_reloads_total", {"result": result}
        return self.metrics.registry.get_sample_value(name, labels) or 0

    def _now(self) -> float:
        return time.time() + self.late


@pytest.fixture
def held(authority: Authority, tmp_path: Path) -> Held:
    return Held(authority, tmp_path, authority.server())


def _written(held: Held, pair: Pair) -> None:
    held.put(pair)


def _renamed(held: Held, pair: Pair) -> None:
    pair.certificate.rename(held.files.certificate)
    pair.key.rename(held.files.key)


@pytest.mark.parametrize("change", [_written, _renamed])
async def test_new_files_are_for_new_connections(held: Held, change: Callable[[Held, Pair], None]) -> None:
    """Written over, or moved into place: one look takes both up, and one that finds nothing new does nothing."""
    new = held.authority.server()
    number = serial_of(new.certificate)
    await held.of.reload_if_changed()
    assert held.reloads("ok") == 0
    change(held, new)
    await held.of.reload_if_changed()
    await held.of.reload_if_changed()
    assert serial_of(held.files.certificate) == number
    assert held.serves(held.files)
    assert held.reloads("ok") == 1


async def test_a_swap_of_symlinks_is_seen(authority: Authority, tmp_path: Path) -> None:
    """Kubernetes swaps a link to a folder; the paths of the configuration are links through it."""
    for name in ("one", "two"):
        pair = authority.server()
        (tmp_path / name).mkdir()
        pair.certificate.rename(tmp_path / name / "tls.crt")
        pair.key.rename(tmp_path / name / "tls.key")
    data = tmp_path / "..data"
    data.symlink_to("one")
    for file in ("tls.crt", "tls.key"):
        (tmp_path / file).symlink_to(f"..data/{file}")
    tls = {"certificate": str(tmp_path / "tls.crt"), "key": str(tmp_path / "tls.key")}
    certificates = CertificateWatcher(TlsConfig.model_validate(tls), Metrics())
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").rename(data)
    await certificates.reload_if_changed()
    shown = handshake(certificates.context, authority.client()).getpeercert(binary_form=True)
    assert shown is not None
    assert serial(shown) == serial_of(tmp_path / "two" / "tls.crt")


async def test_a_bad_change_leaves_the_old_one_and_tells_each_cause_once(held: Held, lines: Lines) -> None:
    """Half a file, then a certificate without its key, then valid files: two log lines, then the reload."""
    old, new = Pair(*map(_kept, held.files)), held.authority.server()
    held.files.certificate.write_bytes(new.certificate.read_bytes()[:200])
    for _ in range(3):
        await held.of.reload_if_changed()
    assert held.serves(old)
    shutil.copyfile(new.certificate, held.files.certificate)
    for _ in range(3):
        await held.of.reload_if_changed()
    assert held.serves(old)
    told = [line for line in lines if line["event"] == "certificate_not_reloaded"]
    assert [line["log_level"] for line in told] == ["error", "error"]
    assert "is not the key of" in told[1]["error"]
    assert (held.reloads("ok"), held.reloads("failed")) == (0, 2)
    shutil.copyfile(new.key, held.files.key)
    await held.of.reload_if_changed()
    assert held.serves(new)
    assert (held.reloads("ok"), held.reloads("failed")) == (1, 2)


def _kept(file: Path) -> Path:
    return Path(shutil.copyfile(file, f"{file}.old"))


async def test_files_that_vanish_change_nothing(held: Held, lines: Lines) -> None:
    """A volume that is unmounted for a moment stops nothing, and its files are used again afterwards."""
    old = Pair(*map(_kept, held.files))
    held.files.key.unlink()
    await held.of.reload_if_changed()
    assert held.serves(old)
    assert "No such file" in lines[-1]["error"]
    held.put(old)
    await held.of.reload_if_changed()
    assert held.reloads("ok") == 1


async def test_an_expired_certificate_does_not_replace_a_good_one(held: Held, lines: Lines) -> None:
    """Yesterday's file, copied by mistake, would cut off every client; with both expired the file decides."""
    old, expired = Pair(*map(_kept, held.files)), held.authority.server(begins=-3, ends=-1)
    held.put(expired)
    await held.of.reload_if_changed()
    assert held.serves(old)
    assert "expired on" in lines[-1]["error"]
    held.late = 2 * 86400.0
    await held.of.reload_if_changed()
    assert held.of.expires_at < held._now() - 2 * 86400.0


async def test_a_certificate_for_later_waits_for_its_time(held: Held, lines: Lines) -> None:
    """A certificate issued by a clock that is ahead is used once it is valid, and not before."""
    old, early = Pair(*map(_kept, held.files)), held.authority.server(begins=0.5, ends=9)
    held.put(early)
    await held.of.reload_if_changed()
    assert held.serves(old)
    assert "not valid before" in lines[-1]["error"]
    held.late = 0.6 * 86400.0
    await held.of.reload_if_changed()
    assert held.of.expires_at > held._now() + 8 * 86400.0
    assert held.reloads("ok") == 1


async def test_the_old_kind_of_key_is_not_served_beside_the_new_one(
    authority: Authority, tmp_path: Path
) -> None:
    """OpenSSL keeps a certificate per kind of key in a context: clients of RSA would see the expired one."""
    held = Held(authority, tmp_path, authority.server(kind="rsa"))
    held.put(authority.server(kind="ec"))
    await held.of.reload_if_changed()
    client = authority.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake failure|no shared cipher"):
        held.serves(held.files, client)


async def test_another_authority_of_clients_replaces_the_first(authority: Authority, tmp_path: Path) -> None:
    """An authority that is taken out of the file must not be trusted any longer."""
    second = Authority(tmp_path, "second")
    trusted = Path(shutil.copyfile(authority.file, tmp_path / "clients.pem"))
    held = Held(authority, tmp_path, authority.server(), client_ca=str(trusted))
    ours, theirs = (authority.client(each.issue(dns=["a"])) for each in (authority, second))
    ours.maximum_version = theirs.maximum_version = ssl.TLSVersion.TLSv1_2  # a refusal is seen by both
    assert held.serves(held.files, ours)
    shutil.copyfile(second.file, trusted)
    await held.of.reload_if_changed()
    assert held.serves(held.files, theirs)
    with pytest.raises(ssl.SSLError, match=r"(?i)verify failed|unknown ca"):
        held.serves(held.files, ours)


@pytest.mark.parametrize(
    ("days", "late", "said"),
    [
        (365, 0.0, []),
        (365, 345.0, []),
        (365, 352.0, ["certificate_expires_soon"]),
        (365, 366.0, ["certificate_expired"]),
        (1, 0.0, []),
        (1, 0.95, ["certificate_expires_soon"]),
    ],
)
async def test_a_certificate_that_gets_old_is_told(
    authority: Authority, tmp_path: Path, lines: Lines, days: float, late: float, said: list[str]
) -> None:
    """Two weeks before its end, or in the last quarter of a short life; at the start too, and once."""
    held = Held(authority, tmp_path, authority.server(ends=days))
    held.late = late * 86400.0
    held.of.start()
    for _ in range(3):
        await held.of.reload_if_changed()
    await held.of.stop()
    assert [line["event"] for line in lines] == said


async def test_each_age_is_told_when_it_comes(authority: Authority, tmp_path: Path, lines: Lines) -> None:
    """Who missed the warning reads the error; a new certificate ends it."""
    held = Held(authority, tmp_path, authority.server(ends=100))
    for held.late in (0.0, 100 * 86400.0 - EXPIRY_WARNING_SECONDS + 60.0, 101 * 86400.0):
        await held.of.reload_if_changed()
        await held.of.reload_if_changed()
    held.put(authority.server(ends=200))
    await held.of.reload_if_changed()
    assert [line["event"] for line in lines] == [
        "certificate_expires_soon",
        "certificate_expired",
        "certificate_reloaded",
    ]
