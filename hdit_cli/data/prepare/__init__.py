"""From pictures as people have them to a data set: scan, read, check, fit, encode, shards, report, preview.

Every name is loaded on first use: the processes that decode pictures need a part of all this.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hdit_cli.data.prepare.finishing.report import Report
    from hdit_cli.data.prepare.making.local import Progress
    from hdit_cli.data.prepare.options import Buckets, PrepareOptions, choose_buckets, parse_size
    from hdit_cli.data.prepare.run import ENGINES, Pending, Share, prepare, prepare_share
    from hdit_cli.data.prepare.sources.scan import source_name

_LAZY = {
    "ENGINES": "run",
    "Buckets": "options",
    "Pending": "run",
    "PrepareOptions": "options",
    "Progress": "making.local",
    "Report": "finishing.report",
    "Share": "run",
    "choose_buckets": "options",
    "parse_size": "options",
    "prepare": "run",
    "prepare_share": "run",
    "source_name": "sources.scan",
}

__all__ = [
    "ENGINES",
    "Buckets",
    "Pending",
    "PrepareOptions",
    "Progress",
    "Report",
    "Share",
    "choose_buckets",
    "parse_size",
    "prepare",
    "prepare_share",
    "source_name",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
