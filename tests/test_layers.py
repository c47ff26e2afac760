"""Imports go down the list of layers, never up (DESIGN §9)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gateway"

# From the top. A module may import from its own layer's package and from layers below.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"check", "terminal"},
    {"workers", "doctor"},
    {"daemon", "runtime"},
    {"node"},
    {"status", "console"},
    {"http"},
    {"stream"},
    {"hub"},
    {"limits"},
    {"auth"},
    {"sources", "broker"},
    {"redis_target"},
    {"webhooks"},
    {"reload"},
    {"sse", "config", "history"},
    {"event"},
    {"causes", "errors", "freshness", "files", "logs", "metrics", "backoff", "seldom", "shutdown"}
    | {"refusals", "counts"},
    {"clock", "rate", "systemd", "loop_lag"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}

PURE = [
    *("event", "history", "sse", "webhooks", "config", "sources/router.py", "check/explain.py"),
    *(
        f"doctor/{noun}.py"
        for noun in ("answer", "arrivals", "certificate", "cors", "heard", "resume", "target")
    ),
    *(f"terminal/{noun}.py" for noun in ("claims", "feeds", "lines", "paint", "parser", "signing")),
]
"""No I/O libraries here: what they do can be tested without a server."""


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> list[tuple[str, bool]]:
    """Return the imported modules, and whether each import stands inside a function."""
    tree = ast.parse(file.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [
                (
                    f"{node.module}.{alias.name}" if node.module == "gateway" else node.module,
                    id(node) in inside,
                )
                for alias in node.names
            ]
    return found


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    """An arrow upwards is the beginning of a knot."""
    own = part_of(file)
    if own == "__init__":
        return
    for module, is_inside in imports(file):
        if not module.startswith("gateway."):
            continue
        assert not is_inside, f"{file} imports {module} inside a function"
        other = module.split(".")[1]
        if other == "__version__":
            continue
        assert LEVEL[own] < LEVEL[other] or own == other, f"{own} must not import {module}"


def test_every_part_has_a_layer() -> None:
    """A new part must say where it stands."""
    assert {part_of(file) for file in files()} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("part", PURE)
def test_the_core_is_pure(part: str) -> None:
    """Framing, ids, history, routing and formats do no I/O."""
    path = ROOT / part
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
        roots = {module.split(".")[0] for module, _ in imports(file)}
        assert not roots & {"aiohttp", "aiohttp_cors", "redis", "asyncio", "socket"}, file


def test_files_are_small() -> None:
    """One noun per file: over 400 lines it is two."""
    assert {str(file): lines for file in files() if (lines := len(file.read_text().splitlines())) > 400} == {}
