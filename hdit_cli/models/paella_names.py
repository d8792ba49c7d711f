"""Weights of Paella's token network (its third version) as its authors publish them: names are ours, sizes are in the shapes.

What no tensor tells are the heads of the attention, whether the map attends to itself, and for how many tokens it was trained.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdit_cli.models.foreign import Described, Misfit, Unknown, Unsupported

TITLE = "Paella's token network"
NEEDS_CONFIG = False

_TABLE, _FIRST = "in_mapper.0.weight", "embedding.1.weight"
_HEADS = {1280: 16}  # of the published network
_TRAINED = 64  # tokens on a side, as the published network was trained
_PART = re.compile(r"down_blocks\.(\d+)\.(\d+)\.(.+)")
_KEYS = {  # of the authors' class => ours
    "num_labels": "vocabulary",
    "c_in": "embedding",
    "c_out": "embedding",
    "c_r": "time_features",
    "patch_size": "patch",
    "c_cond": "condition_width",
    "c_hidden": "widths",
    "nhead": "heads",
    "level_config": "kinds",
    "clip_embd": "clip_width",
    "byt5_embd": "text_width",
    "clip_seq_len": "clip_tokens",
    "kernel_size": "kernel",
    "self_attn": "self_attention",
}
_OWN = (*_KEYS.values(), "blocks", "dropout", "size", "classes", "class_tokens")


def knows(names: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Whether these are the names of such a network's tensors."""
    return {_TABLE, _FIRST, "clf.1.weight", "out_mapper.1.weight"} <= names.keys()


