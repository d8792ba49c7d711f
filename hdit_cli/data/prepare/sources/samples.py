"""Which members of a tar belong together, and what class and caption each picture has.

What a sample is, webdataset's own functions say: members that follow each other and whose names are equal up to the first
dot. Of that library only two functions on names are called: nothing of it opens, decodes or runs anything here. One thing
is added: a tar in which no name comes twice is a folder that was packed, so there the members may lie anywhere. A tar that
was cut off may be one or the other: there a picture has only what both readings give it, whatever was lost.

A picture's class is the text of its sample's `.cls`, else what its `.json` says, else the first folder of its name. In a
sample of several pictures `a.b.jpg` goes with `a.b.cls`. Where a class could be one or another the picture has none.
"""

import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hdit_cli.data.prepare.facts.facts import BAD_CAPTION, BAD_JSON, BAD_LABEL, JSON_BYTES, Facts, facts_in, label_name
from hdit_cli.data.prepare.facts.paths import first_folder, is_side_name
from hdit_cli.data.prepare.facts.words import decoded
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.prepare.sources.places import Place, read_small
from hdit_cli.data.prepare.sources.refused import Refused
from hdit_cli.data.prepare.sources.zips import wrapper

NOT_A_FILE = "not-a-file"
SPLIT_SAMPLE = "split-sample"  # the rest of its sample lies elsewhere, or was cut off

_LABEL_BYTES = 1 << 16
_META = re.compile(r"__[^/]*__($|/)")  # names that webdataset takes for its own notes
_TELLING = ("cls", "json", "txt")  # suffixes of what tells of pictures


@dataclass(slots=True)
class Member:
    """A file in a tar.

    Args:
        name: in the tar.
        entry: without class and caption yet. One that was refused at sight (a link) is in no sample, but what has its name
            may be of it.
        key: its name up to the first dot; "" where webdataset drops it.
        field: what stands between the first dot of its name and the last: "b" of a.b.jpg.
        suffix: what stands behind the last dot.
        is_candidate: it is, or stands for, a picture.
    """

    name: str
    entry: Entry
    key: str = ""
    field: str = ""
    suffix: str = ""
    is_candidate: bool = False


def give_labels(members: list[Member], *, classes: list[str] | None, name: str, is_cut: bool) -> None:
    """Gives the entries of one tar their verdicts at sight, classes and captions.

    Args:
        members: all files of the tar, in its order.
        classes: what the indices in `.cls` mean; None = the text itself is the name.
        name: of the source where the tar is one: a folder around everything that is called so is no class. Else "".
        is_cut: the tar is damaged, so that members of any sample may be missing.
    """
    here = [member for member in members if member.entry.code != NOT_A_FILE]
    around = wrapper([_plain(member.name) for member in here], name) if name else ""
    for member in members:
        _at_sight(member)
    by_key: defaultdict[str, list[Member]] = defaultdict(list)
    for member in members:
        if member.key:
            by_key[member.key].append(member)
    cut_kinds = {member.suffix for member in members} if is_cut else None
    kinds = functools.lru_cache(maxsize=1 << 10)(lambda key: _Kinds(by_key[key]))

    def samples(groups: Iterable[list[Member]], last: list[Member] | None = None) -> Iterator[_Sample]:
        for group in groups:
            family = kinds(group[0].key) if len(group) < len(by_key[group[0].key]) else None
            yield _Sample(group, family, classes, cut_kinds=cut_kinds, at_cut=group is last)
        for member in here:
            if not member.key:
                yield _Sample([member], None, classes, cut_kinds=cut_kinds)

    has_twins = len({member.name for member in here}) < len(here)
    if has_twins or is_cut:
        runs = _runs(here)
        _give(samples(runs, last=runs[-1] if is_cut and runs else None), around)
    if not has_twins:  # of a cut tar the twin may be what is lost
        _give(samples(_packed(by_key)), around, again=is_cut)


