"""The sections that are not the model's or the diffusion's: data, training, optimizer, average, sampling, scores."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WrapValidator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hdit_cli import catalog
from hdit_cli.recipe.section import (
    FeaturesName,
    LearningRateName,
    Listed,
    MetricName,
    PathText,
    Probability,
    Problem,
    SamplerName,
    ScheduleName,
    Section,
    stop_at,
)

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Interval = Annotated[int, Field(ge=1, le=1_000_000_000)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
STD_MIN, STD_MAX = 0.001, 0.28  # of power-function averages; 0.2887 would be the mean of all weights so far
Std = Annotated[float, Field(ge=STD_MIN, le=STD_MAX)]


def _duration(value: str) -> str:
    if value and not _DURATION.fullmatch(value):
        text = 'must be a time such as "90s", "20m" or "2h", or "" for none'
        raise PydanticCustomError("sentence", "{text}", {"text": text})
    return value


def _no_repeats(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) < len(value):
        raise PydanticCustomError("sentence", "{text}", {"text": "names the same thing twice"})
    return value


class Data(Section):
    """The data set and what is done to a picture on its way to the model."""

    path: PathText = ""  # relative to the working folder; "" = given on the command line
    crop: Literal["none", "center", "random"] = "none"  # how larger pictures are cut to model.size; none: they are not
    flip: bool = True  # mirror every other picture, unknown to the model
    augment: Probability = 0.0  # of each transform of Karras et al. 2022; the model is told which
    workers: Annotated[int, Field(ge=0, le=64)] = 2


def _switch(value: Any) -> Any:
    if isinstance(value, bool) or value == "auto":
        return value
    raise PydanticCustomError("sentence", "{text}", {"text": 'must be true, false or "auto"'})


class Train(Section):
    """The loop. `batch_size` is the number of images of one step, over all processes and accumulated pieces."""

    steps: Interval = 100_000
    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 32
    accumulate: Annotated[int, Field(ge=1, le=65536)] = 1
    precision: Literal["bf16", "fp32", "fp64"] = "bf16"
    grad_clip: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0  # 0 = off
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    deterministic: bool = False
    compile: Annotated[bool | Literal["auto"], PlainValidator(_switch)] = "auto"  # on CUDA, unless deterministic
    shard: bool = False  # divide weights, averages and moments among the processes, for a model that fits no single GPU
    save_every: Interval = 5_000
    sample_every: Annotated[int, Field(ge=0, le=1_000_000_000)] = 5_000  # 0 = never
    log_every: Interval = 50
    keep: Annotated[int, Field(ge=1, le=1_000_000)] = 2  # newest checkpoints kept
    stop_after: Annotated[str, AfterValidator(_duration)] = ""
    nonfinite: Literal["stop", "skip"] = "stop"  # at a loss or gradient that is NaN or infinite
    nonfinite_cap: Annotated[int, Field(ge=1, le=1_000_000)] = 5  # so many skipped steps in a row stop the run

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.accumulate:
            near = min(_divisors(self.batch_size), key=lambda d: abs(d - self.accumulate))
            text = f"must divide batch_size {self.batch_size}, is {self.accumulate}; the nearest is {near}"
            stop_at([(("accumulate",), text)])
        if self.shard and self.compile is True:
            text = 'must be false or "auto" with shard = true: a step that puts weights together piece by piece is not compiled'
            stop_at([(("compile",), text)])
        return self

    @property
    def stop_after_seconds(self) -> float | None:
        """`stop_after` in seconds, or None."""
        found = _DURATION.fullmatch(self.stop_after)
        return float(found[1]) * _SECONDS[found[2]] if found else None


def _divisors(value: int) -> list[int]:
    return [candidate for candidate in range(1, value + 1) if value % candidate == 0]


class Optimizer(Section):
    """AdamW. The mapping network learns at `lr` times `mapping_lr_scale`."""

    type: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0.0, le=10.0)] = 5e-4
    betas: Annotated[tuple[Beta, Beta], Listed] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 1e-2
    mapping_lr_scale: Annotated[float, Field(ge=0.0, le=10.0)] = 1 / 3
    warmup: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0  # steps of linear rise
    schedule: LearningRateName = "constant"  # of the learning rate, after the warm-up
    final_lr: Probability = 0.0  # cosine: share of `lr` that is left at train.steps
    hold: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0  # inverse-sqrt: steps before the rate falls

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.final_lr and self.schedule != "cosine":
            stop_at([(("final_lr",), f'is read by schedule = "cosine" alone, and that is "{self.schedule}"')])
        if self.hold and self.schedule != "inverse-sqrt":
            stop_at([(("hold",), f'is read by schedule = "inverse-sqrt" alone, and that is "{self.schedule}"')])
        if self.schedule == "inverse-sqrt" and not self.hold:
            stop_at([(("schedule",), '"inverse-sqrt" needs optimizer.hold: at which step the rate begins to fall')])
        return self


class Ema(Section):
    """Averages of the weights: the main one with decay min(max_decay, 1 - (1 + step)^-power), and EDM2's by their widths."""

    power: Annotated[float, Field(gt=0.0, le=10.0)] = 0.75
    max_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9999
    stds: Annotated[tuple[Std, ...], Listed, Field(max_length=16), AfterValidator(_no_repeats)] = ()
    snapshot_every: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0  # steps between snapshots of `stds`; 0 = none

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.snapshot_every and not self.stds:
            stop_at([(("snapshot_every",), "has nothing to write: ema.stds is empty; [0.05, 0.10] are usual")])
        return self


