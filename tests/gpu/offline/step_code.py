"""The code that torch makes of a compiled training step, for a card that is not there.

    python tests/gpu/step_bytes.py flowers256 --batch 32 --card sm_89      (starts this script as it must be started)

Prints JSON: for the forward and the backward pass the launches of Triton kernels, calls of other kernels by name, bytes that
inductor counts, and what is saved between the passes. With --out the code itself is written beside it.
"""

import argparse
import json
import sys
import types
from pathlib import Path

import pretended

CARD = pretended.pretend()

import torch  # noqa: E402
from generated import Code, plans_made  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from hdit_cli.engine.model import DTYPES, build_network, build_task  # noqa: E402
from hdit_cli.engine.sampling.compiled import Compiled  # noqa: E402
from hdit_cli.models.attention import dispatch  # noqa: E402
from hdit_cli.models.layers import seed_dropout  # noqa: E402
from hdit_cli.recipe import load_recipe  # noqa: E402


class Library(types.ModuleType):
    """Kernels by any name, which are never called: what torch needs to know of them natten says in Python."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None


def step(recipe, *, batch, code):
    """Forward and backward of a task's losses, compiled as training compiles them."""
    classes = 10 if recipe.model.classes == "data" else int(recipe.model.classes)
    torch.set_default_dtype(DTYPES[recipe.train.precision])  # fake parameters cannot be made others
    with FakeTensorMode():
        with torch.device("cuda"):
            task = build_task(build_network(recipe, classes=classes), recipe).train()
            keys, like = torch.zeros(batch, dtype=torch.int32), torch.zeros(())
        seed_dropout(task.network, keys)
        drawn = task.blank(batch, recipe.model.size, like=like, told={})
        plans_made({(*shape[:2], kernel) for _, shape, kernel in task.network.neighbourhoods(*recipe.model.size)})
        task.losses = Compiled(task.losses, graphs=1, switch="", backend=code.backend).run
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            each = task(drawn)
        each.loss.mean().backward()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--attention", help="a backend by name, in the place of the one that is chosen")
    parser.add_argument("--natten", action="store_true", help="as if natten had its kernels")
    parser.add_argument("--out", type=Path, help="folder for the code")
    arguments = parser.parse_args()
    if arguments.natten:
        sys.modules["natten.libnatten"] = Library("natten.libnatten")
    if arguments.attention:
        dispatch.choose = lambda request: arguments.attention
    code = Code()
    step(load_recipe(arguments.recipe, arguments.changes), batch=arguments.batch, code=code)
    if arguments.out:
        for name, text in code.code.items():
            (arguments.out / f"{name}.py").write_text(text)
            (arguments.out / f"{name}.json").write_text(json.dumps(code.parts[name], indent=1))
    print(json.dumps({"card": CARD.name, "passes": code.passes}))


if __name__ == "__main__":
    main()
