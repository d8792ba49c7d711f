"""Files of KL autoencoders as others name their tensors: which network they are of, and the tensors under our names.

Our names are those of the diffusers library today. Its older files call the parts of the attention otherwise, and files of
latent diffusion have a numbering and names of their own, in a whole checkpoint behind a prefix.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdit_cli.models.foreign import Misfit, Unsupported

TITLE = "AutoencoderKL (diffusers' and latent diffusion's)"

_PREFIX = "first_stage_model."
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LDM_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_LDM_MIDDLE = {"block_1": "resnets.0", "block_2": "resnets.1", "attn_1": "attentions.0"}
_LDM_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(block|attn|downsample|upsample)\.(.+)")
_LDM_MID = re.compile(r"(encoder|decoder)\.mid\.(block_1|block_2|attn_1)\.(.+)")
_ATTENTION = re.compile(r"(.*\battentions\.\d+)\.(\w+(?:\.0)?)\.(weight|bias)")
_SILU = ("silu", "swish")  # the one activation of these networks, by both of its names
_BLOCKS = {
    "down_block_types": {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True},
    "up_block_types": {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True},
}
SETTINGS = frozenset(
    {
        *_BLOCKS,
        *("act_fn", "norm_num_groups", "block_out_channels", "latent_channels", "layers_per_block", "in_channels"),
        *("out_channels", "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv"),
        *("shift_factor", "scaling_factor", "latents_mean", "latents_std"),
    }
)


def knows(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a KL autoencoder's tensors."""
    return is_diffusers(names) or is_ldm(names)


