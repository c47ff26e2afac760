"""Imports go down the list of layers, never up (DESIGN §9)."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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
    {"causes", "errors", "freshness", "files", "logs", "metrics", "seldom", "shutdown"}
    | {"refusals", "counts", "pem"},
    {"systemd", "loop_lag"},
    {"background"},
    {"bounded", "clock", "rate", "backoff", "printable", "urls"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}

PURE = [
    *("bounded", "event", "history", "sse", "webhooks", "config", "sources/router.py", "check/explain.py"),
    *("printable.py", "urls.py"),
    *(
        f"doctor/{noun}.py"
        for noun in ("answer", "arrivals", "certificate", "cors", "heard", "resume", "target")
    ),
    *(f"terminal/{noun}.py" for noun in ("claims", "feeds", "lines", "paint", "parser", "signing")),
]
"""No I/O libraries here: what they do can be tested without a server."""

LAZY = {
    ("check/command.py", "gateway.check.connect"),
    ("check/local.py", "gateway.auth.keys"),
    ("check/local.py", "gateway.broker.sqlite_store"),
    ("check/local.py", "gateway.redis_target"),
    ("cli/main.py", "gateway.config.parts"),
}
"""Imports inside a function: a command must not wait for what it does not use."""


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imports(file: Path) -> list[tuple[str, bool]]:
    """Return the imported modules, and whether each import stands inside a function."""
    found = []
    for node, is_inside in statements(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, is_inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [
                (f"{node.module}.{alias.name}" if node.module == "gateway" else node.module, is_inside)
                for alias in node.names
            ]
    return found


def statements(node: ast.AST, is_inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield all statements below a node, and whether each stands inside a function."""
    is_inside = is_inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child, is_inside
            yield from statements(child, is_inside)


def upward(file: Path) -> Iterator[str]:
    """Yield the imports of a module that it must not have."""
    own = part_of(file)
    for module, is_inside in imports(file) if own != "__init__" else ():
        if not module.startswith("gateway.") or module == "gateway.__version__":
            continue
        if is_inside and (file.relative_to(ROOT).as_posix(), module) not in LAZY:
            yield f"{file} imports {module} inside a function"
        other = module.split(".")[1]
        if own != other and LEVEL[own] >= LEVEL[other]:
            yield f"{file}: {own} must not import {module}"


def test_imports_go_down() -> None:
    """An arrow upwards is the beginning of a knot."""
    assert [fault for file in files() for fault in upward(file)] == []


def test_every_part_has_a_layer() -> None:
    """A new part must say where it stands."""
    assert {part_of(file) for file in files()} - {"__init__"} == set(LEVEL)


def test_the_core_is_pure() -> None:
    """Framing, ids, history, routing and formats do no I/O."""
    for part in PURE:
        path = ROOT / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            roots = {module.split(".")[0] for module, _ in imports(file)}
            assert not roots & {"aiohttp", "aiohttp_cors", "redis", "asyncio", "socket"}, file


def swallows(node: ast.AST) -> bool:
    """Tell whether a piece of code may end a cancellation: `suppress` of it, or a handler that never raises."""
    names = ("CancelledError", "BaseException")
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
        return any(ast.unparse(each).endswith(names) for each in node.args)
    if isinstance(node, ast.ExceptHandler):
        caught = "BaseException" if node.type is None else ast.unparse(node.type)
        is_caught = any(each.strip("( )").endswith(names) for each in caught.split(","))
        return is_caught and not any(isinstance(each, ast.Raise) for each in ast.walk(node))
    return False


def test_no_cancellation_is_swallowed() -> None:
    """A task that cannot be cancelled holds up a shutdown, or goes on after it."""
    found = [
        f"{file}:{node.lineno}"  # type: ignore[attr-defined]
        for file in files()
        for node in ast.walk(ast.parse(file.read_text()))
        if swallows(node)
    ]
    assert found == []


def test_files_are_small() -> None:
    """One concept per file: over 600 lines it is two."""
    assert {str(file): lines for file in files() if (lines := len(file.read_text().splitlines())) > 600} == {}
