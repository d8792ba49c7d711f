"""The command to type next, which `prepare`, `train` and `sample` end with: one line on stderr."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hdit_cli.commands.say import say

if TYPE_CHECKING:
    from hdit_cli.recipe import Recipe

# side of the pictures => shipped recipe for sets without classes and with them; a test holds the table against the recipes
RECIPES = {
    32: ("cifar10", "cifar10"),
    64: ("flowers64-cpu", "flowers64-cpu"),
    128: ("imagenet128", "imagenet128"),
    256: ("flowers256", "flowers256-class"),
    1024: ("ffhq1024-85m", "ffhq1024-85m"),
}
# recipe => its data.path and model.classes
SHIPPED: dict[str, tuple[str, int | str]] = {
    "cifar10": ("data/cifar1032", 10),
    "flowers64-cpu": ("data/flowers64", "data"),
    "imagenet128": ("data/imagenet128", 1000),
    "flowers256": ("data/flowers256", 0),
    "flowers256-class": ("data/flowers256", "data"),
    "ffhq1024-85m": ("data/ffhq1024", 0),
}


def tell(words: Sequence[str]) -> None:
    """`next: hdit ...`."""
    say(f"next: {shlex.join(['hdit', *words])}", err=True)


def after_train(recipe: "Recipe", folder: Path) -> list[str]:
    """Pictures of what was trained; of an autoencoder what it makes of its data set."""
    if recipe.task.type == "autoencode":
        return ["encode", recipe.data.path, "--codec", str(folder / "ckpt.safetensors")]
    return ["sample", str(folder)]


def after_prepare(out: Path, *, size: tuple[int, int], classes: int) -> list[str]:
    """A training on this data set of pictures of (H, W)."""
    side = size[0] if size[0] == size[1] and size[0] in RECIPES else 256 if min(size) >= 128 else 64
    name = RECIPES[side][classes > 1]
    path, conditional = SHIPPED[name]
    words = ["train", name]
    if out != Path(path):
        words += ["--data", str(out)]
    if size != (side, side):
        words += ["--set", f"model.size=[{size[0]},{size[1]}]"]
    wanted = "data" if classes > 1 else 0
    if conditional not in (wanted, classes):
        words += ["--set", f"model.classes={wanted}"]
    return words
