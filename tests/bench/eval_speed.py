"""A whole FID of N pictures beside clean-fid's own, by CPU and by wall time, alternating, stage by stage; and peak memory by N.

    python tests/bench/eval_speed.py WORK [-n 64] [--rounds 2]       # WORK: a scratch folder, filled on the first run
    python tests/bench/eval_speed.py WORK -n 2000 --rounds 1         # a whole evaluation: about 0.7 s a picture of one core
    python tests/bench/eval_speed.py WORK --memory 100,1000          # ours alone, one fresh process for each N, a small net

Needs clean-fid and scipy. The net has Inception's shape and random weights: it is as slow as the published one. Where
torchvision is missing, its ToTensor, all that clean-fid's path takes of it here, is stood in for. The distance is taken of
drawn 2048-d features of 2,000 pictures, whatever N: random weights give features too alike for a fair one.
"""

import argparse
import resource
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

from hdit_cli.engine.scoring.one_pass import Fed, collect
from hdit_cli.engine.scoring.picture_sets import open_stored
from hdit_cli.metrics import inception
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


class Small(nn.Module):
    """A net of the same outer shape that costs next to nothing: for memory."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(37), nn.Flatten(), nn.Linear(192, 64))

    def forward(self, x):
        return self.layers(x)


def file_of(work, *, small=False):
    """The net's file, made once."""
    path = work / ("small.pt" if small else FILE)
    if not path.is_file():
        torch.manual_seed(0)
        torch.jit.save(torch.jit.script((Small() if small else Published()).eval()), str(path))
    return path


def fill(work, n):
    """N pictures of 64x64, made once."""
    folder = work / f"pictures-{n}"
    if not folder.is_dir():
        folder.mkdir()
        rng = np.random.default_rng(0)
        for i in range(n):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.png")
    return folder


def ours(folder, net):
    """Moments of a folder."""
    (states,) = collect(open_stored(folder), [Fed((FID,), net)], on_progress=lambda *_: None)
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


class Clocked:
    """A function that adds up the seconds of its calls: of the CPU, all threads together, and of the clock on the wall."""

    def __init__(self, work):
        self.work, self.seconds = work, np.zeros(2)

    def __call__(self, *arguments, **named):
        started = _clocks()
        try:
            return self.work(*arguments, **named)
        finally:
            self.seconds += _clocks() - started


def _clocks():
    return np.array([time.process_time(), time.perf_counter()])


def theirs(folder, model, resize):
    """Mean and covariance as clean-fid makes them; one process, so that its CPU time can be told."""
    from cleanfid import fid

    names = sorted(str(path) for path in folder.iterdir())
    features = fid.get_files_features(
        names, model=model, num_workers=0, batch_size=32, device=torch.device("cpu"), mode="clean",
        custom_fn_resize=resize, verbose=False,
    )  # fmt: skip
    return np.mean(features, axis=0), np.cov(features, rowvar=False)


def features_once(table, folder, path, model):
    """Our features and theirs, seconds by stage into the table; how far the means are apart."""
    from cleanfid.resize import build_resizer

    net, our_resize = Inception(path), inception.resized
    net._run = our_net = Clocked(net._run)
    inception.resized = our_resized = Clocked(our_resize)
    our_whole, their_whole = Clocked(ours), Clocked(theirs)
    try:
        moments = our_whole(folder, net)
    finally:
        inception.resized = our_resize
    their_net, their_resize = Clocked(model), Clocked(build_resizer("clean"))
    mean, _ = their_whole(folder, their_net, their_resize)
    for stage, one, other in (
        ("resize", our_resized, their_resize),
        ("net", our_net, their_net),
        ("features", our_whole, their_whole),
    ):
        table[stage].append((one.seconds, other.seconds))
    return np.abs(mean - moments.mean).max() / np.abs(mean).max()


def distance_once(table):
    """Both distances of the same statistics; how far they are apart, relative."""
    from cleanfid import fid

    rng = np.random.default_rng(0)
    x, y = (rng.gamma(shape, size=(2000, 2048)).astype(np.float32) for shape in (0.5, 0.6))
    one, other = Moments(), Moments()
    one.update(x)
    other.update(y)
    our, their = Clocked(frechet_distance), Clocked(fid.frechet_distance)
    found = our(one, other)
    expected = their(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    table["distance"].append((our.seconds, their.seconds))
    return abs(found - expected) / expected


def compare(work, n, rounds):
    stand_in()
    from cleanfid.inception_torchscript import InceptionV3W

    folder, path = fill(work, n), file_of(work)
    model = InceptionV3W(str(work), download=False, resize_inside=False)
    table = {name: [] for name in ("resize", "net", "features", "distance")}
    for _ in range(rounds):
        apart = features_once(table, folder, path, model)
        print(f"means of features differ by {apart:.1e}, distances by {distance_once(table):.1e}, relative", flush=True)
    middle = {name: np.median(pairs, axis=0) for name, pairs in table.items()}
    middle["whole"] = middle["features"] + middle["distance"]
    print(f"{n} pictures, {torch.get_num_threads()} threads")
    for number, clock in enumerate(("CPU", "wall")):
        print(f"{clock + ' seconds':<20} {'ours':>12} {'clean-fid':>11} {'times as fast':>15}")
        for name, pair in middle.items():
            one, other = pair[:, number]
            print(f"{name:<20} {one:12.2f} {other:11.2f} {other / one:15.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("-n", "--n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", default="", help="numbers of pictures, with commas")
    parser.add_argument("--alone", action="store_true", help="ours alone, with a small net: prints its peak memory")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.alone:
        ours(fill(asked.work, asked.n), Inception(file_of(asked.work, small=True)))
        print(f"{asked.n:>8} pictures: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    elif asked.memory:
        file_of(asked.work, small=True)
        for n in asked.memory.split(","):
            fill(asked.work, int(n))
            subprocess.run([sys.executable, __file__, str(asked.work), "-n", n, "--alone"], check=True)
    else:
        compare(asked.work, asked.n, asked.rounds)


if __name__ == "__main__":
    main()
