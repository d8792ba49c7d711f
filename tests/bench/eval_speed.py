"""A whole FID of N pictures beside clean-fid's own: features and distance in seconds, alternating; and peak memory by N.

    python tests/bench/eval_speed.py WORK [-n 2000] [--rounds 3]     # WORK: a scratch folder, filled on the first run
    python tests/bench/eval_speed.py WORK --memory 200,2000          # ours alone, one fresh process for each N

Needs clean-fid and scipy. The net has Inception's shape and random weights: it is as slow as the published one. Where
torchvision is missing, its ToTensor, all that clean-fid's path takes of it here, is stood in for.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from hdit_cli.engine.one_pass import collect
from hdit_cli.engine.picture_sets import open_stored
from hdit_cli.metrics.fid_inception import InceptionV3
from hdit_cli.metrics.frechet import FID, frechet_distance
from hdit_cli.metrics.inception import FILE, Inception
from hdit_cli.metrics.moments import Moments

warnings.filterwarnings("ignore", category=DeprecationWarning)


class Layers(nn.Module):
    """Inception v3 from pixels in [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.net = InceptionV3()

    def forward(self, x):
        return self.net(x)


class Published(nn.Module):
    """The outer shape of NVIDIA's file."""

    def __init__(self):
        super().__init__()
        self.layers = torch.jit.trace(Layers().eval(), torch.zeros(1, 3, 299, 299))

    def forward(self, x):
        return self.layers(x)


def fill(work, n):
    """N pictures of 64x64 and the net, once."""
    folder = work / f"pictures-{n}"
    if not (work / FILE).is_file():
        torch.manual_seed(0)
        torch.jit.save(torch.jit.script(Published().eval()), str(work / FILE))
    if not folder.is_dir():
        folder.mkdir()
        rng = np.random.default_rng(0)
        for i in range(n):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.png")
    return folder


def ours(folder, net):
    """Moments of a folder."""
    states = collect(open_stored(folder), (FID,), net=net, on_progress=lambda *_: None)
    return states["fid"].moments


def stand_in():
    """`torchvision`, as far as clean-fid's feature path uses it."""
    if not _importable("torchvision"):
        vision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")

        class ToTensor:
            def __call__(self, array):
                tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
                return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor

        transforms.ToTensor, vision.transforms = ToTensor, transforms
        vision.models = types.SimpleNamespace(inception=_AnyModule())
        sys.modules |= {"torchvision": vision, "torchvision.transforms": transforms}


class _AnyModule:
    """clean-fid derives classes from torchvision's when it is imported; its path here uses none of them."""

    def __getattr__(self, name):
        return nn.Module


def _importable(name):
    try:
        __import__(name)
    except (ImportError, RuntimeError):
        return False
    return True


def theirs(folder, model):
    """Mean and covariance as clean-fid makes them."""
    from cleanfid import fid

    names = sorted(str(path) for path in folder.iterdir())
    features = fid.get_files_features(
        names, model=model, num_workers=2, batch_size=32, device=torch.device("cpu"), mode="clean", verbose=False
    )
    return np.mean(features, axis=0), np.cov(features, rowvar=False)


def timed(seconds, work, *arguments):
    """What `work` returns; how long it took is added to a list."""
    started = time.perf_counter()
    result = work(*arguments)
    seconds.append(time.perf_counter() - started)
    return result


def compare(work, n, rounds):
    stand_in()
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W

    folder = fill(work, n)
    net, model = Inception(work / FILE), InceptionV3W(str(work), download=False, resize_inside=False)
    table = {name: [] for name in ("our features", "their features", "our distance", "their distance")}
    for _ in range(rounds):
        moments = timed(table["our features"], ours, folder, net)
        mean, covariance = timed(table["their features"], theirs, folder, model)
        print(f"means differ by {np.abs(mean - moments.mean).max():.1e}", flush=True)
        timed(table["our distance"], frechet_distance, moments, Moments(n, mean * 1.01, moments.scatter * 1.02))
        timed(table["their distance"], fid.frechet_distance, mean, covariance, mean * 1.01, covariance * 1.02)
    middle = {name: statistics.median(values) for name, values in table.items()}
    for name, seconds in middle.items():
        print(f"{name:<16} {seconds:8.2f} s   {n / seconds if 'features' in name else 0:8.1f} pictures/s")
    whole = [middle[f"{who} features"] + middle[f"{who} distance"] for who in ("our", "their")]
    print(f"whole evaluation {whole[0]:.2f} s against {whole[1]:.2f} s: {whole[1] / whole[0]:.2f} times as fast")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="", help="numbers of pictures, with commas")
    parser.add_argument("--alone", action="store_true", help="ours alone: prints its peak memory")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.alone:
        ours(fill(asked.work, asked.n), Inception(asked.work / FILE))
        print(f"{asked.n:>8} pictures: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    elif asked.memory:
        for n in asked.memory.split(","):
            fill(asked.work, int(n))
            subprocess.run([sys.executable, __file__, str(asked.work), "-n", n, "--alone"], check=True)
    else:
        compare(asked.work, asked.n, asked.rounds)


if __name__ == "__main__":
    main()
