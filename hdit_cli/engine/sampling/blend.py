"""What lies between two samples: noise turned from one seed's to another's, the class faded from one to another.

The noise is interpolated on the sphere (Shoemake 1985), because in many dimensions all of a normal distribution lies near
one: a straight mean of two draws would be too small to be noise. That holds for the noise of the start and for that of each
step of a stochastic sampler, so the ends are the plain samples with any sampler. Classes are mixed in their embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hdit_cli import runtime
from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.classes import Wanted, class_index, class_indices
from hdit_cli.engine.sampling.generate import choose_labels, of_seed
from hdit_cli.errors import UsageError
from hdit_cli.tasks.sampling import Sampling


@dataclass(frozen=True)
class Point:
    """A sample that the way passes through: image 0 of a seed, with its class (None for an unconditional model)."""

    seed: int
    label: int | None


@dataclass(frozen=True)
class Blend:
    """A way through samples in `frames` even steps, its ends included."""

    points: tuple[Point, ...]
    frames: int

    def place(self, frame: int) -> tuple[Point, Point, float]:
        """The two points that a frame lies between, and how far on the way it is, 0 ... 1; exactly 0 or 1 at the ends."""
        before, rest = divmod(frame * (len(self.points) - 1), self.frames - 1)
        if before == len(self.points) - 1:
            return self.points[-2], self.points[-1], 1.0
        return self.points[before], self.points[before + 1], rest / (self.frames - 1)

    def draw(
        self, stream: str, index: Sequence[int], shape: Sequence[int], *, like: Tensor, kind: str = "normal"
    ) -> Tensor:
        """A `Draw`: the noise of these frames, (n, *shape). Uniforms, which tokens are drawn by, are those of the first seed."""
        if kind != "normal":
            return of_seed(self.points[0].seed, stream, [0] * len(index), shape, like=like, kind=kind)
        ends = {seed: runtime.normal(seed, stream, [0], shape, like=like)[0] for seed in {p.seed for p in self.points}}
        places = [self.place(frame) for frame in index]
        return torch.stack([slerp(ends[a.seed], ends[b.seed], t) for a, b, t in places])

    def labels(self, classes: int) -> Tensor | None:
        """Weights of the classes for every frame, float32 (frames, classes + 1); None for an unconditional model."""
        weights = torch.zeros(self.frames, classes + 1)
        for frame in range(self.frames):
            a, b, t = self.place(frame)
            if a.label is None or b.label is None:
                return None
            weights[frame, a.label] += 1 - t
            weights[frame, b.label] += t
        return weights


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b with the angle w between a and b; exactly a at 0 and b at 1."""
    cosine = (a.double() * b.double()).sum() / (a.double().norm() * b.double().norm())
    angle = float(cosine.clamp(-1, 1).arccos())
    if angle < 1e-4:  # the same seed: nothing between
        return a if t < 0.5 else b
    first, second, whole = (torch.tensor(part * angle, dtype=torch.float64).sin() for part in (1 - t, t, 1.0))
    return (a * float(first / whole)) + (b * float(second / whole))


def way(
    model: Model,
    *,
    seeds: Sequence[int],
    classes: Sequence[str],
    label: Wanted,
    sampling: Sampling,
    frames: int,
) -> Blend:
    """The way through seeds, classes, or both side by side.

    Args:
        seeds: at least two, or none: then the sampling's own.
        classes: names or numbers, at least two, or none: then `label`, or the class that each seed's image 0 has anyway.

    Raises:
        UsageError: fewer than two, lists of two lengths, too few frames, or no such class.
    """
    stops = max(len(seeds), len(classes))
    if stops < 2 or 1 in (len(seeds), len(classes)):
        raise UsageError("an interpolation has at least two ends", hint="--interpolate-seeds 0:7")
    if seeds and classes and len(seeds) != len(classes):
        raise UsageError(
            f"{len(seeds)} seeds and {len(classes)} classes do not pair up", hint="as many of each, or one kind alone"
        )
    if frames < stops:
        raise UsageError(f"{frames} frames are fewer than the {stops} ends", hint=f"-n {stops} or more")
    if label is not None and (classes or len(class_indices(model, label)) > 1 or label == "all"):
        raise UsageError("an interpolation takes one --class, or --interpolate-classes", hint="leave --class out")
    if sampling.of_tokens and len(set(seeds)) > 1:
        raise UsageError(
            "between two seeds of tokens lies nothing: their noise is whole numbers", hint="--interpolate-classes A:B"
        )
    numbers = list(seeds) or [sampling.seed] * stops
    if classes:
        labels: list[int | None] = [class_index(model, name) for name in classes]
    else:
        drawn = [choose_labels(model, n=1, wanted=label, seed=seed) for seed in numbers]
        labels = [None if found is None else int(found[0]) for found in drawn]
    return Blend(tuple(Point(seed, found) for seed, found in zip(numbers, labels, strict=True)), frames)
