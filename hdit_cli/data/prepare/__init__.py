"""From pictures as people have them to a data set: scan, read, check, fit, encode, shards, report, preview."""

from hdit_cli.data.prepare.local import Progress
from hdit_cli.data.prepare.options import Buckets, PrepareOptions, choose_buckets, parse_size
from hdit_cli.data.prepare.report import Report
from hdit_cli.data.prepare.run import ENGINES, Pending, Share, prepare, prepare_share
from hdit_cli.data.prepare.scan import source_name

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
