"""[model] with type = "paella": what it refuses, and what it builds."""

import pytest
import torch

from hdit_cli.engine.model import build_network, count
from hdit_cli.errors import UsageError
from hdit_cli.recipe import Recipe, load_recipe

SMALL = {
    "type": "paella", "size": [8, 8], "vocabulary": 16, "embedding": 8, "time_features": 8, "patch": 1, "widths": [8, 16],
    "heads": [0, 2], "blocks": [1, 1], "kinds": ["CT", "CTA"], "condition_width": 8, "text_width": 0, "clip_width": 0,
}  # fmt: skip


def recipe_of(**changes):
    return Recipe.from_dict({"model": {**SMALL, **changes}, "task": {"type": "tokens"}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": [8, 7]}, "model.size.1: must be a multiple of 2, the patch times 2 for each further level, is 7"),
        ({"heads": [0]}, "model.heads: has 1 entries for the 2 levels"),
        ({"heads": [0, 0]}, "model.heads.1: is 0, and the blocks of this level, 'CTA', have attention"),
        ({"heads": [0, 3]}, "model.widths.1: must be a multiple of its 3 heads, is 16"),
        ({"kinds": ["TC", "CTA"]}, "model.kinds.0"),
        ({"kernel": 4}, "model.kernel: must be odd, is 4"),
        ({"self_attention": False}, "model.self_attention: is false, and there is nothing else to attend to"),
        ({"kinds": ["C", "C"], "classes": 3}, "model.classes: reach nothing"),
        ({"kinds": ["CT", "CT"], "clip_width": 8}, "model.clip_width: is 8, and reaches nothing"),
        ({"dropout": 1.0}, "model.dropout: must be below 1"),
        ({"vocabulary": 1}, "model.vocabulary: must be at least 2"),
    ],
)
def test_what_cannot_be_built_is_told(changes, said):
    with pytest.raises(UsageError) as error:
        recipe_of(**changes)
    assert said in error.value.message


def test_the_section_is_of_its_network():
    recipe = recipe_of(classes=3, class_tokens=4)
    with torch.device("meta"):
        network = build_network(recipe, classes=3)
    assert network.unit == recipe.model.unit == (2, 2) and network.vocabulary == 16
    assert recipe.model.least_tensors() <= len(network.state_dict())
    assert network.class_embedding.weight.shape == (4, 4 * 8)
    for switch in recipe.model.lighter():
        assert Recipe.from_dict({**recipe.to_dict(), "model": {**recipe.to_dict()["model"], **renamed(switch)}})


def renamed(switch):
    return {key.removeprefix("model."): value for key, value in switch.items()}


def test_counts_of_shipped_recipes():
    assert count(load_recipe("paella-1b"))["params"] == 1_008_350_592
    assert count(load_recipe("paella-1b", ["model.text_width=1536"]))["params"] == 1_007_302_016
    found = count(load_recipe("paella-flowers64"), classes=5)
    assert found["params"] == 3_961_536 and found["gmacs"] == pytest.approx(0.299, abs=5e-4)
