"""A prepared data set, a recipe and a finished run, made once by the commands."""

import pytest

from hdit_cli import cli


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in ("rose", "tulip"):
        (root / name).mkdir()
        for i in range(6):
            Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


RECIPE = """
[model]
size = [16, 16]
patch = 2
mapping_width = 16
mapping_depth = 1
classes = "data"
levels = [{ depth = 1, width = 16, head_dim = 8, kernel = 3 }, { depth = 1, width = 16, head_dim = 8 }]
[train]
steps = 3
batch_size = 4
precision = "fp32"
save_every = 100
sample_every = 0
log_every = 1
[data]
workers = 0
[sample]
steps = 2
"""


@pytest.fixture(scope="session")
def made(pictures, tmp_path_factory):
    """A prepared data set, a recipe and a finished run, made by the commands."""
    root = tmp_path_factory.mktemp("made")
    (root / "tiny.toml").write_text(RECIPE)
    for words in (
        ["prepare", pictures, "--out", root / "data", "--size", "16", "--workers", "1"],
        ["train", root / "tiny.toml", "--data", root / "data", "--run", root / "run"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        assert stop.value.code == 0
    return root
