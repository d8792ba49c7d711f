"""The model card as a file: a README.md beside an export, as model hubs read it (front matter of Hugging Face's cards).

Exports that lie in one folder share one card. It is made of parts, each behind a mark in a comment: the head of each model,
a part for each of its files, what is true of all of them. A new export renews its own parts and leaves the others as they
are; parts of files that are gone go too.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from hdit_cli import catalog, files
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.folder import run_of
from hdit_cli.engine.sharing.card import (
    GENERATES,
    RECONSTRUCTS,
    about,
    best_known,
    index_entry,
    key_of,
    more,
    of_file,
    read_scores,
)
from hdit_cli.engine.sharing.export import Exported
from hdit_cli.engine.sharing.markdown import scalar
from hdit_cli.recipe.network import sections

_MARK = re.compile(r"^<!-- hdit card: (about|file|more) ([0-9a-f]{12})(?: (\S+))? -->\n", re.MULTILINE)
_ENTRY = re.compile(r"^# hdit ([0-9a-f]{12})\n((?:(?!---$)[- ].*\n)+)", re.MULTILINE)
_TAGS = ("image-generation", "diffusion")


@dataclass(frozen=True)
class Part:
    """A part of a card: of a model, by its key, or of one of its files."""

    kind: str
    key: str
    file: str
    text: str

    def written(self) -> str:
        """With its mark before it."""
        file = f" {quote(os.fsencode(self.file))}" if self.file else ""
        return f"<!-- hdit card: {self.kind} {self.key}{file} -->\n{self.text.strip()}\n"


def parts_of(card: str) -> list[Part]:
    """The parts of a card, in their order; none where it is no card of ours."""
    marks = list(_MARK.finditer(card))
    ends = [*(mark.start() for mark in marks[1:]), len(card)] if marks else []
    return [
        Part(m[1], m[2], unquote(m[3] or "", errors="surrogateescape"), card[m.end() : end])
        for m, end in zip(marks, ends, strict=True)
    ]


def place_for(path: Path) -> Path:
    """README.md beside an export, unless that is somebody's own: then `<name>.md`."""
    names = ("README.md", f"{path.stem}.md", f"{path.stem}-model-card.md")
    for place in map(path.with_name, names[:-1]):
        if not place.exists() or parts_of(_text(place)):
            return place
    return path.with_name(names[-1])


def _text(place: Path) -> str:
    return place.read_text(encoding="utf-8", errors="replace") if place.is_file() else ""


def write_card(
    model: Model, done: Exported, *, checkpoint: Path, licence: str, picture: bytes | None
) -> tuple[Path, Path | None]:
    """Writes the card and its grid beside an exported file, or adds the file to the card that is there.

    Args:
        checkpoint: what was exported; a run it lies in gives the scores.
        licence: identifier of a licence, for the front matter.
        picture: PNG bytes of a grid, or None.

    Returns:
        paths of the card and of the grid.
    """
    path = place_for(done.path)
    grid_path = None if picture is None else done.path.with_name(f"{done.path.stem}-grid.png")
    if grid_path is not None and picture is not None:
        files.write_bytes(grid_path, picture)
    before, key, scored = _text(path), key_of(model), read_scores(run_of(checkpoint))
    mine = [
        Part("about", key, "", about(model, grid_name=grid_path.name if grid_path else None)),
        Part("file", key, done.path.name, of_file(model, done)),
        Part("more", key, "", more(model, scored=scored)),
    ]
    parts = _merged(parts_of(before), mine, folder=path.parent)
    keys = list(dict.fromkeys(part.key for part in parts))
    entries = {**dict(_ENTRY.findall(before)), key: index_entry(model, scores=best_known(scored, model))}
    tags = _tags(model, before=before if len(keys) > 1 else "")
    does = RECONSTRUCTS if model.reconstructs and len(keys) == 1 else GENERATES
    front = _front_matter(licence, {each: entries[each] for each in keys if entries.get(each)}, tags=tags, does=does)
    files.write_text(path, "\n".join([front, *(part.written() for part in parts)]))
    return path, grid_path


def _merged(old: list[Part], new: list[Part], *, folder: Path) -> list[Part]:
    """The parts of a card after an export, those of each model together: its head, its files, the rest."""
    replaced = {(part.kind, part.file) for part in new if part.file}
    kept = [
        part
        for part in old
        if part.kind != "file" or ((part.kind, part.file) not in replaced and (folder / part.file).is_file())
    ]
    own = new[0].key
    found: list[Part] = []
    for key in dict.fromkeys([*(part.key for part in kept if part.kind == "file"), own]):
        of = [part for part in kept if part.key == key and (part.kind == "file" or key != own)]
        of += new if key == own else []
        found += [part for kind in ("about", "file", "more") for part in of if part.kind == kind]
    return found


def _tags(model: Model, *, before: str) -> list[str]:
    """Words that a card is found by: its networks, as the other models of the card before have theirs there, and their papers."""
    head = before.split("\n---\n")[0].splitlines()
    found: list[str] = [*_TAGS]
    for name in sections():
        network = catalog.network(name)
        kind = network.title.lower().replace(" ", "-")
        if isinstance(model.network, network) or f"- {scalar(kind)}" in head:
            found += [kind, f"arxiv:{network.paper}"]
    return found


def _front_matter(licence: str, entries: dict[str, str], *, tags: list[str], does: str) -> str:
    """YAML between lines of dashes: licence, library, tags, and the scores of each model as a model-index."""
    lines = [
        "---",
        f"license: {scalar(licence)}",
        "library_name: hdit-cli",
        f"pipeline_tag: {does}",
        "tags:",
        *(f"- {scalar(tag)}" for tag in tags),
    ]
    lines += ["model-index:"] if entries else []
    lines += [line for key, entry in entries.items() for line in (f"# hdit {key}", entry.strip("\n"))]
    return "\n".join([*lines, "---", ""])
