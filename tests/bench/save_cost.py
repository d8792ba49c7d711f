"""What a checkpoint of flowers256 costs: seconds that training waits, seconds in the thread, seconds of hashing.

    python tests/bench/save_cost.py [FOLDER]

Five saves with rotation to two, into FOLDER (default: a temporary one).
"""

import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run import checkpoint, rotation
from hdit_cli.engine.run.events import Saved
from hdit_cli.engine.run.saver import Saver
from hdit_cli.engine.training.ema import EMA, PowerAverages
from hdit_cli.engine.training.state import TrainState, Window, build_optimizer
from hdit_cli.recipe import load_recipe


def trained():
    """A state as after a step: weights, average, two moments."""
    recipe = load_recipe("flowers256", [])
    model = Model(build_task(build_network(recipe, classes=0), recipe), recipe.to_dict(), weights="raw")
    window, averages = Window.empty(device=torch.device("cpu")), PowerAverages(model.network, stds=[])
    state = TrainState(model, EMA(model.network), build_optimizer(model.network, recipe), window, averages)
    for p in state.parameters:
        moments = {"exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        state.optimizer.state[p] = {"step": torch.tensor(1.0), **moments}
    return state


def main(folder):
    torch.set_num_threads(1)
    state, saver, waited, written = trained(), Saver(), [], []
    for step in range(1, 6):
        start = time.perf_counter()
        snapshot = state.snapshot({"step": step})

        def write(proceed, step=step, snapshot=snapshot):
            path = checkpoint.save_snapshot(folder, snapshot, proceed=proceed)
            rotation.rotate(folder, keep=2)
            return Saved(step, path)

        saver.start(write)
        waited.append(time.perf_counter() - start)
        saver.wait()
        written.append(time.perf_counter() - start - waited[-1])
    found = [path.read_bytes() for path in (folder / "checkpoints" / checkpoint.step_name(5)).iterdir()]
    start = time.perf_counter()
    for data in found:
        hashlib.sha256(data).hexdigest()
    hashing = time.perf_counter() - start
    size = sum(map(len, found))
    for name, values in (("training waits", waited), ("in the thread", written)):
        print(f"{name:<16} median {statistics.median(values):.2f} s, {min(values):.2f} to {max(values):.2f}")
    print(f"{'SHA-256':<16} {hashing:.2f} s for {size / 1e6:.0f} MB, {size / hashing / 1e6:.0f} MB/s")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
