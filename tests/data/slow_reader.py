"""Readers for tests of reading ahead; in a module of their own, since worker processes import them."""

import time

from hdit_cli.data.reader import ShardReader
from hdit_cli.errors import DataError

PATIENCE = 20.0  # seconds


class Overlapping(ShardReader):
    """For 12 chunks of 2: decodes the first picture of each only when reading has begun on the chunk behind it."""

    read_so_far = decoded_so_far = 0

    def read(self, index):
        self.read_so_far += 1
        return super().read(index)

    def decoded(self, index, data):
        end = time.monotonic() + PATIENCE
        while self.read_so_far < min(24, self.decoded_so_far + 3):
            if time.monotonic() > end:
                raise DataError("the disk waits for the decoder", hint="")
            time.sleep(0.001)
        self.decoded_so_far += 1
        return super().decoded(index, data)
