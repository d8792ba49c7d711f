"""Which pictures are held out of training: a function of a file's bytes alone.

So the choice depends neither on names nor on the order or number of workers, stays as it is when pictures are added, and
copies of one file go to the same side.
"""

import hashlib
from typing import BinaryIO

_WORD = 8  # bytes of the hash that are compared with the share


def falls_under(stream: BinaryIO, share: float) -> bool:
    """Whether the SHA-256 of a whole file's bytes, read as a number in [0, 1), is below `share`."""
    if not share:
        return False
    stream.seek(0)
    digest = hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]
    return int.from_bytes(digest[:_WORD], "big") < share * 256**_WORD
