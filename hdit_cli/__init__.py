"""hdit: whole image-diffusion experiments from one command line.

The public Python API. Every name is loaded on first use, so `import hdit_cli` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hdit_cli.diffusion.densities import noise_density
    from hdit_cli.diffusion.samplers import sampler
    from hdit_cli.diffusion.schedules import schedule
    from hdit_cli.diffusion.timesteps import respace
    from hdit_cli.engine.load import load
    from hdit_cli.engine.model import Model
    from hdit_cli.engine.run.codec_file import load_codec
    from hdit_cli.engine.sampling.generate import generate
    from hdit_cli.engine.training.ema import ema_decay

_LAZY = {
    "load": "hdit_cli.engine.load",
    "load_codec": "hdit_cli.engine.run.codec_file",
    "Model": "hdit_cli.engine.model",
    "schedule": "hdit_cli.diffusion.schedules",
    "sampler": "hdit_cli.diffusion.samplers",
    "respace": "hdit_cli.diffusion.timesteps",
    "noise_density": "hdit_cli.diffusion.densities",
    "ema_decay": "hdit_cli.engine.training.ema",
    "generate": "hdit_cli.engine.sampling.generate",
}

__all__ = [
    "Model",
    "__version__",
    "ema_decay",
    "generate",
    "load",
    "load_codec",
    "noise_density",
    "respace",
    "sampler",
    "schedule",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hdit_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
