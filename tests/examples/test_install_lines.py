"""Every `pip install` that is printed or written down names our distribution, with extras that exist, or a package that we use."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from hdit_cli.engine.training.trackers import _INSTALLED
from hdit_cli.runtime import environment

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OTHERS = {"setuptools", "wheel", "scipy", "triton"}  # of the machinery alone
TAKES_A_VALUE = {"-f", "-r", "-c", "--index-url", "--extra-index-url", "--find-links"}
LINE = re.compile(r"\bpip install\b([^\n`]*)")


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]*", requirement)[0].lower()


KNOWN = OTHERS | {name_of(each) for each in sum(EXTRAS.values(), PROJECT["dependencies"])}


def texts():
    """(place, text) of all that a user reads: whole strings of the source, and whole files of everything else."""
    for path in sorted((ROOT / "hdit_cli").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield path, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                yield path, node.value
    written = [
        "README.md",
        "CHANGELOG.md",
        "pyproject.toml",
        ".ci/run",
        "docs/**/*.md",
        "examples/*",
        "recipes/**/*.toml",
    ]
    for path in (path for pattern in written for path in sorted(ROOT.glob(pattern)) if path.is_file()):
        yield path, path.read_text(encoding="utf-8")


def words(line):
    """The words of the command, up to the sentence that goes on behind it."""
    found = []
    for quoted, plain in re.findall(r"""['"]([^'"]+)['"]|([^\s'"]+)""", line):
        after = plain[:1] in set("(),;:>&|#")  # what follows the command
        word = quoted or ("" if after else plain.rstrip(",;:)"))
        found += [word if word == "." else word.rstrip(".")] if word else []
        if after or plain.endswith((",", ";", ":", ")")):
            break
    return found


def wrong(line):
    """Why what follows `pip install` could not be typed; "" where it could."""
    skip = False
    for word in words(line):
        if skip or word.startswith("-"):
            skip = word in TAKES_A_VALUE
            continue
        name, _, extras = word.partition("[")
        if name in (".", "hdit-cli"):
            asked = set(extras.rstrip("]").split(",")) if extras else set()
            if unknown := asked - set(EXTRAS) - {"{}"}:
                return f"no such extra: {', '.join(sorted(unknown))}"
        elif name_of(name) not in KNOWN:
            return f"{word} is no package of ours"
    return ""


LINES = [(path, match[1]) for path, text in texts() for match in LINE.finditer(text) if match[1].strip()]


def test_all_of_them():
    assert len(LINES) > 15
    assert [(str(path.relative_to(ROOT)), line) for path, line in LINES if wrong(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        " hdit",
        " 'hdit[fid]'",
        " 'hdit-cli[fidd]'",
        " '.[cpus]'",
        " torchh",
        ' "hdit[features]"',
        " -q hdit",
        " torch hdit",
    ],
)
def test_the_test_finds_wrong_ones(line):
    assert wrong(line)


@pytest.mark.parametrize(
    "line",
    [
        " .",
        " '.[test,cpu]'",
        " 'hdit-cli[fid]', or leave it out",
        " torch --index-url https://download.pytorch.org/whl/cpu",
    ],
)
def test_the_test_lets_right_ones_pass(line):
    assert not wrong(line)


def test_names():
    assert PROJECT["name"] == "hdit-cli" and list(PROJECT["scripts"]) == ["hdit"]
    assert set(_INSTALLED) <= set(EXTRAS)  # the hint about a missing tracker names it as an extra
    assert environment()["hdit"] not in ("", "source tree")  # the version, whatever the distribution is called
