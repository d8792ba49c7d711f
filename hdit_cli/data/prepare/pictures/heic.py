"""HEIC, which phones write: read by pillow-heif where that is installed, refused with a code of its own elsewhere."""

from functools import lru_cache

HEIC = "heic"  # code of a picture that is refused for want of a decoder
INSTALL = "pip install 'hdit-cli[heic]'"

_LONGEST = 256  # bytes of the box that names the brands
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
_AVIF = {b"avif", b"avis"}


def brand_kind(head: bytes) -> str:
    """AVIF, HEIF or "", by the brands in the box that such a file begins with; a file may be of both families."""
    if head[4:8] != b"ftyp":
        return ""
    box = head[: max(16, min(int.from_bytes(head[:4], "big"), _LONGEST))]
    brands = {box[at : at + 4] for at in (8, *range(16, len(box), 4))}
    return "AVIF" if brands & _AVIF else "HEIF" if brands & _BRANDS else ""


@lru_cache(maxsize=1)
def is_read() -> bool:
    """Whether pillow-heif is there; then Pillow knows the format HEIF from now on."""
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    except ImportError:  # not installed, or its library does not load
        return False
    register_heif_opener(decode_threads=1, thumbnails=False)
    return True
