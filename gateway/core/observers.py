"""Notifications from one component to others that are built after it."""

from collections.abc import Callable
from typing import Generic, TypeVarTuple

Arguments = TypeVarTuple("Arguments")


class Observers(Generic[*Arguments]):
    """The callbacks of one occurrence. A call calls all of them, in the order in which they were added."""

    __slots__ = ("_callbacks",)

    def __init__(self) -> None:
        self._callbacks: tuple[Callable[[*Arguments], object], ...] = ()

    def add(self, callback: Callable[[*Arguments], object]) -> None:
        """Call this too from now on."""
        self._callbacks += (callback,)

    def __call__(self, *arguments: *Arguments) -> None:
        for callback in self._callbacks:
            callback(*arguments)
