"""The structure of the package: imports go down the list of layers, without circles (docs/architecture.md)."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "gateway"

LAYERS = [
    ["cli"],
    ["server"],
    ["admin"],
    ["http"],
    ["streams"],
    ["hub", "auth"],
    ["sources", "broker"],
    ["net"],
    ["webhooks"],
    ["config"],
    ["observability"],
    ["core"],
]
"""From the top. A package imports from itself and from the layers below it, never from its neighbours."""
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}

TOP_LEVEL = {"__init__.py", "__main__.py"}

PURE = [
    *("core", "webhooks", "config", "sources/router.py", "cli/check/explain.py"),
    *(f"cli/doctor/{noun}.py" for noun in ("cors", "response", "streaming", "target", "tls", "transcript")),
    *(f"cli/terminal/{noun}.py" for noun in ("lines", "signing", "test_record")),
]
"""Modules without I/O libraries: testable without a server."""

LAZY = {
    ("cli/check/command.py", "gateway.cli.check.connect"),
    ("cli/check/local_checks.py", "gateway.auth.keys"),
    ("cli/check/local_checks.py", "gateway.broker.sqlite.event_log"),
    ("cli/check/local_checks.py", "gateway.net.redis_locator"),
    ("cli/main.py", "gateway.config.loader.partial"),
}
"""Imports inside a function, allowed where a command would otherwise load libraries that it does not use."""

FEWEST_FILES, MOST_FILES = 4, 12


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(file: Path) -> str:
    """Return a file's module name."""
    return ".".join(("gateway", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(file): file for file in files()}


@cache
def imports(file: Path) -> list[tuple[str, bool]]:
    """Return the imported modules, type-only ones included, and whether each import stands inside a function."""
    found = []
    for node, is_inside in statements(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, is_inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                found.append((member if member in MODULES else node.module, is_inside))
    return found


def statements(node: ast.AST, is_inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield all statements below a node, and whether each stands inside a function."""
    is_inside = is_inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child, is_inside
            yield from statements(child, is_inside)


def forbidden(file: Path) -> Iterator[str]:
    """Yield what is wrong with a module's imports."""
    own = file.relative_to(ROOT).parts[0]
    for module, is_inside in imports(file) if own not in TOP_LEVEL else ():
        if module not in MODULES or module == "gateway":
            continue
        if is_inside and (file.relative_to(ROOT).as_posix(), module) not in LAZY:
            yield f"{file}: import {module} at the top of the file"
        other = module.split(".")[1]
        if own != other and LEVEL[own] >= LEVEL[other]:
            yield f"{file}: {own} must not import {module}"


def circles() -> list[list[str]]:
    """Return the groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other, _ in imports(MODULES[module]):
            if other in MODULES and other != module:
                if other not in index:
                    visit(other)
                    low[module] = min(low[module], low[other])
                elif other in stack:
                    low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in MODULES:
        if module not in index:
            visit(module)
    return found


def test_imports_go_down_without_circles() -> None:
    """Code with upward or circular imports can be read, tested and changed only as a whole."""
    assert [fault for file in files() for fault in forbidden(file)] == []
    assert circles() == []
    assert {file.name for file in files() if file.parent == ROOT} == TOP_LEVEL
    packages = {file.relative_to(ROOT).parts[0] for file in files()} - TOP_LEVEL
    assert packages == set(LEVEL), "a new package needs a layer"


def test_packages_are_of_readable_size() -> None:
    """A folder with more entries needs subfolders; one with fewer files is a detour."""
    for folder in {file.parent for file in files()} - {ROOT}:
        modules = {file.name for file in folder.glob("*.py")} - {"__init__.py"}
        packages = {file.parent.name for file in folder.glob("*/__init__.py")}
        assert len(modules) <= MOST_FILES and len(modules | packages) >= FEWEST_FILES, folder


def test_the_core_is_pure() -> None:
    """Framing, ids, history, routing and formats do no I/O."""
    for part in PURE:
        path = ROOT / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            roots = {module.split(".")[0] for module, _ in imports(file)}
            assert not roots & {"aiohttp", "aiohttp_cors", "redis", "asyncio", "socket"}, file


def swallows(node: ast.AST) -> bool:
    """Return whether code may swallow a cancellation: `suppress` of it, or a handler that never raises."""
    names = ("CancelledError", "BaseException")
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
        return any(ast.unparse(each).endswith(names) for each in node.args)
    if isinstance(node, ast.ExceptHandler):
        caught = "BaseException" if node.type is None else ast.unparse(node.type)
        is_caught = any(each.strip("( )").endswith(names) for each in caught.split(","))
        return is_caught and not any(isinstance(each, ast.Raise) for each in ast.walk(node))
    return False


def test_no_cancellation_is_swallowed() -> None:
    """A task that cannot be cancelled delays shutdown, or survives it."""
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
