"""What the suites of bad input share: the seed, a file that holds many pictures, and counts for the terminal."""

import os

import numpy as np
import pytest

from hdit_cli.data.prepare.listing import Entry
from hdit_cli.data.prepare.places import Place

SEED = int(os.environ.get("HDIT_CHAOS_SEED", "0"))


@pytest.fixture
def drawn(request):
    """Random numbers of one test: the same at every run, others with another HDIT_CHAOS_SEED."""
    print(f"HDIT_CHAOS_SEED={SEED}")
    return np.random.default_rng([SEED, *request.node.name.encode()])


@pytest.fixture
def entries_of(tmp_path):
    """A function from (name, bytes) pairs to entries, whose bytes stand in one file as members of a tar do."""

    def made(pictures):
        path = tmp_path / "pictures.blob"
        entries, position = [], 0
        with open(path, "wb") as blob:
            for name, data in pictures:
                entries.append(Entry(name, Place(str(path), "tar", position, len(data))))
                blob.write(data)
                position += len(data)
        return entries

    return made
