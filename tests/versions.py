"""The versions of libraries at the lower end of what setup.cfg allows: ``python -m tests.versions``, for pip."""

from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement

SETUP = Path(__file__).parents[1] / "setup.cfg"


def requirements() -> list[Requirement]:
    """Return what the gateway needs to run, with Kafka's client."""
    setup = ConfigParser()
    setup.read(SETUP)
    lines = [
        *setup["options"]["install_requires"].split("\n"),
        *setup["options.extras_require"]["kafka"].split("\n"),
    ]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def end(requirement: Requirement, operator: str) -> str:
    """Return the version after ``>=`` or ``<``."""
    (found,) = (each.version for each in requirement.specifier if each.operator == operator)
    return found


def floor(requirement: Requirement) -> str:
    """Return the requirement of the oldest version that is allowed."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}=={end(requirement, '>=')}"


if __name__ == "__main__":
    print("\n".join(map(floor, requirements())))
