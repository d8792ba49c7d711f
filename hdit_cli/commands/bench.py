"""`hdit bench RECIPE`: how fast a recipe trains and samples on this machine, and where the time goes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hdit_cli.commands import completion
from hdit_cli.commands import sampling as shared
from hdit_cli.commands.numbers import MOST_STEPS, whole
from hdit_cli.commands.recipe import complete_recipe, tell_stand_in
from hdit_cli.commands.say import say, say_json


def bench(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe file, or the name of a shipped recipe (`hdit recipe`).", autocompletion=complete_recipe
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A prepared data set; without one, noise stands for pictures.", show_default=False
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the recipe, e.g. train.batch_size=8; repeatable.",
            autocompletion=completion.settings,
            show_default=False,
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option(help="Rounds of each comparison.", parser=whole("--runs", least=1, most=10_000))
    ] = 5,
    steps: Annotated[
        int, typer.Option(help="Steps of the sampler.", parser=whole("--steps", least=1, most=MOST_STEPS))
    ] = 10,
    compile_: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compare the compiled training step with the eager one. The step itself is timed as `train` takes it.",
            show_default="on CUDA alone",
        ),
    ] = None,
    precision: shared.Precision = None,
    sizes: Annotated[
        str, typer.Option(metavar="N,...", help="Image sides of a curve over resolution.", show_default=False)
    ] = "",
    batches: Annotated[
        str, typer.Option(metavar="N,...", help="Batch sizes of a curve over the batch.", show_default=False)
    ] = "",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the measurements as a PNG.", show_default=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="The same facts as JSON.")] = False,
) -> None:
    """Measure a recipe here: speed of training and sampling, time by part, attention backends, curves."""

    from hdit_cli import launchers, runtime
    from hdit_cli.engine.bench.report import Wanted
    from hdit_cli.engine.bench.report import bench as measure
    from hdit_cli.recipe import load_recipe

    launchers.check_alone("bench")
    tell_stand_in(recipe)
    loaded = load_recipe(recipe, list(set_ or ()))
    device = runtime.device()
    compiled = device.type == "cuda" and not runtime.why_not_compiled(device) if compile_ is None else compile_
    if plot:
        from hdit_cli.engine.bench.plot import check

        check()
    curves = _whole("--sizes", sizes), _whole("--batches", batches)
    wanted = Wanted(runs, steps, compiled, *curves, precision=precision and precision.value)
    facts = measure(loaded, data=data, wanted=wanted, watch=lambda text: say(f"{text} ...", err=True))
    if plot:
        from hdit_cli.engine.bench.plot import plot as draw

        draw(facts, plot)
    if json_:
        say_json(facts)
    else:
        say(*_page(facts))


def _whole(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers above 0 from "1,2,4".

    Raises:
        UsageError: something else is among them.
    """
    from hdit_cli.errors import UsageError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and len(word) < 20 and 0 < int(word) < 100_000 for word in words):
        raise UsageError(f"{option} {text[:80]!r} is not a list of whole numbers", hint=f"for example {option} 1,2,4")
    return tuple(int(word) for word in words)


def _page(facts: dict[str, Any]) -> list[str]:
    from hdit_cli.runtime import readable

    environment, train, sampling = facts["environment"], facts["train"], facts["sampling"]
    lines = [
        f"{facts['recipe']}, batch {facts['batch_size']}, {facts['precision']}, {facts['gmacs']:.4g} GMAC an image",
        f"{environment['hardware']}, torch {environment['torch']}, hdit {environment['hdit']}, {facts['date']}; "
        f"{facts['runs']} rounds: median (least to most)",
        "",
        _speed("training step", train) + f", {readable(train['peak_bytes'])} at the fullest",
        *_how(train),
        _speed(f"sampling, batch {sampling['batch_size']}", sampling),
        f"  {sampling['steps']} steps of {sampling['sampler']}, {_percent(sampling['outside_the_network'])} outside the network",
        *_how(sampling),
        *(f"note: {note}" for note in train["notes"]),
    ]
    if "data" in facts:
        lines.append(
            f"{'reading alone':<22} {_ms(facts['data']['seconds'])}, {facts['data']['images_per_second']:,.4g} images/s"
        )
    else:
        lines.append("reading alone          not measured: give --data")
    eager = ", of the eager one" if train["compiled"] else ""
    lines += ["", f"parts of a training step, forward and backward{eager}"]
    whole = sum(facts["parts"].values())
    lines += [f"  {part:<40} {s * 1e3:9.2f} ms  {s / whole:6.1%}" for part, s in facts["parts"].items()]
    lines.append(f"  {'all, with the stamps':<40} {whole * 1e3:9.2f} ms")
    for level in facts["attention"]:
        images, height, width, heads, d = level["shape"]
        shape = f"{images} x {height}x{width} tokens, {heads} heads of {d}, kernel {level['kernel']}"
        lines += ["", f"attention of level {level['level']}: {shape}; times the chosen one's time"]
        lines += [_backend(name, row) for name, row in level["backends"].items()]
        lines += [f"  the compiled step has {level['in_compiled_step']}"] if level["in_compiled_step"] else []
    if "compiled" in facts:
        found = facts["compiled"]
        lines += ["", f"eager {_ms(found['eager_seconds'])}, compiled {_ms(found['compiled_seconds'])}"]
        lines.append(
            f"  compiled is {_times(found['times_faster'])} as fast; its first step took {found['first_step_seconds']:.1f} s"
        )
    for name, head in (("sizes", "side"), ("batches", "batch")):
        if name in facts:
            lines += ["", f"{head:>6}  images/s   ns/pixel   bytes/pixel   TFLOP/s   training step"]
        for point in facts.get(name, []):
            lines.append(
                f"{point['value']:>6}  {point['images_per_second']:>8.4g}  {point['nanoseconds_per_pixel']:>9.1f}  "
                f"{point['bytes_per_pixel']:>12,.0f}  {point['tflops']:>8.4f}   {_ms(point['seconds'])}"
            )
    return lines


def _speed(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:<22} {_ms(row['seconds'])}, {row['images_per_second']:,.4g} images/s, {row['tflops']:.4g} TFLOP/s, "
        f"{row['mfu']:.1%} of a {row['product']} matrix product's {row['product_tflops']:.4g}"
    )


def _how(row: dict[str, Any]) -> list[str]:
    """That it is compiled, and how long that took."""
    return [f"  compiled in {row['compile_seconds']:.1f} s, which do not count"] if row["compiled"] else []


def _backend(name: str, row: dict[str, Any]) -> str:
    mark = "*" if row["chosen"] else " "
    if "both_seconds" not in row:
        return f" {mark}{name:<10} {row['why_not']}"
    times = "" if row["chosen"] else f"  x{row['forward_to_chosen'][0]:.2f}, x{row['both_to_chosen'][0]:.2f}"
    why = f"  ({row['why_not']})" if row["why_not"] else ""
    return (
        f" {mark}{name:<10} forward {_ms(row['forward_seconds'])}; with backward {_ms(row['both_seconds'])}{times}{why}"
    )


def _ms(spread: list[float]) -> str:
    return f"{spread[0] * 1e3:,.4g} ms ({spread[1] * 1e3:,.4g} to {spread[2] * 1e3:,.4g})"


def _percent(spread: list[float]) -> str:
    return f"{spread[0]:.1%} ({spread[1]:.1%} to {spread[2]:.1%})"


def _times(spread: list[float]) -> str:
    return f"{spread[0]:.2f} times ({spread[1]:.2f} to {spread[2]:.2f})"
