"""`--init`: a new run that starts from the weights of another one, with other classes, of another size or depth.

Tensors are matched by name and shape, a layer whole or not at all, class embeddings by the names of the classes. Which names
belong together, what is computed from old ones, and what is the identity at the start, the network's own `Growth` tells.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdit_cli import catalog, files
from hdit_cli.data.prepare.facts.words import same_label
from hdit_cli.engine.load import find, open_source
from hdit_cli.engine.model import Model, build_network, class_count
from hdit_cli.engine.run import weights as names
from hdit_cli.errors import UsageError
from hdit_cli.models.conditions.classes import Classes
from hdit_cli.models.growth import CLASSES, Growth
from hdit_cli.recipe import Recipe

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
        growth: what the network tells of it.
        copies: name in the new network => name in the old one.
        fitted: names that are computed => names in the old network that they are computed from.
        rows: for each class of the new network, its row in the old one; None where it is new.
        table: part => kind (loaded, fitted, new, left) => (tensors, numbers).
        notes: in words.
    """

    growth: Growth
    copies: dict[str, str]
    fitted: dict[str, tuple[str, ...]]
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


def match(source: Source, recipe: Recipe, *, classes: Sequence[str]) -> Match:
    """Finds for each tensor of a recipe's network where it comes from; nothing is allocated.

    Args:
        classes: of the new network, in the order of their labels.

    Raises:
        UsageError: another kind of network, or what the rest hangs on does not fit, so that nothing useful could be loaded.
    """
    model = source.model
    growth_of = _growth_of(source, recipe)
    with torch.device("meta"):
        network = build_network(recipe, classes=class_count(recipe, classes=classes))
    growth = growth_of(network, model.network, ours=recipe.to_dict()["model"], theirs=model.recipe["model"])
    new, old = network.state_dict(), model.network.state_dict()
    rows_of = _table_of(network)
    names = {name: growth.old_name(name) for name in new if name != rows_of}
    misfits = growth.apart() | {
        growth.unit(name) for name, other in names.items() if other not in old or old[other].shape != new[name].shape
    }
    copies = {name: other for name, other in names.items() if growth.unit(name) not in misfits}
    if (misfit := growth.misfit(copies)) is not None:
        part = f"{misfit.part} of " if misfit.part else ""
        raise UsageError(
            f"{part}{source.path} does not fit the recipe: {misfit.why}", hint=f"{misfit.hint}, or train without --init"
        )
    fitted = growth.fitted(copies)
    rows = class_rows(source, classes if network.classes else [])
    notes = [
        *growth.notes(),
        *_task_notes(source, recipe),
        *_codec_notes(source, recipe),
        *_class_notes(source, network, growth, classes=classes, rows=rows),
    ]
    table = _table(network, model.network, growth, copies=copies, fitted=fitted, rows=rows)
    return Match(growth, copies, fitted, rows, table, notes)


def _growth_of(source: Source, recipe: Recipe) -> type[Growth]:
    """How networks of the recipe's type grow; raises UsageError where the source is of another type, or none can."""
    ours, theirs = recipe.model.type, source.model.recipe["model"]["type"]
    if ours != theirs:
        raise UsageError(
            f"{source.path} does not fit the recipe: model.type is {theirs} there, {ours} here",
            hint=f"choose a recipe of type {theirs}, or train without --init",
        )
    if ours not in catalog.CATALOG["growth"]:
        raise UsageError(f"a network of type {ours} cannot start from another one", hint="train without --init")
    return catalog.get("growth", ours)


def _table_of(network: Any) -> str | None:
    """Name of the parameter whose rows are the embeddings of classes; None for a network without."""
    kind = network.wants().get("label")
    return kind.table if isinstance(kind, Classes) else None


def class_rows(source: Source, classes: Sequence[str]) -> tuple[int | None, ...]:
    """For each class its row in the source, by name; None where it has no such class."""
    names = class_names(source.model)
    known = (same_label(name, names) for name in classes)
    return tuple(None if name is None else names.index(name) for name in known)


def class_names(model: Model) -> list[str]:
    """Names of a model's classes; numbers where it has none."""
    return model.classes or [str(i) for i in range(model.network.classes)]


