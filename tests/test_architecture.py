"""The rules of the house, read from the source: who may import whom, and who may write files.

Each rule is a function from a source tree to its violations. It must find none in the package, and it must find the one
that is planted in a copy, so that no rule can pass by looking away.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from backbone_words import backbone_words, is_of_backbone
from source_tree import Tree, dotted, edges, module_name, module_of, named_imports, read_tree, room

import hdit_cli

PACKAGE = Path(hdit_cli.__file__).parent
EXAMPLES = Path(__file__).parents[1] / "examples"

FLOORS = {
    "cli": 6, "__main__": 6, "commands": 5, "engine": 4, "tasks": 3, "diffusion": 2, "models": 2, "data": 2, "metrics": 2,
    "runtime": 1, "counter": 1, "precision": 1, "files": 0, "launchers": 0, "owned": 0, "recipe": 0, "catalog": 0, "errors": 0,
}  # fmt: skip
# packages with rooms, and these from the ground up: one may import from those before it, and none from the package's own door
ROOMS = {
    "engine": (
        "launch", "model", "run", "memory", "load", "encoding", "sampling", "scoring", "training", "cost", "sharing", "bench",
        "checking", "report",
    ),
    "data.prepare": ("buckets", "options", "facts", "sources", "pictures", "making", "finishing", "run"),
}  # fmt: skip
ROOMS_APART = {"diffusion", "models", "data", "metrics"}
HEAVY = {"torch", "numpy", "PIL"}
WITHOUT_TORCH = (
    "commands",
    "recipe",
    "cli",
    "catalog",
    "errors",
    "files",
    "launchers",
    "owned",
    "__init__",
    "__main__",
)

# calls that look like writing to the disk, and why each may stand outside `files`
WRITERS_EXCUSED = {
    ("cli.py", "os.open for writing"): "the null device, in the place of a stdout whose reader is gone",
    ("owned.py", "os.open for writing"): "opens for `files`",
    ("engine/checking/ground.py", "tempfile.gettempdir"): "the name of the system's folder for temporary files",
    ("__main__.py", "os.open for writing"): "the null device, in the place of a stream that was closed",
}

# who may print without `say`, and why
PRINTERS_EXCUSED = {
    "engine/launch.py": "hands on what a process of the same command has said, which went through `say` there",
}

# The rules


def goes_up(tree: Tree) -> list[str]:
    """No import goes up. The package's `__init__` is the public door: it may name anything, and anyone may read its version."""
    found = []
    for source, target, place in edges(tree, planned=FLOORS):
        if "__init__" not in (source, target) and FLOORS[room(source)] < FLOORS[room(target)]:
            found.append(f"{place}: {source} imports {target}, which is above it")
    return found


def goes_up_between_rooms(tree: Tree) -> list[str]:
    """The rooms of a package stand in one order, and no import goes up in it."""
    return [
        f"{place}: {source} imports {target}, {wrong}"
        for package, order in ROOMS.items()
        for source, target, place in edges(tree)
        if (wrong := _wrong_way(room_in(package, source), room_in(package, target), order))
    ]


def room_in(package: str, module: str) -> str | None:
    """The room of a package that a module lies in; "" for the package's own `__init__`, None outside it."""
    return room(f"{module}.".removeprefix(f"{package}.")) if f"{module}.".startswith(f"{package}.") else None


def _wrong_way(source: str | None, target: str | None, order: tuple[str, ...]) -> str:
    """What is wrong about an import from one room into another, or ""."""
    if not source or target is None or source == target:  # the door of a package may name all that is in it
        return ""
    if {source, target} - {*order, ""}:
        return "a room without a place"
    return "above it" if not target or order.index(source) < order.index(target) else ""


