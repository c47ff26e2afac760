"""Every container of a running gateway: how many entries each attribute of its objects holds, and their bytes."""

import functools
import gc
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

CONTAINERS = (dict, list, set, frozenset, deque)
"""What counts as a container; classes that are derived from them too."""

_CACHE = type(functools.lru_cache(lambda: None))


def sizes(package: str) -> dict[str, int]:
    """Return the entries of each container that the objects of a package hold, by ``module.Class.attribute``.

    Containers of all objects of a class are added up, and so are those that lie in other containers, as the
    attribute's name with ``[]``. Module-level containers and caches of functions are included. A container that is
    always empty is left out.
    """
    found: Counter[str] = Counter()
    for owner, name, value in _attributes(package):
        label = f"{owner}.{name}"
        if isinstance(value, _CACHE):
            found[label] += value.cache_info().currsize
        elif isinstance(value, CONTAINERS):
            found[label] += len(value)
            for inner in _values(value):
                if isinstance(inner, CONTAINERS):
                    found[f"{label}[]"] += len(inner)
    return {label: count for label, count in sorted(found.items()) if count}


def weigh(package: str, least: int) -> dict[str, int]:
    """Return about how many bytes the containers with at least so many entries take, with what they hold."""
    found: Counter[str] = Counter()
    for owner, name, value in _attributes(package):
        if isinstance(value, CONTAINERS) and len(value) >= least:
            found[f"{owner}.{name}"] += deep_bytes(value)
    return dict(found)


def _attributes(package: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (owner, attribute, value) of all objects whose class is of the package, and of its modules."""
    start = f"{package}."
    for module, names in [(name, vars(module)) for name, module in sys.modules.items()]:
        if module.startswith(start):
            for name, value in list(names.items()):
                if name.startswith("__"):
                    continue
                if isinstance(value, CONTAINERS) or (
                    isinstance(value, _CACHE) and value.__module__ == module
                ):
                    yield module, name, value
    for each in gc.get_objects():
        kind = type(each)
        if not kind.__module__.startswith(start):
            continue
        owner = f"{kind.__module__}.{kind.__qualname__}"
        for name in _names(kind):
            value = getattr(each, name, None)
            if isinstance(value, (*CONTAINERS, _CACHE)):
                yield owner, name, value
        own = getattr(each, "__dict__", None)
        if isinstance(own, dict):
            for name, value in list(own.items()):
                if isinstance(value, (*CONTAINERS, _CACHE)):
                    yield owner, name, value


def _names(kind: Any) -> tuple[str, ...]:
    """Return the slots of a class and its bases, but for properties and what is not an attribute."""
    fields = getattr(kind, "__struct_fields__", ())
    names: list[str] = list(fields) if isinstance(fields, tuple) else []
    for each in kind.__mro__:
        slots = each.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return tuple(dict.fromkeys(name for name in names if not name.startswith("__")))


def _values(container: Any) -> list[Any]:
    return list(container.values()) if isinstance(container, Mapping) else list(container)


def deep_bytes(root: Any, levels: int = 6) -> int:
    """Return the bytes of a container with its keys and values, some levels down; shared objects count once."""
    seen: set[int] = set()
    total = 0
    level = [root]
    for _ in range(levels):
        below: list[Any] = []
        for each in level:
            if id(each) in seen or isinstance(each, type):
                continue
            seen.add(id(each))
            total += sys.getsizeof(each)
            if isinstance(each, Mapping):
                below += [*each.keys(), *each.values()]
            elif isinstance(each, (*CONTAINERS, tuple)):
                below += each
            elif type(each).__module__.startswith("gateway."):
                below += [getattr(each, name, None) for name in _names(type(each))]
                below += getattr(each, "__dict__", {}).values()
        level = below
    return total
