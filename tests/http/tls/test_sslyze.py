"""What a scanner finds on the TLS port: sslyze, against Mozilla's "intermediate" profile."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.authority import Authority
from tests.support.node import ROOT, Node

pytestmark = pytest.mark.extended

CONFIG: dict[str, Any] = {
    "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
    "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
}


async def scan(port: int, authority: Authority, folder: Path) -> tuple[dict[str, Any], str]:
    """Return what sslyze found, and what it printed last: how the profile is kept."""
    file = folder / "scan.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-m", "sslyze", f"127.0.0.1:{port}", f"--json_out={file}"),
        *("--mozilla_config=intermediate", f"--certinfo_ca_file={authority.file}", "--early_data", "--resum"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    (server,) = json.loads(file.read_text())["server_scan_results"]
    assert server["scan_status"] == "COMPLETED", printed.decode()
    found = {name: each for name, each in server["scan_result"].items() if each["status"] != "NOT_SCHEDULED"}
    for name, each in found.items():
        assert each["status"] == "COMPLETED", name
    return {name: each["result"] for name, each in found.items()}, printed.decode().partition("COMPLIANCE")[2]


@pytest.mark.parametrize("kind", ["ec", "rsa"])
@pytest.mark.parametrize("asks", [False, True])
async def test_a_scanner_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, asks: bool
) -> None:
    """No old version, no weak suite, no known attack; with config/openssl.cnf the profile to the letter."""
    authority = Authority(tmp_path)
    pair = authority.server(kind=kind, ends=90)
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    tls |= {"client_ca": str(authority.file)} if asks else {}
    if kind == "ec":
        monkeypatch.setenv("OPENSSL_CONF", str(ROOT / "config/openssl.cnf"))
    node = Node(tmp_path, {**CONFIG, "server": {"tls": tls}})
    try:
        await node.start()
        monkeypatch.delenv("OPENSSL_CONF", raising=False)  # or the scanner could not ask for other groups
        found, kept = await scan(node.port, authority, tmp_path)
    finally:
        await node.kill()
    for version in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert not found[f"{version}_cipher_suites"]["accepted_cipher_suites"], version
    for version in ("tls_1_2", "tls_1_3"):
        suites = [
            each["cipher_suite"] for each in found[f"{version}_cipher_suites"]["accepted_cipher_suites"]
        ]
        assert len(suites) == 3
        assert not [suite for suite in suites if suite["is_anonymous"] or suite["key_size"] < 128]
    assert not found["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not found["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    assert not found["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    assert found["session_renegotiation"]["supports_secure_renegotiation"]
    assert not found["tls_compression"]["supports_compression"]
    assert not found["tls_1_3_early_data"]["supports_early_data"]
    assert found["tls_fallback_scsv"]["supports_fallback_scsv"]
    assert found["tls_extended_master_secret"]["supports_ems_extension"]
    assert found["robot"]["robot_result"].startswith("NOT_VULNERABLE")
    (deployed,) = found["certificate_info"]["certificate_deployments"]
    assert deployed["received_chain_has_valid_order"]
    left = [line.strip() for line in kept.splitlines() if line.strip().startswith("*")]
    # That the certificate is of an authority of ours is no finding about the port.
    left = [line for line in left if "certificate_path_validation" not in line]
    if kind == "ec":
        assert left == []
    else:
        # Stronger than those of the profile: docs/operations.md.
        (line,) = left
        assert line.startswith("* tls_curves: TLS curves {")
        assert set(json.loads(f"[{line.partition('{')[2].partition('}')[0]}]".replace("'", '"'))) == {
            "X448",
            "secp521r1",
        }
