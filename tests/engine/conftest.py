"""A tiny data set and a recipe that trains on it in seconds."""

import pytest

from hdit_cli.recipe import Recipe, load_recipe


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


def tiny_recipe(**changes) -> Recipe:
    """Every part that matters in a few thousand parameters: local and global attention, classes, dropout, warm-up."""
    base = {
        "name": "tiny",
        "data": {"workers": 0},
        "model": {
            "size": [16, 16],
            "patch": 2,
            "levels": [
                {"depth": 1, "width": 16, "head_dim": 8, "attention": "neighborhood", "kernel": 3},
                {"depth": 1, "width": 32, "head_dim": 16, "attention": "global"},
            ],
            "mapping_width": 16,
            "mapping_depth": 1,
            "classes": "data",
        },
        "train": {
            "steps": 8,
            "batch_size": 8,
            "precision": "fp32",
            "deterministic": True,
            "save_every": 4,
            "sample_every": 4,
            "log_every": 3,
        },
        "optimizer": {"lr": 2e-3, "warmup": 3},
        "sample": {"n": 4, "steps": 3, "batch_size": 4},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        base[section] = {**base[section], name: value}
    return Recipe.from_dict(base)


__all__ = ["load_recipe", "tiny_recipe"]
