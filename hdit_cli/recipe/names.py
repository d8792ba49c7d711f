"""What of a recipe may be told to others: the name of a folder, never the way there, which names its user too."""

import re
from copy import deepcopy
from typing import Any

# keys whose values are places on a disk
_PLACES = (("data", "path"), ("validation", "path"))


def named(path: str) -> str:
    """The last part of a path of any system: "pictures/flowers/" => "flowers"; "" of what has none."""
    return next((part for part in reversed(re.split(r"[\\/]+", path)) if part not in ("", ".", "..", "~")), "")


def without_folders(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe given as `Recipe.to_dict`, with names in the place of paths: data, validation, feature net."""
    told = deepcopy(values)
    for section, key in _PLACES:
        if key in told.get(section, {}):
            told[section][key] = named(told[section][key])
    features = told.get("eval", {}).get("features")
    if features:
        kind, colon, path = features.partition(":") if re.match(r"[\w-]{2,}:", features) else ("", "", features)
        told["eval"]["features"] = f"{kind}{colon}{named(path)}"
    return told
