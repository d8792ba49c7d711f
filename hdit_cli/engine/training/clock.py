"""How fast a run goes."""

import time
from typing import Any

import torch


class Clock:
    """Images per second of training, over a sliding window of steps; what happens outside `with` is not counted."""

    def __init__(self, *, images: int) -> None:
        self.images = images
        self.recent: list[float] = []
        self.trained = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        self.trained += seconds
        self.recent = [*self.recent[-49:], seconds]

    @property
    def rate(self) -> float:
        return self.images * len(self.recent) / max(sum(self.recent), 1e-9)

    def line(self, step: int, device: torch.device) -> dict[str, Any]:
        """A line of timing.jsonl."""
        return {
            "step": step,
            "time": round(time.time(), 3),
            "trained_seconds": round(self.trained, 3),
            "images_per_second": round(self.rate, 3),
            "peak_bytes": peak_bytes(device),
        }


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that tensors have taken on a CUDA device since the process began; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
