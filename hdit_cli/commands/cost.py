"""What `hdit train --dry-run` and `--find-batch` print: the cost of a run before it begins."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdit_cli.commands.say import say, say_json

if TYPE_CHECKING:
    from hdit_cli.engine.cost.trial import Found, Try
    from hdit_cli.recipe import Recipe

_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_PARTS = {
    "weights": "",
    "average": "",
    "moments": "two of AdamW for each weight",
    "gradients": "at the fullest moment",
    "gathered": "weights that are whole for a while: two layers, and what is in none",
    "activations": "what the backward pass needs, and its work",
    "codec": "its weights, and what encoding takes beyond that moment",
}


def check(*, dry_run: bool, find_batch: bool, memory: str | None) -> None:
    """Raises UsageError for switches that do not go together."""
    from hdit_cli.errors import UsageError
    from hdit_cli.launchers import is_child

    if dry_run and find_batch:
        raise UsageError("--dry-run and --find-batch are two questions", hint="ask one of them")
    if memory is not None and not find_batch:
        raise UsageError("--memory is read by --find-batch alone", hint="add --find-batch")
    if is_child():
        text = "--dry-run and --find-batch look at one process"
        raise UsageError(text, hint="leave the launcher out and say --processes N")


def parse_memory(text: str | None) -> int | None:
    """Bytes of a size such as 8G; None for None.

    Raises:
        UsageError: not a size, or zero.
    """
    from hdit_cli.errors import UsageError

    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if not size:
        raise UsageError(f"--memory {text!r} is not an amount of memory", hint="for example 8G, 1.5G or 512M")
    return size


def show(recipe: "Recipe", *, processes: int, as_json: bool) -> None:
    """`--dry-run`: the plan, then what a few real steps said."""

    from hdit_cli.engine.cost.plan import plan
    from hdit_cli.engine.cost.trial import try_steps

    data = Path(recipe.data.path)
    facts: dict[str, Any] = plan(recipe, data=data, processes=processes)
    if not as_json:  # before the steps: a machine that cannot take them still says what they would need
        say(*_plan_lines(facts))
        say("a few real steps ...", err=True)
    facts["trial"] = try_steps(recipe, data=data, processes=processes)
    if as_json:
        say_json(facts)
    else:
        say(*_trial_lines(facts))


def _plan_lines(facts: dict[str, Any]) -> list[str]:
    from hdit_cli.runtime import readable

    pieces = [f"{facts['processes']} processes"] if facts["processes"] > 1 else []
    pieces += [f"accumulate {facts['accumulate']}"] if facts["accumulate"] > 1 else []
    split = " x ".join([*pieces, str(facts["micro_batch"])])
    rates = facts["learning_rate"]
    classes = f"{facts['classes']} classes" if facts["classes"] else "unconditional"
    sizes = f" of {len(facts['sizes'])} sizes" if len(facts["sizes"]) > 1 else ""
    lines = [
        _row("parameters", f"{facts['params']:,}"),
        _row("an image", f"{facts['gmacs']:,.3f} GMAC forward"),
        _row("data", f"{facts['images']:,} images{sizes}, {classes}; {facts['held_out'] or 'none'} held out"),
        _row("batch", f"{facts['batch']} = {split}"),
        _row("steps", f"{facts['steps']:,}; {facts['steps_per_epoch']:,.1f} an epoch, {facts['epochs']:,.1f} epochs"),
        _row(
            "learning rate",
            f"{rates['schedule']}: " + ", ".join(f"{v:.3g} at step {s:,}" for s, v in rates["at"].items()),
        ),
        _row("device", facts["device"]),
    ]
    memory = facts["memory"]
    lines.append(_row("memory", f"about {readable(memory['total'])} for tensors on each device, estimated"))
    return lines + [
        f"{'':<16}{readable(memory[name]):>10}  {name}{f', {what}' if what else ''}"
        for name, what in _PARTS.items()
        if memory.get(name)
    ]


def _trial_lines(facts: dict[str, Any]) -> list[str]:
    from hdit_cli.runtime import readable

    trial, estimated = facts["trial"], facts["memory"]["total"]
    alone = " of one process; what the others would send takes no time" if facts["processes"] > 1 else ""
    if trial["peak_bytes"]:
        off = estimated / trial["peak_bytes"] - 1
        measured = f"{readable(trial['peak_bytes'])} for tensors; the estimate is {abs(off):.0%} {'above' if off > 0 else 'below'}"
    elif facts["shard"]:
        measured = "not measured: divided weights are not followed on a CPU"
    else:
        measured = "not measured: the first step took too long for a second one"
    return [
        *(f"note: {text}" for text in trial["notes"]),
        _row("measured", measured),
        _row(
            "time",
            f"{trial['seconds_per_1000_steps']:,.1f} s for 1,000 steps, {trial['images_per_second']:,.1f} images/s",
        ),
        _row("", f"{_hours(trial['hours'])} for all {facts['steps']:,} steps, without saving and drawing"),
        _row("", f"(median of {trial['timed_steps']} steps{alone})"),
    ]


def _row(label: str, text: str) -> str:
    return f"{label:<15} {text}"


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:,.1f} hours"


def find(recipe: "Recipe", *, processes: int, memory: int | None, as_json: bool) -> None:
    """`--find-batch`: a table of what was tried, and the switches that use the best of it."""

    from hdit_cli.engine.cost.trial import find_batch

    found = find_batch(recipe, data=Path(recipe.data.path), processes=processes, memory=memory, watch=_tell)
    if as_json:
        say_json(_found_facts(found))
    else:
        say(*_found_page(found, processes))


def _tell(tried: "Try") -> None:
    say(_try_line(tried), err=True)


def _try_line(tried: "Try") -> str:
    from hdit_cli.runtime import readable

    speed = f"{tried.images_per_second:>10,.1f}" if tried.images_per_second is not None else f"{'-':>10}"
    return f"{tried.images:>6}  {speed}  {readable(tried.peak_bytes):>10}  {'fits' if tried.fits else 'does not fit'}"


def _found_facts(found: "Found") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "tries": [{**asdict(each), "fits": each.fits} for each in found.tries],
        "fastest": found.fastest.images,
        "notes": found.notes,
        "set": {"train.batch_size": found.batch_size, "train.accumulate": found.accumulate},
    }


def _found_page(found: "Found", processes: int) -> list[str]:
    from hdit_cli.runtime import readable

    limit = f" (what fits into {readable(found.limit)})" if found.limit else ""
    micro = found.batch_size // processes // found.accumulate
    shared = f" over {processes} processes" if processes > 1 else ""
    return [
        *(f"note: {text}" for text in found.notes),
        f"{'batch':>6}  {'images/s':>10}  {'memory':>10}",
        *map(_try_line, found.tries),
        f"fastest in one piece: {found.fastest.images} images{limit}; nothing was changed or written",
        f"the recipe's batch of {found.batch_size}{shared}, in pieces of {micro}:",
        f"  --set train.batch_size={found.batch_size} --set train.accumulate={found.accumulate}",
    ]
