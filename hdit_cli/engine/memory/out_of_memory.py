"""What to say when something does not fit into memory: switches that help, with values that follow from what was tried."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hdit_cli import runtime
from hdit_cli.engine.memory.estimate import estimate, weights
from hdit_cli.errors import OutOfMemory, is_out_of_memory
from hdit_cli.recipe import Recipe

ROOM = 0.8  # of a device's memory that a step may be estimated to take: the rest is for what is not followed

SURE = 1.25  # times the free memory: an estimate above that cannot fit, being held to 20 %

_NAMED = 3  # switches


@contextmanager
def told(message: Callable[[], OutOfMemory]) -> Iterator[None]:
    """Turns running out of memory inside the block into `message()`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise message() from error


def check_room(recipe: Recipe, *, classes: int, processes: int) -> None:
    """Raises OutOfMemory where a step on a CPU cannot fit: there the system would end the process without a word.

    Args:
        classes: of the data.
        processes: that share a batch.
    """
    device = runtime.device()
    images = max(1, recipe.train.batch_size // processes // recipe.train.accumulate)
    needed = estimate(recipe, images=images, device=device.type, processes=processes, classes=classes)["total"]
    if device.type == "cpu" and needed > SURE * runtime.free_memory(device):
        raise in_training(recipe)


def in_training(recipe: Recipe) -> OutOfMemory:
    """For a step that did not fit: the first three switches, of those that are left, that make it smaller."""
    section, world, device = recipe.train, runtime.ranks().world, runtime.device().type
    share = section.batch_size // world

    def needs(other: Recipe) -> int:
        images = max(1, other.train.batch_size // world // other.train.accumulate)
        return estimate(other, images=images, device=device, processes=world)["total"]

    def same_model(switch: dict[str, Any]) -> bool:
        return weights(changed(recipe, switch), device=device) == weights(recipe, device=device)

    now = needs(recipe)
    lighter = [*recipe.model.lighter()]
    switches = [_accumulate(recipe, share=share, needs=needs), *filter(same_model, lighter)]
    if world > 1 and not section.shard and section.compile is not True:
        switches.append({"train.shard": True})
    if section.precision != "bf16":
        switches.append({"train.precision": "bf16"})
    if smaller := max(1, share // section.accumulate // 4) * world * section.accumulate:
        switches.append({"train.batch_size": smaller} if smaller < section.batch_size else {})
    switches += [switch for switch in lighter if not same_model(switch)]
    found = []
    for switch in switches:
        if len(found) == _NAMED:
            break
        needed = needs(changed(recipe, switch))
        if needed < now:
            words = " ".join(f"--set {key}={str(value).lower().replace(' ', '')}" for key, value in switch.items())
            found.append(f"{words} (about {runtime.readable(needed)})")
    what = f"batch {section.batch_size}, accumulate {section.accumulate}, precision {section.precision}"
    return OutOfMemory(
        f"out of memory at {what}: a step needs about {runtime.readable(now)}",
        hint="what helps: " + (", or ".join(found) or "a smaller model, or a device with more memory"),
    )


def _accumulate(recipe: Recipe, *, share: int, needs: Callable[[Recipe], int]) -> dict[str, Any]:
    """The fewest pieces above the present ones that are taken to fit; else the next more, or the most there can be."""
    section, room = recipe.train, runtime.total_memory(runtime.device()) * ROOM
    pieces = [a for a in range(section.accumulate + 1, share + 1) if share % a == 0]
    fitting = (a for a in pieces if needs(changed(recipe, {"train.accumulate": a})) <= room)
    return {"train.accumulate": next(fitting, pieces[-1])} if pieces else {}


def changed(recipe: Recipe, switch: dict[str, Any]) -> Recipe:
    """The recipe with other values; each key as `--set` takes it."""
    values = recipe.to_dict()
    for key, value in switch.items():
        *path, last = key.split(".")
        table: Any = values
        for part in path:
            table = table[int(part)] if isinstance(table, list) else table[part]
        table[last] = value
    return Recipe.from_dict(values)


def in_drawing(recipe: Recipe) -> OutOfMemory:
    """For the grids of a run that did not fit beside it."""
    section = recipe.sample
    return OutOfMemory(
        f"out of memory while drawing {section.n} pictures, {section.batch_size} at once",
        hint=f"what helps: --set sample.batch_size={max(1, min(section.batch_size, section.n) // 4)}, "
        f"--set sample.n={max(1, section.n // 4)}, or --set train.sample_every=0",
    )


def in_evaluation(recipe: Recipe) -> OutOfMemory:
    """For the small evaluation of a run that did not fit beside it."""
    at_once = min(recipe.eval.batch_size, recipe.eval.during_n)
    return OutOfMemory(
        f"out of memory while scoring {recipe.eval.during_n} pictures, {at_once} at once",
        hint=f"what helps: --set eval.batch_size={max(1, at_once // 4)}, or --set eval.every=0",
    )


def in_sampling(*, images: int, size: tuple[int, int], unit: tuple[int, int], cfg: float) -> OutOfMemory:
    """For a batch of pictures that did not fit.

    Args:
        images: made at once.
        size: (height, width) of each in pixels.
        unit: sides are multiples of these.
    """
    smaller = [max(side // 2 // step, 1) * step for side, step in zip(size, unit, strict=True)]
    switches = [
        f"--batch-size {max(1, images // 4)}" if images > 1 else "",
        f"--size {smaller[0]}x{smaller[1]}" if tuple(smaller) < tuple(size) else "",
        "--cfg 1 (guidance doubles the batch)" if cfg != 1 else "a device with more memory",
    ]
    return OutOfMemory(
        f"out of memory with {images} pictures of {size[0]}x{size[1]} at once",
        hint=f"what helps: {', or '.join(switch for switch in switches if switch)}",
    )
