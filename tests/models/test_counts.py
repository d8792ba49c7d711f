"""Parameters and multiply-accumulates of the published models, exactly."""

import pytest

from hdit_cli.engine.model import count
from hdit_cli.recipe import Recipe, load_recipe

SHIPPED = {  # arXiv 2401.11605 with its erratum on mapping width; multiply-accumulates by the counting rule of layers.py
    "flowers256": (22_361_274, 11.636),
    "cifar10": (20_981_809, 1.967),
    "imagenet128": (117_003_805, 31.369),
    "imagenet256-557m": (557_416_522, 197.587),
    "ffhq1024-85m": (85_079_300, 206.076),
}

TABLE_8 = {  # patch -> size -> (depths, widths, params, GMAC)
    (16, "small"): ([8], [1024], 116_388_224, 29.399),
    (16, "medium"): ([12], [1280], 266_990_320, 67.957),
    (16, "large"): ([16], [1536], 507_245_696, 129.467),
    (8, "small"): ([2, 8], [512, 1024], 133_885_857, 44.437),
    (8, "medium"): ([2, 12], [640, 1280], 294_432_921, 91.452),
    (8, "large"): ([2, 16], [768, 1536], 546_861_489, 163.298),
    (4, "small"): ([2, 2, 8], [256, 512, 1024], 138_694_322, 59.780),
    (4, "medium"): ([2, 2, 12], [320, 640, 1280], 301_836_142, 115.328),
    (4, "large"): ([2, 2, 16], [384, 768, 1536], 557_416_522, 197.587),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes(name):
    params, gmacs = SHIPPED[name]
    found = count(load_recipe(name))
    assert found["params"] == params
    assert found["gmacs"] == pytest.approx(gmacs, abs=1e-3)


@pytest.mark.parametrize("key", TABLE_8, ids=lambda key: f"{key[0]}-{key[1]}")
def test_table_8(key):
    depths, widths, params, gmacs = TABLE_8[key]
    levels = [{"depth": d, "width": w} for d, w in zip(depths, widths, strict=True)]
    recipe = Recipe.from_dict({"model": {"size": [256, 256], "patch": key[0], "levels": levels, "classes": 1000}})
    found = count(recipe)
    assert found["params"] == params
    assert found["gmacs"] == pytest.approx(gmacs, abs=1e-3)


def test_the_widths_of_table_1_at_three_sizes():
    """Ablation E grows by repeating its outermost level."""
    for size, extra, gmacs in ((128, 0, 31.369), (256, 1, 64.716), (512, 2, 198.097)):
        levels = [{"depth": 2, "width": 384}] * (1 + extra) + [{"depth": 11, "width": 768}]
        recipe = Recipe.from_dict(
            {
                "model": {
                    "size": [size, size],
                    "levels": levels,
                    "classes": 1000,
                    "mapping_width": 768,
                    "mapping_depth": 1,
                }
            }
        )
        assert count(recipe)["gmacs"] == pytest.approx(gmacs, abs=1e-3)