def _at_sight(member: Member) -> None:
    """What its name tells of it."""
    from webdataset.tariterators import base_plus_ext

    key, suffixes = base_plus_ext(member.name)
    is_meta = _META.match(member.name) is not None
    if suffixes is not None and not is_meta:
        member.key = str(key)
        member.field, _, member.suffix = suffixes.lower().rpartition(".")
    lower = member.name.lower()
    code = ""
    if is_meta:
        code = "side-file"
    elif lower.endswith(".cls") and not lower.endswith("/.cls") and lower != ".cls":
        code = "label"
    elif is_side_name(member.name):
        code = "caption" if lower.endswith(".txt") else "side-file"
    member.is_candidate = not code
    member.entry.code = member.entry.code or code


def _runs(members: list[Member]) -> list[list[Member]]:
    """Neighbours that webdataset has for one sample, without those that are in none."""
    from webdataset.tariterators import group_by_keys

    number = itertools.count()
    keyed = (member for member in members if member.key)
    found = group_by_keys(
        ({"fname": member.key, "data": member, "__url__": ""} for member in keyed),
        keys=lambda key: (key, f"\0{next(number)}"),  # so that no two members are one field
    )
    return [[value for value in sample.values() if isinstance(value, Member)] for sample in found]


def _packed(by_key: Mapping[str, list[Member]]) -> Iterator[list[Member]]:
    """All with one key, wherever they lie."""
    for members in by_key.values():
        if here := [member for member in members if member.entry.code != NOT_A_FILE]:
            yield here


class _Verdict(NamedTuple):
    group: str | None
    caption: Place | None = None
    text: str | None = None
    notes: frozenset[str] = frozenset()


def _give(samples: Iterable["_Sample"], around: str, *, again: bool = False) -> None:
    """Gives the members what their samples say. `again`: where that differs from what they have, they have nothing."""
    for sample in samples:
        for member in sample.members:
            entry = member.entry
            group, caption, text, notes = sample.verdict(member, around)
            if again:
                notes |= set(entry.notes)
                if group != entry.group:
                    group, notes = None, notes | {SPLIT_SAMPLE}
                if (caption, text) != (entry.caption, entry.text):
                    caption, text, notes = None, None, notes | {SPLIT_SAMPLE}
            entry.group, entry.caption, entry.text = group, caption, text
            entry.notes = tuple(sorted(notes)) if member.is_candidate else ()


class _Kinds:
    """How often there is what among members with one key."""

    def __init__(self, members: Iterable[Member]) -> None:
        members = list(members)
        self.of = Counter((member.field, member.suffix) for member in members)
        self.suffixes = Counter(member.suffix for member in members)
        self.has_plain_picture = any(member.is_candidate and not member.field for member in members)


