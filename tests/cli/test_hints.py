"""Every command that a message names: it exists with its options, and typed as it stands it succeeds or leads on."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

import hdit_cli
from hdit_cli import cli

PACKAGE = Path(hdit_cli.__file__).parent
NAMED = re.compile(rf"`(hdit [^`]*)`|^(hdit (?:{'|'.join(cli.COMMANDS)}) [^`]*)")


def text_of(node):
    """A string as the source writes it, with what is filled in as {expression}."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)
    return ""


def commands_of(file):
    """The commands named in one file's strings, docstrings aside."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skip = {value for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr):
            skip.add(node.body[0].value)
    for node in ast.walk(tree):
        if node not in skip:
            yield from (found[1] or found[2] for found in NAMED.finditer(text_of(node)))


ALL = sorted({command for file in PACKAGE.rglob("*.py") for command in commands_of(file)})
LATER = "leads on"  # the exit is an error whose hint says what is missing
PREPARE = "prepare flowers --size 16 --out data/again"

# as the source has it => what a user types who follows it, in the folder of `place`; LATER before what needs another step
TYPED = {
    "hdit prepare PICTURES": PREPARE,
    "hdit train RECIPE --data DIR": "train tiny.toml --data data/set --run runs/made",
    "hdit recipe": "recipe",
    "hdit train": "train tiny.toml --data data/set --run runs/made",
    "hdit eval-fid": "eval-fid runs/made -n 4 --metrics swd --reference data/set",
    "hdit prepare": PREPARE,
    "hdit sample": "sample runs/made -n 1 --out samples/plain",
    "hdit sample runs/NAME": "sample runs/made -n 1",
    "hdit prepare {shlex.quote(below)}": PREPARE,
    "hdit prepare SRC --size {size[0]}x{size[1]}": "prepare flowers --size 16x16 --out data/again",
    "hdit prepare YOUR_PICTURES --out {folder}": PREPARE,
    "hdit sample CKPT --from samples.json": "sample runs/made --from made.json --out samples/again",
    "hdit export": "export runs/made --no-grid",
    "hdit convert {path}": f"{LATER} convert plain.safetensors",
    "hdit prepare FOLDER": PREPARE,
    "hdit eval-fid FOLDER": f"{LATER} eval-fid flowers/rose",
    "hdit eval-fid {path} --reference DATA": "eval-fid flowers/rose --reference flowers/tulip --metrics swd",
    "hdit train {path}": "train tiny.toml --data data/set --run runs/made",
    "hdit convert {path}{option}": f"{LATER} convert plain.safetensors",
    "hdit convert {where}": f"{LATER} convert plain.safetensors",
    "hdit info": "info runs/made",
    "hdit convert": f"{LATER} convert plain.safetensors",
    "hdit convert SRC": f"{LATER} convert plain.safetensors",
    "hdit prepare SRC --buckets --bucket-step {times * math.lcm(*recipe.model.unit)}": (
        "prepare flowers --size 32x32 --buckets --bucket-step 8 --out data/buckets"
    ),
    "hdit prepare {there} --size {FOR_CPU_SIDE} --out {shlex.quote(str(out))}": "prepare flowers --size 64 --out data/again64",
    "hdit train {FOR_CPU}{data}{classes}": "train flowers64-cpu --data data/again64 --dry-run --set model.classes=0",
    "hdit prepare --hold-out 0.05": "prepare flowers --size 16 --hold-out 0.3 --out data/held",
    "hdit prepare REFERENCE --size {h}x{w}": "prepare flowers --size 16x16 --out data/again",
    "hdit prepare SRC --size {height}x{width} --buckets --bucket-step {pixels * unit}": (
        "prepare flowers --size 32x32 --buckets --bucket-step 8 --out data/buckets"
    ),
    "hdit prepare {source} --size {made_as}{out}": PREPARE,
    "hdit prepare SRC {again}": PREPARE,
    "hdit train RECIPE": "train tiny.toml --data data/set --run runs/made",
    "hdit prepare SRC --size {height}x{width}": "prepare flowers --size 16x16 --out data/again",
    "hdit convert {Path(URL).name} --out {self.path}": f"{LATER} convert pt_inception.pth --out net.safetensors",
    "hdit convert FILE.pth --out FILE.safetensors": f"{LATER} convert FILE.pth --out FILE.safetensors",
    "hdit recipe NAME": "recipe flowers256",
    "hdit doctor": "doctor",
    "hdit encode data/flowers64 --codec CKPT": f"{LATER} encode data/set --codec plain.safetensors",
    "hdit encode": f"{LATER} encode data/set --codec plain.safetensors",
    "hdit encode DATA --codec {shlex.quote(str(path))}": f"{LATER} encode data/set --codec plain.safetensors",
    "hdit prepare SRC --size {height}x{width} --buckets --bucket-step {self.factor}": (
        "prepare flowers --size 32x32 --buckets --bucket-step 8 --out data/buckets"
    ),
    "hdit convert {names.VGG16} --heads {source}": f"{LATER} convert vgg16.pth --heads vgg.pth --out lpips.safetensors",
    "hdit convert {VGG16} --heads vgg.pth --out {path}": f"{LATER} convert vgg16.pth --heads vgg.pth --out lpips.safetensors",
    "hdit prepare SRC --buckets --bucket-step {factor}": (
        "prepare flowers --size 32x32 --buckets --bucket-step 8 --out data/buckets"
    ),
}


def test_every_command_that_is_named_is_tried():
    assert set(ALL) == set(TYPED)


@pytest.mark.parametrize("command", ALL)
def test_what_is_named_exists(command):
    words = re.sub(r"\{[^}]*\}", "X", command).replace(",", " ").split()[1:]
    known = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    options = {
        option for parameter in known[words[0]].params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in words if word.startswith("-")} <= options


@pytest.fixture(scope="module")
def place(made, pictures, tmp_path_factory):
    """A working folder with pictures, a data set, a run, and a file of weights that is no checkpoint."""
    from safetensors.torch import save_file
    from torch import zeros

    root = tmp_path_factory.mktemp("place")
    shutil.copytree(pictures, root / "flowers")
    shutil.copytree(made / "data", root / "data" / "set")
    shutil.copytree(made / "run", root / "runs" / "made")
    shutil.copy(made / "tiny.toml", root)
    save_file({"a": zeros(1)}, root / "plain.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with pytest.raises(SystemExit):
            cli.main(["sample", "runs/made", "-n", "1", "--out", "first"])
        shutil.copy(root / "first" / "samples.json", root / "made.json")
        with pytest.raises(SystemExit):
            cli.main(["prepare", "flowers", "--size", "64", "--out", "data/again64", "--workers", "1"])
    return root


@pytest.mark.parametrize(
    "typed",
    [pytest.param(typed, marks=[pytest.mark.slow] * ("--dry-run" in typed)) for typed in sorted(set(TYPED.values()))],
)
def test_what_is_named_succeeds_or_leads_on(place, monkeypatch, capsys, typed):
    monkeypatch.chdir(place)
    later, words = typed.startswith(LATER), shlex.split(typed.removeprefix(LATER))
    if words[0] == "prepare":
        words += ["--workers", "1"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    err = capsys.readouterr().err
    if later:
        assert stop.value.code in (2, 3, 4), err
        assert err.count("  hint: ") == 1
    else:
        assert stop.value.code == 0, err
    assert "bug" not in err
