"""Neighborhood attention: the tiled backend against gathering the windows, in alternating runs of one process.

    python tests/bench/attention.py

Prints medians, quartiles and the median of the paired ratios. NATTEN's CPU forward is timed beside them where it is installed.
"""

import argparse
import importlib.util
import json
import statistics
import time

import torch

from hdit_cli import runtime
from hdit_cli.models.attention.dispatch import neighborhood_attention


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median_ms": round(middle * 1e3, 1), "quartiles_ms": [round(low * 1e3, 1), round(high * 1e3, 1)]}


def compare(*, runs, backward):
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = (torch.randn(2, 64, 64, 2, 64, generator=generator) for _ in range(4))
    leaves = [t.requires_grad_(backward) for t in (q, k, v)]

    def call(backend):
        out = neighborhood_attention(*leaves, kernel=7, backend=backend)
        if backward:
            torch.autograd.grad(out, leaves, gradient)

    seconds = {"reference": [], "strips": []}
    for i in range(runs + 1):
        for backend, found in seconds.items():
            duration = timed(lambda backend=backend: call(backend))
            if i:  # the first round warms up
                found.append(duration)
    ratios = [a / b for a, b in zip(seconds["reference"], seconds["strips"], strict=True)]
    facts = {name: quartiles(found) for name, found in seconds.items()}
    return {
        **facts,
        "times_faster": round(statistics.median(ratios), 1),
        "range": [round(min(ratios), 1), round(max(ratios), 1)],
    }


def natten_forward(*, runs):
    if importlib.util.find_spec("natten") is None:
        return "natten is not installed"
    import natten

    q, k, v = (torch.randn(2, 64, 64, 2, 64) for _ in range(3))
    found = [timed(lambda: natten.na2d(q, k, v, kernel_size=7, scale=1.0)) for _ in range(runs + 1)][1:]
    return quartiles(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    print(
        json.dumps(
            {
                "environment": runtime.environment(),
                "shape": "64x64 tokens, batch 2, 2 heads of 64, kernel 7, float32",
                "forward": compare(runs=runs, backward=False),
                "forward_backward": compare(runs=runs, backward=True),
                "natten_cpu_forward": natten_forward(runs=3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
