"""`--init`: a new run that starts from the weights of another one, with other classes, another size, or more levels.

Levels are matched from the innermost outwards, layers and tensors by name and shape, a layer whole or not at all, class
embeddings by the names of the classes. New layers and levels are the identity at the start.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdit_cli.data.prepare.facts.words import same_label
from hdit_cli.engine.load import find, open_source
from hdit_cli.engine.model import Model, build_network, class_count
from hdit_cli.engine.run import weights as names
from hdit_cli.errors import UsageError
from hdit_cli.models.grow import grow, patches_between
from hdit_cli.models.hdit import HDiT
from hdit_cli.recipe import Recipe

CLASSES = "class_emb.weight"
PATCHES = ("patch_in.proj.weight", "patch_out.proj.weight", "out_norm.scale")
FOUND, FITTED, NEW, LEFT = "loaded", "fitted", "new", "left"


@dataclass(frozen=True)
class Source:
    """The model that a run starts from."""

    model: Model
    path: str
    sha256: str

    def facts(self) -> dict[str, Any]:
        """What is remembered of it: path, SHA-256, weights, step."""
        path = os.fsencode(self.path).decode("utf-8", "backslashreplace")  # it goes into headers, which are UTF-8
        return {"path": path, "sha256": self.sha256, "weights": self.model.weights, "step": self.model.step}


@dataclass(frozen=True)
class Match:
    """Where each part of the new network comes from.

    Attributes:
        copies: name in the new network => name in the old one.
        outside: levels that the new network has around the old one; negative where it lacks as many.
        fitted: names that are computed from the old ones.
        rows: for each class of the new network, its row in the old one; None where it is new.
        table: part => kind (loaded, fitted, new, left) => (tensors, numbers).
        notes: in words.
    """

    copies: dict[str, str]
    outside: int
    fitted: frozenset[str]
    rows: tuple[int | None, ...]
    table: dict[str, dict[str, tuple[int, int]]]
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The table as text; each cell is the number of tensors and of numbers in them."""
        kinds = (FOUND, FITTED, NEW, LEFT)
        head = f"  {'part':<12}" + "".join(f"{kind:>18}" for kind in kinds)
        rows = []
        for part, cells in self.table.items():
            texts = [f"{cells[kind][0]} / {cells[kind][1]:,}" if kind in cells else "-" for kind in kinds]
            rows.append(f"  {part:<12}" + "".join(f"{text:>18}" for text in texts))
        return [head, *rows, *(f"  {note}" for note in self.notes)]


def read_source(path: Path) -> Source:
    """Loads what `--init` names: a file, or a run folder's newest EMA weights.

    Raises:
        CheckpointError: not a checkpoint, or damaged.
    """
    source = find(path, weights="ema")
    _, header = source.read()
    model = open_source(source, weights=names.parse(header.get("hdit.weights", "ema")), device="cpu")
    return Source(model, str(path), source.sha256())


# Matching


def part_of(name: str, *, levels: int) -> str:
    """The row of the table that a tensor stands in."""
    head, _, rest = name.partition(".")
    if head == "class_emb":
        return "classes"
    if name in PATCHES:
        return "patches"
    if head == "mid_level":
        return f"level {levels - 1}"
    if head in ("down_levels", "up_levels", "merges", "splits"):
        return f"level {rest.partition('.')[0]}"
    return "conditions"


def old_name(name: str, *, outside: int) -> str:
    """The name that a tensor of the new network has in the old one, which has `outside` levels less."""
    head, *rest = name.split(".")
    if head in ("down_levels", "up_levels", "merges", "splits"):
        return ".".join([head, str(int(rest[0]) - outside), *rest[1:]])
    return name


def unit_of(name: str) -> str:
    """What is loaded together or not at all: a layer, a split, the patches; else the tensor alone."""
    head, *rest = name.split(".")
    sizes = {"down_levels": 2, "up_levels": 2, "mid_level": 1, "splits": 1}
    if name in PATCHES:
        return "patches"
    if name.startswith("mapping.blocks."):
        return ".".join([head, *rest[:2]])
    return ".".join([head, *rest[: sizes[head]]]) if head in sizes else name


