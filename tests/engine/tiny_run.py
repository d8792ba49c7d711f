"""A recipe that trains in seconds."""

from hdit_cli.recipe import Recipe


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
        base[section] = {**base.get(section, {}), name: value} if name else value
    return Recipe.from_dict(base)
