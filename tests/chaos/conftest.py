"""The tiny data set, the fork servers and the unbroken run that all others are compared with."""

import numpy as np
import pytest
from harness import Servers, digests
from PIL import Image

from hdit_cli.data.prepare import PrepareOptions, prepare


def pytest_collection_modifyitems(config, items):
    """What is marked long runs only where it is asked for: `pytest -m long tests/chaos`."""
    if "long" not in config.option.markexpr:
        dropped = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def chaos_data(tmp_path_factory):
    """16 pictures of 16x16 in two classes, prepared."""
    root = tmp_path_factory.mktemp("chaos-data")
    generator = np.random.default_rng(0)
    for name in ("even", "odd"):
        (root / "source" / name).mkdir(parents=True)
        for i in range(8):
            pixels = generator.integers(0, 255, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "source" / name / f"{i}.png")
    prepare(root / "source", out=root / "data", options=PrepareOptions(size=(16, 16), shard_size=10), workers=1)
    return root / "data"


@pytest.fixture(scope="session")
def servers(chaos_data):
    found = Servers(chaos_data)
    yield found
    found.close()


@pytest.fixture(scope="session")
def unbroken(servers, tmp_path_factory):
    """The folder of a run that nothing happened to, its digests, and the number of its disk events."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    went = servers.run({"run": folder})
    assert went.code == 0, went.notes
    return folder, digests(folder), went.last("events")
