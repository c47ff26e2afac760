"""A corpus of files, each with what `check` prints of it beside it (``.expected``).

The second line of a file says what the JSON Schema makes of it: ``rejects``, ``accepts, because …`` where the rule
is none that a schema can hold, or ``not asked, because this is no YAML``. What a change of a message makes of all
files is written by ``UPDATE_CORPUS=1 pytest tests/config/test_corpus.py``, to be read in the diff.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from gateway.cli.main import main
from gateway.config.loader.document import parse_yaml
from gateway.config.loader.environment import resolve_references
from gateway.config.loader.issues import ConfigError, ConfigIssue
from gateway.config.model.config import Config
from gateway.config.schema import config_json_schema
from gateway.config.validation import warnings

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*.yaml"))
ENVIRON = {
    "REDIS_URL": "redis://127.0.0.1:6379",
    "WEBHOOK_TOKEN": "w" * 20,
    "JWT_SECRET": "s" * 32,
    "KAFKA_PASSWORD": "k" * 20,
    "PORT": "8080",
    "EMPTY": "",
    "SHORT": "short",
}
HIDDEN = ("w" * 20, "s" * 32, "k" * 20, "too-short", "pa/ss", "me:secret", "0123456789abcdef")
"""What stands for secrets in the files and in the environment."""

REASONS = {
    "the environment is not part of it",
    "the rule is about another section",
    "it looks at no files",
    "the loader sees what the parser takes for granted",
    "a pattern cannot compare amounts",
    "it cannot compare two values",
    "a library decides",
    "a warning is no error",
}
"""Why a schema may accept what `check` refuses."""

IN_THE_MODEL = {"a pattern cannot compare amounts", "a library decides", "the environment is not part of it"}
"""Those of them that are about rules which the model itself has."""

by_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in os.environ:
        if name != "PATH" and not name.startswith(("PYTEST", "UPDATE")):
            monkeypatch.delenv(name)
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(CORPUS)
    yield


@cache
def validator() -> jsonschema.Draft202012Validator:
    """Return the schema's validator, made once for all files."""
    return jsonschema.Draft202012Validator(config_json_schema())


def asked(file: Path) -> str:
    """Return what the file says about the schema."""
    return file.read_text().splitlines()[1].removeprefix("# schema: ")


@by_file
def test_check_prints_what_is_expected(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A message got worse, moved, or was lost behind another one; every file is wrong, or warned about."""
    status = main(["check", "--config", file.name])
    printed = "".join(capsys.readouterr()).replace(str(CORPUS), "/corpus")
    expected = file.with_suffix(".expected")
    if os.environ.get("UPDATE_CORPUS"):
        expected.write_text(printed)
    assert printed == expected.read_text()
    assert status == (0 if asked(file) == "accepts, because a warning is no error" else 1)
    if not status:
        assert main(["check", "--strict", "--config", file.name]) == 1
        capsys.readouterr()
    assert not [secret for secret in HIDDEN if secret in printed]


@by_file
def test_the_schema_agrees(file: Path) -> None:
    """What an editor shows is not what `check` says: a red line too many, or one that is missing."""
    says = asked(file)
    try:
        document = parse_yaml(file.read_text(), file.name)
    except ConfigError:
        assert says == "not asked, because this is no YAML"
        return
    accepts = validator().is_valid(document.data)
    assert says.split(",")[0] == ("accepts" if accepts else "rejects")
    reason = says.partition(", because ")[2]
    assert not accepts or reason in REASONS
    if accepts and document.data is not None and reason not in IN_THE_MODEL:
        unresolved: list[ConfigIssue] = []
        try:
            Config.model_validate(resolve_references(document.data, os.environ, CORPUS, unresolved))
        except ValidationError as error:
            assert unresolved or document.errors, error


def test_there_are_enough_files() -> None:
    """Every section and kind of error is covered, under a number of its own."""
    numbers = [file.name[:3] for file in FILES]
    assert len(set(numbers)) == len(numbers) > 200
    assert {file.stem for file in CORPUS.glob("*.expected")} == {file.stem for file in FILES}


def test_every_warning_has_a_file() -> None:
    """A warning that nobody has seen."""
    codes = set(re.findall(r'code="([\w-]+)"', Path(warnings.__file__).read_text()))
    expected = "".join(file.read_text() for file in CORPUS.glob("4*.expected"))
    assert codes == set(re.findall(r" \[([\w-]+)\]$", expected, re.MULTILINE))
    assert len(codes) > 15
