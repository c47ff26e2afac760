"""What setup.cfg allows of each library that the gateway needs."""

from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.versions import end, requirements

HOLES: dict[str, str] = {
    "aiohttp": "3.14.4",
    "cryptography": "46.0.7",
    "PyJWT": "2.15",
    "redis": "8.0",
}
"""The first version without a known hole in what is used, or with what is needed: setup.cfg says which."""


@pytest.mark.parametrize("requirement", requirements(), ids=lambda each: str(each.name))
def test_a_release_that_mends_a_hole_can_be_installed(requirement: Requirement) -> None:
    """Floors shut out what is known to be broken, and ceilings only what may be another library."""
    lowest, ceiling = Version(end(requirement, ">=")), Version(end(requirement, "<"))
    assert ceiling.release == (ceiling.major,), "a ceiling is a major version"
    assert ceiling.major > lowest.major
    assert requirement.specifier.contains(version(requirement.name))
    if requirement.name in HOLES:
        assert lowest >= Version(HOLES[requirement.name])
    assert requirement.specifier.contains(f"{ceiling.major - 1}.999.999")
