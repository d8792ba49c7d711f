"""Which pictures are held out of training: a function of a file's bytes alone.

So the choice depends neither on names nor on the order or number of workers, stays as it is when pictures are added, and
copies of one file go to the same side.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import BinaryIO

from hdit_cli.data.prepare.listing import Entry
from hdit_cli.data.prepare.places import open_place

_WORD = 8  # bytes of the hash that are compared with the share


def falls_under(stream: BinaryIO, share: float) -> bool:
    """Whether the SHA-256 of a whole file's bytes, read as a number in [0, 1), is below `share`."""
    if not share:
        return False
    stream.seek(0)
    digest = hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]
    return int.from_bytes(digest[:_WORD], "big") < share * 256**_WORD


def chosen(entries: Sequence[Entry], paths: AbstractSet[str], *, share: float) -> list[Entry]:
    """The entries that a first pass held out, which told their paths; an archive may have one path twice."""
    times = Counter(entry.path for entry in entries)
    return [
        entry for entry in entries if entry.path in paths and (times[entry.path] == 1 or _is_held_out(entry, share))
    ]


def _is_held_out(entry: Entry, share: float) -> bool:
    if entry.place is None or entry.code:
        return False
    with open_place(entry.place) as stream:
        return falls_under(stream, share)
