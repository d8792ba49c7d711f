"""Draws a run's loss and, where scores are given, their course: python examples/plot_run.py RUN OUT.png [step=score ...].

Needs the extra `plot` (matplotlib).
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def smooth(values: list[float], *, width: int) -> list[float]:
    """Running mean over the last `width` values."""
    means = []
    for i in range(len(values)):
        recent = values[max(0, i + 1 - width) : i + 1]
        means.append(sum(recent) / len(recent))
    return means


def main(run: str, out: str, *scores: str) -> None:
    """Writes the picture."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]  # others are of evaluations inside the run
    images = [line["images"] for line in lines]
    losses = [line["loss"] for line in lines]
    per_step = images[0] / lines[0]["step"]
    figure, left = plt.subplots(figsize=(7, 3.6), layout="constrained")
    left.plot(images, losses, color="0.8", linewidth=0.8, label="loss")
    left.plot(images, smooth(losses, width=25), color="C0", label="loss, mean of 25 lines")
    left.set(xlabel="images seen", ylabel="weighted loss", ylim=(0, sorted(losses)[int(len(losses) * 0.98)] * 1.3))
    if scores:
        right = left.twinx()
        points = sorted((float(step) * per_step, float(value)) for step, value in (s.split("=") for s in scores))
        right.plot(*zip(*points, strict=True), "o-", color="C3", label="sliced Wasserstein distance")
        right.set(ylabel="sliced Wasserstein distance x 1000", ylim=(0, None))
        right.legend(loc="upper right", bbox_to_anchor=(1, 0.85), frameon=False)
    left.legend(loc="upper right", frameon=False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
