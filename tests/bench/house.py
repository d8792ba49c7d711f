"""Figures of a source tree: Python files per folder, the longest functions and files, imports between rooms.

    python tests/bench/house.py [TREE ...]

TREE is a folder that holds `hdit_cli/`; several are told side by side.
"""

import ast
import sys
from collections import Counter
from pathlib import Path


def functions(module):
    """(lines, name) of every function."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.end_lineno - node.lineno + 1, node.name


def told(tree):
    """The figures as lines."""
    package = tree / "hdit_cli"
    paths = [path for path in sorted(package.rglob("*.py")) if path.name != "__init__.py"]
    texts = {path.relative_to(package).as_posix(): path.read_text() for path in paths}
    folders = Counter(str(Path(name).parent) for name in texts)
    found = [(length, name, place) for place, text in texts.items() for length, name in functions(ast.parse(text))]
    longest, lengths = sorted(found, reverse=True)[:5], sorted(length for length, _, _ in found)
    lines = sorted(((text.count("\n"), name) for name, text in texts.items()), reverse=True)
    yield f"{len(texts)} files, {sum(n for n, _ in lines):,} lines, {len(lengths):,} functions"
    yield f"median length of a function: {lengths[len(lengths) // 2]} lines; over 60 lines: {sum(n > 60 for n in lengths)}"
    yield "files per folder: " + ", ".join(f"{name} {count}" for name, count in sorted(folders.items()))
    yield f"folders over 15 files: {', '.join(f'{name} {count}' for name, count in folders.items() if count > 15) or 'none'}"
    yield "longest functions: " + ", ".join(f"{place}:{name} {length}" for length, name, place in longest)
    yield f"longest files: {', '.join(f'{name} {length}' for length, name in lines[:3])}"


def main():
    for tree in map(Path, sys.argv[1:] or ["."]):
        print(tree)
        for line in told(tree):
            print(" ", line)


if __name__ == "__main__":
    main()
