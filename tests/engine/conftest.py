"""A tiny data set, prepared once."""

import pytest


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """24 pictures of 16x16 in two classes, prepared."""
    import numpy as np
    from PIL import Image

    from hdit_cli.data.prepare import PrepareOptions, prepare

    root = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    for name, colour in (("red", (220, 40, 40)), ("blue", (40, 40, 220))):
        (root / "source" / name).mkdir(parents=True)
        for i in range(12):
            noise = generator.integers(-30, 30, (16, 16, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "source" / name / f"{i}.png")
    prepare(root / "source", out=root / "data", options=PrepareOptions(size=(16, 16), shard_size=10), workers=1)
    return root / "data"
