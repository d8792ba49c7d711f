"""Which members of a tar belong together, and what class and caption each picture has.

What a sample is, webdataset's own functions say: members that follow each other and whose names are equal up to the first
dot. Of that library only two functions on names are called: nothing of it opens, decodes or runs anything here. One thing
is added: a tar in which no name comes twice is a folder that was packed, so there the members may lie anywhere.

A picture's class is the text of its sample's `.cls`, else what its `.json` says, else the first folder of its name. In a
sample of several pictures `a.b.jpg` goes with `a.b.cls`. Where a class could be one or another the picture has none.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from hdit_cli.data.prepare.facts.facts import BAD_CAPTION, BAD_JSON, BAD_LABEL, JSON_BYTES, Facts, facts_in, label_name
from hdit_cli.data.prepare.facts.paths import first_folder, is_side_name
from hdit_cli.data.prepare.facts.words import decoded
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.prepare.sources.places import Place, read_small
from hdit_cli.data.prepare.sources.refused import Refused
from hdit_cli.data.prepare.sources.zips import wrapper

SPLIT_SAMPLE = "split-sample"  # the rest of its sample lies elsewhere, or was cut off

_LABEL_BYTES = 1 << 16
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset takes for its own notes


@dataclass(slots=True)
class Member:
    """A file in a tar.

    Args:
        name: in the tar.
        entry: without class and caption yet.
        field: what stands between the first dot of its name and the last: "b" of a.b.jpg.
        suffix: what stands behind the last dot.
    """

    name: str
    entry: Entry
    field: str = ""
    suffix: str = ""


def give_labels(members: list[Member], *, classes: list[str] | None, name: str, is_cut: bool) -> None:
    """Gives the entries of one tar their verdicts at sight, classes and captions.

    Args:
        members: all files of the tar, in its order.
        classes: what the indices in `.cls` mean; None = the text itself is the name.
        name: of the source where the tar is one: a folder around everything that is called so is no class. Else "".
        is_cut: the tar is damaged, so that members of any sample may be missing.
    """
    around = wrapper([_plain(member.name) for member in members], name) if name else ""
    samples = list(_samples(members, is_cut=is_cut))
    by_key: defaultdict[str, list[list[Member]]] = defaultdict(list)
    for key, sample in samples:
        by_key[key].append(sample)
    anywhere = {member.suffix for member in members} if is_cut else set()
    last = max((number for number, (key, _) in enumerate(samples) if key), default=None) if is_cut else None
    for number, (key, sample) in enumerate(samples):
        elsewhere = itertools.chain.from_iterable(by_key[key]) if key and len(by_key[key]) > 1 else ()
        kinds = anywhere | {member.suffix for member in elsewhere}
        at_cut = number == last
        lost = kinds if at_cut else kinds - {member.suffix for member in sample}
        _Sample(sample, classes, lost=lost, at_cut=at_cut).label(around)


def _samples(members: list[Member], *, is_cut: bool) -> Iterator[tuple[str, list[Member]]]:
    """Yields (key, members); files that are in no sample come one by one, with a key that no sample has."""
    from webdataset.tariterators import base_plus_ext, group_by_keys

    number = itertools.count()
    alone: list[Member] = []

    def files() -> Iterator[dict[str, object]]:
        for member in members:
            _, suffixes = base_plus_ext(member.name)
            is_meta = _META.match(member.name) is not None
            _at_sight(member, is_meta=is_meta)
            if suffixes is None or is_meta:
                alone.append(member)
                continue
            member.field, _, member.suffix = suffixes.lower().rpartition(".")
            yield {"fname": member.name, "data": member, "__url__": ""}

    def keys(name: str) -> tuple[str, str]:
        return str(base_plus_ext(name)[0]), f"\0{next(number)}"  # so that no two members are one field

    runs = [
        (found["__key__"], [value for value in found.values() if isinstance(value, Member)])
        for found in group_by_keys(files(), keys=keys)
    ]
    yield from runs if is_cut or _has_twins(members) else _joined(runs)  # of a cut tar the twin may be what is lost
    yield from (("", [member]) for member in alone)


def _has_twins(members: list[Member]) -> bool:
    return len({member.name for member in members}) < len(members)


def _joined(runs: list[tuple[str, list[Member]]]) -> Iterator[tuple[str, list[Member]]]:
    by_key: dict[str, list[Member]] = {}
    for key, members in runs:
        by_key.setdefault(key, []).extend(members)
    yield from by_key.items()


def _at_sight(member: Member, *, is_meta: bool) -> None:
    lower = member.name.lower()
    if is_meta:
        member.entry.code = "side-file"
    elif lower.endswith(".cls") and not lower.endswith("/.cls") and lower != ".cls":
        member.entry.code = "label"
    elif is_side_name(member.name):
        member.entry.code = "caption" if lower.endswith(".txt") else "side-file"


class _Sample:
    """Members that belong together.

    Args:
        lost: the suffixes that members of it elsewhere have, or may have had.
        at_cut: the tar was cut off behind it. What it tells may be of a next sample of the same name, whose picture is lost.
    """

    def __init__(
        self, members: list[Member], classes: list[str] | None, *, lost: set[str], at_cut: bool = False
    ) -> None:
        self._members = members
        self._lost = lost
        count = Counter((member.field, member.suffix) for member in members)
        self._twins = {field for (field, _), times in count.items() if times > 1}  # webdataset refuses such samples
        self._fields = {member.field for member in members if not member.entry.code}  # of the pictures
        telling = [] if at_cut else members
        self._labels = [(member, _label(member.entry.place, classes)) for member in telling if member.suffix == "cls"]
        jsons = [member for member in telling if member.suffix == "json"] if classes is None else []
        self._jsons = [(member, _described(member.entry.place)) for member in jsons]
        self._texts = [(member, Facts()) for member in telling if member.suffix == "txt"]

    def label(self, around: str) -> None:
        for member in self._members:
            notes: set[str] = set()
            member.entry.group = self._group(member, notes, first_folder(_plain(member.name).removeprefix(around)))
            if not member.entry.code:
                self._caption(member, notes)
                member.entry.notes = tuple(sorted(notes))

    def _group(self, member: Member, notes: set[str], folder: str | None) -> str | None:
        in_doubt = False
        for told in (self._labels, self._jsons):
            own, of_another = self._pertaining(told, member)
            names = {facts.label for _, facts in own} - {None}
            bad = {note for _, facts in own for note in facts.notes} & {BAD_LABEL, BAD_JSON}
            notes |= bad
            if len(names) > 1 or (bad and told is self._labels):
                notes.add(BAD_LABEL)
                return None
            if names:
                return next(iter(names))
            in_doubt = in_doubt or any(facts.label for _, facts in of_another)
        if in_doubt:
            notes.add(BAD_LABEL)
            return None
        if self._lost & {"cls", "json"}:
            notes.add(SPLIT_SAMPLE)
            return None
        return folder

    def _caption(self, member: Member, notes: set[str]) -> None:
        texts, others = self._pertaining(self._texts, member)
        described, of_another = self._pertaining(self._jsons, member)
        said = {facts.caption for _, facts in described} - {None}
        in_doubt = others or any(facts.caption for _, facts in of_another)
        if len(texts) > 1 or (not texts and (in_doubt or len(said) > 1)):
            notes.add(BAD_CAPTION)
        elif texts:
            member.entry.caption = texts[0][0].entry.place
        elif said:
            member.entry.text = next(iter(said))
            notes.update(note for _, facts in described for note in facts.notes if note == BAD_CAPTION)
        elif "txt" in self._lost:
            notes.add(SPLIT_SAMPLE)

    def _pertaining(
        self, told: list[tuple[Member, Facts]], member: Member
    ) -> tuple[list[tuple[Member, Facts]], list[tuple[Member, Facts]]]:
        """What pertains to a member, and what only might: of the whole sample while that has a picture too, or of a twin."""
        own = [pair for pair in told if pair[0].field == member.field]
        plain = [pair for pair in told if not pair[0].field]
        if member.field in self._twins:
            return [], [*own, *plain]
        if own or not plain:
            return own, []
        return ([], plain) if "" in self._fields | self._twins else (plain, [])


def _label(place: Place | None, classes: list[str] | None) -> Facts:
    try:
        name = label_name(decoded(read_small(place, limit=_LABEL_BYTES))) if place else None
    except (Refused, ValueError):
        return Facts(notes=(BAD_LABEL,))
    if name is None or classes is None:
        return Facts(name)
    if not name.isascii() or not name.isdigit() or len(name) > 9 or int(name) >= len(classes):
        return Facts(notes=(BAD_LABEL,))
    return Facts(classes[int(name)])


def _described(place: Place | None) -> Facts:
    try:
        return facts_in(read_small(place, limit=JSON_BYTES + 1)) if place else Facts()
    except Refused:
        return Facts(notes=(BAD_JSON,))


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name
