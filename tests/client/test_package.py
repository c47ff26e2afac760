"""What npm publishes: these files, this version, this size."""

import gzip
import json
import re
import runpy
from pathlib import Path

import pytest

from tests.client.package import ROOT, SOURCE, packed

pytestmark = pytest.mark.extended

LARGEST = 5 * 1024
"""Bytes of the module as browsers load it, with gzip."""


def test_npm_packs_these_files_and_no_other(tmp_path: Path) -> None:
    """A package without its types, or with the tests, the compiler's settings or a secret."""
    told = packed(tmp_path)
    assert {each["path"] for each in told["files"]} == {
        "LICENSE", "README.md", "package.json", "client.js", "client.js.map", "client.d.ts", "types.d.ts",
        "react.js", "react.js.map", "react.d.ts", "react-types.d.ts",
    }  # fmt: skip


def test_the_package_is_a_module_without_dependencies() -> None:
    """What the issue of a bundler that guesses, and of an audit, is made of."""
    package = json.loads((SOURCE / "package.json").read_text())
    assert package["type"] == "module"
    assert package["sideEffects"] is False
    assert "dependencies" not in package
    assert set(package["peerDependencies"]) == set(package["peerDependenciesMeta"]) == {"react"}
    assert package["peerDependenciesMeta"]["react"] == {"optional": True}
    for way in package["exports"].values():
        for file in [way] if isinstance(way, str) else way.values():
            assert (SOURCE / file).exists(), file
    for each in package["exports"].values():
        # The first one that fits is taken: types behind another one are never found.
        assert isinstance(each, str) or next(iter(each)) == "types"
    imported = {
        file: re.findall(r"""(?:from|import)\s*\(?["']([^"']+)""", (SOURCE / file).read_text())
        for file in ("client.js", "react.js")
    }
    # The hook shares the module that a page may import as well: two copies would be two streams.
    assert imported == {"client.js": [], "react.js": ["react", "./client.js"]}


def test_it_has_the_version_and_the_license_of_the_gateway() -> None:
    """They are released together, from one text."""
    config = runpy.run_path(str(ROOT / "release/sbom.py"))["setup"]()
    package = json.loads((SOURCE / "package.json").read_text())
    assert package["version"] == config["metadata"]["version"]
    assert package["license"] == config["metadata"]["license"]
    assert (SOURCE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_module_stays_small() -> None:
    """What every page loads: the README, docs/client.md and guides state this size."""
    assert len(gzip.compress((SOURCE / "client.js").read_bytes(), 9)) <= LARGEST