def match(source: Source, recipe: Recipe, *, classes: Sequence[str]) -> Match:
    """Finds for each tensor of a recipe's network where it comes from; nothing is allocated.

    Args:
        classes: of the new network, in the order of their labels.

    Raises:
        UsageError: the conditions or the innermost level do not fit, so that nothing useful could be loaded.
    """
    model = source.model
    check_conditions(source, recipe)
    with torch.device("meta"):
        network = build_network(recipe, classes=class_count(recipe, classes=classes))
    new, old = network.state_dict(), model.network.state_dict()
    outside = len(recipe.model.levels) - len(model.recipe["model"]["levels"])
    names = {name: old_name(name, outside=outside) for name in new if name != CLASSES}
    misfits = {
        unit_of(name) for name, other in names.items() if other not in old or old[other].shape != new[name].shape
    }
    if outside or list(network.patch) != list(model.network.patch):
        misfits.add("patches")  # the same shape may lie over other pixels, or other tokens
    copies = {name: other for name, other in names.items() if unit_of(name) not in misfits}
    if not any(name.startswith("mid_level.") for name in copies):
        ours, theirs = recipe.model.levels[-1], model.recipe["model"]["levels"][-1]
        different = [f"{key} {theirs[key]} there, {getattr(ours, key)} here" for key in ("width", "d_ff", "head_dim")]
        raise UsageError(
            f"the innermost level of {source.path} does not fit the recipe: {'; '.join(different)}",
            hint="take over these of its recipe (`hdit info` shows them), or train without --init",
        )
    fitted = frozenset(_fitted(network, model.network, copies, outside=outside))
    rows = class_rows(source, classes if network.classes else [])
    notes = _notes(source, network, classes=classes, rows=rows)
    table = _table(network, model.network, copies, fitted=fitted, rows=rows)
    return Match(copies, outside, fitted, rows, table, notes)


def check_conditions(source: Source, recipe: Recipe) -> None:
    """Raises UsageError unless the mapping network of the old model fits: all norms hang on it."""
    theirs = source.model.recipe["model"]
    for key in ("mapping_width", "mapping_d_ff", "mapping_depth"):
        ours = getattr(recipe.model, key)
        if (ours < theirs[key]) if key == "mapping_depth" else (ours != theirs[key]):
            raise UsageError(
                f"{source.path} does not fit the recipe: model.{key} is {theirs[key]} there, {ours} here",
                hint=f"--set model.{key}={theirs[key]}, or train without --init",
            )


def class_rows(source: Source, classes: Sequence[str]) -> tuple[int | None, ...]:
    """For each class its row in the source, by name; None where it has no such class."""
    names = class_names(source.model)
    known = (same_label(name, names) for name in classes)
    return tuple(None if name is None else names.index(name) for name in known)


def class_names(model: Model) -> list[str]:
    """Names of a model's classes; numbers where it has none."""
    return model.classes or [str(i) for i in range(model.network.classes)]


def _fitted(network: HDiT, old: HDiT, copies: dict[str, str], *, outside: int) -> list[str]:
    """Names that `grow` and the classes compute from the old network."""
    names = [CLASSES] if network.classes else []
    state = network.state_dict()
    join = state.get(f"merges.{outside - 1}.proj.weight") if outside > 0 else state[PATCHES[0]]
    same = join is not None and join.shape[0] == old.out_norm.scale.shape[0]
    channels = network.patch_out.proj.weight.shape[0] * old.patch[0] * old.patch[1]
    same &= channels == old.patch_out.proj.weight.shape[0] * network.patch[0] * network.patch[1]
    if PATCHES[0] in copies or outside < 0 or not same:
        return names
    if patches_between(old.patch, network.patch, levels=outside) is None:
        return names
    joints = [f"merges.{i}.proj.weight" for i in range(outside)]
    joints += [f"splits.{i}.{name}" for i in range(outside) for name in ("proj.weight", "fac")]
    return [*names, *PATCHES, *joints]


