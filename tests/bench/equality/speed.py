"""The time of a training step under both trees, in rounds that alternate."""

import itertools
import json
import statistics

from alternate import alternate, machine, show, spread
from equality.cases import Command
from equality.tree import Tree, removed

WARM = 10  # steps of each run that do not count
SUBJECTS = {  # recipe => steps, batch, data
    "smoke/tiny": (150, 16, "32x32"),
    "flowers64-cpu": (50, 4, "64x64"),
}


def paired(before: Tree, after: Tree, *, rounds: int) -> bool:
    """Prints the ratio of the median step, after / before; whether it is at most 1.02 for every subject."""
    within = True
    show(machine("torch"))
    for recipe, (steps, batch, data) in SUBJECTS.items():
        ways = {
            "before": lambda tree=before, asked=(recipe, steps, batch, data): step_time(tree, *asked),
            "after": lambda tree=after, asked=(recipe, steps, batch, data): step_time(tree, *asked),
        }
        found = alternate(ways, rounds=rounds)
        ratios = [b / a for a, b in zip(found["before"], found["after"], strict=True)]
        told = {name: spread([1000 * value for value in values], digits=2) for name, values in found.items()}
        ratio = spread(ratios, digits=4)
        within = within and ratio["median"] <= 1.02
        show({f"{recipe}, batch {batch}, ms a step": told | {"after / before": ratio}})
    return within


def step_time(tree: Tree, recipe: str, steps: int, batch: int, data: str) -> float:
    """Seconds of the median training step of one run."""
    place = f"speed/{recipe.replace('/', '-')}"
    removed(tree.work / place)
    sets = {
        "train.steps": steps,
        "train.batch_size": batch,
        "train.precision": "fp32",
        "train.sample_every": 0,
        "train.save_every": steps,
        "train.log_every": 1,
        "validation.every": 0,
        "optimizer.warmup": 0,
        "data.workers": 0,
    }
    words = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    path = f"recipes/{recipe}.toml"
    command = Command("time", ("train", path, "--data", f"data/{data}", "--run", place, *words, "--json"))
    tree.run(command, tree.work / "printed/speed")
    lines = (tree.work / place / "timing.jsonl").read_text().splitlines()
    moments = [json.loads(line)["trained_seconds"] for line in lines][WARM:]
    return statistics.median(b - a for a, b in itertools.pairwise(moments))
