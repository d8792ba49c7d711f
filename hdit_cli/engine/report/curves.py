"""Columns of numbers for the page's curves, from lines of the logs."""

from collections.abc import Callable, Sequence
from typing import Any

from hdit_cli.engine.report.logs import Axes, exact, newest_of_each_step, number, numbers, thinned
from hdit_cli.engine.report.pictures import evenly
from hdit_cli.engine.scoring.scores import net_words

SIGMAS = 16  # noise levels with a curve of their own
_NAMES = ("raw", "ema")  # of weights, in the order of the page; others come after


def log(lines: Sequence[dict[str, Any]], axes: Axes) -> dict[str, Any]:
    """Loss, gradient norm, learning rates and what else a run logs, by step."""
    names = ("loss", "grad_norm", "lr", "gradient_noise_scale", "skipped")
    values: dict[str, Callable[[dict[str, Any]], float | None]] = {name: _getter(name) for name in names}
    groups = list(dict.fromkeys(name for line in lines for name in _rates(line)))[:8]
    values |= {f"lr {name}": _rate_getter(name) for name in groups}
    return thinned(lines, values, axes)


def _getter(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda line: number(line.get(name))


def _rates(line: dict[str, Any]) -> dict[str, Any]:
    """Learning rates by parameter group, however they were written."""
    rates = line.get("lrs")
    if isinstance(rates, list):
        return {str(i): rate for i, rate in enumerate(rates)}
    return rates if isinstance(rates, dict) else {}


def _rate_getter(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda line: number(_rates(line).get(name))


def timing(lines: Sequence[dict[str, Any]], axes: Axes) -> dict[str, Any]:
    """Images per second and peak memory in GiB."""

    def memory(line: dict[str, Any]) -> float | None:
        peak = exact(line.get("peak_bytes"))
        return None if peak is None else peak / 2**30

    return thinned(lines, {"images_per_second": _getter("images_per_second"), "memory": memory}, axes)


def _by_sigma(line: dict[str, Any]) -> dict[float, float]:
    """Noise level => loss of one line of metrics.jsonl."""
    pairs = line.get("loss_by_sigma")
    found = [numbers(pair) for pair in pairs] if isinstance(pairs, list) else []
    return {pair[0]: pair[1] for pair in found if len(pair) == 2 and pair[0] and pair[0] > 0 and pair[1] is not None}  # type: ignore[misc]


def sigma(lines: Sequence[dict[str, Any]], axes: Axes) -> dict[str, Any]:
    """Training loss by noise level.

    Returns:
        latest: {"sigmas", "loss"}, the mean over the last tenth of the run; over_time: a table with a column for each of
        `sigmas`; total: how many levels the run has. Empty where a run logs none.
    """
    told = [(line, by) for line in lines if (by := _by_sigma(line))]
    if not told:
        return {}
    levels = sorted({level for _, by in told for level in by})
    recent = [by for _, by in told[-max(1, len(told) // 10) :]]
    latest = [[by[level] for by in recent if level in by] for level in levels]
    chosen = [levels[i] for i in evenly(range(len(levels)), SIGMAS)]
    rows = [{"step": line["step"], "by": by} for line, by in told]
    values: dict[str, Callable[[dict[str, Any]], float | None]] = {
        f"{level:g}": (lambda line, level=level: line["by"].get(level)) for level in chosen
    }
    return {
        "latest": {"sigmas": levels, "loss": [number(sum(row) / len(row)) if row else None for row in latest]},
        "lines_in_latest": len(recent),
        "over_time": thinned(rows, values, axes),
        "sigmas": chosen,
        "total": len(levels),
    }


def validation(lines: Sequence[dict[str, Any]], axes: Axes) -> list[dict[str, Any]]:
    """The curves of validation.jsonl, one for each kind of weights and split: means, and losses by noise level."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        if number(line.get("mean")) is not None:
            kinds.setdefault((str(line.get("weights", "?")), str(line.get("split", "?"))), []).append(line)
    curves = []
    for (weights, split), found in sorted(kinds.items(), key=lambda entry: (_place(entry[0][0]), entry[0])):
        rows = newest_of_each_step(found)
        curves.append(
            {
                "weights": weights,
                "split": split,
                "n": number(rows[-1].get("n")),
                "table": thinned(rows, {"mean": _getter("mean")}, axes),
                "latest": _levels(rows[-1]),
                "best": _levels(min(rows, key=lambda line: line["mean"])),
            }
        )
    return curves


def _place(weights: str) -> int:
    return _NAMES.index(weights) if weights in _NAMES else len(_NAMES)


def _levels(line: dict[str, Any]) -> dict[str, Any]:
    """Loss by noise level of one line of validation.jsonl."""
    sigmas, loss = numbers(line.get("sigmas")), numbers(line.get("loss"))
    pairs = [pair for pair in zip(sigmas, loss, strict=False) if pair[0] and pair[0] > 0 and pair[1] is not None]
    return {"step": line["step"], "sigmas": [pair[0] for pair in pairs], "loss": [pair[1] for pair in pairs]}


def scores(lines: Sequence[dict[str, Any]], axes: Axes) -> list[dict[str, Any]]:
    """Every evaluation, with its place on the axes and what its numbers depend on as one text."""
    found = []
    for line in sorted(lines, key=lambda line: line["step"]):
        values = line.get("scores")
        told = {str(name): number(value) for name, value in values.items()} if isinstance(values, dict) else {}
        told = {name: value for name, value in told.items() if value is not None}
        if told:
            place = {name: column[0] for name, column in axes.columns([line["step"]]).items()}
            found.append({**place, "scores": told, **_conditions(line)})
    return found


def _conditions(line: dict[str, Any]) -> dict[str, Any]:
    how, reference = line.get("sampling"), line.get("reference")
    how = how if isinstance(how, dict) else {}
    words = [str(how.get("sampler", "")), f"{how['steps']} steps" if "steps" in how else ""]
    words.append(f"cfg {how['cfg']}" if how.get("cfg") not in (None, 1, 1.0) else "")
    words.append(f"cfg within {how['cfg_interval']}" if how.get("cfg_interval") else "")
    guided = how.get("cfg_channels") and how.get("cfg") not in (None, 1, 1.0)
    words.append(f"cfg on the first {how['cfg_channels']} channels" if guided else "")
    words.append(f"class {how['label']}" if how.get("label") is not None else "")
    words.append(f"size {how['size']}" if how.get("size") else "")
    words.append(net_words(line.get("features")))  # a curve of two nets would be of nothing
    told = reference if isinstance(reference, dict) else {"path": reference}
    return {
        "weights": str(line.get("weights", "?")),
        "n": number(line.get("n")),
        "sampling": ", ".join(word for word in words if word),
        "seed": str(how["seed"]) if "seed" in how else "",
        "reference": str(told.get("path") or ""),
        "reference_count": number(told.get("count")),
        "date": str(line.get("date", "")),
    }
