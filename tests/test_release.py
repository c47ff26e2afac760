"""The release's SBOM: what `make release` looks at before it is content. The build itself takes a minute."""

import copy
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SBOM = runpy.run_path(str(ROOT / "release/sbom.py"))
CONFIG = SBOM["setup"]()
WHOLE: dict[str, Any] = {
    "metadata": {
        "component": {"bom-ref": "root", "name": "sse-gateway", "version": CONFIG["metadata"]["version"]}
    },
    "components": [{"name": name, "version": "1"} for name in SBOM["required"](CONFIG)],
    "dependencies": [{"ref": "root", "dependsOn": ["aiohttp"]}],
}


def faults(bom: dict[str, Any]) -> list[str]:
    return list(SBOM["faults"](bom, CONFIG))


def test_what_the_wheel_installs_is_known() -> None:
    """Extras, comments and spellings of setup.cfg must not hide a dependency."""
    names = SBOM["required"](CONFIG)
    lines = CONFIG["options"]["install_requires"].splitlines()
    assert len(names) == len([line for line in lines if line.strip() and "#" not in line]) + 1
    assert {"aiohttp", "pyjwt", "redis", "prometheus-client", "aiokafka"} <= names
    project = tomllib.loads(SBOM["project"](CONFIG))["project"]
    assert len(project["dependencies"]) == len(names)


def test_a_whole_sbom_is_good() -> None:
    """Names may be spelled in any way that PyPI takes."""
    assert faults(WHOLE) == []
    bom = copy.deepcopy(WHOLE)
    for each in bom["components"]:
        each["name"] = each["name"].upper().replace("-", "_")
    assert faults(bom) == []


@pytest.mark.parametrize("name", sorted(SBOM["required"](CONFIG)))
def test_a_dependency_that_is_not_named(name: str) -> None:
    """An SBOM that leaves one out hides its holes."""
    bom = copy.deepcopy(WHOLE)
    bom["components"] = [each for each in bom["components"] if each["name"] != name]
    assert faults(bom) == [f"does not name {name}, which setup.cfg installs"]


def test_an_sbom_of_something_else() -> None:
    """Another version, no root, a path of the machine that built it."""
    bom = copy.deepcopy(WHOLE)
    bom["metadata"]["component"]["version"] = "0"
    bom["dependencies"] = []
    bom["components"][0]["externalReferences"] = [{"url": "file:///home/x/dist/y.whl"}]
    assert len(faults(bom)) == 3


def test_the_recipe_is_what_the_docs_say() -> None:
    """`make release` builds in an environment of its own, and checks what it made."""
    assert re.search(r"^release:\n\t.*release/build.sh", (ROOT / "Makefile").read_text(), re.MULTILINE)
    script = (ROOT / "release/build.sh").read_text()
    assert script.index("cyclonedx-py") < script.index("sbom.py check")
    assert "`make release`" in (ROOT / "CONTRIBUTING.md").read_text()


def test_what_is_no_python_is_packed_too() -> None:
    """A wheel without the console's page or the log's script starts, and fails later."""
    patterns = {
        f"{package.replace('.', '/')}/{pattern.strip()}"
        for package, listed in CONFIG["options.package_data"].items()
        for pattern in listed.split(",")
    }
    packed = {path for pattern in patterns for path in ROOT.glob(pattern)}
    others = {
        path
        for path in (ROOT / "gateway").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others == packed
    assert ROOT / "gateway/http/routes/client.js" in packed
