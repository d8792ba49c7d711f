"""A small labelled set of drawn pictures: several shapes, modes and file types, the same bytes at each call."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
EACH = 8


def draw(folder: Path) -> None:
    """Writes CLASSES sub-folders of EACH pictures; the sides are 130 to 230 pixels."""
    for kind in range(CLASSES):
        place = folder / f"kind-{kind}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(EACH):
            rng = np.random.default_rng([kind, number])
            height, width = (int(side) for side in rng.integers(130, 231, size=2))
            picture = Image.fromarray(_blobs(rng, height, width))
            if number == 1:
                picture = picture.convert("L")
            if number == 2:
                picture.putalpha(
                    Image.fromarray(np.linspace(0, 255, height * width).astype(np.uint8).reshape(height, -1))
                )
            suffix = "jpg" if number > 4 else "png"
            picture.save(place / f"{number}.{suffix}", **({"quality": 90} if suffix == "jpg" else {}))


def _blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:  # => uint8 (H, W, 3)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    picture = np.ones((height, width, 3)) * rng.uniform(40, 200, size=3)
    for _ in range(4):
        y, x, radius = rng.uniform(0.1, 0.8), rng.uniform(0.1, 0.8), rng.uniform(0.1, 0.4)
        share = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / radius**2)[..., None]
        picture = picture * (1 - share) + share * rng.uniform(0, 255, size=3)
    return np.clip(picture + rng.normal(0, 6, size=picture.shape), 0, 255).astype(np.uint8)
