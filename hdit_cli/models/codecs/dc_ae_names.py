"""Files of deep compression autoencoders, as the diffusers library saves its `AutoencoderDC`: names are taken as they are."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdit_cli.models.foreign import Misfit, Unknown, Unsupported

TITLE = "AutoencoderDC (diffusers')"

_ONE_FOR_ALL = ("encoder_block_types", "decoder_block_types", "decoder_norm_types", "decoder_act_fns")
_USUAL = {  # of the library, where a configuration leaves them out
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "latent_channels": 32,
}
_OWN = (
    "attention_head_dim",
    "upsample_block_type",
    "downsample_block_type",
    "encoder_out_shortcut",
    "decoder_in_shortcut",
)
SETTINGS = frozenset({*_USUAL, *_OWN, "decoder_conv_act_fn", "scaling_factor", "in_channels"})


def knows(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of such an autoencoder's tensors."""
    some = {"encoder.conv_out.weight", "decoder.conv_in.weight", "decoder.norm_out.weight"}
    return some <= names.keys() and any(name.startswith("decoder.up_blocks.") for name in names)


def tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors: our names are theirs."""
    return dict(named)


def section_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the autoencoder of this configuration.

    Raises:
        Unknown: there is none; the tensors alone do not say how its blocks are joined.
        Unsupported: a setting that this project does not know.
        Misfit: one that is none.
    """
    if not SETTINGS & config.keys():
        raise Unknown("has no configuration, and its tensors alone do not say how its blocks are joined")
    if strange := sorted(key for key in config if key not in SETTINGS and not key.startswith("_")):
        raise Unsupported(f"the setting {strange[0][:100]!r}")
    if config.get("in_channels", 3) != 3:
        raise Misfit(f"its configuration says in_channels {config['in_channels']!r:.100}, and pictures have 3")
    told = {**_USUAL, **{key: value for key, value in config.items() if key in SETTINGS and key != "in_channels"}}
    levels = told["encoder_block_out_channels"]
    for name in _ONE_FOR_ALL:
        if isinstance(told[name], str) and isinstance(levels, list):
            told[name] = [told[name]] * len(levels)
    if isinstance(how := told.get("downsample_block_type"), str):
        told["downsample_block_type"] = how.lower()  # "Conv" in published ones
    return {"type": "dc-ae", **told}