def cycles(tree: Tree) -> list[str]:
    """No module reaches itself through imports. A package and a module inside it are one for this rule."""
    graph: dict[str, set[str]] = {}
    for source, target, _ in edges(tree):
        if source != "__init__" and target not in ("__init__", source):
            graph.setdefault(source, set()).add(target)
    found, state = [], {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        state[module] = "open"
        for below in sorted(graph.get(module, ())):
            if state.get(below) == "open":
                found.append(" -> ".join([*trail[trail.index(below) :], below] if below in trail else [module, below]))
            elif below not in state:
                visit(below, (*trail, below))
        state[module] = "done"

    for module in sorted(graph):
        if module not in state:
            visit(module, (module,))
    return found


def rooms_meet(tree: Tree) -> list[str]:
    """The four rooms of floor 2 never import each other."""
    return [
        f"{place}: {source} imports {target}"
        for source, target, place in edges(tree)
        if {room(source), room(target)} <= ROOMS_APART and room(source) != room(target)
    ]


def at_import(syntax: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: not inside functions, not under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(syntax.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.stmt):
            yield node
        waiting += list(ast.iter_child_nodes(node))


@cache
def first_imports(path: str, syntax: ast.Module) -> tuple[set[str], list[str]]:
    """What importing a file imports at once: (heavy packages, names in this package)."""
    heavy, own = set(), []
    for node in at_import(syntax):
        if isinstance(node, ast.Import):
            heavy |= {alias.name for alias in node.names if room(alias.name) in HEAVY}
        elif isinstance(node, ast.ImportFrom) and not node.level and room(node.module or "") in HEAVY:
            heavy.add(node.module or "")
        own += named_imports(path, node)
    return heavy, own


def loads_torch(tree: Tree) -> list[str]:
    """Nothing that `hdit --help` or a recipe loads may load torch, numpy or Pillow, itself or through what it imports."""
    paths = {module_name(path): path for path in tree}
    found = []
    for start in [module for module in paths if room(module) in WITHOUT_TORCH]:
        waiting, seen = [start], set()
        while waiting:
            module = waiting.pop()
            if module in seen or module not in paths:
                continue
            seen.add(module)
            heavy, own = first_imports(paths[module], tree[paths[module]])
            found += [f"{start}: {name}, imported by {module}" for name in sorted(heavy)]
            waiting += [module.rpartition(".")[0], *(module_of(name, set(paths)) for name in own)]
    return found


_WRITING_CALLS = {
    "os.rename", "os.replace", "os.remove", "os.unlink", "os.mkdir", "os.makedirs", "os.rmdir", "os.truncate", "os.symlink",
    "os.link", "os.open", "torch.save", "np.save", "np.savez", "numpy.save", "safetensors.torch.save_file",
}  # fmt: skip
_WRITING_METHODS = {"write_text", "write_bytes", "mkdir", "rmdir", "unlink", "rename", "replace", "touch", "symlink_to"}


def _writes(call: ast.Call) -> str:
    """What a call does to the disk, or ""."""
    name = dotted(call.func)
    constants = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    mode = next(
        (
            keyword.value.value
            for keyword in call.keywords
            if keyword.arg == "mode" and isinstance(keyword.value, ast.Constant)
        ),
        None,
    )
    if name == "open" or name.endswith(".open"):
        modes = [value for value in [*constants, mode] if isinstance(value, str) and len(value) <= 4]
        opens = any(set(value) <= set("rwaxbt+:|") and set(value) & set("wax+") for value in modes)
        read_only = name == "os.open" and "O_RDONLY" in ast.dump(call)
        return f"{name} for writing" if opens or (name == "os.open" and not read_only) else ""
    if name in _WRITING_CALLS or (name.startswith(("shutil.", "tempfile.")) and name != "shutil.which"):
        return name
    method = name.rpartition(".")[2]
    if method not in _WRITING_METHODS or name in ("replace", "dataclasses.replace") or name.startswith("files."):
        return ""
    is_text = method == "replace" and len(call.args) != 1  # str.replace takes two arguments, Path.replace one
    return "" if is_text else name


@cache
def writing_calls(syntax: ast.Module) -> list[tuple[str, int]]:
    return [(what, node.lineno) for node in ast.walk(syntax) if isinstance(node, ast.Call) and (what := _writes(node))]


def writes_files(tree: Tree) -> list[str]:
    """Every change of the disk goes through `files`."""
    found = []
    for path, syntax in tree.items():
        calls = [] if path == "files.py" else writing_calls(syntax)
        found += [f"{path}:{line}: {what}" for what, line in calls if (path, what) not in WRITERS_EXCUSED]
    return found


_PRINTERS = {"print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write", "traceback.print_exception"}


def prints(tree: Tree) -> list[str]:
    """What is printed goes through `commands/say.py`, which writes out what a terminal would act upon."""
    return [
        f"{path}:{node.lineno}: {dotted(node.func)}"
        for path, syntax in tree.items()
        for node in ast.walk(syntax)
        if isinstance(node, ast.Call) and dotted(node.func) in _PRINTERS and path not in PRINTERS_EXCUSED
    ]


def _image_names(syntax: ast.Module) -> tuple[set[str], set[str]]:
    """What a file calls the module `PIL.Image`, and the function `PIL.Image.open`."""
    modules, functions = {"PIL.Image"}, set()
    for node in ast.walk(syntax):
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            whole = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            if whole == "PIL.Image" and (isinstance(node, ast.ImportFrom) or alias.asname):
                modules.add(alias.asname or alias.name)
            elif whole == "PIL.Image.open":
                functions.add(alias.asname or alias.name)
    return modules, functions


def opens_anything(tree: Tree) -> list[str]:
    """Pillow picks a decoder among all it has, one of which starts Ghostscript: whoever opens a picture names the formats."""
    found = []
    for path, syntax in tree.items():
        modules, functions = _image_names(syntax)
        opens = functions | {f"{module}.open" for module in modules}
        named = {
            id(node.func)
            for node in ast.walk(syntax)
            if isinstance(node, ast.Call)
            and any(k.arg == "formats" and not isinstance(k.value, ast.Constant) for k in node.keywords)
        }
        found += [
            f"{path}:{node.lineno}: {dotted(node)} without formats"
            for node in ast.walk(syntax)
            if isinstance(node, (ast.Attribute, ast.Name)) and dotted(node) in opens and id(node) not in named
        ]
    return found


def says_backbone(tree: Tree) -> list[str]:
    """What the rest needs of a network it asks the network: only the files of a backbone say its classes and its inner words."""
    return [
        f"{path}:{line}: {word}, a word of one backbone alone"
        for path, syntax in tree.items()
        if not is_of_backbone(path)
        for word, line in backbone_words(path, syntax)
    ]


def drawers(tree: Tree) -> list[str]:
    """No module for what has no name."""
    names = {"utils", "util", "misc", "common", "helpers"}
    return [path for path in tree if names & set(path.removesuffix(".py").split("/"))]


RULES = [
    goes_up, goes_up_between_rooms, cycles, rooms_meet, loads_torch, writes_files, prints, opens_anything, says_backbone, drawers,
]  # fmt: skip

PLANTED = {
    goes_up: [
        ("models/planted.py", "from hdit_cli.engine.training import ema\n"),
        ("recipe/planted.py", "def late():\n    import hdit_cli.runtime\n"),
        ("files.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hdit_cli.commands.train import train\n"),
        ("diffusion/planted.py", "from ..engine.training.ema import EMA\n"),
        ("tasks/planted.py", "from hdit_cli.engine.run import checkpoint\n"),
        ("models/planted.py", "def late():\n    from hdit_cli.tasks import denoise\n"),
        ("metrics/planted.py", "from ..tasks.denoise import Denoise\n"),
    ],
    goes_up_between_rooms: [
        ("engine/run/planted.py", "from hdit_cli.engine.training import step\n"),
        ("engine/memory/planted.py", "def late():\n    from hdit_cli.engine import load\n"),
        ("engine/attic/planted.py", "from hdit_cli.engine.model import Model\n"),
        ("data/prepare/facts/planted.py", "from hdit_cli.data.prepare.sources.listing import Entry\n"),
        ("data/prepare/options.py", "def late():\n    from hdit_cli.data.prepare.pictures import fit\n"),
        ("data/prepare/sources/planted.py", "from ..pictures import outcome\n"),
        ("data/prepare/making/planted.py", "from hdit_cli.data.prepare import prepare\n"),
        ("data/prepare/attic.py", "from hdit_cli.data.prepare.options import PrepareOptions\n"),
    ],
    cycles: [
        ("errors.py", "from hdit_cli import catalog\n"),
        ("errors.py", "def late():\n    from hdit_cli.catalog import get\n"),
    ],
    rooms_meet: [
        ("models/planted.py", "from hdit_cli.diffusion.schedules import schedule\n"),
        ("data/planted.py", "def late():\n    from hdit_cli import metrics\n"),
    ],
    loads_torch: [
        ("commands/planted.py", "import torch\n"),
        ("recipe/planted.py", "try:\n    from numpy import array\nexcept ImportError:\n    array = None\n"),
        ("commands/planted.py", "class Table:\n    from PIL import Image\n"),
        ("commands/planted.py", "from hdit_cli import runtime\n"),
        ("commands/planted.py", "from hdit_cli.engine.run import checkpoint\n"),
    ],
    writes_files: [
        ("data/planted.py", "def f(p):\n    open(p, 'w')\n"),
        ("data/planted.py", "def f(p):\n    open(p, mode='ab')\n"),
        ("data/planted.py", "def f(p):\n    p.open('x')\n"),
        ("data/planted.py", "def f(p):\n    p.write_text('x')\n"),
        ("data/planted.py", "def f(p, q):\n    p.replace(q)\n"),
        ("engine/planted.py", "import os\ndef f(p, q):\n    os.rename(p, q)\n"),
        ("engine/planted.py", "import torch\ndef f(p):\n    torch.save({}, p)\n"),
        ("commands/planted.py", "import shutil\ndef f(p):\n    shutil.rmtree(p)\n"),
    ],
    prints: [
        ("commands/planted.py", "print('x')\n"),
        ("engine/planted.py", "import sys\ndef f(text):\n    sys.stderr.write(text)\n"),
        ("commands/planted.py", "import typer\ndef f(text):\n    typer.echo(text, err=True)\n"),
    ],
    opens_anything: [
        ("engine/planted.py", "from PIL import Image\ndef f(p):\n    with Image.open(p) as image:\n        image.load()\n"),
        ("engine/planted.py", "import PIL.Image\ndef f(p):\n    PIL.Image.open(p, 'r')\n"),
        ("engine/planted.py", "import PIL.Image as I\ndef f(p):\n    I.open(p, formats=None)\n"),
        ("engine/planted.py", "def f(p):\n    from PIL.Image import open as o\n    o(p)\n"),
        ("engine/planted.py", "from PIL import Image\ndef f(paths):\n    return list(map(Image.open, paths))\n"),
    ],
    says_backbone: [
        ("engine/planted.py", "from hdit_cli.models import dit\n"),
        ("engine/planted.py", "from hdit_cli.models.dit_names import arguments_of\n"),
        ("tasks/planted.py", "def late():\n    from ..models.hdit import Level\n"),
        ("engine/planted.py", "def f(network):\n    return isinstance(network, HDiT)\n"),
        ("engine/planted.py", "import hdit_cli.models as m\ndef f(network):\n    return isinstance(network, m.dit.DiT)\n"),
        ("engine/planted.py", "def f(network: 'HDiT'):\n    return network\n"),
        ("engine/planted.py", "def f(recipe):\n    return recipe.model.levels[-1]\n"),
        ("engine/planted.py", "def f(network):\n    return network.patch\n"),
        ("engine/planted.py", "class A:\n    def f(self):\n        return self.network.patch\n"),
        ("diffusion/planted.py", "def f(network):\n    return [*network.down_levels, network.mid_level]\n"),
        ("engine/planted.py", "def f(network):\n    return network.pos_embed\n"),
        ("engine/planted.py", "def f(tensors):\n    return tensors['class_emb.weight']\n"),
        ("engine/planted.py", "def f(model):\n    return model.recipe['model']['levels']\n"),
        ("commands/planted.py", "def f(n):\n    return f'--set model.levels.{n}.checkpoint=true'\n"),
        ("models/codecs/planted.py", "from hdit_cli.models.hdit import HDiT\n"),
    ],
    drawers: [("models/utils.py", ""), ("engine/misc/thing.py", "")],
}  # fmt: skip


@pytest.fixture(scope="module")
def package() -> Tree:
    return read_tree(PACKAGE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule, package):
    assert rule(package) == []


CASES = [(rule, path, text) for rule, plants in PLANTED.items() for path, text in plants]


@pytest.mark.parametrize(
    ("rule", "path", "text"), CASES, ids=[f"{rule.__name__}-{n}" for n, (rule, *_) in enumerate(CASES)]
)
def test_rule_finds_what_is_planted(rule, path, text, package):
    before = rule(package)
    extra = ast.parse(text).body
    planted = ast.Module([*extra, *package[path].body] if path in package else extra, [])
    assert len(rule({**package, path: planted})) > len(before)


def test_harmless_code_is_let_through(package):
    text = "def f(p, s):\n    open(p)\n    open(p, 'rb')\n    p.open('r')\n    s.replace('a', 'w')\n    p.read_text()\n"
    assert writes_files({"data/planted.py": ast.parse(text)}) == []
    text = "from PIL import Image\ndef f(p):\n    open(p)\n    p.open()\n    Image.open(p, formats=('PNG',))\n"
    assert opens_anything({"data/planted.py": ast.parse(text)}) == []
    text = (
        '"""HDiT and its mid_level."""\n'
        "def f(self, task, n, patch, *, levels):\n"
        "    return self.patch, task.levels(n), levels, {'levels': patch}, 'as DiT writes it'\n"
    )
    assert says_backbone({"tasks/planted.py": ast.parse(text)}) == []
    assert says_backbone({"models/hdit_names.py": ast.parse("from hdit_cli.models.hdit import HDiT\n")}) == []


def test_examples_name_the_formats_of_pictures_too():
    examples = {f"examples/{path.name}": ast.parse(path.read_text()) for path in EXAMPLES.glob("*.py")}
    assert examples and opens_anything(examples) == []


def test_every_room_has_a_floor(package):
    assert {room(module_name(path)) for path in package} <= {*FLOORS, "__init__"}


def test_every_excuse_is_needed(package):
    calls = {(path, what) for path, syntax in package.items() for what, _ in writing_calls(syntax)}
    assert set(WRITERS_EXCUSED) <= calls


def test_every_rule_is_planted():
    assert set(PLANTED) == set(RULES)
