"""Run folders with every log a report reads, written in milliseconds instead of trained."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_run import tiny_recipe

SIGMAS = [0.05, 0.2, 0.8, 3.0, 12.0]
ENVIRONMENT = {"hdit": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "device": "cpu", "hardware": "x86_64, 2 threads"}


def loss_at(step: int) -> float:
    """What metrics.jsonl says at a step."""
    return round(0.1 + 0.9 * math.exp(-step / 150) + 0.02 * math.sin(step), 5)


def held_out_at(step: int) -> float:
    """Held-out loss of the average: lowest at step 300."""
    return round(0.12 + 1e-6 * (step - 300) ** 2, 5)


def full_run(folder: Path, *, steps: int = 600, every: int = 10, shift: float = 0.0, **recipe) -> Path:
    """A run of `steps` steps with all optional logs; grids show the step as a grey level."""
    (folder / "samples").mkdir(parents=True)
    made = tiny_recipe(**{"train__steps": 600, **recipe})
    (folder / "recipe.toml").write_text(made.to_toml())
    batch = made.train.batch_size
    logged = range(every, steps + 1, every)
    metrics = [
        {
            "step": step,
            "images": step * batch,
            "loss": loss_at(step) + shift,
            "lr": 2e-3,
            "grad_norm": 1 / step,
            "lrs": {"decay": 2e-3, "mapping": 7e-4},
            "loss_by_sigma": [[sigma, loss_at(step) * sigma**0.2] for sigma in SIGMAS],
            "gradient_noise_scale": 100.0 + step,
            "skipped": int(step == 50),
        }
        for step in logged
    ]
    timing = [
        {"step": s, "time": 1.7e9 + s, "trained_seconds": s * 0.9, "images_per_second": 9.0, "peak_bytes": 2**30}
        for s in logged
    ]
    validation = [
        {
            "step": step,
            "images": step * batch,
            "weights": weights,
            "split": split,
            "n": 64,
            "sigmas": SIGMAS,
            "loss": [held_out_at(step) * sigma**0.2 for sigma in SIGMAS],
            "mean": mean + (0.01 if weights == "raw" else 0) + shift,
        }
        for step in range(100, steps + 1, 100)
        for split, mean in (("held-out", held_out_at(step)), ("training", 0.1 + 1 / step))
        for weights in ("raw", "ema")
    ]
    scores = [
        {
            "step": step,
            "weights": "ema",
            "n": 500,
            "scores": {"swd": 30 - step / 50},
            "sampling": {"sampler": "dpmpp-3m-sde", "steps": 50, "cfg": 1.0, "seed": 0, "label": None},
            "reference": {"path": "data/tiny", "count": 500},
            "date": "2026-11-21T06:00:00Z",
        }
        for step in range(200, steps + 1, 200)
    ]
    for name, lines in {"metrics": metrics, "timing": timing, "validation": validation, "scores": scores}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(0, steps + 1, 100):
        for weights in ("raw", "ema"):
            grid(folder / "samples" / f"step-{step:08d}-{weights}.png", level=grey_of(step, weights))
    state = folder / "checkpoints" / f"step-{steps:08d}"
    state.mkdir(parents=True)
    (state / "state.json").write_text(json.dumps({"step": steps, "environment": ENVIRONMENT}))
    return folder


def grey_of(step: int, weights: str) -> int:
    """The grey level of the grid of a step."""
    return step // 100 * 20 + (100 if weights == "raw" else 20)


def grid(path: Path, *, level: int) -> None:
    Image.fromarray(np.full((64, 64, 3), level, dtype=np.uint8)).save(path)