def is_ldm(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a latent-diffusion file: of the autoencoder alone, or of a whole model."""
    plain = {name.removeprefix(_PREFIX) for name in names}
    return {"encoder.mid.block_1.conv1.weight", "decoder.mid.block_1.conv1.weight"} <= plain


def of_whole_model(name: str) -> bool:
    """Whether a tensor of a whole latent-diffusion model is one of the autoencoder."""
    return name.startswith(_PREFIX)


def is_whole_model(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a whole latent-diffusion model, whose text encoder may hold whole numbers."""
    return is_ldm(names) and any(map(of_whole_model, names))


def is_diffusers(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of diffusers' AutoencoderKL."""
    return {"encoder.mid_block.resnets.0.conv1.weight", "decoder.mid_block.resnets.0.conv1.weight"} <= names.keys()


def tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under our names. Of a whole latent-diffusion model those of the autoencoder.

    Raises:
        Misfit: a tensor that no name is known for.
    """
    ours = _from_ldm(named) if is_ldm(named) else dict(named)
    found: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        match = _ATTENTION.fullmatch(name)
        if match and match[2] in _OLD:
            name = f"{match[1]}.{_OLD[match[2]]}.{match[3]}"
        if match and match[2] != "group_norm" and tensor.ndim == 4:  # a 1 x 1 convolution
            tensor = tensor.flatten(1)
        found[name] = tensor
    return found


def _from_ldm(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = any(name.startswith(_PREFIX) for name in named)
    plain = {name.removeprefix(_PREFIX): t for name, t in named.items() if not whole or name.startswith(_PREFIX)}
    plain = {name: t for name, t in plain.items() if not name.startswith("loss.")}  # of the training
    levels = 1 + max((int(m[2]) for m in map(_LDM_LEVEL.fullmatch, plain) if m), default=0)
    return {_ldm_name(name, levels): tensor for name, tensor in plain.items()}


def _ldm_name(name: str, levels: int) -> str:
    """Our name of a tensor of latent diffusion, whose decoder counts its levels from the outermost."""
    if middle := _LDM_MID.fullmatch(name):
        return f"{middle[1]}.mid_block.{_LDM_MIDDLE[middle[2]]}.{_inside(middle[2], middle[3])}"
    if level := _LDM_LEVEL.fullmatch(name):
        side, number, part, rest = level[1], int(level[2]), level[3], level[4]
        number = number if side == "encoder.down" else levels - 1 - number
        stem = f"{'encoder.down_blocks' if side == 'encoder.down' else 'decoder.up_blocks'}.{number}"
        if part in ("downsample", "upsample"):
            return f"{stem}.{part}rs.0.{rest}"
        index, _, inner = rest.partition(".")
        return f"{stem}.{'resnets' if part == 'block' else 'attentions'}.{index}.{_inside(part, inner)}"
    for side in ("encoder", "decoder"):
        if name.startswith(f"{side}.norm_out."):
            return name.replace(".norm_out.", ".conv_norm_out.")
        if name.startswith((f"{side}.conv_in.", f"{side}.conv_out.")):
            return name
    if name.startswith(("quant_conv.", "post_quant_conv.")):
        return name
    raise Misfit(f"no name is known for its {name}")


def _inside(part: str, rest: str) -> str:
    stem, _, kind = rest.rpartition(".")
    if part.startswith("attn"):
        return f"{_LDM_ATTENTION.get(stem, stem)}.{kind}"
    return f"{'conv_shortcut' if stem == 'nin_shortcut' else stem}.{kind}"


def arguments_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of `KLVAE` whose state dict has these shapes.

    Args:
        shapes: of the tensors, under our names.
        config: diffusers' `config.json`; the number of groups is nowhere else, and is 32 without it.

    Raises:
        Misfit: they are of no such network, or the configuration says otherwise.
        Unsupported: a block of another kind.
    """
    config = dict(config or {})
    try:
        first = shapes["encoder.conv_in.weight"]
        levels = 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith("encoder.down_blocks."))
        if levels > len(shapes):
            raise Misfit(f"it names level {levels - 1} of the encoder, and holds {len(shapes)} tensors")
        of_level = [f"encoder.down_blocks.{i}" for i in range(levels)]
        layers = 1 + max(int(n.split(".")[4]) for n in shapes if n.startswith(f"{of_level[0]}.resnets."))
        widths = tuple(shapes[f"{level}.resnets.0.conv1.weight"][0] for level in of_level)
        channels, pictures = shapes["decoder.conv_in.weight"][1], first[1]
    except (KeyError, ValueError, IndexError) as error:
        raise Misfit(f"names or shapes of its tensors are none of a KL autoencoder: {error}") from error
    found = {
        "widths": widths,
        "channels": channels,
        "layers": layers,
        "groups": config.get("norm_num_groups", 32),
        "attends": tuple(i for i, level in enumerate(of_level) if f"{level}.attentions.0.to_q.weight" in shapes),
        "middle_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "quant": tuple(f"{name}.weight" in shapes for name in ("quant_conv", "post_quant_conv")),
        "pictures": pictures,
    }
    _check(found, config)
    return found


def section_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a codec's file says of the network whose state dict has these shapes; see `arguments_of` and `normalisation_of`."""
    arguments = arguments_of(shapes, config)
    shift, scale = normalisation_of(config, channels=arguments["channels"])
    return {"type": "kl-vae", **arguments, "shift": shift, "scale": scale}


def _check(found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    for key, kinds in _BLOCKS.items():
        named = config.get(key)
        if named is not None and not isinstance(named, list):
            raise Misfit(f"its configuration says {key} {named!r:.100}, which is no list")
        for kind in named or ():
            if not isinstance(kind, str) or kind not in kinds:
                raise Unsupported(f"a block of the kind {kind!r:.100}")
    if (activation := config.get("act_fn")) not in (None, *_SILU):
        raise Unsupported(f"the activation {activation!r:.100}")
    told = {
        "block_out_channels": found["widths"],
        "latent_channels": found["channels"],
        "layers_per_block": found["layers"],
        "in_channels": found["pictures"],
        "out_channels": found["pictures"],
        "mid_block_add_attention": found["middle_attention"],
        "use_quant_conv": found["quant"][0],
        "use_post_quant_conv": found["quant"][1],
    }
    for key, value in told.items():
        said = value if config.get(key) is None else config[key]
        if (tuple(said) if isinstance(said, list) else said) != value:
            raise Misfit(f"its configuration says {key} {said!r:.100}, and its tensors {value}")
    groups = found["groups"]
    if (
        not isinstance(groups, int)
        or isinstance(groups, bool)
        or groups < 1
        or any(width % groups for width in found["widths"])
    ):
        raise Misfit(f"its widths {found['widths']} do not divide into {groups!r:.100} groups")


def scaling_of(config: Mapping[str, Any] | None) -> tuple[float, float]:
    """(shift, scale) of a configuration: a latent for the diffusion model is (z - shift) scale. Missing or null: (0, 1)."""
    config = config or {}
    shift, scale = config.get("shift_factor"), config.get("scaling_factor")
    return float(0.0 if shift is None else shift), float(1.0 if scale is None else scale)


def normalisation_of(config: Mapping[str, Any] | None, *, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(shift, scale), one number or one for each channel, of a configuration; `latents_mean` and `latents_std` where it has them.

    With those a latent is (z - mean) scaling_factor / std.

    Raises:
        Misfit: they are no numbers, or not as many as channels.
    """
    config = config or {}
    mean, std = config.get("latents_mean"), config.get("latents_std")
    for name, value in (("latents_mean", mean), ("latents_std", std)):
        if value is not None and not isinstance(value, list):
            raise Misfit(f"its configuration says {name} {value!r:.100}, which is no list")
    try:
        shift, scale = scaling_of(config)
        if mean is None and std is None:
            return (shift,), (scale,)
        means = tuple(float(value) for value in (mean if mean is not None else [shift]))
        stds = tuple(float(value) for value in (std if std is not None else [1.0]))
        scales = tuple(scale / value for value in stds)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise Misfit("its configuration says of its latents what is no number") from error
    if len(means) not in (1, channels) or len(scales) not in (1, channels):
        raise Misfit(f"its configuration has {len(means)} means and {len(scales)} deviations for {channels} channels")
    return means, scales


def to_ldm(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of latent diffusion, attention as 1 x 1 convolutions; the inverse of `tensors`."""
    levels = 1 + max(int(name.split(".")[2]) for name in ours if name.startswith("encoder.down_blocks."))
    found = {}
    for name, tensor in ours.items():
        attention = ".attentions." in name
        if attention and name.endswith(".weight") and "group_norm" not in name:
            tensor = tensor[:, :, None, None]
        found[_to_ldm_name(name, levels)] = tensor
    return found


def _to_ldm_name(name: str, levels: int) -> str:
    name = name.replace(".conv_norm_out.", ".norm_out.").replace(".conv_shortcut.", ".nin_shortcut.")
    if ".attentions." in name:
        for theirs, mine in _LDM_ATTENTION.items():
            name = name.replace(f".{mine}.", f".{theirs}.")
    for theirs, mine in _LDM_MIDDLE.items():
        name = name.replace(f".mid_block.{mine}.", f".mid.{theirs}.")
    parts = name.split(".")
    if parts[1] in ("down_blocks", "up_blocks"):
        number = int(parts[2]) if parts[1] == "down_blocks" else levels - 1 - int(parts[2])
        part = {"resnets": "block", "attentions": "attn", "downsamplers": "downsample", "upsamplers": "upsample"}[
            parts[3]
        ]
        rest = parts[5:] if part.endswith("sample") else parts[4:]
        return ".".join([parts[0], parts[1].removesuffix("_blocks"), str(number), part, *rest])
    return name
