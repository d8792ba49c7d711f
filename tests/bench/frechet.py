"""The Fréchet distance of 2048-dimensional statistics, against scipy's matrix square root as clean-fid calls it.

    OMP_NUM_THREADS=1 python tests/bench/frechet.py [PAIRS]

Runs of the two in turn; ratios of each pair. Features have the falling spectrum of a net's, full rank and of 1,000 rows.
"""

import statistics
import sys
import time
import warnings

import numpy as np
import torch
from scipy import linalg

from hdit_cli.metrics.frechet import expected_at, frechet_distance
from hdit_cli.metrics.moments import Moments

D = 2048


def moments(n, seed):
    rng = np.random.default_rng(seed)
    mixed = np.linalg.qr(rng.normal(size=(D, D)))[0] * np.geomspace(1, 1e-2, D)
    x, found = rng.gamma(0.5, size=(n, D)) @ mixed.T, Moments()
    found.update(x)
    return found


def by_square_root(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy announces that sqrtm will lose an argument
        root, _ = linalg.sqrtm(a.covariance.dot(b.covariance), disp=False)
    difference = a.mean - b.mean
    return difference.dot(difference) + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root.real)


def timed(function, *arguments):
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start


def main(pairs):
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}")
    for rank, n, m in (("full", 5000, 4000), ("1,000 rows", 1000, 1000), ("1,000 against full", 1000, 5000)):
        a, b, ratios = moments(n, 0), moments(m, 1), []
        for _ in range(pairs):
            ours, mine = timed(frechet_distance, a, b)
            theirs, other = timed(by_square_root, a, b)
            ratios.append(other / mine)
            print(f"rank {rank}: {mine:.2f} s, sqrtm {other:.2f} s; {ours:.8g}, {theirs:.8g}", flush=True)
        print(f"rank {rank}: median ratio {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")
    print(f"the bias told beside it: {timed(expected_at, 5000, b)[1]:.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
