"""Checkpoints of DiT as others name their tensors: what network they are of, and the tensors under our names.

The authors' files carry our names already. The diffusers library stores the position table nowhere, queries, keys and values
apart, and a copy of the timestep and class embedding in every block.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hdit_cli.models.dit import position_table

# heads of the published widths: a state dict does not tell them
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}

_DIFFUSERS = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_DIFFUSERS_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_DIFFUSERS_SHARED = {  # in every block, and the same in each
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")


class NotDiT(ValueError):
    """What does not fit, in words."""


def is_official(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of the authors' network."""
    return {
        "x_embedder.proj.weight",
        "pos_embed",
        "t_embedder.mlp.0.weight",
        "final_layer.linear.weight",
    } <= names.keys()


def is_diffusers(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of the diffusers library's `DiTTransformer2DModel`."""
    return {"pos_embed.proj.weight", "proj_out_1.weight", "transformer_blocks.0.norm1.linear.weight"} <= names.keys()


def arguments_of(shapes: Mapping[str, tuple[int, ...]], *, heads: int | None = None) -> dict[str, Any]:
    """The arguments of `DiT` whose state dict has these shapes (adaLN-Zero, square images).

    Args:
        shapes: of the tensors, under our names.
        heads: where the width is none of the published ones.

    Raises:
        NotDiT: they are of no such network, or the heads are not known.
    """
    try:
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        tokens = shapes["pos_embed"][1]
        outputs = shapes["final_layer.linear.weight"][0] // patch**2
        d_ff, rows = shapes["blocks.0.mlp.fc1.weight"][0], shapes["y_embedder.embedding_table.weight"][0]
        modulation = shapes["blocks.0.adaLN_modulation.1.weight"][0]
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise NotDiT(f"it lacks {error}") from error
    side = math.isqrt(tokens)
    heads = heads or _HEADS.get(width)
    if heads is None:
        raise NotDiT(f"nothing says how many heads a network of width {width} has")
    if side**2 != tokens or outputs not in (channels, 2 * channels) or modulation != 6 * width:
        raise NotDiT("its shapes are not those of a DiT with adaLN-Zero on square images")
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    return {
        "size": (side * patch, side * patch),
        "patch": patch,
        "depth": depth,
        "width": width,
        "heads": heads,
        "channels": channels,
        "classes": rows - 1,
        "mlp_ratio": d_ff / width,
        "learn_variance": outputs == 2 * channels,
    }


def from_diffusers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of diffusers' transformer under our names, the position table with them.

    The library computes something else with these weights than the authors' code does (other time frequencies, another eps):
    what comes of them here is the authors'.

    Args:
        config: its `config.json`: `sample_size` and `patch_size` are read.

    Raises:
        NotDiT: a tensor that no name is known for, copies of an embedding that differ, or a configuration without a size.
    """
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        if stem in _DIFFUSERS:
            ours[f"{_DIFFUSERS[stem]}.{kind}"] = tensor
        elif block is None:
            raise NotDiT(f"no name is known for its {name}")
        elif block[2] in _DIFFUSERS_SHARED:
            _take_shared(ours, f"{_DIFFUSERS_SHARED[block[2]]}.{kind}", tensor)
        elif block[2] in _DIFFUSERS_BLOCK:
            ours[f"blocks.{block[1]}.{_DIFFUSERS_BLOCK[block[2]]}.{kind}"] = tensor
        elif block[2] in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
            parts.setdefault(f"blocks.{block[1]}.attn.qkv.{kind}", {})[block[2][-1]] = tensor
        else:
            raise NotDiT(f"no name is known for its {name}")
    for name, thirds in parts.items():
        if len(thirds) < 3:
            raise NotDiT(f"a third of its {name} is missing")
        ours[name] = torch.cat([thirds[letter] for letter in "qkv"])
    return {**ours, "pos_embed": _positions(ours, config)}


def _take_shared(ours: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in ours and not torch.equal(ours[name], tensor):
        raise NotDiT(f"its blocks do not agree on {name}")
    ours[name] = tensor


def _positions(ours: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    try:
        side = int(config["sample_size"]) // int(config["patch_size"])
        width = ours["x_embedder.proj.weight"].shape[0]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise NotDiT(f"its configuration does not say {error}") from error
    return position_table(side, side, width)[None]
