"""The client's module on the public port, and its headers for browsers, caches and proxies."""

import gzip
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import aiohttp
import pytest

from gateway.http.routes.client import CLIENT_SCRIPT, GZIPPED_SCRIPT, SCRIPT_VERSION
from tests.support.browser import page_of_another_origin
from tests.support.gateway import Gateway, gateway_running

ROOT = Path(__file__).parents[3]
MODULE = (ROOT / "client/client.js").read_bytes()
OWN_NAME = f"/client.{SCRIPT_VERSION}.js"
ANOTHER_NAME = "/client.0123456789ab.js"


async def test_it_is_the_module_of_this_repository(gateway: Gateway) -> None:
    """Pages import what npm would give them, as a module that any of them may load."""
    async with gateway.session.get(
        f"{gateway.url}/client.js", headers={"Origin": "https://a.test"}
    ) as answer:
        assert answer.status == 200
        assert await answer.read() == MODULE.partition(b"//# sourceMappingURL=")[0]
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Location"] == OWN_NAME[1:]


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/client.js", "no-cache"),
        (OWN_NAME, "public, max-age=31536000, immutable"),
        # While nodes are replaced: what this one has, under no name for ever.
        (ANOTHER_NAME, "no-store"),
    ],
)
async def test_how_long_a_name_is_kept(gateway: Gateway, path: str, kept: str) -> None:
    """A year under its own name alone: else pages keep an old client, or load it again each time."""
    async with gateway.session.get(gateway.url + path) as answer:
        assert (answer.status, answer.headers["Cache-Control"]) == (200, kept)
        assert await answer.read() == CLIENT_SCRIPT
        tag = answer.headers["ETag"]
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        async with gateway.session.get(gateway.url + path, headers={"If-None-Match": known}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
            assert (answer.headers["ETag"], answer.headers["Cache-Control"]) == (tag, kept)
    for unknown in ('"other"', 'W/"other"', SCRIPT_VERSION, "", '"'):
        async with gateway.session.get(gateway.url + path, headers={"If-None-Match": unknown}) as answer:
            assert (answer.status, await answer.read()) == (200, CLIENT_SCRIPT)


@pytest.mark.parametrize(
    ("accepted", "is_zipped"),
    [
        ("gzip", True), ("gzip, deflate, br, zstd", True), ("br;q=1, GZIP ; q=0.1", True), ("x-gzip", True),
        ("identity", False), ("gzip;q=0", False), ("br, gzip; q=0.000", False), ("notgzip", False), ("", False),
    ],
)  # fmt: skip
async def test_it_is_packed_for_whom_can_unpack_it(gateway: Gateway, accepted: str, is_zipped: bool) -> None:
    """A third of the bytes; and never to a client that would read them as the text."""
    headers = {"Accept-Encoding": accepted}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(f"{gateway.url}/client.js", headers=headers) as answer,
    ):
        assert answer.headers.get("Content-Encoding") == ("gzip" if is_zipped else None)
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert await answer.read() == (GZIPPED_SCRIPT if is_zipped else CLIENT_SCRIPT)
    assert gzip.decompress(GZIPPED_SCRIPT) == CLIENT_SCRIPT


async def test_head_tells_what_get_would(gateway: Gateway) -> None:
    """Monitors and caches send HEAD."""
    for path in ("/client.js", OWN_NAME, ANOTHER_NAME):
        async with gateway.session.get(gateway.url + path) as got:
            await got.read()
        async with gateway.session.head(gateway.url + path) as told:
            assert await told.read() == b""
        assert {**told.headers, "Date": ""} == {**got.headers, "Date": ""}


@pytest.mark.parametrize(
    "path", ["/client.min.js", "/client..js", "/client.0123456789abc.js", "/client.d.ts"]
)
async def test_no_other_name_is_its(gateway: Gateway, path: str) -> None:
    """A typo must be a 404, and not be cached for ever."""
    async with gateway.session.get(gateway.url + path) as answer:
        assert (answer.status, (await answer.json())["error"]) == (404, "not_found")
    async with gateway.session.post(gateway.url + "/client.js") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")


async def test_it_is_no_stream() -> None:
    """Who loads the module is no subscriber, and needs neither a token nor an allowed origin."""
    async with gateway_running({"limits": {"connections": 1, "connect_rate_per_address": "1/s"}}) as gateway:
        for _ in range(20):
            async with gateway.session.get(f"{gateway.url}/client.js", headers={"Origin": "null"}) as answer:
                assert answer.status == 200
        assert await gateway.metric("active_connections") == 0
        assert await gateway.metric("connections_total") == 0
        await gateway.subscribe("/events/orders")


async def test_it_names_no_file_that_the_gateway_lacks(gateway: Gateway) -> None:
    """Developer tools load the source map that a module names: here that would be a 404 for each page."""
    assert b"sourceMappingURL=client.js.map" in MODULE
    for path in ("/client.js", OWN_NAME):
        async with gateway.session.get(gateway.url + path) as answer:
            assert b"sourceMappingURL" not in await answer.read()
            assert "SourceMap" not in answer.headers


@pytest.mark.extended
async def test_a_page_of_another_origin_imports_it(gateway: Gateway) -> None:
    """Also one that isolates itself (COEP), which loads nothing that does not say that it may."""
    async with page_of_another_origin() as (page, _):
        for name in ("/client.js", OWN_NAME):
            connect = f"import({(gateway.url + name)!r}).then((module) => typeof module.connect)"
            assert await page.evaluate(connect) == "function"


@pytest.mark.extended
def test_a_wheel_and_an_sdist_hold_the_module_itself(tmp_path: Path) -> None:
    """A link that leads nowhere once it is installed; the daemon would not start."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("gateway", "client"):
        shutil.copytree(
            ROOT / name,
            source / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "node_modules"),
        )
    assert (source / "gateway/http/routes/client.js").is_symlink()
    build = (
        "from setuptools.build_meta import build_sdist, build_wheel; "
        f"print(build_sdist({str(tmp_path)!r})); print(build_wheel({str(tmp_path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True, timeout=60
    )
    sdist, wheel = re.findall(r"^(sse_gateway-[\w.-]+)$", done.stdout, re.MULTILINE)
    with zipfile.ZipFile(tmp_path / wheel) as packed:
        assert packed.read("gateway/http/routes/client.js") == MODULE
    shutil.unpack_archive(tmp_path / sdist, tmp_path / "unpacked")
    (module,) = (tmp_path / "unpacked").glob("*/gateway/http/routes/client.js")
    assert not module.is_symlink()
    assert module.read_bytes() == MODULE
