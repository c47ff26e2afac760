"""Files and extras of this machine: `check` and `run` refuse the same with the same line, and pass the same."""

import asyncio
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from gateway.broker.sqlite.event_log import APPLICATION_ID, SCHEMA_VERSION, SqliteEventLog
from gateway.cli.check.local_checks import find_local_issues
from gateway.cli.main import main
from gateway.config.model.paths import REDIS_FILE_OPTIONS
from gateway.config.schema import config_json_schema
from gateway.server.reload import ConfigFile
from tests.support.authority import Authority
from tests.support.deployment import DEPLOY, ENVIRON, secrets_in, text_of
from tests.support.node import Node

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(
    file
    for folder in ("config", "deploy", "examples")
    for file in (ROOT / folder).rglob("*.yaml")
    if re.search(r"^channels:", file.read_text(), re.MULTILINE)
)

Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Return files that are good, and the ways in which one can be wrong."""
    authority = Authority(tmp_path)
    good, other = authority.server(kind="rsa"), authority.server()
    key = load_pem_private_key(good.key.read_bytes(), None)
    encrypted, public, garbage = (tmp_path / name for name in ("encrypted.key", "public.pem", "garbage.pem"))
    encrypted.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    )
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    return {
        "certificate": good.certificate,
        "key": good.key,
        "client_ca": authority.file,
        "ca_file": authority.file,
        "public_key_file": public,
        "other key": other.key,
        "encrypted": encrypted,
        "garbage": garbage,
        "missing": tmp_path / "missing.pem",
        "folder": tmp_path,
    }


def configured(files: Files) -> dict[str, Any]:
    """Return a configuration in which every path that there is names a good file, relative to its folder."""
    tls = {name: files[name].name for name in ("certificate", "key")}
    url = (
        f"rediss://127.0.0.1:1?ssl_ca_certs={files['ca_file'].name}&ssl_certfile={tls['certificate']}"
        f"&ssl_keyfile={tls['key']}&ssl_ca_path=."
    )
    kafka = {"brokers": "127.0.0.1:1", "tls": {**tls, "ca_file": files["ca_file"].name}}
    return {
        "server": {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "tls": {**tls, "client_ca": files["client_ca"].name},
        },
        "broker": {"url": "sqlite:///log/events.db"},
        "auth": {
            "jwt": {
                "algorithms": ["RS256"],
                "public_key_file": files["public_key_file"].name,
                "audience": "sse",
            }
        },
        "sources": {
            "pubsub": {"type": "redis-pubsub", "url": url},
            "stream": {"type": "redis-stream", "url": url},
            "kafka": {"type": "kafka", **kafka},
        },
        "channels": {
            "orders": {
                "from": [{"source": name, "topic": "orders"} for name in ("pubsub", "stream", "kafka")],
                "access": "token",
            }
        },
    }


def paths_of_the_model() -> Iterator[tuple[str, ...]]:
    """Yield every setting of the model that is the path of a file."""
    schema = config_json_schema()

    def walk(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if node.get("title") == "file":
            yield path
        if "$ref" in node:
            yield from walk(schema["$defs"][node["$ref"].rpartition("/")[2]], path)
        for word in ("anyOf", "oneOf"):
            for each in node.get(word, ()):
                yield from walk(each, path)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                yield from walk(node[key], path)
        for key, below in node.get("properties", {}).items():
            yield from walk(below, (*path, key))

    yield from dict.fromkeys(walk(schema, ()))


SETTINGS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("server", "tls", "certificate"): ("missing", "folder", "garbage", "key"),
    ("server", "tls", "key"): ("missing", "folder", "garbage", "certificate", "other key", "encrypted"),
    ("server", "tls", "client_ca"): ("missing", "folder", "garbage", "key"),
    ("auth", "jwt", "public_key_file"): ("missing", "folder", "garbage", "certificate", "key", "encrypted"),
    ("sources", "tls", "ca_file"): ("missing", "folder", "garbage", "key"),
    ("sources", "tls", "certificate"): ("missing", "folder", "garbage", "key"),
    ("sources", "tls", "key"): ("missing", "folder", "garbage", "certificate", "other key", "encrypted"),
}
"""Every path of the model, and which files of `files` are wrong there."""

OPTIONS = {
    "ssl_ca_certs": ("missing", "folder", "garbage", "key"),
    "ssl_certfile": ("missing", "folder", "garbage", "key"),
    "ssl_keyfile": ("missing", "folder", "garbage", "certificate", "other key", "encrypted"),
    "ssl_ca_path": ("missing", "key"),
}
"""The same of the options of Redis URLs."""


def test_every_path_of_the_model_is_here() -> None:
    """A new setting that names a file must be looked at by `check` too."""
    assert set(paths_of_the_model()) == set(SETTINGS)
    assert set(REDIS_FILE_OPTIONS) == set(OPTIONS)


def refused(config: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `check` and `run` print of a file that both refuse: the same."""
    file = folder / "gateway.yaml"
    file.write_text(json.dumps(config, indent=1))
    said = []
    for command in ("check", "run"):
        assert main([command, "--config", str(file)]) == 1, command
        printed = capsys.readouterr()
        said.append(printed.err)
        assert printed.out == ""
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize(
    ("setting", "wrong"), [(setting, wrong) for setting, all_ in SETTINGS.items() for wrong in all_]
)
def test_check_and_run_refuse_a_wrong_file_with_the_same_line(
    setting: tuple[str, ...], wrong: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A deploy whose check was good must not end with a gateway that does not start."""
    config = configured(files)
    place = config
    for key in setting[:-1]:
        place = config["sources"]["kafka"] if key == "sources" else place[key]
    place[setting[-1]] = "." if wrong == "folder" else files[wrong].name
    said = refused(config, tmp_path, capsys)
    named = ".".join("sources.kafka" if key == "sources" else key for key in setting)
    assert f": {named}: " in said or wrong in ("key", "certificate", "garbage")
    assert str(files[wrong]) in said
    assert "Traceback" not in said


@pytest.mark.parametrize("setting", [("broker",), ("sources", "pubsub"), ("sources", "stream")], ids=".".join)
@pytest.mark.parametrize(("option", "wrong"), [(name, each) for name in OPTIONS for each in OPTIONS[name]])
def test_the_same_of_the_options_of_redis_urls(
    setting: tuple[str, ...],
    option: str,
    wrong: str,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A source whose authority is misspelled would be down for ever."""
    config = configured(files)
    good: str = config["sources"]["pubsub"]["url"]
    name = "." if wrong == "folder" else files[wrong].name
    url = re.sub(rf"{option}=[^&]+", f"{option}={name}", good)
    place = config
    for key in setting:
        place = place[key]
    place["url"] = url
    said = refused(config, tmp_path, capsys)
    assert f": {'.'.join(setting)}.url: ssl_" in said
    assert str(files[wrong]) in said


async def test_what_check_passes_runs(files: Files, tmp_path: Path) -> None:
    """With every kind of path in one file, all relative, started from another working folder."""
    node = Node(tmp_path, configured(files))
    assert main(["check", "--config", str(node.file)]) == 0
    await node.start()
    await node.stop()
    assert (tmp_path / "log/events.db").is_file()


def foreign(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE t (a)")
    database.close()


def newer(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (foreign, "is a database of another program"),
        (newer, f"is a log of version {SCHEMA_VERSION + 1}; this gateway has version {SCHEMA_VERSION}"),
        (lambda path: path.write_text("text " * 100), "file is not a database"),
        (Path.mkdir, "is no file"),
    ],
)
def test_a_file_that_is_no_log(
    made: Callable[[Path], Any], why: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log is a file of this machine too."""
    config = configured(files) | {"broker": {"url": "sqlite:///other.db"}}
    made(tmp_path / "other.db")
    said = refused(config, tmp_path, capsys)
    assert f": broker.url: the log {tmp_path / 'other.db'} cannot be used: {why}\n" in said


def test_a_folder_that_is_a_file(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It cannot be made."""
    config = configured(files) | {"broker": {"url": f"sqlite:///{files['key'].name}/deep/log.db"}}
    assert f"cannot be used: {files['key']} is no folder\n" in refused(config, tmp_path, capsys)


def test_a_log_in_the_working_folder_is_not_left_behind(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths once started there: a new, empty log would lose places and history without a word."""
    work = tmp_path / "work"
    (work / "log").mkdir(parents=True)
    SqliteEventLog(work / "log/events.db", lambda: 1).close()
    monkeypatch.chdir(work)
    said = refused(configured(files), tmp_path, capsys)
    assert f"is {tmp_path / 'log/events.db'}, which does not exist" in said
    assert f"or write sqlite:///{work / 'log/events.db'}\n" in said
    shutil.move(work / "log", tmp_path / "log")
    assert main(["check", "--config", str(tmp_path / "gateway.yaml")]) == 0
    printed = capsys.readouterr()
    assert f"gateway.yaml: the log is {tmp_path / 'log/events.db'}\n" in printed.out


def test_the_extra_for_kafka_is_missing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image without it."""
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    config = configured(files)
    said = refused(config, tmp_path, capsys)
    assert "sources.kafka.type: needs the extra for Kafka: pip install 'sse-gateway[kafka]'\n" in said
    config["sources"]["kafka"]["brokers"] = ""  # off
    (tmp_path / "gateway.yaml").write_text(json.dumps(config))
    assert main(["check", "--config", str(tmp_path / "gateway.yaml")]) == 0


def test_stdin_starts_at_the_working_folder(files: Files, tmp_path: Path) -> None:
    """A template engine's output has no folder of its own."""
    for name in ("-", "/dev/stdin"):
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "check", "--config", name],
            input=json.dumps(configured(files)), capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"the log is {tmp_path / 'log/events.db'}\n" in done.stdout


def test_a_reload_reads_the_same_paths(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may look as if it had changed, wherever the process is by then."""
    (tmp_path / "gateway.yaml").write_text(json.dumps(configured(files)))
    monkeypatch.chdir(tmp_path)
    file = ConfigFile("gateway.yaml", find_local_issues)
    before = file.load()
    monkeypatch.chdir("/")
    monkeypatch.setattr(file, "path", tmp_path / "gateway.yaml")
    assert file.load() == before
    assert str(before.server.tls and before.server.tls.key) == str(files["key"])


def test_diff_compares_files_of_two_folders(files: Files, tmp_path: Path) -> None:
    """The new file takes the old one's place: a path that is the same text is no change."""
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "gateway.yaml").write_text(json.dumps(configured(files)))
    assert main(["diff", str(tmp_path / "old/gateway.yaml"), str(tmp_path / "new/gateway.yaml")]) == 0


def test_a_path_that_looks_absolute_is_told_where_the_folder_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three gateways with `sqlite:///tmp/x.db` have three logs."""
    for url, codes in (
        ("sqlite:///tmp/x.db", ["log-looks-absolute"]),
        ("sqlite:///./tmp/x.db", []),
        ("sqlite:///../x.db", []),
        ("sqlite:///no-such-folder-at-the-root/x.db", []),
        (f"sqlite:///{tmp_path}/x.db", []),
    ):
        text = json.dumps({"broker": {"url": url}, **MINIMUM})
        (tmp_path / "g.yaml").write_text(text)
        main(["check", "--config", str(tmp_path / "g.yaml"), "--format", "json"])
        told = json.loads(capsys.readouterr().out)
        assert [each["code"] for each in told["warnings"]] == codes, url
        assert str(tmp_path.parent) in told["log"]


MINIMUM = {
    "sources": {"hooks": {"type": "webhook", "verify": {"bearer": ["w" * 20]}}},
    "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_shipped_files_pass_a_strict_check(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are what people copy into a pipeline that runs `check --strict`."""
    environ = ENVIRON | {
        "ADMIN_TOKEN": "a" * 32, "JWT_SECRET": "s" * 32, "DEMO_TOKEN": "d" * 32,
        "CREDENTIALS_DIRECTORY": str(secrets_in(tmp_path)),
    }  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    # The state folder is the unit's, or a volume; here it is one that this user may make.
    text = text_of(file, tmp_path).replace("sqlite:////var/lib/sse-gateway", f"sqlite:///{tmp_path}")
    copy = tmp_path / "config/deep/gateway.yaml"
    copy.parent.mkdir(parents=True)
    copy.write_text(text)
    status = main(["check", "--strict", "--config", str(copy)])
    assert status == 0, capsys.readouterr().err


def test_there_are_shipped_files_of_each_kind() -> None:
    """A glob that finds nothing passes everything."""
    assert {file.parent.name for file in SHIPPED} == {
        "config", "compose", "sidecar", "standalone", "systemd", "orders",
    }  # fmt: skip
    assert DEPLOY / "kubernetes/standalone/gateway.yaml" in SHIPPED


def test_run_does_not_log_what_is_accepted(tmp_path: Path) -> None:
    """Warnings that were read once and are meant drown those that are new."""

    async def codes(allow: list[str]) -> list[str]:
        node = Node(tmp_path, {**MINIMUM, "timeouts": {"drain": "1m"}, "check": {"allow": allow}})
        await node.start()
        await node.stop()
        return [line["code"] for line in node.lines() if line["event"] == "config_warning"]

    assert asyncio.run(codes([])) == ["drain-over-grace"]
    assert asyncio.run(codes(["drain-over-grace"])) == []


def test_an_accepted_warning_is_no_mistake_of_a_strict_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is accepted without need is a warning itself: the next one of its kind would not be seen."""
    file = tmp_path / "g.yaml"
    for drain, allow, said in (
        ("1m", [], "[drain-over-grace]"),
        ("1m", ["drain-over-grace"], ""),
        ("1s", ["drain-over-grace"], "[unused-allow]"),
    ):
        file.write_text(json.dumps({**MINIMUM, "timeouts": {"drain": drain}, "check": {"allow": allow}}))
        assert main(["check", "--strict", "--config", str(file)]) == (1 if said else 0)
        assert said in capsys.readouterr().err
