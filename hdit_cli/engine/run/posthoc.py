"""Post-hoc EMA: the power-function average of any width, as a linear combination of the snapshots of a few widths.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), section 3.2 and appendix C.
Each snapshot is an average of the weights under a known profile over training time. The combination of profiles nearest to
the wanted one in least squares is found in closed form; applied to the snapshots it gives nearly the wanted average.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from hdit_cli import files
from hdit_cli.engine.run import checkpoint, header, snapshots
from hdit_cli.engine.run.assemble import blank
from hdit_cli.engine.run.folder import differences
from hdit_cli.engine.run.header import read_facts
from hdit_cli.engine.run.snapshots import EmaSnapshot
from hdit_cli.engine.run.weights import name_of
from hdit_cli.errors import CheckpointError, UsageError

_GROUP = 1 << 28  # bytes of float64 sums at a time: what a reconstruction takes besides its result


# Profiles


def gamma_of(std: float) -> float:
    """Exponent gamma of the power-function average whose relative standard deviation is `std`, in (0, 0.288).

    Karras et al. 2024 (EDM2), section 3.1: std = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^-1/2, squared a cubic in gamma
    with one positive root. 0.05 -> 16.97, 0.10 -> 6.94, 0.15 -> 3.56.
    """
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real.max())


@dataclass(frozen=True)
class Fit:
    """The combination of profiles that comes nearest to another.

    Attributes:
        coefficients: float64 (n,), in the order of the profiles; their sum is 1.
        error: norm of the difference of the profiles over the norm of the wanted one, both L2 over training time.
    """

    coefficients: np.ndarray
    error: float


def inner_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integrals over time of the products of power-function profiles.

    With p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t] and m the earlier of the two times,
    (p_a, p_b) = (gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1) (m / t_a)^gamma_a (m / t_b)^gamma_b m / (t_a t_b).

    Args:
        a, b: (..., 2), gamma and t; they broadcast.

    Returns:
        float64 (...), in 1/time.
    """
    gamma_a, t_a, gamma_b, t_b = a[..., 0], a[..., 1], b[..., 0], b[..., 1]
    m = np.minimum(t_a, t_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (m / t_a) ** gamma_a * (m / t_b) ** gamma_b * m / (t_a * t_b)


def fit(profiles: Sequence[tuple[float, float]], *, std: float, time: float) -> Fit:
    """The combination of `profiles` nearest to the one of width `std` at `time`, among those that sum to 1.

    The sum is what EDM2 leaves to the least squares; held, a weight that never changes comes out as it is, however few
    snapshots there are.

    Args:
        profiles: (relative standard deviation, time) of each snapshot, times above 0.
    """
    basis = np.array([(gamma_of(width), t / time) for width, t in profiles])  # time in parts of `time`
    target = np.array([gamma_of(std), 1.0])
    products, wanted = inner_products(basis[:, None], basis[None]), inner_products(basis, target)
    norm = np.sqrt(inner_products(target, target))
    # unknowns: the coefficient of each profile of norm 1, and the multiplier of the sum
    scale = 1 / np.sqrt(np.diag(products))
    row = scale / scale.max()
    system = np.block([[products * np.outer(scale, scale), row[:, None]], [row[None], np.zeros((1, 1))]])
    solved = np.linalg.lstsq(system, np.append(wanted * scale, 1 / scale.max()), rcond=None)[0]
    x = solved[:-1] * scale
    squared = norm**2 - 2 * x @ wanted + x @ products @ x
    return Fit(x, float(np.sqrt(max(squared, 0.0)) / norm))


# Snapshots


@dataclass(frozen=True)
class Plan:
    """A reconstruction that can be done: all snapshots it needs are whole and of one run.

    Attributes:
        std: relative standard deviation of the wanted average.
        step: the step of the run that it is the average of.
        files: the snapshots' files, in the order of the coefficients, the newest last.
        count: number of snapshots.
        fit: how near their profiles come.
    """

    std: float
    step: int
    files: tuple[Path, ...]
    count: int
    fit: Fit

    def __str__(self) -> str:
        return f"reconstructed at step {self.step} from {self.count} snapshots, profile error {self.fit.error:.2%}"

    @cached_property
    def _made(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        return next(reconstruct([self]))

    def read(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and header of the average, as an inference file would hold them."""
        return self._made

    def sha256(self) -> str:
        """Of the file that `hdit ema` would write."""
        return files.sha256_of(checkpoint.serialise(*self.read()))


def plan(run: Path, stds: Sequence[float], *, step: int | None = None) -> list[Plan]:
    """How the averages of these widths are made of a run's snapshots.

    Args:
        step: one that has a snapshot; None is the newest. Snapshots up to there are used.

    Raises:
        CheckpointError: no snapshots, a damaged one, or snapshots of different runs.
        UsageError: no snapshot at `step`.
    """
    steps = snapshots.list_steps(run)
    if not steps:
        raise CheckpointError(
            f"{run} has no snapshots of averages",
            hint="train with --set ema.stds=[0.05,0.1] --set ema.snapshot_every=N, N a thirtieth of the steps or less",
        )
    last = steps[-1] if step is None else step
    if last not in steps:
        near = min(steps, key=lambda known: abs(known - last))
        raise UsageError(
            f"{run} has no snapshot at step {last}", hint=f"the nearest is --step {near}, the last {steps[-1]}"
        )
    found = [_verified(run, known) for known in steps if known <= last]
    found = [snapshot for snapshot in found if snapshot.updates]  # where every step was refused nothing was averaged
    if not found:
        raise CheckpointError(f"no step of {run} changed the weights up to {last}", hint="choose a later --step")
    _check_one_run(found)
    profiles = [(std, snapshot.updates, path) for snapshot in found for std, path in snapshot.by_std.items()]
    time, paths = found[-1].updates, tuple(path for _, _, path in profiles)
    pairs = [(std, updates) for std, updates, _ in profiles]
    fits = {std: _exact(pairs, (std, time)) or fit(pairs, std=std, time=time) for std in stds}
    return [Plan(std, last, paths, len(found), fits[std]) for std in stds]


def _exact(profiles: list[tuple[float, int]], wanted: tuple[float, int]) -> Fit | None:
    """The fit to a profile that is there: that one alone."""
    if wanted not in profiles:
        return None
    coefficients = np.zeros(len(profiles))
    coefficients[len(profiles) - 1 - profiles[::-1].index(wanted)] = 1.0
    return Fit(coefficients, 0.0)


def _verified(run: Path, step: int) -> EmaSnapshot:
    folder = snapshots.folder_of(run, step)
    if reason := checkpoint.verify(folder):
        raise CheckpointError(
            f"snapshot {folder} is damaged: {reason}",
            hint="restore it from a copy, or remove its folder: the others give a slightly coarser average",
        )
    return snapshots.read(run, step)


def _check_one_run(found: Sequence[EmaSnapshot]) -> None:
    """Raises CheckpointError unless all snapshots come from one training."""
    newest = checkpoint.read_header(next(iter(found[-1].by_std.values())))
    for snapshot in found[:-1]:
        metadata = checkpoint.read_header(next(iter(snapshot.by_std.values())))
        if differences := _differences(metadata, newest):
            raise CheckpointError(
                f"the snapshots of steps {snapshot.step} and {found[-1].step} are of different runs: {differences[0]}",
                hint="remove those that do not belong here",
            )


def _differences(metadata: dict[str, str], other: dict[str, str]) -> list[str]:
    """What shows that two inference files come from different trainings."""
    old, new = (read_facts(each, where="a snapshot") for each in (metadata, other))
    changed = differences(old.recipe.to_dict(), new.recipe)
    prints = [facts.data.get("fingerprint") for facts in (old, new)]
    return changed + (["the data set"] if prints[0] != prints[1] else [])


def _parameter_names(metadata: dict[str, str], paths: Sequence[Path]) -> set[str]:
    """Names of the network that an inference file holds; the other tensors of the file are its constant buffers.

    Raises:
        CheckpointError: one of the files holds other tensors than this network has.
    """
    network = blank(read_facts(metadata, where=str(paths[-1])))
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for path in paths:
        header.check_table(wanted, checkpoint.read_announced(path)[0], where=str(path))
    return {name for name, _ in network.named_parameters()}


def reconstruct(plans: Sequence[Plan]) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """Tensors and header of each plan's average, from one pass over the snapshots.

    Takes the memory of one model for each plan, and a group of float64 sums; the snapshots are read tensor by tensor.

    Args:
        plans: of one call of `plan`.
    """
    paths = plans[0].files
    coefficients = torch.from_numpy(np.stack([plan.fit.coefficients for plan in plans]))  # float64 (plans, files)
    used = [i for i in range(len(paths)) if coefficients[:, i].any()]
    metadata = checkpoint.read_header(paths[-1])
    parameters = _parameter_names(metadata, [*(paths[i] for i in used), paths[-1]])
    with safetensors.safe_open(paths[-1], framework="pt") as handle:
        shapes = {name: handle.get_slice(name).get_shape() for name in handle.keys() if name in parameters}  # noqa: SIM118
        buffers = {name: handle.get_tensor(name) for name in handle.keys() if name not in parameters}  # noqa: SIM118
    results = [dict(buffers) for _ in plans]
    for names in _groups(shapes, copies=len(plans)):
        sums = {name: torch.zeros(len(plans), *shapes[name], dtype=torch.float64) for name in names}
        dtypes = {}
        for i in used:
            with safetensors.safe_open(paths[i], framework="pt") as handle:
                for name, total in sums.items():
                    tensor = handle.get_tensor(name)
                    dtypes[name] = tensor.dtype
                    _add(total, tensor, coefficients[:, i].tolist())
        for number, result in enumerate(results):
            result.update({name: total[number].to(dtypes[name]) for name, total in sums.items()})
    for plan, result in zip(plans, results, strict=True):
        told = f"{plan.count} snapshots, profile error {plan.fit.error:.3e}"
        yield result, {**metadata, "hdit.weights": name_of(plan.std), "hdit.ema": told}


def _add(total: Tensor, tensor: Tensor, coefficients: list[float]) -> None:
    """total[i] += coefficients[i] tensor, in float64; `total` has one dimension more than `tensor`."""
    tensor = tensor.double()
    for row, coefficient in zip(total, coefficients, strict=True):
        row.add_(tensor, alpha=coefficient)


def _groups(shapes: dict[str, list[int]], *, copies: int) -> Iterator[list[str]]:
    """Names whose float64 sums fit into a group; at least one name each."""
    group, size = [], 0
    for name, shape in shapes.items():
        needed = math.prod(shape) * 8 * copies
        if group and size + needed > _GROUP:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group
