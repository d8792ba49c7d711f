"""What systems and tools leave among people's pictures: passed over and counted, never opened, and no class.

The one rule, for folders, zips and tars, and for the folders that `hdit eval-fid` scores. It goes by names below the source
alone: where the source itself lies says nothing. Hidden files with the suffix of a picture are no business of it.
"""

import os

PASSED_OVER = "passed-over"

_FOLDERS = frozenset({
    "__macosx", "__pycache__", "lost+found",
    "$recycle.bin", "recycler", "system volume information",  # Windows
    "@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot",  # network storage
    "network trash folder", "temporary items",  # macOS, on network volumes
})  # fmt: skip
_FILES = frozenset({
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "autorun.inf",  # Windows
    "icon\r", "thevolumesettingsfolder", "picasa.ini",
})  # fmt: skip
_STREAMS = (
    "zone.identifier",
    "zone.identifier:$data",
    ":encryptable",
)  # of a file on Windows; elsewhere files of their own
_PICTURES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".heic", ".heif", ".hif",
})  # fmt: skip
_SIDES = frozenset({".txt", ".json", ".jsonl", ".csv", ".md", ".cls"})


def is_tool_folder(name: str) -> bool:
    """Whether a folder of this name is passed over: `.git`, `.thumbnails`, `@eaDir`, `__MACOSX`, …"""
    return name.lower() in _FOLDERS or (_is_hidden(name) and not name.startswith("._"))


def is_tool_file(name: str) -> bool:
    """Whether a file of this name is passed over: `Thumbs.db`, `.DS_Store`, `.gitignore`, …"""
    lower = name.lower()
    if lower in _FILES or lower.endswith(_STREAMS):
        return True
    if not _is_hidden(name) or name.startswith("._"):
        return False
    named = _PICTURES | _SIDES
    return lower not in named and os.path.splitext(lower)[1] not in named


def passed_over(path: str) -> str:
    """The outermost folder of a file's path that is passed over, else the file itself where it is, else ""."""
    *folders, name = path.split("/")
    for depth, folder in enumerate(folders, start=1):
        if is_tool_folder(folder):
            return "/".join(folders[:depth])
    return path if is_tool_file(name) else ""


def _is_hidden(name: str) -> bool:
    return len(name) > 1 and name[0] == "." and name[1] != "."
