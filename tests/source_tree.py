"""The package as its source says it is: the syntax of each file, and who imports what."""

import ast
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

Tree = dict[str, ast.Module]  # path relative to the package => its syntax


def read_tree(package: Path) -> Tree:
    return {path.relative_to(package).as_posix(): ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}


def module_name(path: str) -> str:
    """`models/attention/__init__.py` => `models.attention`; the package's own `__init__.py` => `__init__`."""
    dotted = path.removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


def room(module: str) -> str:
    return module.partition(".")[0]


def named_imports(path: str, node: ast.AST) -> list[str]:
    """Dotted names from `hdit_cli` on that one import statement asks for; none for any other node."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        here = ["hdit_cli", *path.split("/")[:-1]]
        base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
        origin = ".".join(part for part in (base, node.module or "") if part)
        names = [f"{origin}.{alias.name}" for alias in node.names]
    else:
        return []
    return [name for name in names if room(name) == "hdit_cli"]


def module_of(name: str, modules: set[str]) -> str:
    """The module of the package that a dotted name lies in."""
    inside = name.removeprefix("hdit_cli").lstrip(".")
    while inside and inside not in modules:  # a name inside a module
        inside = inside.rpartition(".")[0]
    return inside or "__init__"


@cache
def all_imports(path: str, syntax: ast.Module) -> list[tuple[str, int]]:
    """Imports anywhere in a file, `TYPE_CHECKING` blocks and functions too, with lines."""
    return [(name, node.lineno) for node in ast.walk(syntax) for name in named_imports(path, node)]  # pyright: ignore


def edges(tree: Tree, *, planned: Collection[str] = ()) -> Iterator[tuple[str, str, str]]:
    """(importing module, imported module, place); `planned` modules count before they are built."""
    modules = {module_name(path) for path in tree} | {*planned}
    for path, syntax in tree.items():
        for name, line in all_imports(path, syntax):
            yield module_name(path), module_of(name, modules), f"{path}:{line}"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"
