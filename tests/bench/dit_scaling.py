"""Does a DiT of more operations learn more in equal steps? Six of them at 32 pixels, as the paper asks at 256.

    python tests/bench/dit_scaling.py DATA --features NET.pt2 --out FOLDER [--steps 400] [--batch 8] [-n 300]

DATA is a prepared set at 32x32 with held-out pictures. Depth 6; widths 96, 192, 384; patches 2 and 4; task ddpm; the same steps,
batches and rates for all; the two smallest with two seeds. Of each: loss on the held-out pictures, SWD and FD against the training
pictures, beside its GMAC; the rank correlation of each score with GMAC; one figure. A run or score that is there already is not
made again. One JSON line a run, in `scaling.jsonl` too.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from hdit_cli import load, runtime
from hdit_cli.data.loader import to_x0
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.model import count
from hdit_cli.engine.scoring.plot import Panel, curves_png
from hdit_cli.recipe import Recipe

RUNS = [(96, 4, 0), (96, 4, 1), (192, 4, 0), (96, 2, 0), (96, 2, 1), (384, 4, 0), (192, 2, 0), (384, 2, 0)]
LEVELS = 8  # timesteps that the held-out loss is taken at
RECIPE = """
[data]
workers = 0
[model]
type = "dit"
size = [32, 32]
depth = 6
classes = "data"
[task]
type = "ddpm"
clip = true
[train]
precision = "bf16"
save_every = 100_000
sample_every = 0
log_every = 25
[optimizer]
lr = 1e-3
betas = [0.9, 0.99]
weight_decay = 0.0
warmup = 50
[sample]
sampler = "ddim"
steps = 50
n = 16
batch_size = 100
[validation]
every = 0
images = 96
levels = 8
"""


def command(*words):
    """Runs hdit and gives what it says on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "hdit_cli", *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def train(arguments, width, patch, seed):
    """The run folder of one DiT, trained to the end."""
    recipe, run = arguments.out / "base.toml", arguments.out / f"w{width}-p{patch}-s{seed}"
    recipe.write_text(RECIPE)
    values = {
        "model.width": width, "model.heads": width // 32, "model.patch": patch,
        "train.seed": seed, "train.steps": arguments.steps, "train.batch_size": arguments.batch,
    }  # fmt: skip
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    command("train", recipe, "--data", arguments.data, "--run", run, *sets)
    return run


@torch.inference_mode()
def held_out_loss(model, data):
    """Mean loss of all held-out pictures at fixed timesteps and noise: squared error plus the bound in bits."""
    reader = ShardReader(data / "held-out")
    pixels = np.stack([reader.picture(i) for i in range(len(reader))])
    x0 = to_x0(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    label, found = torch.from_numpy(reader.labels.astype(np.int64)), []
    for number, sigma in enumerate(model.task.levels(LEVELS).tolist()):
        noise = runtime.normal(0, "scaling", np.arange(len(x0)) * LEVELS + number, x0.shape[1:], like=x0)
        for rows in torch.arange(len(x0)).split(64):
            at = torch.full((len(rows),), sigma)
            found.append(model.task.loss_at(x0[rows], noise[rows], at, {"label": label[rows]}))
    return float(torch.cat(found).mean())


def scores(arguments, run):
    """SWD at 32 pixels; FD at 64, which is what the feature net takes, the training pictures enlarged in the same way."""
    made, large, reference = (arguments.out / name for name in (f"made-{run.name}", f"large-{run.name}", "reference"))
    if not made.exists():
        command("sample", run, "-n", arguments.n, "--steps", 25, "--out", made)
        (made / "grid.png").rename(arguments.out / f"grid-{run.name}.png")
    command("prepare", made, "--size", 64, "--out", large)
    command("prepare", *sorted(arguments.data.glob("*.tar")), "--size", 64, "--out", reference)
    found = {}
    for words in (
        [made, "--reference", arguments.data, "--metrics", "swd"],
        [large, "--reference", reference, "--metrics", "fd", "--features", arguments.features, "--allow-small"],
    ):
        found |= {row["metric"]: row["value"] for row in json.loads(command("eval-fid", *words, "--json"))["scores"]}
    return found


def measure(arguments, width, patch, seed):
    """All that is told of one run."""
    run = train(arguments, width, patch, seed)
    timed = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    model = load(run, device="cpu")
    counted = count(Recipe.from_dict(model.recipe), classes=len(model.classes))
    values = scores(arguments, run)
    return {
        "width": width, "patch": patch, "seed": seed,
        "params": counted["params"], "gmacs": round(counted["gmacs"], 4),
        "held_out": held_out_loss(model, arguments.data),
        "fd": values["fd"], "swd": values["swd"],
        "train_seconds": round(timed[-1]["trained_seconds"]), "steps": model.step, "images": model.images_seen,
    }  # fmt: skip


def rank_correlation(x, y):
    """Spearman's: the correlation of the ranks; no two values are equal here."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def figure(rows):
    """Scores over the logarithm of GMAC, a line for each patch and points for the second seeds."""
    rows = sorted(rows, key=lambda row: (row["gmacs"], row["seed"]))
    kinds = {"patch 4": (4, 0), "patch 2": (2, 0), "patch 4, seed 1": (4, 1), "patch 2, seed 1": (2, 1)}
    panels = [
        Panel(
            name,
            {
                label: [row[key] if (row["patch"], row["seed"]) == kind else None for row in rows]
                for label, kind in kinds.items()
            },
        )
        for key, name in (("held_out", "loss on held-out pictures"), ("fd", "FD"), ("swd", "SWD"))
    ]
    return curves_png(panels, x=[math.log10(row["gmacs"]) for row in rows], x_name="log10 GMAC of an image")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("-n", type=int, default=300)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = arguments.out / "scaling.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    known = {(row["width"], row["patch"], row["seed"]) for row in rows}
    for kind in RUNS:
        if kind not in known:
            rows.append(measure(arguments, *kind))
            with lines.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    first = [row for row in rows if row["seed"] == 0]
    gmacs = [row["gmacs"] for row in first]
    print(json.dumps({key: rank_correlation(gmacs, [row[key] for row in first]) for key in ("held_out", "fd", "swd")}))
    (arguments.out / "scaling.png").write_bytes(figure(rows))


if __name__ == "__main__":
    main()
