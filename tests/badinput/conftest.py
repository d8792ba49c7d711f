"""What the suites of bad input share: the seed, a file that holds many pictures, and counts for the terminal."""

from pathlib import Path

import numpy as np
import pytest
from makingimages import SEED

from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.prepare.sources.places import Place


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


_QUICK = ("test_there_are_enough_kinds", "test_every_fixed_picture_gets_its_verdict", "test_others_read_what_we_write")
_QUICK += ("test_guards_that_a_library_has_taken_down", "test_rewritten_without_a_fault_is_whole")


def pytest_collection_modifyitems(items):
    """All but a few of these tests are slow: they run in a step of their own."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.originalname not in _QUICK:
            item.add_marker(pytest.mark.slow)
