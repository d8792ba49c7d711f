"""Where the reference tensors lie: found by their layout in ../shared/golden, and in and under the folder $HDIT_GOLDEN."""

import os
from pathlib import Path

_DEPTHS = ("", "*/", "*/*/")  # the folder itself, and two levels below it
_BESIDE = ("config.json", "io.safetensors", "facts.json")  # what a case has beside its weights


def roots() -> list[Path]:
    told = os.environ.get("HDIT_GOLDEN")
    return [Path(__file__).parents[3] / "shared" / "golden", *([Path(told)] if told else [])]


def found(name: str, places: list[Path] | None = None) -> list[Path]:
    """The files of that name, each once."""
    places = roots() if places is None else places
    return sorted({path.resolve() for place in places for depth in _DEPTHS for path in place.glob(f"{depth}{name}")})


def cases(weights: str, places: list[Path] | None = None) -> list[Path]:
    """The folders with a whole case whose weights are in a file of that name."""
    folders = [path.parent for path in found(weights, places)]
    return [folder for folder in folders if all((folder / name).is_file() for name in _BESIDE)]
