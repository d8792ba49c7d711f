"""Whether the settings of a sampling do anything: what was asked for and cannot act is refused, what acts badly is noted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hdit_cli import catalog
from hdit_cli.engine.model import Model
from hdit_cli.errors import UsageError
from hdit_cli.tasks.sampling import WITH_ETA, Sampling, acts, in_words


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_acting(samplers: Sequence[str], asked: Mapping[str, Any], *, word: Callable[[str], str] = _option) -> None:
    """Refuses settings that do nothing with any of the samplers, as those of noise levels do nothing with tokens.

    Args:
        asked: fields of `Sampling` that the user named; None where nothing was.
        word: a field's name as the user types it.

    Raises:
        UsageError: for the first of them.
    """
    for name, value in asked.items():
        if value is None or any(acts(name, sampler=sampler) for sampler in samplers):
            continue
        fitting = [each for each in catalog.OVER_TOKENS if acts(name, sampler=each)]
        if fitting:
            raise UsageError(
                f"{word(name)} is of {' and '.join(fitting)}, which draw tokens, and this is {samplers[0]}"
                if len(fitting) > 1
                else f"{word(name)} is of {fitting[0]}, and this is {samplers[0]}",
                hint=f"leave {word(name)} out",
            )
        raise UsageError(
            f"{word(name)} is for models that make numbers of noise, and {samplers[0]} draws tokens",
            hint=f"leave {word(name)} out; {word('temperature')}, {word('cfg')} and {word('steps')} act",
        )


def check_asked(samplings: Sequence[Sampling], asked: Mapping[str, Any]) -> None:
    """Refuses what was asked for and acts in none of the samplings: one, or the points of a sweep.

    Args:
        asked: fields of `Sampling` that the user named; None where nothing was.

    Raises:
        UsageError: eta with deterministic samplers or DDPM, rho with another schedule than Karras, either with timesteps,
            channels of no guidance; what is for models of tokens alone, or never for these.
    """
    first = samplings[0]
    check_acting([each.sampler for each in samplings], asked)
    if asked.get("eta") is not None and not any(each.sampler in WITH_ETA for each in samplings):
        why = "has noise of its own" if first.sampler == "ddpm" else "is deterministic"
        raise UsageError(
            f"--eta is the noise of a stochastic sampler, and {first.sampler} {why}",
            hint=f"leave --eta out, or --sampler {' or '.join(reversed(WITH_ETA))}",
        )
    for option in ("schedule", "rho"):
        if asked.get(option) is not None and all(each.by_timesteps for each in samplings):
            raise UsageError(
                f"--{option} is for samplers of noise levels, and {first.sampler} goes over timesteps",
                hint=f"leave --{option} out, or --sampler dpmpp-3m-sde",
            )
    if asked.get("rho") is not None and not any(each.schedule == "karras" for each in samplings):
        raise UsageError(
            f"--rho is of the karras schedule, and this is {first.schedule}",
            hint="leave --rho out, or --schedule karras",
        )
    if asked.get("cfg_channels") is not None and all(not each.guides for each in samplings):
        raise UsageError(
            "--cfg-channels says on which channels guidance acts, and at cfg 1 there is none",
            hint="leave --cfg-channels out, or --cfg 4",
        )


def notes(model: Model, sampling: Sampling) -> list[str]:
    """What to know of guidance that this model was not trained for."""
    if not model.network.classes:
        cfg = model.recipe["sample"]["cfg"]
        return [
            f"the recipe asks for guidance (sample.cfg {in_words(cfg)}); the model has no classes, so there is none"
        ] * (cfg != 1)
    if not sampling.guides:
        unused = ["--cfg-interval says where guidance acts: at cfg 1 it changes nothing"]
        return unused if sampling.cfg_interval is not None else []
    dropped = model.recipe["diffusion"]["class_dropout"]
    if dropped == 0:
        return [
            "guidance is asked of a model that was trained without dropped classes (diffusion.class_dropout = 0): it never "
            "learnt what no class is, so its pictures may get worse; --cfg 1 turns guidance off"
        ]
    if dropped == 1:
        return [
            "every class was dropped in training (diffusion.class_dropout = 1): classes and guidance change nothing"
        ]
    return []