def tensors(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Its names are ours."""
    return dict(named)


def remarks(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Nothing."""
    return ()


def recipe(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Described:
    """The authors' training of the network that shapes and settings tell, and our sampling.

    Raises:
        Misfit: they are of no such network, or the configuration says otherwise.
        Unknown: the heads are told nowhere.
        Unsupported: levels that differ in what is one number here.
    """
    told = _settings(config)
    found = _arguments({name: tuple(tensor.shape) for name, tensor in named.items()})
    if _same_blocks(told, found):  # divided otherwise
        found |= {name: told[name] for name in ("kinds", "blocks")}
    for key in sorted(found.keys() & told.keys()):
        if told[key] != found[key]:
            raise Misfit(f"its configuration says {key} {told[key]!r:.100}, and its tensors {found[key]}")
    notes: list[str] = []
    heads = told.get("heads") or _heads(found, notes)
    if len(heads) != len(found["widths"]):
        raise Misfit(
            f"its configuration names heads of {len(heads)} levels, and its tensors are of {len(found['widths'])}"
        )
    heads = [each if "A" in kinds else 0 for each, kinds in zip(heads, found["kinds"], strict=True)]
    size = told.get("size") or _size(found, notes)
    model = {"type": "paella", **found, "heads": heads, "size": size}
    model |= {name: told[name] for name in ("dropout", "self_attention") if name in told}
    values = {
        "model": model,
        "task": {"type": "tokens"},
        "optimizer": {"lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0.01},
        "train": {"grad_clip": 1.0},
    }
    given = config if config and isinstance(config.get("model"), dict) else {}
    if config and not told:
        notes.append("its configuration says nothing of the network: the tensors alone were read")
    return Described({**values, **{key: value for key, value in given.items() if key != "model"}}, tuple(notes))


def _same_blocks(told: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a configuration tells the same blocks by other strings: twice "CTCT" for four times "CT"."""
    parts: list[tuple[Any, Any]] = [(each.get("kinds"), each.get("blocks")) for each in (told, found)]
    if not all(isinstance(kinds, list) and isinstance(blocks, list) for kinds, blocks in parts):
        return False
    ours, theirs = ([kinds * count for kinds, count in zip(*each, strict=False)] for each in parts)
    return ours == theirs and len(parts[0][0]) == len(parts[0][1]) == len(theirs)


def _settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a configuration says, by our names; keys of anything else are passed over."""
    config = dict(config or {})
    model = config.get("model")
    if isinstance(model, dict):  # a recipe of ours
        config = model
    if config.get("type", "paella") != "paella":
        raise Unsupported(f"model type {config['type']!r:.100}, and the tensors are Paella's")
    told = {_KEYS.get(key, key): value for key, value in config.items() if key in _KEYS or key in _OWN}
    for name, usual in (("dropout", 0.1), ("self_attention", True)):  # one for each level, in the authors' class
        if isinstance(values := told.get(name), list):
            if any(value != values[0] for value in values):
                raise Unsupported(f"a {name} for each level, {values!r:.100}")
            told[name] = values[0] if values else usual
    if isinstance(heads := told.get("heads"), list):
        told["heads"] = [max(0, each) for each in heads]  # -1 where a level has none
    elif heads is not None:
        raise Misfit(f"its configuration says heads {heads!r:.100}, which is no list")
    if isinstance(size := told.get("size"), int):
        told["size"] = [size, size]
    if told.get("classes") == "data":
        del told["classes"]
    return told


def _arguments(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What shapes tell of a `[model]` section.

    Raises:
        Misfit: they are of no such network.
    """
    try:
        vocabulary, embedding = shapes[_TABLE]
        levels = _levels(shapes)
        widths = [shapes[level[0] + ".depthwise.weight"][0] for level, _ in levels]
        patch = round((shapes[_FIRST][1] / embedding) ** 0.5)
        parts = [name for level, _ in levels for name in level]
        times = [shapes[f"{name}.mapper.weight"][1] for name in parts if f"{name}.mapper.weight" in shapes]
        conditions = _conditions(shapes, parts)
        kernel = shapes[f"{levels[0][0][0]}.depthwise.weight"][-1]
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise Misfit(f"names or shapes of its tensors are none of Paella's network: {error}") from error
    repeats = [_repeated(kinds) for _, kinds in levels]
    return {
        "vocabulary": vocabulary,
        "embedding": embedding,
        "patch": patch,
        "widths": widths,
        "blocks": [count for _, count in repeats],
        "kinds": [kinds for kinds, _ in repeats],
        "kernel": kernel,
        **({"time_features": times[0]} if times else {}),
        **conditions,
    }


def _levels(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[list[str], str]]:
    """Of each level on the way down the names of its blocks, and their kinds: "CTACTA"."""
    inside: dict[int, dict[int, set[str]]] = {}
    for match in filter(None, map(_PART.fullmatch, shapes)):
        inside.setdefault(int(match[1]), {}).setdefault(int(match[2]), set()).add(match[3])
    if not inside:
        raise ValueError("it has no levels")
    found = []
    for what, numbers in (("level", inside), *(("block", blocks) for blocks in inside.values())):
        if max(numbers) >= len(numbers):
            raise ValueError(f"it names {what} {max(numbers)}, and holds {len(numbers)} of them")
    for level, blocks in sorted(inside.items()):
        kinds = [(f"down_blocks.{level}.{number}", _kind(names)) for number, names in sorted(blocks.items())]
        kinds = [each for each in kinds if each[1]]
        if not kinds or kinds[0][1] != "C":
            raise ValueError(f"level {level} begins with no convolution")
        found.append(([name for name, _ in kinds], "".join(kind for _, kind in kinds)))
    return found


def _kind(names: set[str]) -> str:
    """Of a block by what it holds; "" for what halves the map."""
    for kind, name in (("C", "depthwise.weight"), ("T", "mapper.weight"), ("A", "kv_mapper.1.weight")):
        if name in names:
            return kind
    return "F" if "channelwise.0.weight" in names else ""


def _repeated(kinds: str) -> tuple[str, int]:
    """The shortest string of blocks, and how often it stands there."""
    whole = len(kinds)
    length = next(n for n in range(1, whole + 1) if whole % n == 0 and kinds[:n] * (whole // n) == kinds)
    return kinds[:length], whole // length


def _conditions(shapes: Mapping[str, tuple[int, ...]], parts: list[str]) -> dict[str, Any]:
    """What it is told, and how wide the sequence of that is."""
    texts, clip = shapes.get("byt5_mapper.weight"), shapes.get("clip_mapper.weight")
    table = shapes.get("class_embedding.weight")
    inner = [shapes[f"{name}.kv_mapper.1.weight"][1] for name in parts if f"{name}.kv_mapper.1.weight" in shapes]
    widths = [*inner, *([texts[0]] if texts else [])]
    found: dict[str, Any] = {"text_width": texts[1] if texts else 0, "clip_width": clip[1] if clip else 0}
    if widths:
        found["condition_width"] = widths[0]
        found |= {"clip_tokens": clip[0] // widths[0]} if clip else {}
        found |= {"classes": table[0] - 1, "class_tokens": table[1] // widths[0]} if table else {}
    return found


def _heads(found: Mapping[str, Any], notes: list[str]) -> list[int]:
    widths = {width for width, kinds in zip(found["widths"], found["kinds"], strict=True) if "A" in kinds}
    if strange := sorted(widths - _HEADS.keys()):
        raise Unknown(
            f"does not say how many heads its attention has, and {strange[0]} is no width of the published network"
        )
    if widths:
        notes.append(f"nothing says how many heads it has: {_HEADS[1280]} are taken, as the published network has")
    return [_HEADS.get(width, 0) for width in found["widths"]]


def _size(found: Mapping[str, Any], notes: list[str]) -> list[int]:
    unit = found["patch"] * 2 ** (len(found["widths"]) - 1)
    side = max(unit, _TRAINED // unit * unit) if unit else _TRAINED
    notes.append(
        f"nothing says for how many tokens it was trained: {side} x {side} are taken, as the published network was, and "
        "--size makes others"
    )
    return [side, side]
