"""Neighborhood attention beside plain windows and beside gathering every window, in alternating runs of one process.

    python tests/bench/attention.py [--runs 15] [--threads 2]

64x64 tokens, batch 2, 2 heads of 64, kernel 7, cosine similarity; windows of 8x8, which are not shifted. Spreads are
[median, least, most]; ratios are to the plain windows, of pairs of one round. NATTEN's CPU forward is timed beside them where
it is installed.
"""

import argparse
import importlib.util
import json
from datetime import date

import torch

from hdit_cli import runtime
from hdit_cli.engine.bench.clock import Spread, ratio, rounds
from hdit_cli.models.attention.dense import window_attention
from hdit_cli.models.attention.dispatch import neighborhood_attention

CPU = torch.device("cpu")
BACKENDS = ("strips", "tiled", "reference")
SCALE = 10.0  # of cosine similarity, as a model starts


def attend(name, q, k, v):
    if name == "windows":
        return window_attention(q, k, v, window=8, shift=0)
    return neighborhood_attention(q, k, v, kernel=7, backend=name)


def compare(*, runs, backward):
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = (torch.randn(2, 64, 64, 2, 64, generator=generator) for _ in range(4))
    q, k = (torch.nn.functional.normalize(t, dim=-1) * SCALE**0.5 for t in (q, k))
    leaves = [t.requires_grad_(backward) for t in (q, k, v)]

    def call(name):
        out = attend(name, *leaves)
        if backward:
            torch.autograd.grad(out, leaves, gradient)

    names = ("windows", *BACKENDS)
    seconds = rounds({name: lambda name=name: call(name) for name in names}, runs=runs, device=CPU, warmup=2)
    return {
        name: {"seconds": Spread.of(found).told(), "times_the_windows": ratio(found, seconds["windows"]).told()}
        for name, found in seconds.items()
    }


def natten_forward(*, runs):
    if importlib.util.find_spec("natten") is None:
        return "natten is not installed"
    import natten

    q, k, v = (torch.randn(2, 64, 64, 2, 64) for _ in range(3))
    call = {"natten": lambda: natten.na2d(q, k, v, kernel_size=7, scale=1.0)}
    return Spread.of(rounds(call, runs=runs, device=CPU)["natten"]).told()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runtime.keep_freed_memory()  # as the commands do
    facts = {
        "date": date.today().isoformat(),
        "environment": runtime.environment(),
        "forward": compare(runs=arguments.runs, backward=False),
        "forward_backward": compare(runs=arguments.runs, backward=True),
        "natten_cpu_forward_seconds": natten_forward(runs=2),
    }
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