class Validation(Section):
    """The loss on held-out and on training pictures, on fixed noise, at step 0, every so many steps and at the end."""

    path: PathText = ""  # a prepared data set; "" = `held-out` inside the data, where `hdit prepare --hold-out` made it
    every: Annotated[int, Field(ge=0, le=1_000_000_000)] = 1_000  # 0 = never
    images: Annotated[int, Field(ge=1, le=1_000_000)] = 128  # at most, of each of the two sets
    levels: Annotated[int, Field(ge=1, le=1_000)] = 8  # noise levels, each of an equal share of the training density


class Log(Section):
    """Where numbers and grids go besides the run folder."""

    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Listed, AfterValidator(_no_repeats)] = ()


def _pair_or_number(value: Any, number: Any) -> Any:
    if not isinstance(value, list | tuple):
        return number(value)
    if len(value) != 2:
        text = f"must be a number, or two: at the first step and at the last; has {len(value)}"
        raise PydanticCustomError("sentence", "{text}", {"text": text})
    return tuple(number(each) for each in value)


Guidance = Annotated[
    float,
    Field(ge=0.0, le=1000.0),
    WrapValidator(_pair_or_number),
    PlainSerializer(lambda value: list(value) if isinstance(value, tuple) else value, return_type=Any),
]
Temperature = Annotated[float, Field(gt=0.0, le=100.0)]

# of [sample]: what acts with samplers of tokens alone, and what never with them
OF_TOKENS = ("temperature", "typical", "renoise", "renoise_steps")
OF_NUMBERS = ("schedule", "eta", "rho")


def not_acting(sampler: str) -> tuple[str, ...]:
    """Settings of [sample] that do nothing with a sampler."""
    if sampler not in catalog.OVER_TOKENS:
        return OF_TOKENS
    return OF_NUMBERS if sampler == "paella-v1" else (*OF_NUMBERS, "typical", "renoise")


