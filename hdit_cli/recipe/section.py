"""What every section of a recipe is: frozen, strict, bounded, and able to report several problems at once."""

import difflib
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError
from pydantic_core import PydanticCustomError

from hdit_cli import catalog

# a key path within the section, and what is wrong there
Problem = tuple[tuple[str | int, ...], str]


class Section(BaseModel):
    """Base of all sections. Values are checked once, when the recipe is read, and never change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def stop_at(problems: Iterable[Problem]) -> None:
    """Raises all problems of a section as one pydantic error; returns if there are none."""
    found = [(list(path), sentence) for path, sentence in problems]
    if found:
        raise PydanticCustomError("problems", "several values do not fit together", {"problems": found})


def first_problem(error: ValidationError) -> Problem:
    """The first thing that pydantic found wrong, of a section that is chosen by its type: its key path there, and what."""
    first = error.errors()[0]
    found = first.get("ctx", {}).get("problems")
    path, what = found[0] if found else (first["loc"][1:], first["msg"])  # the first of a place is the type
    return tuple(path), what


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like `name`, whatever its case; None where nothing is near."""
    by_lower = {choice.lower().replace("-", "_"): choice for choice in choices}
    close = difflib.get_close_matches(name[:100].lower().strip().replace("-", "_"), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def nearest_multiple(value: int, unit: int) -> int:
    """The multiple of `unit` nearest to `value`, at least one `unit`."""
    return max(unit, (value + unit // 2) // unit * unit)


def one_of(kind: str) -> Callable[[str], str]:
    """A validator: the value names a component of this kind in the catalog."""

    def check(value: str) -> str:
        if value not in catalog.names(kind):
            raise PydanticCustomError("choice", "unknown", {"choices": catalog.names(kind)})
        return value

    return check


def no_control_characters(value: str) -> str:
    """A validator: no NUL, newline or other control character."""
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise PydanticCustomError("sentence", "{text}", {"text": "has a control character in it"})
    return value


def a_feature_net(value: str) -> str:
    """A validator: the value names a feature net as `--features` does, NAME, NAME:PATH, or a .pt2 file."""
    known = [name for name in catalog.names("features") if name != "exported"]
    if value.partition(":")[0] not in known and not value.endswith(".pt2"):
        text = f"{value!r} names no feature net: one of {', '.join(known)} (NAME:PATH), or a .pt2 file"
        raise PydanticCustomError("sentence", "{text}", {"text": text})
    return value


# TOML knows lists only; they become tuples, whose entries stay strict
Listed = Strict(False)

PathText = Annotated[str, Field(max_length=4096), AfterValidator(no_control_characters)]
SamplerName = Annotated[str, AfterValidator(one_of("sampler"))]
ScheduleName = Annotated[str, AfterValidator(one_of("schedule"))]
WeightingName = Annotated[str, AfterValidator(one_of("weighting"))]
LearningRateName = Annotated[str, AfterValidator(one_of("learning-rate"))]
MetricName = Annotated[str, AfterValidator(one_of("metric"))]
FeaturesName = Annotated[PathText, AfterValidator(a_feature_net)]
Sigma = Annotated[float, Field(gt=0.0, le=1e6)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what TOML and JSON hold."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
