"""The built files are those of the sources, which are typed throughout."""

import json
import re
from pathlib import Path

import pytest

from tests.client.package import ROOT, SOURCE, built, run, tool
from tests.support.needs import need

pytestmark = pytest.mark.extended

BUNDLES = {"client.js", "client.js.map", "react.js", "react.js.map"}


def test_the_bundles_are_those_of_the_sources(tmp_path: Path) -> None:
    """Pages run something else than what is in client/src: an edit that was not built, or a built file edited."""
    built("bundles", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == BUNDLES
    for name in BUNDLES:
        assert (SOURCE / name).read_bytes() == (tmp_path / name).read_bytes(), f"{name}: run `make client`"


@pytest.mark.parametrize("name", ["client", "react"])
def test_a_source_map_leads_to_the_sources(name: str) -> None:
    """An error in a page is reported at a column of a single line, or with a path of the machine that built it."""
    last = (SOURCE / f"{name}.js").read_text().splitlines()[-1]
    assert last == f"//# sourceMappingURL={name}.js.map"
    mapped = json.loads((SOURCE / f"{name}.js.map").read_text())
    texts = dict(zip(mapped["sources"], mapped["sourcesContent"], strict=True))
    assert f"src/{name}.js" in texts
    for path, text in texts.items():
        assert re.fullmatch(r"src/[\w-]+\.js", path)
        assert (SOURCE / path).read_text() == text
    if name == "client":
        modules = {f"src/{file.name}" for file in (SOURCE / "src").glob("*.js")}
        assert set(texts) == modules - {"src/react.js"}


def test_the_sources_are_strictly_typed() -> None:
    """A property that no message has, or a value that may be undefined, is found by users first."""
    options = json.loads((SOURCE / "tsconfig.json").read_text())["compilerOptions"]
    assert [options[name] for name in ("strict", "checkJs", "noEmit")] == [True, True, True]
    assert not [file for file in (SOURCE / "src").glob("*.js") if "@ts-" in file.read_text()]
    done = run(tool("typescript/bin/tsc"), "--project", SOURCE, folder=SOURCE)
    assert done.returncode == 0, done.stdout


def test_the_modules_do_what_they_say() -> None:
    """The client's own unit tests, which Node runs without a browser or a gateway."""
    done = run(need("node", "nodejs"), "--test", *sorted((SOURCE / "test").glob("*.test.mjs")), folder=SOURCE)
    assert done.returncode == 0, done.stdout


def test_tools_are_pinned() -> None:
    """Another release of a tool builds other bytes, and the test above fails for no fault of ours."""
    package = json.loads((SOURCE / "package.json").read_text())
    locked = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    for name, version in package["devDependencies"].items():
        assert re.fullmatch(r"[\d.]+", version), name
        assert locked[f"node_modules/{name}"]["version"] == version
    assert not [name for name, about in locked.items() if "resolved" in about], "the lock names a registry"


@pytest.mark.parametrize("target", ["client", "types"])
def test_make_builds_them(target: str) -> None:
    """The recipes that failures above name."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
