"""Timing by rounds: everything that is compared runs once in each round, so that a ratio is of neighbours in time."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hdit_cli import runtime
from hdit_cli.precision import OF_DTYPE, computing


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's own work included."""
    runtime.wait_for_device(device)
    start = time.perf_counter()
    call()
    runtime.wait_for_device(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def told(self) -> list[float]:
        """[median, least, most] to six digits."""
        return [float(f"{value:.6g}") for value in (self.median, self.least, self.most)]


def rounds(
    calls: Mapping[str, Callable[[], object]], *, runs: int, device: torch.device, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call in each round; the first rounds, `warmup` of them, do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warmup + runs):
        for name, call in calls.items():
            found = timed(call, device)
            if i >= warmup:
                seconds[name].append(found)
    return seconds


def ratio(others: list[float], ours: list[float]) -> Spread:
    """How many times longer `others` took than `ours`, by pairs of one round."""
    return Spread.of([a / b for a, b in zip(others, ours, strict=True)])


class Product:
    """A square matrix product in the precision that the network multiplies in: what the device can do at best.

    Args:
        precision: as `precision.resolved` gives it.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        dtypes = {word: dtype for dtype, word in OF_DTYPE.items()}
        self.device, self.precision, dtype = device, precision, dtypes.get(precision, torch.float32)
        side = 8192 if device.type == "cuda" else 1024
        generator = torch.Generator(device).manual_seed(0)
        self.a, self.b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
        self.flops = 2 * side**3

    def __call__(self) -> torch.Tensor:
        with computing("tf32" if self.precision == "tf32" else "fp32", self.device):  # other dtypes are not switched
            return self.a @ self.b
