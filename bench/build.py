"""The two C programs of the benchmark, compiled when their sources are newer."""

import subprocess
from pathlib import Path

_HERE = Path(__file__).parent
_BUILT = _HERE / "build"
_OPENSSL = Path("/usr/include/openssl/ssl.h")
"""Where Debian's libssl-dev puts it; without it the load client speaks no TLS."""


def load_client() -> Path:
    """Compile ``bench/client`` and return the program. Raises RuntimeError without a C compiler."""
    sources = sorted((_HERE / "client").glob("*.c"))
    headers = sorted((_HERE / "client").glob("*.h"))
    tls = ["-DWITH_TLS", "-lssl", "-lcrypto"] if has_tls() else []
    return _compiled("load", sources, headers, tls)


def send_loop() -> Path:
    """Compile the bare send() loop and return the program. Raises RuntimeError without a C compiler."""
    return _compiled("send_loop", [_HERE / "servers" / "send_loop.c"], [], [])


def has_tls() -> bool:
    """Whether the load client can be built with TLS."""
    return _OPENSSL.exists()


def _compiled(name: str, sources: list[Path], headers: list[Path], options: list[str]) -> Path:
    _BUILT.mkdir(exist_ok=True)
    program = _BUILT / name
    newest = max(file.stat().st_mtime for file in (*sources, *headers))
    if program.exists() and program.stat().st_mtime > newest:
        return program
    command = [
        "cc",
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-o",
        str(program),
        *map(str, sources),
        *options,
    ]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise RuntimeError("the benchmark needs a C compiler: apt-get install gcc libc6-dev") from None
    return program
