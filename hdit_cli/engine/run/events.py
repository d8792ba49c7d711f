"""What a training run tells those who watch it. The loop yields these; commands print them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Started:
    """Before the first step. `split` says how the global batch is shared; `step` is where the run goes on from."""

    params: int
    gmacs: float
    images: int
    classes: int
    split: str
    device: str
    step: int
    steps: int
    class_names: tuple[str, ...] = ()
    held_out: int = 0  # pictures to validate on
    buckets: int = 0  # sizes of pictures, where there are several


@dataclass(frozen=True)
class Begun:
    """A new run starts from another one's weights; `lines` say what was loaded and what is new."""

    lines: list[str]


@dataclass(frozen=True)
class Stepped:
    """After each optimizer step; `images_per_second` counts training time alone, not saving or drawing.

    On a GPU it is that of the steps before the last moment at which all were done: at a log line those up to it, else an estimate.
    """

    step: int
    images_per_second: float


@dataclass(frozen=True)
class Logged:
    """A line of metrics.jsonl; `values` is what it says, on the main process. `peak_bytes` is of CUDA memory."""

    step: int
    loss: float
    grad_norm: float
    values: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Validated:
    """Lines of validation.jsonl, one for each weights and split."""

    step: int
    lines: list[dict[str, Any]]


@dataclass(frozen=True)
class Evaluated:
    """Lines of metrics.jsonl, one for each weights that were scored, on the main process."""

    step: int
    lines: list[dict[str, Any]]


@dataclass(frozen=True)
class Working:
    """Something besides training that takes its time is so far: `done` of `total`, of what `unit` says."""

    what: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Drawn:
    """A grid was written."""

    path: Path


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Kept:
    """A snapshot of the averages of `ema.stds` is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Warned:
    """Something the user should know and that does not stop the run."""

    text: str


@dataclass(frozen=True)
class Noted:
    """Something that is as it was asked for, and may not have been meant."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is at its last step, or `stopped_by` says why it stopped before."""

    step: int
    stopped_by: str = ""


Event = (
    Started
    | Begun
    | Stepped
    | Logged
    | Working
    | Validated
    | Evaluated
    | Drawn
    | Saved
    | Kept
    | Warned
    | Noted
    | Finished
)
