"""From pictures as people have them to a data set: scan, read, check, fit, encode, shards, report, preview."""

from hdit_cli.data.prepare.options import Buckets, PrepareOptions, choose_buckets, parse_size
from hdit_cli.data.prepare.report import Report
from hdit_cli.data.prepare.run import Progress, prepare
from hdit_cli.data.prepare.scan import source_name

__all__ = ["Buckets", "PrepareOptions", "Progress", "Report", "choose_buckets", "parse_size", "prepare", "source_name"]