def _table(
    network: HDiT, old: HDiT, copies: dict[str, str], *, fitted: frozenset[str], rows: tuple[int | None, ...]
) -> dict[str, dict[str, tuple[int, int]]]:
    counts: Counter[tuple[str, str, str]] = Counter()  # (part, kind, "tensors" or "numbers")

    def add(name: str, tensor: Tensor, kind: str, *, levels: int) -> None:
        part = part_of(name, levels=levels)
        counts[part, kind, "tensors"] += 1
        counts[part, kind, "numbers"] += tensor.numel()

    levels, old_levels = len(network.merges) + 1, len(old.merges) + 1
    for name, tensor in network.state_dict().items():
        kind = FOUND if name in copies else FITTED if name in fitted else NEW
        if name != CLASSES:
            add(name, tensor, kind, levels=levels)
    used = {*copies.values(), CLASSES, *(PATCHES if PATCHES[0] in fitted else ())}
    shift = levels - old_levels
    for name, tensor in old.state_dict().items():
        if name not in used:
            add(old_name(name, outside=-shift), tensor, LEFT, levels=levels)
    _count_classes(counts, network, old, rows)
    parts = ["conditions", "classes", "patches", *(f"level {i}" for i in range(min(0, shift), levels))]
    kinds = (FOUND, FITTED, NEW, LEFT)
    return {
        part: {
            kind: (counts[part, kind, "tensors"], counts[part, kind, "numbers"])
            for kind in kinds
            if counts[part, kind, "tensors"]
        }
        for part in parts
        if any(counts[part, kind, "tensors"] for kind in kinds)
    }


def _count_classes(
    counts: "Counter[tuple[str, str, str]]", network: HDiT, old: HDiT, rows: tuple[int | None, ...]
) -> None:
    """Rows of the embedding count as tensors of their own."""
    known = sum(row is not None for row in rows)
    had = old.classes + 1 if old.classes else 0
    kept = known + (1 if network.classes and old.classes else 0)
    made = network.classes + 1 - kept if network.classes else 0
    for kind, number in ((FOUND, kept), (FITTED, made), (LEFT, had - kept)):
        counts["classes", kind, "tensors"] += number
        counts["classes", kind, "numbers"] += number * network.time_in_proj.weight.shape[0]


def _notes(source: Source, network: HDiT, *, classes: Sequence[str], rows: tuple[int | None, ...]) -> list[str]:
    names = class_names(source.model) if source.model.network.classes else []
    if network.classes and not names:
        return ["classes start at zero: the model without classes, for every class"]
    if not network.classes:
        return ['without classes it starts as the old "no class"'] if names else []
    old = [name for name, row in zip(classes, rows, strict=False) if row is not None]
    new = [name for name, row in zip(classes, rows, strict=False) if row is None]
    gone = [name for name in names if name not in old]
    start = '"no class"' if _knows_no_class(source.model) else "the mean of the old classes"
    told = [
        f"classes kept: {_few(old)}" if old else "",
        f"classes new, starting as {start}: {_few(new)}" if new else "",
        f"classes left: {_few(gone)}" if gone else "",
    ]
    return [line for line in told if line]


def _few(names: Sequence[str], *, most: int = 8) -> str:
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Loading


@torch.no_grad()
def apply(model: Model, source: Source, found: Match) -> None:
    """Fills a new model as `match` found; what is neither loaded nor fitted stays as it is."""
    network, old = model.network, source.model.network.float()
    new, values = network.state_dict(), old.state_dict()
    for name, other in found.copies.items():
        new[name].copy_(values[other])
    if PATCHES[0] in found.fitted:
        grow(network, old, levels=found.outside)
    if network.classes:
        new[CLASSES].copy_(class_table(source.model, found.rows, like=new[CLASSES]))
    elif old.classes:
        fold_constant(network, neutral_row(source.model))


def class_table(model: Model, rows: Sequence[int | None], *, like: Tensor) -> Tensor:
    """Embeddings of the new classes and of "no class"; zeros, which change nothing, after a model without classes."""
    if not model.network.classes:
        return torch.zeros_like(like)
    table = model.network.class_emb.weight
    neutral = neutral_row(model)
    return torch.stack([*(neutral if row is None else table[row] for row in rows), neutral])


def neutral_row(model: Model) -> Tensor:
    """What stands for a class that is not known: "no class" where labels were dropped in training, else the mean of all."""
    table = model.network.class_emb.weight
    return table[-1] if _knows_no_class(model) else table[:-1].mean(dim=0)


def _knows_no_class(model: Model) -> bool:
    return model.recipe["diffusion"]["class_dropout"] > 0


def fold_constant(network: HDiT, vector: Tensor) -> None:
    """Adds a constant to the sum of the conditions: through the cosines of no augmentation, which are all 1."""
    weight = network.aug_in_proj.weight
    half = weight.shape[1] // 2
    weight[:, :half] += vector[:, None] / half
