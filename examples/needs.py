"""What the shipped recipes need, without running them: prints the tables of docs/what-do-i-need.md.

python examples/needs.py

Memory is the project's own estimate (`hdit train --dry-run` prints it for one recipe) for CUDA, with the tiled attention, which
needs the most. Where triton is installed it is FlexAttention's, up to a tenth less. Time is multiply-accumulates over what a card
is taken to do. Nothing is run.
"""

from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.model import count
from hdit_cli.recipe import Recipe, load_recipe
from hdit_cli.runtime import readable

RECIPES = (
    *("flowers64-cpu", "cifar10", "flowers256", "imagenet128", "imagenet256-557m", "ffhq1024-85m"),
    *("dit-nano-cpu", "dit-b4-pixels"),
)
# too small to fill a card: the arithmetic says nothing about their time
SMALL = ("flowers64-cpu", "cifar10", "dit-nano-cpu")
GPUS = (8, 12, 16, 24, 40, 80)  # GiB of memory
ROOM = 0.8  # share of it that tensors may take; `--find-batch` and the batch size of sampling leave the same rest
CARDS = {
    "RTX 3090": 71.0,
    "RTX 4090": 165.0,
    "A100": 312.0,
    "H100 SXM": 989.0,
}  # TFLOP/s, bf16, dense, of the data sheets
LOW, HIGH = 0.1, 0.3  # share of that which a training step is taken to reach
FLOPS = 6e9  # of a training step, for each GMAC: two of a multiply-accumulate, forward once and backward twice


def memory(recipe: Recipe, *, images: int, accumulate: int = 1, device: str = "cuda") -> dict[str, int]:
    """Bytes of a step that is cut into `accumulate` pieces of so many images."""
    train = recipe.train.model_copy(update={"accumulate": accumulate})
    return estimate(recipe.model_copy(update={"train": train}), images=images, device=device)


def pieces(recipe: Recipe, *, gib: int) -> str:
    """The smallest `train.accumulate` with which a card of so much memory takes the recipe's batch."""
    batch = recipe.train.batch_size
    for accumulate in (a for a in range(1, batch + 1) if batch % a == 0):
        if memory(recipe, images=batch // accumulate, accumulate=accumulate)["total"] <= ROOM * gib * 2**30:
            return str(accumulate)
    return "no"


def hours(recipe: Recipe, *, tera: float, images: float) -> str:
    """Hours for so many images, from the higher to the lower share of a card's peak."""
    flops = images * count(recipe)["gmacs"] * FLOPS
    fast, slow = (flops / (tera * 1e12 * share) / 3600 for share in (HIGH, LOW))
    return f"{fast:.2g}–{slow:.2g}" if slow < 100 else f"{fast:,.0f}–{slow:,.0f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Rows as a table of Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    fixed, cards = [], []
    for name in RECIPES:
        recipe = load_recipe(name)
        batch = recipe.train.batch_size
        one, whole = (readable(memory(recipe, images=n)["total"]) for n in (1, batch))
        checkpoint = readable(16 * count(recipe)["params"])  # weights, average, two moments, in float32
        fixed.append([f"`{name}`", str(batch), one, whole, *(pieces(recipe, gib=gib) for gib in GPUS), checkpoint])
        if name not in SMALL:
            cards.append([f"`{name}`", f"{recipe.train.steps * batch / 1e6:,.3g} million"])
            cards[-1] += [hours(recipe, tera=tera, images=1e6) for tera in CARDS.values()]
    sizes = [f"{gib} GiB" for gib in GPUS]
    print(table(["recipe", "batch", "one image", "whole batch", *sizes, "checkpoint"], fixed))
    print()
    print(table(["recipe", "images in all", *CARDS], cards))


if __name__ == "__main__":
    main()
