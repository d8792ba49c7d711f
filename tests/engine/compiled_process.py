"""One process of a compiled run on several: trains, and prints how many graphs it made."""

import sys
from pathlib import Path

import torch

from hdit_cli.engine.training import loop as training
from hdit_cli.recipe import load_recipe


def main(recipe, data, folder):
    def compile_step(stepper, *, sizes):
        stepper.compile(sizes=sizes, fall_back=False, backend="eager")
        return []

    training.compile_step = compile_step
    training.train(Path(folder), load_recipe(recipe, []), data=Path(data), watch=lambda event: None)
    print(torch._dynamo.utils.counters["stats"]["unique_graphs"])


if __name__ == "__main__":
    main(*sys.argv[1:])
