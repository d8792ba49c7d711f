"""Says for each generated picture which class it is nearest to by colour, and how many are nearest to their own.

A class is the mean colour histogram of its training pictures (4 x 4 x 4 cells of RGB). A sample belongs to the class
whose histogram is nearest in total variation. It is a coarse check that asks one thing: did the label steer the colours?

    python examples/nearest_class.py samples/quickstart flowers --at-least 0.9
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

CELLS = 4  # along each of red, green and blue


def histogram(path: Path) -> np.ndarray:
    """Shares of the pixels in each cell of colour space. float (CELLS ** 3,), sums to 1."""
    with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(np.int64)
    red, green, blue = (pixels * CELLS // 256).T
    counts = np.bincount((red * CELLS + green) * CELLS + blue, minlength=CELLS**3)
    return counts / counts.sum()


def class_means(source: Path) -> dict[str, np.ndarray]:
    """Mean histogram of each class: the first-level sub-folders of `source`."""
    folders = sorted(entry for entry in source.iterdir() if entry.is_dir())
    return {
        folder.name: np.mean([histogram(path) for path in sorted(folder.glob("*.png"))], axis=0) for folder in folders
    }


def nearest(path: Path, means: dict[str, np.ndarray]) -> str:
    """The class whose mean histogram is nearest to that of one picture."""
    own = histogram(path)
    return min(means, key=lambda name: float(np.abs(means[name] - own).sum()) / 2)


def confusion(pictures: Iterable[tuple[Path, str]], means: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Counts by own class, then by nearest class."""
    counts = {name: dict.fromkeys(means, 0) for name in means}
    for path, name in pictures:
        counts[name][nearest(path, means)] += 1
    return counts


def labelled_samples(folder: Path) -> list[tuple[Path, str]]:
    """The pictures that `hdit sample` wrote, each with its class."""
    record = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return [(folder / image["file"], image["class"]) for image in record["images"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Which class is each generated picture nearest to by colour?")
    parser.add_argument("samples", type=Path, help="folder that `hdit sample` made")
    parser.add_argument("source", type=Path, help="the training pictures; sub-folders are the classes")
    parser.add_argument("--at-least", type=float, default=0.0, help="exit with 1 below this share (default 0)")
    options = parser.parse_args()
    counts = confusion(labelled_samples(options.samples), class_means(options.source))
    wide = max(map(len, counts))
    print(f"{'class':<{wide}}  " + "  ".join(f"{name:>{wide}}" for name in counts) + "   <- nearest to")
    for name, row in counts.items():
        print(f"{name:<{wide}}  " + "  ".join(f"{count:>{wide}}" for count in row.values()))
    total = sum(sum(row.values()) for row in counts.values())
    right = sum(row[name] for name, row in counts.items())
    print(f"{right} of {total} samples ({right / total:.1%}) are nearest to their own class")
    if right < options.at_least * total:
        sys.exit(f"fewer than the {options.at_least:.0%} asked for")


if __name__ == "__main__":
    main()
