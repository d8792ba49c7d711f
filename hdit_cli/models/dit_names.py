"""Checkpoints of DiT as others name their tensors: what network they are of, and the tensors under our names.

The authors' files carry our names already. The diffusers library stores the position table nowhere, queries, keys and values
apart, and a copy of the timestep and class embedding in every block. Settings are the arguments of the authors' class, the
command line that their trainer keeps, diffusers' `config.json`, or our own keys of `[model]`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hdit_cli.models.dit_blocks import position_table
from hdit_cli.models.foreign import Described, Misfit, Unknown, Unsupported

TITLE = "DiT (the authors' and diffusers')"
NEEDS_CONFIG = False

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
_EXACT = 1e-6  # difference of a table of positions
_ROUNDED = 2.5e-3  # bfloat16 rounds by 2.0e-3; 20,000 steps of averaging in float32 leave 1.7e-4 (counted)
_TABLE = "y_embedder.embedding_table.weight"
_MOST_TOKENS = 1 << 20  # a configuration that was received may say anything
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")


class NotDiT(Misfit):
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


def block_of(shapes: Mapping[str, tuple[int, ...]], *, width: int) -> str:
    """How conditions reach the tokens, by what the first block holds.

    Raises:
        NotDiT: it is none of the four.
    """
    modulation = shapes.get("blocks.0.adaLN_modulation.1.weight")
    if modulation is not None:
        found = {6 * width: "adaln-zero", 4 * width: "adaln"}.get(modulation[0])
    else:
        cross = "cross-attention" if "blocks.0.cross_attn.q.weight" in shapes else "in-context"
        found = cross if "blocks.0.norm1.weight" in shapes else None
    if found is None:
        raise NotDiT("its blocks are none of DiT's")
    return found


def arguments_of(
    shapes: Mapping[str, tuple[int, ...]], *, heads: int | None = None, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The arguments of `DiT` whose state dict has these shapes.

    Args:
        shapes: of the tensors, under our names.
        heads: where the width is none of the published ones.
        size: where images are not square.

    Raises:
        NotDiT: they are of no such network, or the heads are not known.
    """
    try:
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        tokens = shapes["pos_embed"][1]
        outputs = shapes["final_layer.linear.weight"][0] // patch**2
        d_ff, rows = shapes["blocks.0.mlp.fc1.weight"][0], shapes.get(_TABLE, (1,))[0]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    except KeyError as error:
        raise NotDiT(f"it lacks {error}") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise NotDiT("names or shapes of its tensors are none of a DiT") from error
    side = math.isqrt(tokens)
    heads = heads or _HEADS.get(width)
    if heads is None:
        raise NotDiT(f"nothing says how many heads a network of width {width} has")
    size = size or (side * patch, side * patch)
    if size[0] % patch or size[1] % patch or size[0] * size[1] != tokens * patch**2:
        raise NotDiT(f"a table of {tokens} positions is none of images of {size[0]} x {size[1]} in patches of {patch}")
    if outputs not in (channels, 2 * channels) or not width or not d_ff:
        raise NotDiT(f"its {channels} channels in and {outputs} out are not those of a DiT")
    return {
        "size": size,
        "patch": patch,
        "depth": depth,
        "width": width,
        "heads": heads,
        "channels": channels,
        "classes": rows - 1,
        "block": block_of(shapes, width=width),
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
    if name in ours and not _equal(ours[name], tensor):
        raise NotDiT(f"its blocks do not agree on {name}")
    ours[name] = tensor


def _positions(ours: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    try:
        size, patch = config["sample_size"], int(config["patch_size"])
        height, across = (size, size) if isinstance(size, int) else size
        width = ours["x_embedder.proj.weight"].shape[0]
        rows, columns = int(height) // patch, int(across) // patch
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise NotDiT(f"its configuration does not say {error}") from error
    if rows * columns > _MOST_TOKENS or width % 4:
        raise NotDiT(f"{rows} x {columns} tokens of width {width} are no network of these")
    return position_table(rows, columns, width)[None]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape if a.is_meta else torch.equal(a, b)


# Settings

_KEYS = {  # of the authors' class and command line, and of diffusers => ours
    "input_size": "size",
    "sample_size": "size",
    "patch_size": "patch",
    "num_layers": "depth",
    "hidden_size": "width",
    "num_heads": "heads",
    "num_attention_heads": "heads",
    "in_channels": "channels",
    "num_classes": "classes",
    "num_embeds_ada_norm": "classes",
    "class_dropout_prob": "class_dropout",
    "learn_sigma": "learn_variance",
}
_OWN = ("size", "patch", "depth", "width", "heads", "channels", "classes", "mlp_ratio", "block", "learn_variance")
_PUBLISHED = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
_NAME = re.compile(r"DiT-(S|B|L|XL)/([248])")  # as the authors' command line names a network: "DiT-XL/2"


def settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a configuration says of the network, by our names; keys of anything else are passed over.

    Raises:
        Unsupported: another network.
        ValueError: a value of another type.
    """
    config = dict(config or {})
    model = config.get("model")
    if isinstance(model, dict):  # a recipe of ours
        config = model
    elif isinstance(model, str) and (name := _NAME.fullmatch(model)):
        depth, width, heads = _PUBLISHED[name[1]]
        config = {"depth": depth, "width": width, "heads": heads, "patch": int(name[2]), **config}
    if config.get("type", "dit") != "dit":
        raise Unsupported(f"model type {config['type']!r:.100}, and the tensors are DiT's")
    if config.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
        raise Unsupported(f"norm_type {config['norm_type']!r:.100}")
    told = {_KEYS.get(key, key): value for key, value in config.items() if key in _KEYS or key in _OWN}
    if told.get("classes") == "data":
        del told["classes"]
    if "size" in told:
        size = told["size"]
        told["size"] = (size, size) if isinstance(size, int) else tuple(size)
        if len(told["size"]) != 2:
            raise ValueError(f"a size of {size!r:.100}")
    counts = [
        *told.get("size", ()),
        *(told[key] for key in ("patch", "depth", "width", "heads", "channels") if key in told),
    ]
    if wrong := [value for value in counts if not isinstance(value, int) or isinstance(value, bool) or value < 1]:
        raise ValueError(f"{wrong[0]!r:.100} is no count")
    return told


# The format, see `models.foreign.Format`


def knows(names: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Whether these are the authors' names or diffusers'."""
    return is_official(names) or is_diffusers(names)


def tensors(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Under our names; a table of classes without a row for "no class" is given one of zeros."""
    told, ours = settings(config), dict(named)
    if is_diffusers(named):
        if "size" not in told:
            raise Unknown("does not say for which size of images it is")
        ours = from_diffusers(
            named, {"sample_size": told["size"], "patch_size": named["pos_embed.proj.weight"].shape[-1]}
        )
    if _lacks_none(ours, told):
        ours[_TABLE] = torch.cat([ours[_TABLE], ours[_TABLE].new_zeros(1, ours[_TABLE].shape[1])])
    return ours


def _lacks_none(ours: Mapping[str, Tensor], told: Mapping[str, Any]) -> bool:
    """Whether every row of the table is a class: so it is where training dropped none."""
    table = ours.get(_TABLE)
    return table is not None and table.ndim == 2 and told.get("classes") == len(table)


def recipe(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Described:
    """The authors' training of the network that shapes and settings tell, and their sampling.

    Of a recipe of ours as configuration the other sections are taken as they are.
    """
    told, ours = settings(config), tensors(named, config)
    found, notes = _arguments({name: tuple(tensor.shape) for name, tensor in ours.items()}, told)
    learned, channels = found.pop("learn_variance"), found["channels"]
    dropout = float(told.get("class_dropout", 0.1))
    if not found["classes"] or len(ours[_TABLE]) != len(named.get(_TABLE, ours[_TABLE])):
        dropout = 0.0
    if _TABLE not in ours and "classes" not in told:
        notes = (*notes, "it holds no table of classes (y_embedder), so it becomes a network without classes")
    if config and not told:
        notes = (*notes, "its configuration says nothing of the network: the tensors alone were read")
    values = {
        "model": {"type": "dit", **found, "size": list(found["size"])},
        "task": {
            "type": "ddpm",
            "learned_variance": learned,
            "cfg_channels": min(3, channels),
            "clip": channels <= 3,  # pixels; latents reach beyond [-1, 1]
        },
        "diffusion": {"class_dropout": dropout},
        "train": {"batch_size": 256, "grad_clip": 0.0},
        "optimizer": {"lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0.0},
        "ema": {"power": 10.0, "max_decay": 0.9999},
        "sample": {"sampler": "ddpm", "steps": 250, "cfg": 4.0 if dropout else 1.0},
    }
    given = config if config and isinstance(config.get("model"), dict) else {}
    return Described({**values, **{key: value for key, value in given.items() if key != "model"}}, notes)


def _arguments(
    shapes: Mapping[str, tuple[int, ...]], told: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `arguments_of` tells with the settings, which must not contradict it; and what was guessed."""
    notes, width = (), shapes.get("x_embedder.proj.weight", (0,))[0]
    if "heads" not in told:
        if width not in _HEADS:
            raise Unknown(
                f"does not say how many heads its attention has, and {width} is no width of the published networks"
            )
        notes = (
            f"nothing says how many heads it has: {_HEADS[width]} are taken, as the published networks of width {width} have",
        )
    found = arguments_of(shapes, heads=told.get("heads"), size=told.get("size"))
    for key in found.keys() & told.keys() - {"mlp_ratio"}:
        if told[key] != found[key]:
            raise Misfit(f"its configuration says {key} {told[key]!r:.100}, and its tensors {found[key]}")
    d_ff = shapes["blocks.0.mlp.fc1.weight"][0]
    ratio = float(told.get("mlp_ratio", found["mlp_ratio"]))
    if int(width * ratio) != d_ff:
        if "mlp_ratio" in told:
            raise Misfit(f"its configuration says mlp_ratio {ratio:g}, and its tensors {found['mlp_ratio']:g}")
        ratio = (d_ff + 0.5) / width  # the quotient was rounded below a whole channel
    return {**found, "mlp_ratio": ratio}, notes


def remarks(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """That the positions are rounded, or that "no class" was never learnt.

    Raises:
        NotDiT: the table of positions is another one.
    """
    stored, patch, notes = named["pos_embed"][0], named["x_embedder.proj.weight"].shape[-1], []
    side = math.isqrt(len(stored))
    height, across = settings(config).get("size", (side * patch, side * patch))
    made = position_table(height // patch, across // patch, stored.shape[-1])
    off = float((stored.cpu().float() - made).abs().max())
    if not off <= _ROUNDED:
        raise NotDiT(f"its pos_embed is not DiT's table of sines and cosines: it differs by {off:.2g}")
    if off > _EXACT:
        notes.append(
            f"its pos_embed differs from sines and cosines by {off:.1e}, as rounding leaves it; it is kept as it is"
        )
    table = named.get(_TABLE)
    if table is not None and not table[-1].any():
        notes.append(
            'its table of classes had no row for "no class", so one of zeros was added; guidance needs a learnt one'
        )
    return tuple(notes)
