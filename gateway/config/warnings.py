"""x"""

from collections.abc import Iterator

from gateway.config.faults import Fault
from gateway.config.model import Config


def warnings(config: Config) -> Iterator[Fault]:
    yield from ()
