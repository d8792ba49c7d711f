"""Names for the weights of a run: "ema" (the main average), "raw", or "std 0.050" (a power-function average by its width).

No torch here: commands check what a user typed before anything slow is loaded.
"""

from hdit_cli.errors import UsageError
from hdit_cli.recipe.sections import STD_MAX, STD_MIN

_PREFIX = "std "


def parse(weights: str | float) -> str:
    """The name that a user's word or number means.

    Args:
        weights: "ema", "raw", or a relative standard deviation: 0.05, "0.05", "std 0.050".

    Raises:
        UsageError: none of these, or out of range.
    """
    text = str(weights).strip().lower()
    if text in ("ema", "raw"):
        return text
    try:
        std = float(text.removeprefix(_PREFIX))
    except ValueError:
        raise UsageError(
            f"--weights {weights!r} is neither ema nor raw nor a number", hint="a relative width, for example 0.05"
        ) from None
    return name_of(check_std(std))


def check_std(std: float) -> float:
    """The relative standard deviation, if power-function averages have it.

    Raises:
        UsageError: out of range, or not a number.
    """
    if not STD_MIN <= std <= STD_MAX:
        raise UsageError(
            f"{std:g} is no relative standard deviation of an average",
            hint=f"from {STD_MIN:g} to {STD_MAX:g}; 0.05 and 0.10 are usual",
        )
    return std


def parse_stds(text: str) -> list[float]:
    """The relative standard deviations of a list with commas, each once.

    Raises:
        UsageError: none, not numbers, or out of range.
    """
    try:
        found = [check_std(float(word)) for word in text.split(",") if word.strip()]
    except ValueError:
        found = []
    if not found:
        raise UsageError(f"--std {text!r} is not a list of numbers", hint="with commas: 0.05,0.10")
    return list(dict.fromkeys(found))


def label(std: float) -> str:
    """A width as names spell it: at least three decimals, and never two widths alike."""
    text = f"{std:.3f}"
    return text if float(text) == std else repr(std)


def name_of(std: float) -> str:
    """What `hdit.weights` says of an average of this width: "std 0.050"."""
    return f"{_PREFIX}{label(std)}"


def std_of(name: str) -> float | None:
    """The width that a name from `parse` or a header tells; None for "ema" and "raw"."""
    return float(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None


def file_name(std: float) -> str:
    """Of an inference file with an average of this width."""
    return f"ema-{label(std)}.safetensors"


def option(name: str) -> str:
    """What to type after --weights for a name."""
    return name.removeprefix(_PREFIX)
