"""The SBOM of a release (CycloneDX): ``check FILE`` looks whether it is whole.

``version`` and ``project`` print what setup.cfg says, for the tools that make it.

Whole means that it names everything that setup.cfg installs, each with a version, and no path of the
machine that made it. Needs nothing but Python.
"""

import json
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

SETUP = Path(__file__).parents[1] / "setup.cfg"


def setup(file: Path = SETUP) -> ConfigParser:
    """Return what setup.cfg says."""
    parser = ConfigParser(interpolation=None)
    parser.read_string(file.read_text())
    return parser


def requirements(config: ConfigParser) -> list[str]:
    """Return what a wheel with the extra ``kafka`` installs, as setup.cfg has it."""
    texts = (config["options"]["install_requires"], config["options.extras_require"]["kafka"])
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def required(config: ConfigParser) -> set[str]:
    """Return the names of `requirements`, normalised as PEP 503 asks."""
    return {_normal(re.split(r"[\s<>=!~;\[]", line)[0]) for line in requirements(config)}


def project(config: ConfigParser) -> str:
    """Return the same as a pyproject.toml (PEP 621), which is all that the tool reads."""
    about = {name: config["metadata"][name] for name in ("name", "version")}
    lines = [f"{name} = {json.dumps(value)}" for name, value in about.items()]
    return "\n".join(["[project]", *lines, f"dependencies = {json.dumps(requirements(config))}"])


def faults(bom: dict[str, Any], config: ConfigParser) -> Iterator[str]:
    """Yield what is wrong with an SBOM."""
    root = bom.get("metadata", {}).get("component", {})
    if (root.get("name"), root.get("version")) != (config["metadata"]["name"], config["metadata"]["version"]):
        yield f"is about {root.get('name')} {root.get('version')}"
    versions = {_normal(each["name"]): each.get("version") for each in bom.get("components", ())}
    for name in sorted(required(config)):
        if not versions.get(name):
            yield f"does not name {name}, which setup.cfg installs"
    depends = {each["ref"]: each.get("dependsOn") for each in bom.get("dependencies", ())}
    if not depends.get(root.get("bom-ref")):
        yield "does not say what the root needs"
    if "file://" in json.dumps(bom):
        yield "holds a path of this machine"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> int:
    """Run one of the commands and return the exit status."""
    config = setup()
    if arguments == ["version"]:
        print(config["metadata"]["version"])
        return 0
    if arguments == ["project"]:
        print(project(config))
        return 0
    if len(arguments) != 2 or arguments[0] != "check":
        print("usage: sbom.py version | project | check FILE", file=sys.stderr)
        return 2
    found = [
        f"{arguments[1]} {fault}" for fault in faults(json.loads(Path(arguments[1]).read_text()), config)
    ]
    print("\n".join(found) or f"{arguments[1]}: whole", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
