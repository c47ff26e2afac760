"""`sse-gateway doctor` as a process: what it prints, and how it exits."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from gateway.cli.main import main
from tests.cli.doctor.examined import CONFIG
from tests.support.gateway import gateway_running, merged

ROOT = Path(__file__).parents[3]


async def doctor(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run the command; return exit status, output and errors."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "doctor", *arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ, **environ},
    )  # fmt: skip
    out, err = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


async def test_lines_and_exit_0() -> None:
    """Scripts use the exit status, people read the lines."""
    async with gateway_running(CONFIG) as gateway:
        url = f"{gateway.url}/events/orders"
        status, out, err = await doctor(
            f"{url}?ticket=canary-ticket", "--seconds", "1.5", "--heartbeat", "1m"
        )
    assert (status, err) == (0, "")
    first, *lines, last = out.splitlines()
    assert first == f"{url}?ticket=…, listening for 1.5 s"
    assert {line.split()[0] for line in lines} == {"ok", "warn", "->", "skip"}
    assert last.startswith("0 bad, ")
    assert "canary" not in out


async def test_json_and_exit_1_and_a_token() -> None:
    """The token comes from the environment, reaches the gateway and nothing else."""
    private = {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}
    auth = {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}}
    async with gateway_running(merged(CONFIG, {"auth": auth, "channels": {"private": private}})) as gateway:
        url = f"{gateway.url}/events/private"
        status, out, err = await doctor(url, "--json", "--token-env", "TOKEN", TOKEN="canary-token")
    assert (status, err) == (1, "")
    assert "canary" not in out
    told = json.loads(out)
    assert told["counts"]["bad"] == 1
    (bad,) = (finding for finding in told["findings"] if finding["level"] == "bad")
    assert (bad["check"], bad["fix"]) == ("status", "another token is needed")
    assert "invalid_token" in bad["message"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "URL"),
        (("ftp://h/?ticket=canary",), "https://"),
        (("https://h/?ticket=canary", "--token-env", "NO_SUCH"), "--token-env"),
        (("https://h/", "--origin", "app.example.com"), "an origin needs a scheme"),
        (("https://h/", "--origin", "https://*.example.com"), "one origin"),
        (("https://h/", "--seconds", "0"), "from 1 to 86400"),
        (("https://h/", "--seconds", "nan"), "from 1 to 86400"),
        (("https://h/", "--heartbeat", "15"), "not a duration"),
        (("https://h/", "--ca", "no-such-file"), "No such file"),
        (("https://h/", "--ca", "README.md"), "--ca"),
    ],
)
def test_wrong_usage_exits_2(
    arguments: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts tell it from a bad deployment; secrets are not repeated."""
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert word in err.splitlines()[-1]
    assert "canary" not in err
