"""One picture of the source to its sample, or to the reason why not. What this needs only the processes of a pool import."""

import hashlib
import json

from hdit_cli.data.prepare.buckets import cut_away, turned_size
from hdit_cli.data.prepare.facts.words import decoded, tidied
from hdit_cli.data.prepare.options import SUFFIXES, PrepareOptions
from hdit_cli.data.prepare.pictures.fit import encode, fit
from hdit_cli.data.prepare.pictures.hold_out import falls_under
from hdit_cli.data.prepare.pictures.outcome import Outcome
from hdit_cli.data.prepare.pictures.pictures import read_picture
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.prepare.sources.places import open_place, read_small
from hdit_cli.data.prepare.sources.refused import Refused

_CAPTION_BYTES = 1 << 16
_DIGEST_BYTES = 16


def process(entry: Entry, options: PrepareOptions) -> Outcome:
    """Reads, checks, resizes and encodes one picture; never raises for what is in it."""
    try:
        assert entry.place is not None, "a candidate has a place"
        with open_place(entry.place) as stream:
            picture = read_picture(stream, options)
            if min(picture.size) < options.min_size:
                raise Refused("too-small", "{}x{}".format(*reversed(picture.size)))
            held_out = falls_under(stream, options.hold_out)
        image, notes = fit(picture, options)
        encoded = encode(image, options.format)
    except Refused as refused:
        return Outcome("refused", (refused.code,), refused.detail)
    except MemoryError:
        return Outcome("refused", ("too-large",), "not enough memory")
    caption, bad = _caption(entry)
    notes = sorted({*notes, *bad, *entry.notes})
    source_size = picture.size[1], picture.size[0]
    about = {"path": entry.path, "size": source_size, "notes": notes}
    about_bytes = (json.dumps(about, ensure_ascii=False) + "\n").encode()
    members = {SUFFIXES[options.format]: encoded, ".json": about_bytes}
    if caption is not None:
        members[".txt"] = caption.encode()
    written = image.height, image.width
    turned = turned_size(picture.size, picture.orientation)
    return Outcome(
        "held_out" if held_out else "kept",
        tuple(notes),
        picture.remarks,
        members,
        size=written,
        source_size=source_size,
        digest=hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).hexdigest(),
        cut=cut_away(turned, written) if options.fit == "crop" else 0.0,
    )


def _caption(entry: Entry) -> tuple[str | None, list[str]]:
    """The caption as text, and a note where it could not be read as it is."""
    if entry.text is not None or entry.caption is None:
        return entry.text, []
    try:
        raw = read_small(entry.caption, limit=_CAPTION_BYTES + 1)
    except Refused:
        return None, ["bad-caption"]
    text = decoded(raw[:_CAPTION_BYTES])
    return tidied(text), ["bad-caption"] if len(raw) > _CAPTION_BYTES or "\ufffd" in text else []