def _table(
    network: Any,
    old: Any,
    growth: Growth,
    *,
    copies: dict[str, str],
    fitted: dict[str, tuple[str, ...]],
    rows: tuple[int | None, ...],
) -> dict[str, dict[str, tuple[int, int]]]:
    counts: Counter[tuple[str, str, str]] = Counter()  # (part, kind, "tensors" or "numbers")

    def add(name: str, tensor: Tensor, kind: str) -> None:
        part = growth.part(name)
        counts[part, kind, "tensors"] += 1
        counts[part, kind, "numbers"] += tensor.numel()

    for name, tensor in network.state_dict().items():
        kind = FOUND if name in copies else FITTED if name in fitted else NEW
        if name != _table_of(network):
            add(name, tensor, kind)
    used = {*copies.values(), *(name for names in fitted.values() for name in names), _table_of(old)}
    for name, tensor in old.state_dict().items():
        if name not in used:
            add(growth.new_name(name), tensor, LEFT)
    _count_classes(counts, network, old, rows)
    kinds = (FOUND, FITTED, NEW, LEFT)
    return {
        part: {
            kind: (counts[part, kind, "tensors"], counts[part, kind, "numbers"])
            for kind in kinds
            if counts[part, kind, "tensors"]
        }
        for part in growth.parts
        if any(counts[part, kind, "tensors"] for kind in kinds)
    }


def _count_classes(
    counts: "Counter[tuple[str, str, str]]", network: Any, old: Any, rows: tuple[int | None, ...]
) -> None:
    """Rows of the embedding count as tensors of their own."""
    tables = [each.state_dict()[name] for each in (network, old) if (name := _table_of(each)) is not None]
    known = sum(row is not None for row in rows)
    had = old.classes + 1 if old.classes else 0
    kept = known + (1 if network.classes and old.classes else 0)
    made = network.classes + 1 - kept if network.classes else 0
    for kind, number in ((FOUND, kept), (FITTED, made), (LEFT, had - kept)):
        counts[CLASSES, kind, "tensors"] += number
        counts[CLASSES, kind, "numbers"] += number * tables[0].shape[1] if tables else 0


def _task_notes(source: Source, recipe: Recipe) -> list[str]:
    ours, theirs = recipe.task.type, source.model.recipe["task"]["type"]
    if ours == theirs:
        return []
    return [f"it learnt the task {theirs}, and starts here with {ours}, which asks the network for another answer"]


def _codec_notes(source: Source, recipe: Recipe) -> list[str]:
    """What is to be known where the weights learnt another thing than they will see: other latents, or pixels."""
    ours = files.sha256(Path(recipe.codec.path)) if recipe.codec.path else ""
    theirs = source.model.codec.fingerprint()
    if ours == theirs:
        return []
    if not theirs and source.model.channels != 3:
        return ["which codec's latents it learnt is not known"]
    before, now = (f"the latents of the codec {sha256[:8]}" if sha256 else "pixels" for sha256 in (theirs, ours))
    return [f"it learnt {before}, and starts here with {now}"]


def _class_notes(
    source: Source, network: Any, growth: Growth, *, classes: Sequence[str], rows: tuple[int | None, ...]
) -> list[str]:
    names = class_names(source.model) if source.model.network.classes else []
    if network.classes and not names:
        if growth.adds_classes:
            return ["classes start at zero: the model without classes, for every class"]
        return ["classes start at zero, as a token that the model without classes never saw"]
    if not network.classes:
        start = 'old "no class"' if growth.adds_classes else "old one, which lacks the token of the class"
        return [f"without classes it starts as the {start}"] if names else []
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
    found.growth.fit(network, old, fitted=found.fitted)
    if (rows_of := _table_of(network)) is not None:
        new[rows_of].copy_(class_table(source.model, found.rows, like=new[rows_of]))
    elif old.classes and found.growth.adds_classes:
        found.growth.fold(network, neutral_row(source.model))


def class_table(model: Model, rows: Sequence[int | None], *, like: Tensor) -> Tensor:
    """Embeddings of the new classes and of "no class"; zeros, which change nothing, after a model without classes."""
    if not model.network.classes:
        return torch.zeros_like(like)
    table, neutral = _old_rows(model), neutral_row(model)
    return torch.stack([*(neutral if row is None else table[row] for row in rows), neutral])


def neutral_row(model: Model) -> Tensor:
    """What stands for a class that is not known: "no class" where labels were dropped in training, else the mean of all."""
    table = _old_rows(model)
    return table[-1] if _knows_no_class(model) else table[:-1].mean(dim=0)


def _old_rows(model: Model) -> Tensor:
    name = _table_of(model.network)
    assert name is not None, "the caller has asked"
    return model.network.get_parameter(name)


def _knows_no_class(model: Model) -> bool:
    return model.recipe["diffusion"]["class_dropout"] > 0
