"""The recipe room: TOML in, checked and frozen sections out. No torch."""

from hdit_cli.recipe.names import named, without_folders
from hdit_cli.recipe.recipe import Recipe, diff, flat, load_recipe, plain_name
from hdit_cli.recipe.source import recipe_text, shipped, stand_in

__all__ = [
    "Recipe",
    "diff",
    "flat",
    "load_recipe",
    "named",
    "plain_name",
    "recipe_text",
    "shipped",
    "stand_in",
    "without_folders",
]
