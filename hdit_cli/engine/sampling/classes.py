"""Classes as people name them: by name, by number, several with commas. Labels are their numbers."""

from collections.abc import Sequence

from hdit_cli.data.prepare.facts.words import label_text, same_label
from hdit_cli.engine.model import Model
from hdit_cli.errors import UsageError
from hdit_cli.recipe.section import nearest

Wanted = str | Sequence[str] | None  # a class, classes, "all", or None for the proportions of the data

_SHOWN = 20  # classes that a message lists


def class_name(model: Model, label: int) -> str:
    """Name of a label; its number where the model has no names; "no class" for the last one."""
    if label < len(model.classes):
        return model.classes[label]
    return "no class" if label == model.network.classes else str(label)


def class_index(model: Model, wanted: str) -> int:
    """Label of one class given by name, in whatever way it is written, or by number.

    Raises:
        UsageError: no such class; the nearest ones are named.
    """
    found = _named(model, wanted)
    number = label_text(wanted)
    if found is None and number.isascii() and number.isdigit() and len(number) < 10:
        found = int(number) if int(number) < model.network.classes else None
    if found is not None:
        return found
    if not model.network.classes:
        raise UsageError("this model has no classes", hint="leave --class out")
    known = ", ".join(model.classes[:_SHOWN]) or f"0 ... {model.network.classes - 1}"
    more = f", … ({len(model.classes)} in all)" if len(model.classes) > _SHOWN else ""
    near = _near(model.classes, wanted)
    guess = f"did you mean {near!r}? " if near else ""
    raise UsageError(f"unknown class {wanted[:100]!r}", hint=f"{guess}one of: {known}{more}; or a number; or all")


def classes_shown(model: Model) -> list[int]:
    """Labels of the classes that the model has seen a picture of; of all where it is not known how many it saw."""
    counts = model.data.get("class_counts") or []
    seen = [label for label, count in enumerate(counts) if count]
    return seen if seen and len(counts) == model.network.classes else list(range(model.network.classes))


def class_indices(model: Model, wanted: str | Sequence[str]) -> list[int]:
    """Labels of the classes asked for, in that order, `"all"` as `classes_shown` has them.

    A text that is the name of a class is that class. Any other is a list with commas, in which the longest pieces that
    are names count: names may hold commas themselves.

    Raises:
        UsageError: no such class, none at all, or "all" beside others.
    """
    texts = [wanted] if isinstance(wanted, str) else list(wanted)
    if "all" in texts and model.network.classes:
        if len(texts) > 1:
            raise UsageError("--class all is every class", hint="leave the other classes out, or all")
        return classes_shown(model)
    return [label for text in texts for label in _listed(model, text)]


def label_name(model: Model, wanted: Wanted) -> str | list[str] | None:
    """What was asked for, classes by their names where they were given by number: None, "all", a name, or several."""
    if wanted is None:
        return None
    if wanted == "all" and model.network.classes:
        return "all"
    names = [class_name(model, label) for label in class_indices(model, wanted)]
    return names[0] if len(names) == 1 else names


def _named(model: Model, text: str) -> int | None:
    """The class of that name, in whatever way it is written; None where there is none."""
    name = same_label(text, model.classes)
    return None if name is None else model.classes.index(name)


def _listed(model: Model, text: str) -> list[int]:
    """The classes of one text; see `class_indices`."""
    pieces = text.split(",")
    if len(pieces) == 1 or _named(model, text) is not None:
        return [class_index(model, text)]
    longest = 1 + max((name.count(",") for name in model.classes), default=0)
    labels: list[int] = []
    start = 0
    while start < len(pieces):
        ends = range(min(len(pieces), start + longest), start + 1, -1)
        joined = ((end, _named(model, ",".join(pieces[start:end]).strip())) for end in ends)
        end, label = next((found for found in joined if found[1] is not None), (start + 1, None))
        piece = pieces[start].strip()
        if label is not None or piece:
            labels.append(class_index(model, piece) if label is None else label)
        start = end
    return labels or [class_index(model, text)]


def _near(names: Sequence[str], text: str) -> str | None:
    """The name that was most likely meant: the only one with this text in it, else the one spelt most like it."""
    inside = [name for name in names if text.strip() and text.strip().lower() in name.lower()]
    return inside[0] if len(inside) == 1 else nearest(text, names)
