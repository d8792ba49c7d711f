"""Time and memory per pixel of a forward pass over image sizes: the flowers family, and a model of one global level.

    python tests/bench/scaling.py [--sizes 256,512,1024] [--global-sizes 256,512] [--runs 3] [--threads 2]

The family has the levels of flowers256 at 256 pixels, and one outer level of width 128 more for each doubling. The other model
is one level alone, the layers of flowers256's outer level with global attention. Sizes take turns in one process; float32, batch 1.
"""

import argparse
import json
import math
import statistics
from datetime import date

import torch

from hdit_cli import runtime
from hdit_cli.engine.bench.clock import rounds
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.engine.model import build_network
from hdit_cli.recipe import load_recipe

CPU = torch.device("cpu")


def family(size):
    """flowers256 with an outer level more for each doubling from 256 pixels."""
    recipe = load_recipe("flowers256")
    levels = recipe.to_dict()["model"]["levels"]
    outer = [dict(levels[0]) for _ in range(round(math.log2(size / 256)))]
    return changed(recipe, {"model.size": [size, size], "model.levels": [*outer, *levels]})


def one_level(size):
    """The four layers of width 128 of flowers256's outer level, with global attention and nothing inside them."""
    recipe = load_recipe("flowers256")
    levels = recipe.to_dict()["model"]["levels"]
    level = levels[0] | {"depth": 2 * levels[0]["depth"], "attention": "global"}
    return changed(recipe, {"model.size": [size, size], "model.levels": [level]})


def ready(recipe):
    """A forward pass of one image, without gradients."""
    size = recipe.model.size[0]
    network = build_network(recipe, classes=0).eval()
    x, sigma = torch.randn(1, 3, size, size), torch.ones(1)

    @torch.inference_mode()
    def forward():
        network(x, sigma)

    return forward


def curve(recipes, *, runs):
    """Per size: seconds, nanoseconds and bytes per pixel, and both against the smallest size of the same round."""
    calls = {str(size): ready(recipe) for size, recipe in recipes.items()}
    seconds = rounds(calls, runs=runs, device=CPU)
    smallest = min(recipes)
    found = {}
    for size in recipes:
        with Peak(CPU) as peak:
            calls[str(size)]()
        ratios = [
            (a / size**2) / (b / smallest**2) for a, b in zip(seconds[str(size)], seconds[str(smallest)], strict=True)
        ]
        median = statistics.median(seconds[str(size)])
        found[size] = {
            "seconds": round(median, 4),
            "nanoseconds_per_pixel": round(1e9 * median / size**2, 1),
            "bytes_per_pixel": round(peak.bytes / size**2, 1),
            "time_to_smallest": [round(v, 3) for v in (statistics.median(ratios), min(ratios), max(ratios))],
        }
    for row in found.values():
        row["memory_to_smallest"] = round(row["bytes_per_pixel"] / found[smallest]["bytes_per_pixel"], 3)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="256,512,1024")
    parser.add_argument("--global-sizes", default="256,512")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runtime.keep_freed_memory()  # as the commands do
    hourglass = {int(size): family(int(size)) for size in arguments.sizes.split(",")}
    flat = {int(size): one_level(int(size)) for size in arguments.global_sizes.split(",") if size}
    found = {"hourglass": curve(hourglass, runs=arguments.runs)}
    if flat:
        found["one global level"] = curve(flat, runs=arguments.runs)
    print(json.dumps({"date": date.today().isoformat(), "environment": runtime.environment()} | found, indent=2))


if __name__ == "__main__":
    main()
