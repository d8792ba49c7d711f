"""Wall time of a forward pass over image sizes: HDiT (the paper's ablation, row E) against DiT-B/4 on pixels, beside their GMAC.

    python tests/bench/hdit_against_dit.py [--sizes 64,128,256,512] [--runs 3] [--precision bf16] [--threads 2]

HDiT has the levels of imagenet128 and one outer level more for each doubling from 128 pixels, which is how the paper grows it (31,
65, 198 GMAC at 128, 256, 512); at 64 it is the network of 128. Both networks of a size take turns in one process; batch 1, random
weights. One JSON line a size.
"""

import argparse
import json
import math
from datetime import date

import torch

from hdit_cli import runtime
from hdit_cli.engine.bench.clock import Spread, ratio, rounds
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.engine.model import build_network, count
from hdit_cli.recipe import load_recipe

CPU = torch.device("cpu")


def hdit(size):
    """imagenet128 with an outer level more for each doubling from 128 pixels."""
    recipe = load_recipe("imagenet128")
    levels = recipe.to_dict()["model"]["levels"]
    outer = [dict(levels[0]) for _ in range(max(0, round(math.log2(size / 128))))]
    return changed(recipe, {"model.size": [size, size], "model.levels": [*outer, *levels]})


def dit(size):
    """DiT-B/4 on pixels of this size."""
    return changed(load_recipe("dit-b4-pixels"), {"model.size": [size, size]})


def ready(recipe, *, bf16):
    """A forward pass of one image, without gradients."""
    network = build_network(recipe, classes=1000).eval().requires_grad_(False)
    x, level = torch.randn(1, 3, *recipe.model.size), torch.ones(1)

    @torch.inference_mode()
    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network(x, level)

    return forward


def measure(size, *, runs, bf16):
    """Seconds and GMAC of both, and both ratios."""
    recipes = {"hdit": hdit(size), "dit": dit(size)}
    gmacs = {name: count(recipe)["gmacs"] for name, recipe in recipes.items()}
    calls = {name: ready(recipe, bf16=bf16) for name, recipe in recipes.items()}
    seconds = rounds(calls, runs=runs, device=CPU)
    return {
        "size": size,
        "gmacs": {name: round(value, 3) for name, value in gmacs.items()},
        "gmac_ratio": gmacs["dit"] / gmacs["hdit"],
        "seconds": {name: Spread.of(values).told() for name, values in seconds.items()},
        "time_ratio": ratio(seconds["dit"], seconds["hdit"]).told(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="64,128,256,512")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runtime.keep_freed_memory()
    print(json.dumps({"date": date.today().isoformat(), "precision": arguments.precision, **runtime.environment(CPU)}))
    for size in map(int, arguments.sizes.split(",")):
        found = measure(size, runs=arguments.runs, bf16=arguments.precision == "bf16")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
