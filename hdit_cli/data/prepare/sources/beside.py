"""What lies beside a picture in its folder and speaks of it: `.txt`, `.json`, and the tables of its folder and of those above.

Its class: tables go before the `.json`, and that before the first folder of the path. Its caption: tables, `.txt`, `.json`.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable

from hdit_cli.data.prepare.facts.facts import BAD_CAPTION, BAD_JSON, BAD_LABEL, JSON_BYTES, Facts, facts_in
from hdit_cli.data.prepare.facts.names import NEAR_NAME, Names, pairs_in_nfc
from hdit_cli.data.prepare.facts.paths import file_name, is_side_name, stem
from hdit_cli.data.prepare.facts.tables import NO_LABEL_TOLD, NoTable, Scope, Table
from hdit_cli.data.prepare.sources.listing import BAD_TABLE, Entry
from hdit_cli.data.prepare.sources.places import Place, open_place, read_small
from hdit_cli.data.prepare.sources.refused import Refused

PlaceOf = Callable[[str], Place | None]  # path => where that file lies, None where it does not


class Beside:
    """The captions and descriptions in one folder.

    Args:
        paths: of all regular files in the folder.
        place_of: gives the place of one of them.
        scope: the tables that hold for the folder.
    """

    def __init__(self, paths: Iterable[str], place_of: PlaceOf, scope: Scope | None) -> None:
        paths = sorted(paths)
        sides = [path for path in paths if is_side_name(path)]
        self._texts = {stem(path): path for path in sides if path.lower().endswith(".txt")}
        self._jsons = {stem(path): path for path in sides if path.lower().endswith(".json")}
        self._twice = _twice(paths)
        candidates = (stem(path) for path in paths if not is_side_name(path)) if self._texts else ()
        self._captions = {self._texts[name] for name in candidates if name in self._texts}
        self._near = self._pair_in_nfc(paths)
        self._place_of = place_of
        self._scope = scope
        self.labels_told = False  # some class came from elsewhere than a folder's name

    def _pair_in_nfc(self, paths: list[str]) -> set[str]:
        """Pairs pictures with files beside them that are named in another Unicode form; the stems of these pictures."""
        if all(name.isascii() for name in (*self._texts, *self._jsons)):
            return set()
        near: set[str] = set()
        pictures = {stem(path) for path in paths if not is_side_name(path)}
        for sides in (self._texts, self._jsons):
            pairs = pairs_in_nfc(pictures, set(sides))
            sides.update({name: sides[other] for name, other in pairs.items()})
            near |= pairs.keys()
        self._captions |= {self._texts[name] for name in pictures & near if name in self._texts}
        return near

    def code(self, path: str) -> str:
        """What kind of side file it is."""
        return "caption" if path in self._captions else "side-file"

    def give(self, entry: Entry) -> None:
        """Gives a candidate, whose group is that of its folder, its class and its caption."""
        table = self._scope.facts(entry.path) if self._scope else None
        name = stem(entry.path) if self._jsons or self._texts else ""
        beside = self._described(name, entry.path)
        notes = {*beside.notes, *(table.notes if table else ()), *([NEAR_NAME] if name in self._near else [])}
        is_told = table is not None and (table.label is not None or BAD_LABEL in table.notes)
        if is_told or (self._scope is not None and self._scope.has_labels and beside.label is None):
            entry.group = table.label if table else None
        elif beside.label is not None:
            entry.group = beside.label
            notes.discard(NO_LABEL_TOLD)
        elif BAD_JSON in beside.notes and self._is_twice(entry.path, self._jsons[name]):
            entry.group = None
            notes.add(BAD_LABEL)
        self.labels_told = self.labels_told or is_told or beside.label is not None
        if table is not None and table.caption is not None:
            entry.text = table.caption
        else:
            self._caption(entry, name, notes, beside.caption)
        entry.notes = tuple(sorted(notes))

    def _caption(self, entry: Entry, name: str, notes: set[str], described: str | None) -> None:
        text = self._texts.get(name)
        if text is not None and self._is_twice(entry.path, text):
            notes.add(BAD_CAPTION)
        elif text is not None:
            entry.caption = self._place_of(text)
            notes.update([] if entry.caption else [BAD_CAPTION])
        else:
            entry.text = described

    def _is_twice(self, path: str, side: str) -> bool:
        """Whether a picture, or what lies beside it, comes twice, so that nobody knows which goes with which."""
        return not self._twice.isdisjoint((path, side))

    def _described(self, name: str, of: str) -> Facts:
        path = self._jsons.get(name)
        if path is None:
            return Facts()
        place = None if self._is_twice(of, path) else self._place_of(path)
        try:
            return facts_in(read_small(place, limit=JSON_BYTES + 1)) if place else Facts(notes=(BAD_JSON,))
        except Refused:
            return Facts(notes=(BAD_JSON,))


def _twice(paths: list[str]) -> set[str]:
    """The paths that come twice, as in a zip, and the captions and descriptions of one picture that differ only in case."""
    sides = (path for path in paths if path.lower().endswith((".txt", ".json")))
    kinds = {path: (stem(path), path.removeprefix(stem(path)).lower()) for path in sides}
    times = Counter(kinds.values())
    return {path for path, kind in kinds.items() if times[kind] > 1} | {
        one for one, other in itertools.pairwise(paths) if one == other
    }


def read_tables(tables: list[Entry], *, prefix: str, outer: Scope | None, names: Names) -> Scope | None:
    """The scope of a folder with these tables; `outer` where none of them is one. The entries get their verdicts.

    Args:
        tables: the files in it that have the names of tables.
        prefix: path of the folder, with a "/" at its end.
        outer: what holds for the folder above.
        names: the files below the folder.
    """
    table = Table(names)
    is_one = False
    for entry in tables:
        assert entry.place is not None, "it was seen as a regular file"
        try:
            with open_place(entry.place) as stream:
                entry.detail = table.read(stream, file_name(entry.path))
        except NoTable:
            continue
        except Refused as refused:
            entry.detail = f"{refused.code}: {refused.detail}"
            table.has_labels = table.needs_labels = True
        entry.code = BAD_TABLE if entry.detail else "table"
        is_one = True
    return Scope(prefix, table, outer) if is_one else outer
