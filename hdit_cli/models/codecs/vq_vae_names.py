"""Files of Paella's tokenizer as others name their tensors and settings: the authors', and diffusers' `PaellaVQModel`.

Our names are the authors'. The library calls the codebook otherwise, and has names of its own for the settings.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdit_cli.models.foreign import Misfit

TITLE = "Paella's VQ model (the authors' and diffusers')"

_BOOK = "vquantizer.codebook.weight"
_DIFFUSERS_BOOK = "vquantizer.embedding.weight"
_COUNT = "num_batches_tracked"
_SETTINGS = {  # of diffusers => ours
    "embed_dim": "c_hidden",
    "latent_channels": "c_latent",
    "num_vq_embeddings": "codebook_size",
}
_FIXED = {"in_channels": 3, "out_channels": 3, "up_down_scale_factor": 2}
_OWN = ("levels", "bottleneck_blocks", "c_hidden", "c_latent", "codebook_size", "scale_factor")
SETTINGS = frozenset({*_OWN, *_SETTINGS, *_FIXED})


def knows(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of such a tokenizer's tensors."""
    rest = {"in_block.1.weight", "up_blocks.0.0.weight", "out_block.0.weight"}
    return bool({_BOOK, _DIFFUSERS_BOOK} & names.keys()) and rest <= names.keys()


def tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under our names; how many batches its norm has seen is no weight, and left out."""
    return {
        _BOOK if name == _DIFFUSERS_BOOK else name: tensor
        for name, tensor in named.items()
        if not name.endswith(_COUNT)
    }


def section_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the tokenizer whose state dict has these shapes.

    Args:
        shapes: of the tensors, under our names.
        config: by the names of the authors or of diffusers; `scale_factor` is nowhere else.

    Raises:
        Misfit: they are of no such network, or the configuration says otherwise.
    """
    try:
        c_hidden, c_latent = shapes["up_blocks.0.0.weight"][:2]
        codes = shapes[_BOOK][0]
    except (KeyError, ValueError, IndexError) as error:
        raise Misfit("names or shapes of its tensors are none of a VQ tokenizer") from error
    upwards = [name.split(".") for name in shapes if name.startswith("up_blocks.")]
    # a block has numbers of its own, and what doubles the map is a lone convolution
    blocks = sum(parts[2:] == ["gammas"] for parts in upwards)
    levels = 1 + sum(parts[2:] == ["weight"] for parts in upwards)
    found = {
        "levels": levels,
        "bottleneck_blocks": blocks - levels + 1,
        "c_hidden": c_hidden,
        "c_latent": c_latent,
        "codebook_size": codes,
    }
    told = {_SETTINGS.get(key, key): value for key, value in config.items()}
    for key, value in {**_FIXED, **found}.items():
        said = value if told.get(key) is None else told[key]
        if said != value or isinstance(said, bool):
            raise Misfit(f"its configuration says {key} {said!r:.100}, and its tensors {value}")
    scale = {} if told.get("scale_factor") is None else {"scale_factor": told["scale_factor"]}
    return {"type": "vq-vae", **found, **scale}
