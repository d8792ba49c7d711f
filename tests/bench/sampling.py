"""Sampling: the share of the time that is not the network's, and what guidance costs over half the noise levels.

    python tests/bench/sampling.py [--recipe flowers256-class] [--size 64] [--steps 50] [--batch 16] [--runs 5] [--threads 2]

Guidance of strength 2 acts over all noise levels, or over the lower half of the steps; both take turns in one process.
"""

import argparse
import json
from dataclasses import replace
from datetime import date

import torch

from hdit_cli import runtime
from hdit_cli.engine.bench.clock import Spread, ratio, rounds, timed
from hdit_cli.engine.bench.report import NetworkTime
from hdit_cli.engine.bench.subject import Subject
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.recipe import load_recipe
from hdit_cli.tasks.sampling import Sampling


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="flowers256-class")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = changed(
        load_recipe(arguments.recipe, ["train.precision='fp32'"]), {"model.size": [arguments.size, arguments.size]}
    )
    subject = Subject(recipe, data=None)
    plain = Sampling(steps=arguments.steps, batch_size=arguments.batch)
    sigmas = subject.model.task.sigmas(plain)
    half = (0.0, float(sigmas[arguments.steps // 2]))
    everywhere, inside = replace(plain, cfg=2.0), replace(plain, cfg=2.0, cfg_interval=half)
    shares = []
    with NetworkTime(subject) as network:
        for _ in range(arguments.runs + 1):
            network.seconds = 0.0
            whole = timed(lambda: subject.sample(plain), subject.device)
            shares.append(1 - network.seconds / whole)
    seconds = rounds(
        {"everywhere": lambda: subject.sample(everywhere), "half": lambda: subject.sample(inside)},
        runs=arguments.runs,
        device=subject.device,
    )
    facts = {
        "date": date.today().isoformat(),
        "environment": runtime.environment(),
        "settings": vars(arguments),
        "outside_the_network": Spread.of(shares[1:]).told(),
        "guided_seconds": {name: Spread.of(found).told() for name, found in seconds.items()},
        "half_is_times_faster": ratio(seconds["everywhere"], seconds["half"]).told(),
    }
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
