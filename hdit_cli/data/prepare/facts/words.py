"""Labels and captions as text, whoever wrote them: one encoding, one spelling. Every label and every caption goes through here.

A class is what its label says, so two ways of writing one label must come to one text: in Unicode's NFC, without a byte
order mark, without blanks around it, and 3.0 as 3. Letter case and leading zeros stay: `Rose` and `rose`, `03` and `3` can
be two things (a code of ISIC, a postcode), and nobody but the user knows. Classes that differ in these alone are told.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

_HEAD = 8  # bytes that are looked at for NULs
_BOMS = (  # UTF-32 before UTF-16, whose mark it begins with
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_UNSEEN = "\ufeff\u200b\u200e\u200f\u2060"  # marks without width, which editors and web pages leave at the ends
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0*")  # 3.0, as tables have it that had a gap once
_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first bytes: UTF-8, unless a mark or the NULs of UTF-16 say otherwise."""
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    even, odd = head[0:_HEAD:2], head[1:_HEAD:2]
    if odd and 0 not in even and not any(odd):
        return "utf-16-le"
    if odd and not any(even) and 0 not in odd:
        return "utf-16-be"
    return "utf-8"


def decoded(raw: bytes) -> str:
    """A short text; bytes that are not of its encoding become U+FFFD."""
    return raw.decode(encoding_of(raw), "replace")


def tidied(said: str) -> str:
    """Text without what cannot be seen around it, in NFC."""
    if said.isascii():
        return said.strip()
    text = said.strip()
    while text != (less := text.strip(_UNSEEN).strip()):
        text = less
    return unicodedata.normalize("NFC", text)


@functools.lru_cache(maxsize=64)  # few in memory: a folder's files come one after the other
def label_text(said: str) -> str:
    """The one spelling of a label; empty where it says nothing."""
    text = tidied(said)
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        return text
    return "0" if whole[1] == "-0" else whole[1]


def same_label(said: str, names: Iterable[str]) -> str | None:
    """The one of `names` that a label means: the same text, else the only one of the same spelling."""
    names = list(names)
    if said in names:
        return said
    alike = [name for name in names if label_text(name) == label_text(said)]
    return alike[0] if len(alike) == 1 else None


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of labels that differ in letter case, inner blanks or leading zeros alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_ZEROS.sub("", " ".join(name.casefold().split())), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
