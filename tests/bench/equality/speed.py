"""The time of a training step under both trees, in rounds that alternate.

CPU time of one thread, of a longer run less a short one: the start is taken off, and what else the machine does hardly counts.
"""

import sys

from alternate import alternate, machine, show, spread
from equality.cases import Command
from equality.tree import Tree, removed

SHORT = 10  # steps of the run that is taken off
LIMIT = 1.02
SUBJECTS = {  # recipe => steps beyond those, batch, data
    "smoke/tiny": (120, 16, "32x32"),
    "flowers64-cpu": (25, 4, "64x64"),
}


def paired(before: Tree, after: Tree, *, recipes: list[str], rounds: int) -> bool:
    """Prints the ratio of the training step, after / before; whether its median is within LIMIT for every recipe."""
    within = True
    show(machine("torch"))
    for recipe in recipes:
        ways = {
            "before": lambda recipe=recipe: step(before, recipe),
            "after": lambda recipe=recipe: step(after, recipe),
        }
        found = alternate(ways, rounds=rounds)
        ratios = [b / a for a, b in zip(found["before"], found["after"], strict=True)]
        told = {name: spread([1000 * value for value in values], digits=2) for name, values in found.items()}
        ratio = spread(ratios, digits=4)
        within = within and ratio["median"] <= LIMIT
        name = f"{recipe}, batch {SUBJECTS[recipe][1]}, CPU ms a step"
        show({name: told | {"after / before": ratio}})
        sys.stdout.flush()
    print("within 2 %" if within else "slower by more than 2 %")
    return within


def step(tree: Tree, recipe: str) -> float:
    """Seconds of CPU time of a training step."""
    more = SUBJECTS[recipe][0]
    return (trained(tree, recipe, SHORT + more) - trained(tree, recipe, SHORT)) / more


def trained(tree: Tree, recipe: str, steps: int) -> float:
    """Seconds of CPU time of a whole run."""
    place = f"speed/{recipe.replace('/', '-')}"
    removed(tree.work / place)
    _, batch, data = SUBJECTS[recipe]
    sets = {
        "train.steps": steps,
        "train.batch_size": batch,
        "train.precision": "fp32",
        "train.sample_every": 0,
        "train.save_every": steps,
        "train.log_every": 10,
        "validation.every": 0,
        "optimizer.warmup": 0,
        "data.workers": 0,
    }
    words = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    path = f"recipes/{recipe}.toml"
    command = Command("time", ("train", path, "--data", f"data/{data}", "--run", place, *words, "--json"))
    tree.run(command, tree.work / "printed/speed")
    return tree.cpu
