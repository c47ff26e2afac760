"""Every container of the gateway's code, as its source declares it: attributes, fields, names of modules."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "gateway"

COMMANDS = ("cli",)
"""The package that runs once for somebody at a terminal."""

CONFIG = "config"
"""The package that reads the file, which is as large as its author makes it; but for `config.catalog`."""

_MAKERS = frozenset(
    {
        *("dict", "list", "set", "OrderedDict", "deque", "defaultdict", "Counter", "ChainMap", "BoundedDict"),
        *("WeakSet", "WeakKeyDictionary", "WeakValueDictionary", "lru_cache", "cache", "cached"),
        *("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue", "fromkeys"),
    }
)
_TYPES = (*_MAKERS, "MutableMapping", "MutableSequence", "MutableSet")
_FILLS = frozenset({"add", "append", "appendleft", "extend", "insert", "setdefault", "update", "put"})


def containers() -> dict[str, str]:
    """Return all that may grow while the gateway runs, by ``module.Class.attribute``, with file and line."""
    found: dict[str, str] = {}
    for file in files():
        module = ".".join(("gateway", *file.relative_to(ROOT).with_suffix("").parts))
        for name, line in _of_module(ast.parse(file.read_text())):
            found.setdefault(f"{module}.{name}", f"{file}:{line}")
    return found


def files() -> list[Path]:
    """Return the modules of a running gateway."""
    return [
        file
        for file in sorted(ROOT.rglob("*.py"))
        if (part := file.relative_to(ROOT).parts[0]) not in COMMANDS
        and (part != CONFIG or file.name == "channel_catalog.py")
        and file.name != "sse_parser.py"  # for commands
    ]


def _of_module(tree: ast.Module) -> Iterator[tuple[str, int]]:
    filled = _filled(tree)
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            # A table that nobody changes is no container here.
            for name in _names(node):
                if _is_container(node) and (name in filled or not _has_content(node.value)):
                    yield name, node.lineno
    for each in ast.walk(tree):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(_makes(decorator) for decorator in each.decorator_list):
                yield each.name, each.lineno
        elif isinstance(each, ast.ClassDef):
            for name, line in _of_class(each):
                yield f"{each.name}.{name}", line


def _of_class(owner: ast.ClassDef) -> Iterator[tuple[str, int]]:
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_container(node):
            yield node.target.id, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for each in ast.walk(node):
                if isinstance(each, ast.Assign | ast.AnnAssign) and _is_container(each):
                    for target in each.targets if isinstance(each, ast.Assign) else [each.target]:
                        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                            yield target.attr, each.lineno


def _names(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _is_container(node: ast.Assign | ast.AnnAssign) -> bool:
    if isinstance(node, ast.AnnAssign):
        kinds = [ast.unparse(each).rpartition(".")[2] for each in ast.walk(node.annotation) if _is_name(each)]
        # The outermost types only: not what is in a tuple, or what a function takes.
        outer = ast.unparse(node.annotation).strip("'\"").partition("[")[0].rpartition(".")[2]
        if outer in _TYPES or ("|" in ast.unparse(node.annotation) and set(kinds) & set(_TYPES)):
            return True
    return node.value is not None and _makes(node.value)


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Attribute)


def _makes(value: ast.expr) -> bool:
    """Tell whether an expression is a new container, or a function with a cache."""
    if isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp):
        return True
    if isinstance(value, ast.Call):
        return _makes(value.func)
    if isinstance(value, ast.Subscript):
        return _makes(value.value)
    if isinstance(value, ast.BinOp):
        sides = (value.left, value.right)
        return any(
            _makes(side) for side in sides if not isinstance(side, ast.Subscript | ast.Name)
        )  # no types
    if isinstance(value, ast.BoolOp):
        return any(_makes(each) for each in value.values)
    if isinstance(value, ast.IfExp):
        return _makes(value.body) or _makes(value.orelse)
    if isinstance(value, ast.Name | ast.Attribute):
        return ast.unparse(value).rpartition(".")[2] in _MAKERS
    return False


def _has_content(value: ast.expr | None) -> bool:
    return (isinstance(value, ast.Dict | ast.List | ast.Set) and bool(list(ast.iter_child_nodes(value)))) or (
        isinstance(value, ast.DictComp | ast.ListComp | ast.SetComp)
    )


def _filled(tree: ast.Module) -> set[str]:
    """Return the names of a module that its code puts something into."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            found.add(ast.unparse(node.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FILLS:
            found.add(ast.unparse(node.func.value))
    return found