class Sample(Section):
    """Defaults of `hdit sample`, and the grids that training draws (`n` images).

    Settings that do not act with the sampler are refused, and not written down.
    """

    sampler: SamplerName = "dpmpp-3m-sde"
    schedule: ScheduleName = "karras"
    steps: Annotated[int, Field(ge=1, le=100_000)] = 50
    eta: Annotated[float, Field(ge=0.0, le=10.0)] = Field(  # noise of a stochastic sampler; ddim has none unless told
        default_factory=lambda data: 0.0 if data.get("sampler") == "ddim" else 1.0
    )
    rho: Annotated[float, Field(gt=0.0, le=100.0)] = 7.0  # of the Karras schedule
    cfg: Guidance = 1.0  # classifier-free guidance; 1 = off; of tokens also [first, last step]
    temperature: Annotated[tuple[Temperature, Temperature], Listed] = (
        Field(  # of tokens, at the first step and at the last
            default_factory=lambda data: (1.0, 1.0) if data.get("sampler") == "paella-v1" else (0.7, 0.3)
        )
    )
    typical: Annotated[float, Field(ge=0.0, lt=1.0)] = (
        0.2  # paella-v1: mass of probability of the tokens it draws from; 0 = all
    )
    renoise: Literal["start", "prev", "rand"] = (
        "start"  # paella-v1: what it puts back: the first noise, the last tokens, new
    )
    renoise_steps: Annotated[
        int, Field(ge=-1, le=100_000)
    ] = -1  # of tokens: draws after which noise is put back; -1 = all but one
    n: Annotated[int, Field(ge=1, le=4096)] = 36
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64

    @model_serializer(mode="wrap")
    def _acting(self, dump: Any) -> dict[str, Any]:
        others = not_acting(self.sampler)
        return {name: value for name, value in dump(self).items() if name not in others}

    def problems(self) -> Iterator[Problem]:
        """Settings that were made and do nothing."""
        fitting = {name: " or ".join(catalog.OVER_TOKENS) for name in OF_TOKENS}
        fitting |= {"typical": "paella-v1", "renoise": "paella-v1"}
        for name in not_acting(self.sampler):
            if name in self.model_fields_set:
                why = f"is read by {fitting[name]} alone" if name in fitting else "is not for samplers of tokens"
                yield ("sample", name), f"{why}, and sample.sampler is {self.sampler!r}; leave it out"
        if isinstance(self.cfg, tuple) and self.sampler not in catalog.OVER_TOKENS:
            yield ("sample", "cfg"), f"must be one number for {self.sampler}; two are for samplers of tokens"

    def of_tokens(self) -> Self:
        """The section of a model of tokens: its own sampler and number of steps where none was named."""
        usual: dict[str, Any] = {"sampler": catalog.OVER_TOKENS[0], "steps": 12}
        missing = {name: value for name, value in usual.items() if name not in self.model_fields_set}
        return self.model_copy(update=missing)


def _some_weights(value: tuple[str, ...]) -> tuple[str, ...]:
    for word in value:
        try:
            known = word in ("ema", "raw") or STD_MIN <= float(word) <= STD_MAX
        except ValueError:
            known = False
        if not known:
            text = f'{word!r} is neither "ema" nor "raw" nor a width such as "0.05"'
            raise PydanticCustomError("sentence", "{text}", {"text": text})
    return value


class Eval(Section):
    """Defaults of `hdit eval-fid`, and the small evaluations inside a run: `every`, `during_*`."""

    n: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    metrics: Annotated[
        tuple[MetricName, ...], Listed, Field(min_length=1, max_length=64), AfterValidator(_no_repeats)
    ] = (
        "fid",
        "kid",
    )
    features: FeaturesName = (
        "inception"  # the feature net, as --features names it; paths are relative to the working folder
    )
    every: Annotated[int, Field(ge=0, le=1_000_000_000_000)] = 0  # images between evaluations inside a run; 0 = none
    during_n: Annotated[int, Field(ge=2, le=1_000_000)] = 1_000  # pictures of each
    during_metrics: Annotated[  # the first one chooses best.safetensors; [] = `metrics`
        tuple[MetricName, ...], Listed, Field(max_length=64), AfterValidator(_no_repeats)
    ] = ()
    during_weights: Annotated[  # of the run: "ema", "raw", or a width of ema.stds; the first one is what best.safetensors holds
        tuple[str, ...],
        Listed,
        Field(min_length=1, max_length=16),
        AfterValidator(_no_repeats),
        AfterValidator(_some_weights),
    ] = ("ema",)
