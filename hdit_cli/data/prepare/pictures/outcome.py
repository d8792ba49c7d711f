"""The verdict on one file of the source, and the sample that it came to."""

from dataclasses import dataclass, field

from hdit_cli.data.prepare.sources.listing import SIDE_CODES, Entry


@dataclass(frozen=True)
class Outcome:
    """The verdict on one file.

    Args:
        verdict: kept, refused, side or held_out.
        codes: why it was refused, what kind of side file it is, or the notes of a kept or held-out picture (none = plain).
        detail: in words.
        members: suffix => bytes of a kept or held-out sample, but for the label.
        size: (H, W) of the picture as written; (0, 0) where it is not kept.
        source_size: (H, W) of the picture as stored in the source.
        digest: BLAKE2b, 128 bits in hex, of the encoded picture: the same for pictures that came to the same pixels.
        cut: share of the picture's area that was cropped away.
    """

    verdict: str
    codes: tuple[str, ...] = ()
    detail: str = ""
    members: dict[str, bytes] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    source_size: tuple[int, int] = (0, 0)
    digest: str = ""
    cut: float = 0.0


def at_sight(entry: Entry) -> Outcome | None:
    """The verdict that the listing has given already, if any."""
    if entry.code in SIDE_CODES:
        return Outcome("side", (entry.code,), entry.detail)
    return Outcome("refused", (entry.code,), entry.detail) if entry.code else None