class _Sample:
    """Members that belong together.

    Args:
        family: of all members of the tar that have this key; None where these are all.
        cut_kinds: the suffixes that members of it which were cut off may have had; None = the tar is whole.
        at_cut: the tar was cut off behind it. What it tells may be of a next sample of the same name, whose picture is lost.
    """

    def __init__(
        self,
        members: list[Member],
        family: _Kinds | None,
        classes: list[str] | None,
        *,
        cut_kinds: set[str] | None,
        at_cut: bool = False,
    ) -> None:
        self.members = members
        self._here = _Kinds(members)
        self._family = family or self._here
        self._cut_kinds = cut_kinds
        self._twins = {field for (field, _), times in self._here.of.items() if times > 1}  # webdataset refuses these
        self._told: defaultdict[tuple[str, str], list[tuple[Member, Facts]]] = defaultdict(list)  # by field and suffix
        for member in members:
            if not at_cut and member.suffix in _TELLING:
                self._told[member.field, member.suffix].append((member, _facts(member, classes)))

    def verdict(self, member: Member, around: str) -> _Verdict:
        notes: set[str] = set()
        group = self._group(member, notes, first_folder(_plain(member.name).removeprefix(around)))
        if not member.is_candidate:
            return _Verdict(group)
        caption, text = self._caption(member, notes)
        return _Verdict(group, caption, text, frozenset(notes))

    def _group(self, member: Member, notes: set[str], folder: str | None) -> str | None:
        doubtful: set[str | None] = set()
        for suffix in ("cls", "json"):
            own, of_another = self._pertaining(suffix, member)
            names = {facts.label for _, facts in own} - {None}
            bad = {note for _, facts in own for note in facts.notes} & {BAD_LABEL, BAD_JSON}
            notes |= bad
            if len(names) > 1 or (bad and suffix == "cls"):
                notes.add(BAD_LABEL)
                return None
            if names and suffix == "json" and self._may_have_another(member, doubtful - names):
                notes.add(SPLIT_SAMPLE)
                return None
            if names:
                return next(iter(names))
            doubtful |= {facts.label for _, facts in of_another} - {None}
        if doubtful:
            notes.add(self._why_in_doubt(member, BAD_LABEL))
            return None
        if self._is_lost(member, "cls", "json"):
            notes.add(SPLIT_SAMPLE)
            return None
        return folder

    def _caption(self, member: Member, notes: set[str]) -> tuple[Place | None, str | None]:
        texts, others = self._pertaining("txt", member)
        described, of_another = self._pertaining("json", member)
        said = {facts.caption for _, facts in described} - {None}
        if len(texts) > 1 or (not texts and len(said) > 1):
            notes.add(BAD_CAPTION)
        elif texts:
            return texts[0][0].entry.place, None
        elif others or any(facts.caption for _, facts in of_another):
            notes.add(self._why_in_doubt(member, BAD_CAPTION))
        elif said:
            notes.update(note for _, facts in described for note in facts.notes if note == BAD_CAPTION)
            return None, next(iter(said))
        elif self._is_lost(member, "txt", "json"):
            notes.add(SPLIT_SAMPLE)
        return None, None

    def _pertaining(self, suffix: str, member: Member) -> tuple[list[tuple[Member, Facts]], list[tuple[Member, Facts]]]:
        """What pertains to a member, and what only might: of the whole sample while that has a picture too, or of a twin."""
        own = self._told.get((member.field, suffix), [])
        plain = self._told.get(("", suffix), [])
        if member.field in self._twins:
            return [], [*own, *plain]
        if own or not plain:
            return own, []
        return (plain, []) if self._has_part(member, suffix) else ([], plain)

    def _has_part(self, member: Member, suffix: str) -> bool:
        """Whether a member with a field has part in what tells of the whole sample.

        Not where that may be of a picture without a field, or its own may be, anywhere in the tar or in what was cut off.
        """
        if self._cut_kinds is not None or self._family.has_plain_picture or "" in self._twins:
            return False
        return not self._is_elsewhere(member.field, suffix)

    def _why_in_doubt(self, member: Member, code: str) -> str:
        is_here = self._here.has_plain_picture or not self._twins.isdisjoint(("", member.field))
        return code if is_here else SPLIT_SAMPLE

    def _may_have_another(self, member: Member, doubtful: set[str | None]) -> bool:
        """Whether a `.cls`, which goes before its `.json`, may be of it: one with a class in `doubtful`, or one cut off."""
        if doubtful and self._why_in_doubt(member, BAD_LABEL) == SPLIT_SAMPLE:
            return True
        return self._cut_kinds is not None and self._may_miss(member, "cls")

    def _is_lost(self, member: Member, *suffixes: str) -> bool:
        """Whether something of these suffixes that is not in the sample may pertain to a member."""
        return any(self._may_miss(member, suffix) for suffix in suffixes)

    def _may_miss(self, member: Member, suffix: str) -> bool:
        if self._family.suffixes[suffix] and not self._here.suffixes[suffix]:
            return True
        if (member.field, suffix) in self._told or (("", suffix) in self._told and self._has_part(member, suffix)):
            return False
        if self._cut_kinds is not None and suffix in self._cut_kinds:
            return True
        return self._is_elsewhere(member.field, suffix) or self._is_elsewhere("", suffix)

    def _is_elsewhere(self, field: str, suffix: str) -> bool:
        return self._family.of[field, suffix] > self._here.of[field, suffix]


def _facts(member: Member, classes: list[str] | None) -> Facts:
    """What a member tells, but for the text of a `.txt`. In a set of ours a `.json` tells nothing of the class."""
    if member.suffix == "cls":
        return _label(member.entry.place, classes)
    return _described(member.entry.place) if member.suffix == "json" and classes is None else Facts()


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
