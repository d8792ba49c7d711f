"""Multiply-accumulates of the paper's table 1; the published recipes are counted through `hdit info`."""

import pytest

from hdit_cli.engine.model import count
from hdit_cli.recipe import Recipe


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
