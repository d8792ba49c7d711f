"""Finds what is in the sources of a data set: folders, zips, tars, data sets made before, lists of files.

Nothing is opened here but directories (of folders, zips and tars), tables, and the small files that say what class a picture
is of. What cannot be a picture gets its verdict at sight: side files, and what is not a regular file.
"""

import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

from hdit_cli.data.prepare.facts.paths import utf8
from hdit_cli.data.prepare.sources.folders import FolderSource
from hdit_cli.data.prepare.sources.listing import Listing, Source
from hdit_cli.data.prepare.sources.lists import LIST_SUFFIXES, ListSource
from hdit_cli.data.prepare.sources.tars import OwnSource, TarSource, own_shards
from hdit_cli.data.prepare.sources.zips import ZipSource
from hdit_cli.errors import DataError

_HINT = "give a folder of pictures, a .zip, a .tar, or a list of files"


def scan(sources: Sequence[Path]) -> Listing:
    """Lists the sources of one data set; the entries come from `Listing.stream`.

    Raises:
        DataError: one is missing, unreadable or nothing that pictures are taken from, or all are empty.
    """
    return Listing([_opened(source) for source in sources])


def source_name(source: Path) -> str:
    """What a source is called: the folder's name, or the file's without its suffix."""
    resolved = source.resolve()
    return resolved.name if resolved.is_dir() else resolved.stem


def _opened(source: Path) -> Source:
    try:
        status = os.stat(source)
    except OSError as error:
        raise DataError(f"cannot find the source {source}: {error.strerror}", hint=_HINT) from error
    name, suffix = utf8(source_name(source)), source.suffix.lower()
    if stat.S_ISDIR(status.st_mode):
        shards = own_shards(source)
        return OwnSource(source, shards) if shards else FolderSource(source)
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"the source {source} is neither a folder nor a file", hint=_HINT)
    if suffix in LIST_SUFFIXES:
        return ListSource(source, name)
    if suffix == ".zip" or (suffix != ".tar" and zipfile.is_zipfile(source)):
        return ZipSource(source, name)
    return TarSource(source, name)
