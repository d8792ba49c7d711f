"""A training step and a forward pass of flowers256, beside k-diffusion's, in alternating runs of one process.

    python tests/bench/step.py --k-diffusion PATH [--runs 9] [--threads 2] [--batch 2]

PATH is a checkout of k-diffusion at 4601bf0. Its neighborhood attention does not run on current packages, so its side is its
shifted-window configuration of the flowers; ours is the recipe flowers256 as it is, in float32. Same images, same noise, same
loss, same optimizer. Without --k-diffusion ours is timed alone. Packages that k-diffusion imports and a training step does not
need may be missing.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from datetime import date
from pathlib import Path
from unittest import mock

import torch

from hdit_cli import runtime
from hdit_cli.diffusion.densities import noise_density
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.models.layers import seed_dropout
from hdit_cli.recipe import load_recipe

UNUSED = (
    "torchvision",
    "clip",
    "skimage",
    "kornia",
    "cleanfid",
    "wandb",
    "jsonmerge",
    "torchsde",
    "torchdiffeq",
    "dctorch",
)


class Side:
    """A model with its loss and AdamW."""

    def __init__(self, denoiser, groups, *, prepare=None):
        self.denoiser, self.prepare = denoiser.train(), prepare
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-3, fused=True)

    def train(self, x0, noise, sigma):
        if self.prepare:
            self.prepare(len(x0))
        self.optimizer.zero_grad(set_to_none=True)
        self.denoiser.loss(x0, noise, sigma).mean().backward()
        self.optimizer.step()

    @torch.no_grad()
    def forward(self, x0, noise, sigma):
        self.denoiser.eval()(x0 + noise * sigma[:, None, None, None], sigma)
        self.denoiser.train()


def ours(*, attention):
    levels = (
        []
        if attention == "neighborhood"
        else ["model.levels.0.attention='shifted-window'", "model.levels.1.attention='shifted-window'"]
    )
    recipe = load_recipe("flowers256", [*levels, "train.precision='fp32'"])
    model = Model(build_task(build_network(recipe, classes=0), recipe), recipe.to_dict())
    keys = torch.arange(1024, dtype=torch.int32)
    groups = [g for g in model.param_groups(lr=5e-4, weight_decay=1e-3) if g["params"]]
    return Side(model.denoiser, groups, prepare=lambda n: seed_dropout(model.network, keys[:n]))


def theirs(path):
    """k-diffusion's model, loss and parameter groups; its package is not initialised as a whole."""
    os.environ["K_DIFFUSION_USE_COMPILE"] = "0"
    for name in UNUSED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = mock.MagicMock(__spec__=None, __path__=[])
            for child in ("transforms", "datasets", "models", "utils", "transforms.functional"):
                sys.modules[f"{name}.{child}"] = mock.MagicMock(__spec__=None, __path__=[])
    for name in ("k_diffusion", "k_diffusion.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(path.joinpath(*name.split(".")))]
        sys.modules[name] = package
    layers = importlib.import_module("k_diffusion.layers")
    network = importlib.import_module("k_diffusion.models.image_transformer_v2")
    config = json.loads((path / "configs/config_oxford_flowers_shifted_window.json").read_text())["model"]
    levels = []
    for depth, width, attention, dropout in zip(
        config["depths"], config["widths"], config["self_attns"], config["dropout_rate"], strict=True
    ):
        spec = (
            network.GlobalAttentionSpec(attention["d_head"])
            if attention["type"] == "global"
            else network.ShiftedWindowAttentionSpec(attention["d_head"], attention["window_size"])
        )
        levels.append(network.LevelSpec(depth, width, 3 * width, spec, dropout))
    mapping = network.MappingSpec(2, 256, 768, 0.0)
    inner = network.ImageTransformerDenoiserModelV2(levels, mapping, 3, 3, tuple(config["patch_size"]))
    denoiser = layers.Denoiser(inner, sigma_data=config["sigma_data"], weighting=config["loss_weighting"])
    return Side(denoiser, inner.param_groups(5e-4))


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(calls, *, runs):  # => {name: seconds of each round}; the first two rounds warm up and do not count
    seconds = {name: [] for name in calls}
    for i in range(runs + 2):
        for name, call in calls.items():
            duration = timed(call)
            if i > 1:
                seconds[name].append(duration)
    return seconds


def facts(seconds, *, batch, gflops):
    product = statistics.median(seconds["matrix product"])
    table = {}
    for name, found in seconds.items():
        if name == "matrix product":
            continue
        median = statistics.median(found)
        table[name] = {
            "seconds": [round(value, 4) for value in (median, min(found), max(found))],
            "images_per_second": round(batch / median, 3),
            "of_the_matrix_product": round(gflops / median * product / _PRODUCT, 3),
        }
        if name != "hdit" and "hdit" in seconds:
            ratios = [a / b for a, b in zip(found, seconds["hdit"], strict=True)]
            table[name]["hdit_times_faster"] = [
                round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))
            ]
    return table | {"matrix_product_gflops": round(_PRODUCT / product, 1)}


_SIDE = 1024
_PRODUCT = 2 * _SIDE**3 / 1e9  # GFLOP of the matrix product


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k-diffusion", type=Path)
    parser.add_argument("--windows", action="store_true", help="time ours with shifted windows too")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    runtime.keep_freed_memory()  # as our commands do; it serves both sides
    x0, noise = torch.rand(arguments.batch, 3, 256, 256) * 2 - 1, torch.randn(arguments.batch, 3, 256, 256)
    density = noise_density(
        "cosine-interpolated",
        image_size=256,
        noise_d_low=32,
        noise_d_high=256,
        sigma_data=0.5,
        sigma_min=1e-2,
        sigma_max=160,
    )
    sigma = density((torch.arange(arguments.batch).double() + 0.5) / arguments.batch).float()
    sides = {"hdit": ours(attention="neighborhood")}
    if arguments.windows:
        sides["hdit, shifted windows"] = ours(attention="shifted-window")
    if arguments.k_diffusion:
        sides["k-diffusion"] = theirs(arguments.k_diffusion)
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    product = {"matrix product": lambda: a @ b}
    gflops = 2 * 11.636 * arguments.batch
    found = {}
    for what, share in (("train", 3), ("forward", 1)):
        calls = {
            name: lambda side=side, what=what: getattr(side, what)(x0, noise, sigma) for name, side in sides.items()
        }
        seconds = alternate(calls | product, runs=arguments.runs)
        found[what] = facts(seconds, batch=arguments.batch, gflops=gflops * share)
    told = {"date": date.today().isoformat(), "environment": runtime.environment(), "threads": arguments.threads}
    print(json.dumps(told | {"batch": arguments.batch, "runs": arguments.runs} | found, indent=2))


if __name__ == "__main__":
    main()
